//! Faults of the page word, the handles and the invalidation.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "a count wraps at its limit",
        "word.rs",
        &[("if count == field.max() { Err(CountLimit) }", "if count > field.max() { Err(CountLimit) }")],
        &["attacks::counts_refuse_at_their_limit_and_an_unpin_without_a_pin_is_refused"],
    ),
    Mutant::new(
        "a count is not released",
        "word.rs",
        &[("count => Ok(Self(field.set(self.0, count - 1))),", "_ => Ok(self),")],
        &["scenarios::scenario_03_pinned_page_is_busy_then_unshares"],
    )
    .always(),
    Mutant::new(
        "an unpin without a pin goes through",
        "word.rs",
        &[("0 => Err(CountLimit),\n            count", "0 => Ok(self),\n            count")],
        &["attacks::counts_refuse_at_their_limit_and_an_unpin_without_a_pin_is_refused"],
    ),
    Mutant::new(
        "the version does not move with a leaf",
        "word.rs",
        &[("Self(self.0.wrapping_add(1 << page::VERSION.shift))", "self")],
        &["scenarios::scenario_25_a_share_whose_frame_moves_meanwhile_fails_or_takes_the_right_page"],
    ),
    Mutant::new(
        "the freeze is skipped",
        "word.rs",
        &[("self.swap(from, during.frozen())?;", "self.swap(from, during)?;")],
        &["scenarios::scenario_05_a_converter_meets_a_fault_under_way"],
    )
    .always(),
    Mutant::new(
        "the rollback is skipped",
        "word.rs",
        &[("self.cell.0.store(self.before.0, Ordering::Release);", "let _ = self.cell;")],
        &["scenarios::scenario_11_a_bulk_unshare_with_one_page_pinned_changes_nothing"],
    )
    .always(),
    Mutant::new(
        "a publish leaves its word frozen",
        "word.rs",
        &[(
            "self.cell.0.store(word.0 & !page::FROZEN.mask(), Ordering::Release);",
            "self.cell.0.store(word.0 | page::FROZEN.mask(), Ordering::Release);",
        )],
        &["scenarios::scenario_18_conversion_keeps_contents_and_teardown_scrubs"],
    ),
    Mutant::new(
        "a dead VM's handle is used again",
        "vm.rs",
        &[("let generation = (gate >> 32).wrapping_add(1)", "let generation = (gate >> 32).max(1)")],
        &["attacks::a_dead_vms_handle_is_never_valid_again"],
    ),
    Mutant::new(
        "a dying VM lets calls in",
        "vm.rs",
        &[("gate & (LIVE | DYING) == LIVE {", "gate & LIVE == LIVE {")],
        &["attacks::a_dead_vms_handle_is_never_valid_again"],
    ),
    Mutant::new(
        "the DSB after the TLBI is left out",
        "tlb.rs",
        &[("self.machine.dsb_ish();\n        self.machine.isb();", "self.machine.isb();")],
        &["scenarios::scenario_13_every_cpu_of_the_host_faults_after_unshare"],
    ),
    Mutant::new(
        "the DSB before the TLBI is left out",
        "tlb.rs",
        &[("        machine.dsb_ishst();\n", "")],
        &["scenarios::scenario_13_every_cpu_of_the_host_faults_after_unshare"],
    ),
    Mutant::new(
        "the TLBI of combined entries is left out",
        "tlb.rs",
        &[("self.machine.tlbi_vmalle1is();", "")],
        &["scenarios::scenario_13_every_cpu_of_the_host_faults_after_unshare"],
    ),
    Mutant::new(
        "the former VMID is not selected again",
        "tlb.rs",
        &[("self.machine.select_vmid(self.former);", "")],
        &["scenarios::scenario_07_and_08_reclaim_against_faults_and_maps"],
    ),
];
