//! What was measured, as figures for programs and as tables for people.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use tenure_abi::{call, guest};

use super::figures::{self, Figure, number};
use super::plugin::{Counts, Stretch};
use super::profile::{Image, Kinds, Profile};

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
    operations: Vec<Operation>,
    stretches: Vec<(&'static str, Stretch)>,
}

/// What the hypervisor executed for a figure.
struct Operation {
    name: String,
    /// How often it was done.
    steps: u64,
    /// All of them together.
    kinds: Kinds,
    profile: Profile,
}

impl Operation {
    /// Of one step, by name.
    fn each(&self) -> [(&'static str, f64); 5] {
        let share = |count: u64| count as f64 / self.steps.max(1) as f64;
        let Kinds { instructions, tlbis, dsbs, atomics, locks } = self.kinds;
        [
            ("el2", share(instructions)),
            ("tlbis", share(tlbis)),
            ("dsbs", share(dsbs)),
            ("atomics", share(atomics)),
            ("locks", share(locks)),
        ]
    }
}

/// Functions that a profile names.
const FUNCTIONS: usize = 28;
/// Long stretches that are shown.
const LONGEST: usize = 12;

impl Report {
    /// Adds a figure.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.figures.push(Figure { name: name.to_owned(), value, unit: unit.to_owned() });
    }

    /// Adds what the hypervisor executed in `steps` steps of the figure of this name.
    pub fn operation(&mut self, name: &str, steps: u64, kinds: Kinds, profile: Profile) {
        if steps > 0 && kinds.instructions > 0 {
            self.operations.push(Operation { name: name.to_owned(), steps, kinds, profile });
        }
    }

    /// Adds the longest stretches of a run; the start of a CPU is none (nobody waits for it).
    pub fn stretches(&mut self, place: &'static str, counts: Counts) {
        let calls = counts.stretches.into_iter().filter(|stretch| !stretch.is_start());
        self.stretches.extend(calls.map(|stretch| (place, stretch)));
    }

    /// The longest stretch of each name, the longest first.
    fn longest(&self) -> Vec<(&'static str, &Stretch)> {
        let mut by_name = BTreeMap::<String, (&'static str, &Stretch)>::new();
        for (place, stretch) in &self.stretches {
            let entry = by_name.entry(stretch.name()).or_insert((place, stretch));
            if entry.1.length < stretch.length {
                *entry = (place, stretch);
            }
        }
        let mut list: Vec<_> = by_name.into_values().collect();
        list.sort_by_key(|(_, stretch)| std::cmp::Reverse(stretch.length));
        list
    }

    /// All figures, those that follow from others too.
    pub fn figures(&self) -> Vec<Figure> {
        let mut all = self.figures.clone();
        let mut add = |name: String, value: f64, unit: &str| {
            all.push(Figure { name, value, unit: unit.to_owned() });
        };
        let longest = self.longest();
        for (name, whole) in [("longest_el2_stretch", false), ("longest_el2_stretch_range_512", true)] {
            if let Some((_, stretch)) = longest.iter().find(|(_, stretch)| is_whole(stretch) == whole) {
                add(name.to_owned(), stretch.length as f64, "instructions");
            }
        }
        for operation in &self.operations {
            for (kind, value) in operation.each() {
                let unit = if kind == "el2" { "instructions" } else { kind };
                add(format!("{}_{kind}", operation.name), value, unit);
            }
        }
        all
    }

    /// The tables for people.
    pub fn tables(&self, figures: &[Figure]) -> Vec<String> {
        let mut lines = figures::table(figures, std::io::stdout().is_terminal());
        lines.extend(self.operations_table());
        for axis in AXES {
            lines.extend(axis.table(&self.figures));
        }
        if !self.stretches.is_empty() {
            lines.push(String::new());
            lines.push(format!("{:<40} {:>12}  in", "longest stretch in EL2, by what led to it", "instr."));
            for (place, stretch) in self.longest().into_iter().take(LONGEST) {
                let note = if is_whole(stretch) { "  (all or nothing)" } else { "" };
                let length = number(stretch.length as f64);
                lines.push(format!("{:<40} {length:>12}  {place}{note}", stretch.name()));
            }
        }
        let others: Vec<_> = self.figures.iter().filter(|figure| self.is_other(figure)).collect();
        if !others.is_empty() {
            lines.extend([String::new(), "other figures".to_owned()]);
        }
        lines.extend(
            others
                .into_iter()
                .map(|figure| format!("{:<60} {:>12} {}", figure.name, number(figure.value), figure.unit)),
        );
        lines
    }

    /// Neither among the known ones nor in another table.
    fn is_other(&self, figure: &Figure) -> bool {
        figures::KNOWN.iter().all(|known| known.name != figure.name)
            && AXES.iter().all(|axis| axis.place(&figure.name).is_none())
            && self.operations.iter().all(|operation| operation.name != figure.name)
    }

    /// What EL2 executes for one step of each operation.
    fn operations_table(&self) -> Vec<String> {
        let shown = |name: &str| AXES.iter().all(|axis| axis.place(name).is_none());
        let mut rows = self.operations.iter().filter(|operation| shown(&operation.name)).peekable();
        if rows.peek().is_none() {
            return Vec::new();
        }
        let head = ["all", "EL2", "TLBI", "DSB", "atomic", "lock"];
        let mut lines = vec![String::new(), row("operation, of each: instructions", head.map(str::to_owned))];
        for operation in rows {
            let all = self.figures.iter().find(|figure| figure.name == operation.name);
            let all = all.map_or_else(String::new, |figure| number(figure.value));
            let [el2, tlbis, dsbs, atomics, locks] = operation.each().map(|(_, value)| number(value));
            lines.push(row(&operation.name, [all, el2, tlbis, dsbs, atomics, locks]));
        }
        lines
    }

    /// The functions in which operations and long stretches spend their instructions.
    pub fn profiles(&self, image: &Image) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |title: String, profile: &Profile, steps: u64| {
            lines.extend([String::new(), title]);
            for (function, count) in image.functions(profile).into_iter().take(FUNCTIONS) {
                lines.push(format!("  {:>10}  {function}", number(count as f64 / steps.max(1) as f64)));
            }
        };
        for operation in &self.operations {
            let each = number(operation.kinds.instructions as f64 / operation.steps.max(1) as f64);
            add(
                format!("{}: {each} instructions at EL2", operation.name),
                &operation.profile,
                operation.steps,
            );
        }
        for (place, stretch) in self.longest().into_iter().take(LONGEST) {
            let length = number(stretch.length as f64);
            add(format!("{}: {length} instructions in a row, {place}", stretch.name()), &stretch.profile, 1);
        }
        lines
    }
}

/// A name and its numbers.
fn row<const N: usize>(name: &str, cells: [String; N]) -> String {
    let cells: String = cells.iter().map(|cell| format!(" {cell:>10}")).collect();
    format!("{name:<42}{cells}")
}

/// The calls that take up to 512 pages whole or not at all, and so cannot yield.
fn is_whole(stretch: &Stretch) -> bool {
    let guests = [guest::SHARE, guest::UNSHARE];
    let hosts = [call::CONSENT, call::CONVERT, call::PIN, call::HOST_UNMAP, call::GUEST_UNMAP];
    guests.iter().chain(&hosts).any(|id| *id == stretch.key & 0xffff_ffff)
}

/// A quantity that figures may grow with: `NAME` + `before` + number + `after`.
struct Axis {
    title: &'static str,
    before: &'static str,
    after: &'static str,
}

const AXES: [Axis; 3] = [
    Axis { title: "per page, by pages of a call", before: "_range_", after: "_per_page" },
    Axis { title: "by MiB of the guest", before: "_", after: "_mib" },
    Axis { title: "by number of VMs", before: "_", after: "_vms" },
];

impl Axis {
    /// Row and column of a figure, if it belongs here.
    fn place<'n>(&self, name: &'n str) -> Option<(&'n str, u64)> {
        let (row, at) = name.strip_suffix(self.after)?.rsplit_once(self.before)?;
        // The guest's own figure of 512 pages is one by itself.
        let at = at.parse().ok()?;
        (!row.starts_with("guest_") || self.before == "_").then_some((row, at))
    }

    fn table(&self, figures: &[Figure]) -> Vec<String> {
        let mut columns = Vec::new();
        let mut rows = Vec::<(&str, BTreeMap<u64, f64>)>::new();
        for figure in figures {
            let Some((name, at)) = self.place(&figure.name) else { continue };
            if !columns.contains(&at) {
                columns.push(at);
            }
            match rows.iter_mut().find(|(row, _)| *row == name) {
                Some((_, cells)) => _ = cells.insert(at, figure.value),
                None => rows.push((name, BTreeMap::from([(at, figure.value)]))),
            }
        }
        if rows.is_empty() {
            return Vec::new();
        }
        columns.sort_unstable();
        let cells = |text: &dyn Fn(u64) -> String| -> String {
            columns.iter().map(|at| format!(" {:>8}", text(*at))).collect()
        };
        let mut lines = vec![String::new(), format!("{:<34}{}", self.title, cells(&|at| number(at as f64)))];
        for (name, values) in &rows {
            let cell = |at| values.get(&at).map_or_else(String::new, |value| number(*value));
            lines.push(format!("{name:<34}{}", cells(&cell)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(key: u64, length: u64) -> Stretch {
        Stretch { key, length, ..Stretch::default() }
    }

    fn value(figures: &[Figure], name: &str) -> Option<f64> {
        figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    #[test]
    fn the_longest_stretch_is_that_of_what_can_yield() {
        let mut report = Report::default();
        let stretches = vec![
            stretch(0x400 << 32 | guest::UNSHARE, 30_000),
            stretch(0x400 << 32 | call::DONATE, 18_000),
            stretch(0, 700_000),
        ];
        report.stretches("here", Counts { stretches, ..Counts::default() });
        let figures = report.figures();
        assert_eq!(value(&figures, "longest_el2_stretch"), Some(18_000.0));
        assert_eq!(value(&figures, "longest_el2_stretch_range_512"), Some(30_000.0));
    }

    #[test]
    fn kinds_are_figures_of_each_step() {
        let mut report = Report::default();
        let kinds = Kinds { instructions: 200, tlbis: 10, ..Kinds::default() };
        report.operation("donate_4k", 10, kinds, Profile::new());
        let figures = report.figures();
        assert_eq!(value(&figures, "donate_4k_el2"), Some(20.0));
        assert_eq!(value(&figures, "donate_4k_tlbis"), Some(1.0));
        assert_eq!(value(&figures, "donate_4k_locks"), Some(0.0));
    }

    #[test]
    fn growth_stands_in_columns() {
        let mut report = Report::default();
        report.figure("share_range_16_per_page", 50.0, "instructions");
        report.figure("share_range_2_per_page", 150.0, "instructions");
        let lines = AXES[0].table(&report.figures);
        assert!(lines[1].ends_with(" 2       16"), "{lines:?}");
        assert!(lines[2].starts_with("share ") && lines[2].ends_with(" 150       50"), "{lines:?}");
        assert_eq!(AXES[0].place("guest_share_range_512_per_page"), None);
        assert_eq!(AXES[1].place("guest_share_64_mib"), Some(("guest_share", 64)));
        assert_eq!(AXES[2].place("guest_share_64_mib"), None);
    }
}
