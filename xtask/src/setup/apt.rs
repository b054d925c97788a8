//! Debian's package manager with a private configuration: other suites and the arm64 architecture can be reached
//! without any change to the machine's own sources.
//!
//! The mirror is never written down: `apt-get indextargets` tells what the machine itself is configured for, whether
//! that stands in `.list` or in deb822 `.sources` files. The private configuration is one file in the cache that
//! `apt-get -c` reads, so that a command shown to the user stays short.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{exec, ui};

/// Debian's archive key, used for the private sources where it is installed; else apt's own trust applies.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
/// Time limits of a download of the lists and of an installation.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// Debian's package manager under the private configuration.
pub struct Apt {
    dir: PathBuf,
}

/// One binary package index that the machine is configured for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The archive's address, as the machine's own configuration gives it.
    pub site: String,
    /// The suite: `bookworm`, `bookworm-security` ...
    pub suite: String,
    /// The component: `main` ...
    pub component: String,
}

impl Apt {
    /// The package manager with its private files below `cache`.
    ///
    /// # Errors
    /// None now; the files are written by [`Apt::update`].
    pub fn new(cache: &Path) -> Result<Self> {
        Ok(Self { dir: cache.join("apt") })
    }

    /// The configuration for installing on this machine (its own architecture only).
    pub fn install_config(&self) -> PathBuf {
        self.dir.join("install.conf")
    }

    fn fetch_config(&self) -> PathBuf {
        self.dir.join("fetch.conf")
    }

    /// Downloads the package lists into the cache, once: later calls find them there.
    ///
    /// # Errors
    /// If this is not Debian, or the lists cannot be had.
    pub fn update(&self, spinner: &ui::Spinner) -> Result<()> {
        let stamp = self.dir.join("updated");
        if stamp.exists() {
            return Ok(());
        }
        let release = os_release()?;
        let native = native_architecture()?;
        let sources = sources_list(&machine_sources()?, &release, &native, keyring())?;
        fs::create_dir_all(self.dir.join("lists/partial"))
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        fs::write(self.dir.join("sources.list"), sources)?;
        fs::write(self.dir.join("preferences"), preferences(&release))?;
        fs::write(self.install_config(), self.config(&[&native]))?;
        fs::write(self.fetch_config(), self.config(&[&native, "arm64"]))?;
        spinner.say("fetching package lists");
        let mut command = self.get(&self.fetch_config());
        exec::logged(command.args(["-q", "update"]), "setup-apt-update", UPDATE_LIMIT)?;
        fs::write(stamp, "")?;
        Ok(())
    }

    /// The configuration file's text for these architectures.
    fn config(&self, architectures: &[&str]) -> String {
        let dir = self.dir.display();
        let architectures: String = architectures.iter().map(|name| format!("\"{name}\"; ")).collect();
        format!(
            "// Written by `cargo xtask setup`: package lists of its own, beside the machine's.\n\
             #clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear APT::Architectures;\n\
             APT::Architectures {{ {architectures}}};\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Dir::Etc::SourceList \"{dir}/sources.list\";\n\
             Dir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"{dir}/preferences\";\n\
             Dir::State::Lists \"{dir}/lists\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n"
        )
    }

    fn get(&self, config: &Path) -> Command {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").arg("-c").arg(config);
        command
    }

    /// Installs packages on the machine, all in one go. Only root may.
    ///
    /// # Errors
    /// If apt refuses.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = self.get(&self.install_config());
        command.args(["install", "-q", "-y", "--no-install-recommends"]).args(packages);
        exec::logged(&mut command, "setup-apt-install", INSTALL_LIMIT)
    }

    /// All stanzas that `apt-cache show` has for a package, each as (field, value) pairs.
    ///
    /// # Errors
    /// If the lists hold no such package.
    pub fn show(&self, package: &str) -> Result<Vec<Stanza>> {
        let mut command = Command::new("apt-cache");
        command.env("LC_ALL", "C.UTF-8").arg("-c").arg(self.fetch_config()).args(["show", package]);
        Ok(stanzas(&exec::output(&mut command)?))
    }

    /// Downloads packages (checked by apt against the signed lists) and unpacks them into `into`.
    ///
    /// # Errors
    /// If a package is not there, its hash is wrong, or it cannot be unpacked.
    pub fn unpack(&self, packages: &[String], into: &Path, spinner: &ui::Spinner) -> Result<()> {
        let debs = into.with_extension("debs");
        let _ = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(into)?;
        spinner.say("downloading");
        let mut command = self.get(&self.fetch_config());
        command.current_dir(&debs).args(["-q", "download"]).args(packages);
        exec::logged(&mut command, "setup-apt-download", UPDATE_LIMIT)?;
        spinner.say("unpacking");
        for entry in fs::read_dir(&debs)? {
            exec::output(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(into))?;
        }
        fs::remove_dir_all(&debs)?;
        Ok(())
    }
}

/// One paragraph of a control file.
pub struct Stanza(Vec<(String, String)>);

impl Stanza {
    /// The value of a field; empty if it is not there.
    pub fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The names that a dependency field lists, without versions; the first of alternatives.
    pub fn names(&self, field: &str) -> Vec<&str> {
        let first = |item: &'_ str| item.find(['|', '(']).unwrap_or(item.len());
        self.field(field)
            .split(',')
            .map(|item| item[..first(item)].trim())
            .filter(|name| !name.is_empty())
            .collect()
    }
}

fn stanzas(text: &str) -> Vec<Stanza> {
    let fields = |paragraph: &str| {
        let plain = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
        let pairs = plain.filter_map(|line| line.split_once(':'));
        Stanza(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    };
    text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()).map(fields).collect()
}

/// The code name of this Debian release.
fn os_release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    debian_codename(&text).context(
        "this machine does not say that it is a Debian release, and the set-up fetches Debian packages. \
         On another system install by hand: qemu-system-aarch64 >= 10.0, aarch64-linux-gnu-gcc with its static libc, \
         make; the kernel, its headers and busybox come from a Debian 12 or 13 machine or container",
    )
}

fn debian_codename(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    if value("ID")? != "debian" {
        return None;
    }
    value("VERSION_CODENAME").filter(|name| !name.is_empty())
}

fn native_architecture() -> Result<String> {
    Ok(exec::output(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

fn keyring() -> Option<&'static str> {
    KEYRINGS.into_iter().find(|file| Path::new(file).exists())
}

/// What the machine's own configuration, in either format, takes packages from.
fn machine_sources() -> Result<Vec<Source>> {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C.UTF-8").args(["indextargets", "--no-release-info"]);
    command.args(["--format", "$(SITE)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"]);
    Ok(index_targets(&exec::output(&mut command)?))
}

fn index_targets(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.split('|').map(str::to_owned);
        if let (Some(site), Some(suite), Some(component)) = (parts.next(), parts.next(), parts.next()) {
            let source = Source { site, suite, component };
            if !found.contains(&source) {
                found.push(source);
            }
        }
    }
    found
}

/// The private source list: the machine's own sources of this release in `main`, and the release's backports from the
/// same mirror, each for the machine's architecture and arm64.
fn sources_list(machine: &[Source], release: &str, native: &str, keyring: Option<&str>) -> Result<String> {
    let of_release = |source: &&Source| {
        let kinds = ["", "-updates", "-security"].map(|kind| format!("{release}{kind}"));
        source.component == "main" && kinds.contains(&source.suite.replace('/', "-"))
    };
    let mut wanted: Vec<(String, String)> =
        machine.iter().filter(of_release).map(|source| (source.site.clone(), source.suite.clone())).collect();
    let Some((mirror, _)) = wanted.iter().find(|(_, suite)| suite == release).cloned() else {
        bail!(
            "apt on this machine is not configured for {release}'s main component: see `apt-get indextargets`"
        );
    };
    wanted.push((mirror, format!("{release}-backports")));
    wanted.dedup();
    let signed = keyring.map(|file| format!(" signed-by={file}")).unwrap_or_default();
    let architectures = if native == "arm64" { "arm64".to_owned() } else { format!("{native},arm64") };
    let line = |(site, suite): &(String, String)| {
        format!("deb [arch={architectures}{signed}] {site} {suite} main\n")
    };
    Ok(wanted.iter().map(line).collect())
}

/// QEMU is taken from backports, nothing else is.
fn preferences(release: &str) -> String {
    format!("Package: src:qemu\nPin: release n={release}-backports\nPin-Priority: 990\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(site: &str, suite: &str, component: &str) -> Source {
        Source { site: site.into(), suite: suite.into(), component: component.into() }
    }

    #[test]
    fn index_targets_are_read_once_each() {
        let text =
            "http://m/debian|bookworm|main\nhttp://m/debian|bookworm|main\nhttp://s|bookworm-security|main\n";
        let want =
            [source("http://m/debian", "bookworm", "main"), source("http://s", "bookworm-security", "main")];
        assert_eq!(index_targets(text), want);
    }

    #[test]
    fn backports_come_from_the_machines_own_mirror() {
        let machine = [
            source("http://m/debian", "bookworm", "main"),
            source("http://m/debian", "bookworm", "contrib"),
            source("http://other", "nodistro", "main"),
            source("http://s", "bookworm-security", "main"),
        ];
        let list = sources_list(&machine, "bookworm", "amd64", Some("/k.gpg")).unwrap();
        let want = "deb [arch=amd64,arm64 signed-by=/k.gpg] http://m/debian bookworm main\n\
                    deb [arch=amd64,arm64 signed-by=/k.gpg] http://s bookworm-security main\n\
                    deb [arch=amd64,arm64 signed-by=/k.gpg] http://m/debian bookworm-backports main\n";
        assert_eq!(list, want);
    }

    #[test]
    fn a_machine_without_the_release_is_refused() {
        assert!(sources_list(&[source("http://m", "nodistro", "main")], "bookworm", "amd64", None).is_err());
    }

    #[test]
    fn an_arm64_machine_lists_its_architecture_once() {
        let list = sources_list(&[source("http://m", "trixie", "main")], "trixie", "arm64", None).unwrap();
        assert!(list.starts_with("deb [arch=arm64] http://m trixie main\n"));
    }

    #[test]
    fn only_debian_gives_a_code_name() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_codename(debian).as_deref(), Some("bookworm"));
        assert_eq!(
            debian_codename("ID=\"debian\"\nVERSION_CODENAME=\"trixie\"\n").as_deref(),
            Some("trixie")
        );
        assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(debian_codename("ID=debian\n"), None);
    }

    #[test]
    fn stanzas_keep_fields_and_dependency_names_apart() {
        let text = "Package: a\nVersion: 6.12.1-1\nDepends: b (= 1) | c, d:arm64\nDescription: x\n more: y\n\nPackage: z\n";
        let found = stanzas(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].field("Version"), "6.12.1-1");
        assert_eq!(found[0].names("Depends"), ["b", "d:arm64"]);
        assert_eq!(found[1].field("Version"), "");
    }
}
