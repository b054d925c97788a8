//! The TCG plugin that watches what the hypervisor executes (`assets/el2.c`).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tenure_abi::header::Constant;
use tenure_abi::{call, guest, smccc};

use super::profile::Profile;
use crate::qemu::IMAGE_ADDRESS;
use crate::{exec, paths};

const SOURCE: &str = include_str!("../../assets/el2.c");
const LIMIT: Duration = Duration::from_secs(60);

/// The compiled plugin.
pub struct Plugin {
    object: PathBuf,
    out: PathBuf,
}

/// What it counted, in instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the hypervisor's address range.
    pub inside: u64,
    /// Everywhere.
    pub all: u64,
    /// How often the range was left again.
    pub entries: u64,
    /// The first stretch inside: the start of the machine.
    pub start: u64,
    /// The longest later stretch.
    pub longest: u64,
    /// The longest stretch of each call, and of what is no call.
    pub stretches: Vec<Stretch>,
    /// What was executed in the windows of each section, in their order.
    pub sections: Vec<Profile>,
}

/// The longest stretch between an entry for one reason and the next exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Offset of the vector in the table << 32 | id of the call, 0 if it was none.
    pub key: u64,
    /// Instructions.
    pub length: u64,
    /// What they were.
    pub profile: Profile,
}

impl Stretch {
    /// A CPU's first stretch does not begin with an exception.
    pub fn is_start(&self) -> bool {
        !matches!(self.key >> 32, 0x400 | 0x480 | 0x500 | 0x580)
    }

    /// The call by its name, or what else led to EL2.
    pub fn name(&self) -> String {
        let id = self.key & 0xffff_ffff;
        match (self.key >> 32, id) {
            (0x400, 0) => "abort or trap".to_owned(),
            (0x400, id) => call_name(id),
            (0x480, _) => "interrupt of a guest".to_owned(),
            (0x500, _) => "FIQ of a guest".to_owned(),
            (0x580, _) => "SError".to_owned(),
            _ => "start of a CPU".to_owned(),
        }
    }
}

fn call_name(id: u64) -> String {
    let named = |table: &'static [Constant]| table.iter().find(|entry| entry.value == id);
    let name = [call::TABLE, guest::TABLE, smccc::TABLE].into_iter().find_map(named).map(|entry| entry.name);
    name.map_or_else(|| format!("call {id:#x}"), |name| name.trim_start_matches("TENURE_").to_owned())
}

impl Plugin {
    /// Compiles the plugin.
    ///
    /// # Errors
    /// The compiler's own words.
    pub fn build() -> Result<Self> {
        let dir = paths::target().join("plugin");
        fs::create_dir_all(&dir)?;
        let source = dir.join("el2.c");
        fs::write(&source, SOURCE)?;
        let object = dir.join("el2.so");
        let compiler = if paths::which("gcc").is_some() { "gcc" } else { "cc" };
        let mut gcc = Command::new(compiler);
        gcc.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-o"])
            .arg(&object)
            .arg(&source);
        exec::logged(&mut gcc, "build-plugin", LIMIT)?;
        Ok(Self { object, out: dir.join("counts") })
    }

    /// QEMU's arguments, watching the hypervisor's image.
    ///
    /// # Errors
    /// If it is not built.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let _ = fs::remove_file(&self.out);
        let size = fs::metadata(paths::image()).context("the hypervisor is not built")?.len();
        let (begin, end) = (IMAGE_ADDRESS, IMAGE_ADDRESS + size / 4 * 4);
        let range = format!("begin={begin:#x},end={end:#x},out={}", self.out.display());
        Ok(vec!["-plugin".to_owned(), format!("{},{range}", self.object.display())])
    }

    /// What the machine that just ended did.
    ///
    /// # Errors
    /// If the plugin has written nothing, or the hypervisor was never entered.
    pub fn counts(&self) -> Result<Counts> {
        let text = fs::read_to_string(&self.out).context("QEMU's plugin has written no counts")?;
        let counts = parse(&text).context("QEMU's plugin has written something unexpected")?;
        anyhow::ensure!(counts.entries > 0, "the hypervisor was never entered at {IMAGE_ADDRESS:#x}");
        Ok(counts)
    }
}

/// Reads the plugin's lines.
fn parse(text: &str) -> Option<Counts> {
    let mut counts = Counts::default();
    let mut met = 0;
    for line in text.lines() {
        let mut words = line.split(' ');
        let (name, first) = (words.next()?, words.next()?);
        let number = || first.parse::<u64>().ok();
        let second = words.next().map(|word| word.parse::<u64>());
        let place = match name {
            "inside" => &mut counts.inside,
            "all" => &mut counts.all,
            "entries" => &mut counts.entries,
            "start" => &mut counts.start,
            "longest" => &mut counts.longest,
            "stretch" => {
                let (key, length) = (u64::from_str_radix(first, 16).ok()?, second?.ok()?);
                counts.stretches.push(Stretch { key, length, profile: Profile::new() });
                continue;
            }
            "section" => {
                counts.sections.push(Profile::new());
                continue;
            }
            "at" => {
                let stretch = counts.stretches.last_mut().map(|stretch| &mut stretch.profile);
                let profile = counts.sections.last_mut().or(stretch)?;
                profile.insert(u64::from_str_radix(first, 16).ok()?, second?.ok()?);
                continue;
            }
            _ => return None,
        };
        *place = number()?;
        met += 1;
    }
    (met == 5).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_name() {
        let text = "inside 5\nall 100\nentries 2\nstart 4\nlongest 3\nstretch 400c6000100 3\nat 40 3\n\
                    section 1\nat 1c 7\nat 20 8\nsection 2\n";
        let counts = parse(text).unwrap();
        assert_eq!(
            (counts.inside, counts.all, counts.entries, counts.start, counts.longest),
            (5, 100, 2, 4, 3)
        );
        assert_eq!(counts.stretches[0].name(), "CALL_VERSION");
        assert_eq!(counts.stretches[0].profile, Profile::from([(0x40, 3)]));
        assert_eq!(counts.sections, [Profile::from([(0x1c, 7), (0x20, 8)]), Profile::new()]);
        assert_eq!(parse("inside 5\nall 100\n"), None);
    }

    #[test]
    fn what_is_no_call_is_named_by_its_vector() {
        let name = |key| Stretch { key, ..Stretch::default() }.name();
        assert_eq!(name(0x400 << 32), "abort or trap");
        assert_eq!(name(0x480 << 32), "interrupt of a guest");
        assert_eq!(name(0x400 << 32 | 0x8400_0000), "call 0x84000000");
    }
}
