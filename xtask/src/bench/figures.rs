//! The figures: their names, what the peers need for the same, and the aims.
//!
//! What is measured prints `bench NAME VALUE UNIT STEPS`; names that stand here get their peers and aim beside them,
//! others are shown as they are. The peers were measured on the same emulated machine by the same method: pKVM of Linux 7.3
//! (or 6.12 where it says so) and Xen 4.17.

/// A figure that is known.
pub struct Known {
    /// Its name in the console's lines and in the JSON.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// pKVM's figure.
    pub pkvm: &'static str,
    /// Xen's figure.
    pub xen: &'static str,
    /// At most this much.
    pub aim: f64,
}

/// All that are known, in the order in which they are shown.
#[rustfmt::skip]
pub const KNOWN: &[Known] = &[
    Known { name: "guest_share", what: "guest share, one page", pkvm: "2,491", xen: "2,571", aim: 250.0 },
    Known { name: "guest_share_unshare_pair", what: "guest share + unshare, host not mapping", pkvm: "8,880", xen: "5,173", aim: 600.0 },
    Known { name: "guest_share_range_512_per_page", what: "guest range share, per page of 512", pkvm: "2,491", xen: "2,120", aim: 40.0 },
    Known { name: "linux_unshare_host_mapped", what: "unshare of a page that the host maps, host asked, with driver", pkvm: "6,389", xen: "-", aim: 8000.0 },
    Known { name: "guest_psci_version", what: "guest call answered at EL2 (PSCI_VERSION)", pkvm: "12,517", xen: "-", aim: 200.0 },
    Known { name: "host_null", what: "host null call", pkvm: "87 (6.12)", xen: "428", aim: 45.0 },
    Known { name: "populate_2m_per_page_without_scrub", what: "populate, per page, 2 MiB at a time, without the scrub", pkvm: "41,386", xen: "-", aim: 30.0 },
    Known { name: "kept_percent_1g", what: "RAM kept by the hypervisor, of 1 GiB", pkvm: "1.2", xen: "-", aim: 0.4 },
    Known { name: "kept_percent_4g", what: "RAM kept by the hypervisor, of 4 GiB", pkvm: "0.7", xen: "-", aim: 0.3 },
    Known { name: "boot_el2_percent", what: "share of EL2 in a Linux boot to its shell", pkvm: "2", xen: "0.2", aim: 0.1 },
    Known { name: "longest_el2_stretch", what: "longest stretch in EL2 of all that can yield", pkvm: "-", xen: "-", aim: 20000.0 },
    Known { name: "longest_el2_stretch_range_512", what: "longest stretch in EL2 of an all-or-nothing call", pkvm: "-", xen: "-", aim: 64000.0 },
    Known { name: "boot_el2_longest", what: "longest stretch in EL2 in that boot, after its own start", pkvm: "-", xen: "-", aim: 20000.0 },
];

/// A measured figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name, see [`KNOWN`].
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Its unit: `instructions`, `percent` ...
    pub unit: String,
}

impl Figure {
    /// Reads `bench NAME VALUE UNIT STEPS`; the steps beside it.
    pub fn read(line: &str) -> Option<(Self, u64)> {
        let mut words = line.strip_prefix("bench ")?.split_whitespace();
        let (name, value, unit) = (words.next()?, words.next()?, words.next()?);
        let steps = words.next()?.parse().ok()?;
        Some((Self { name: name.to_owned(), value: value.parse().ok()?, unit: unit.to_owned() }, steps))
    }
}

/// The figures with peers and aims, one line each; `red` marks a miss for a terminal.
pub fn table(figures: &[Figure], red: bool) -> Vec<String> {
    let mut lines =
        vec![format!("{:<60} {:>12} {:>10} {:>10} {:>10}", "figure", "Tenure", "pKVM", "Xen", "aim")];
    for known in KNOWN {
        let found = figures.iter().find(|figure| figure.name == known.name);
        let value = found.map_or_else(|| "not measured".to_owned(), |figure| number(figure.value));
        let missed = found.is_some_and(|figure| figure.value > known.aim);
        let (pkvm, xen, aim) = (known.pkvm, known.xen, number(known.aim));
        let line = format!("{:<60} {value:>12} {pkvm:>10} {xen:>10} {aim:>10}", known.what);
        lines.push(match (missed, red) {
            (false, _) => line,
            (true, false) => format!("{line}  above its aim"),
            (true, true) => format!("\x1b[31m{line}  above its aim\x1b[0m"),
        });
    }
    lines
}

/// A value with as many decimals as mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        small if small > 0.0 && small < 1.0 => format!("{value:.4}"),
        middle if middle < 100.0 && middle.fract() != 0.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_console() {
        let (figure, steps) = Figure::read("bench guest_psci_version 181.5 instructions 1024").unwrap();
        assert_eq!(
            (figure.name.as_str(), figure.value, figure.unit.as_str(), steps),
            ("guest_psci_version", 181.5, "instructions", 1024)
        );
        assert_eq!(Figure::read("bench guest_psci_version many instructions 1"), None);
        assert_eq!(Figure::read("note: bench"), None);
    }

    #[test]
    fn a_figure_above_its_aim_is_marked() {
        let figure =
            |value| [Figure { name: "guest_psci_version".into(), value, unit: "instructions".into() }];
        let line = |value, red| {
            table(&figure(value), red).into_iter().find(|line| line.contains("PSCI_VERSION")).unwrap()
        };
        assert!(line(201.0, false).ends_with("above its aim"));
        assert!(line(201.0, true).starts_with("\x1b[31m"));
        assert!(!line(200.0, true).contains("above its aim") && !line(200.0, true).contains('\x1b'));
    }

    #[test]
    fn what_was_not_measured_is_not_called_zero() {
        assert!(table(&[], false)[1].contains("not measured"));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(41386.0), "41,386");
        assert_eq!(number(0.0041), "0.0041");
        assert_eq!(number(35.0), "35");
        assert_eq!(number(1234567.0), "1,234,567");
    }
}
