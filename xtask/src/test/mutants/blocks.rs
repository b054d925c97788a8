//! Faults of blocks: of what is parked and adopted, of splits and merges, of range invalidation.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "a block is given before all of it is scrubbed",
        "transition/block.rs",
        &[("state::is_parked(word, vm.slot()) && !word.owes_scrub()", "state::is_parked(word, vm.slot())")],
        &["blocks::a_hostile_host_cannot_give_a_block_that_was_not_scrubbed_or_is_not_whole"],
    )
    .always(),
    Mutant::new(
        "a block is given with a hole in it",
        "transition/block.rs",
        &[("cell.swap(word, word.with_scrub(true))", "cell.swap(word, word)")],
        &["blocks::a_page_taken_back_after_its_scrub_keeps_the_block_from_being_given"],
    ),
    Mutant::new(
        "the host keeps its mapping of a block",
        "transition/structure.rs",
        &[("self.host.empty_block(&self.machine, entry, first, table);", "let _ = (entry, table);")],
        &["blocks::a_block_is_donated_whole_and_stands_as_one"],
    ),
    Mutant::new(
        "old instructions of a block are kept",
        "transition/block.rs",
        &[("        self.machine.drop_instructions();\n", "")],
        &["blocks::a_block_is_donated_whole_and_stands_as_one"],
    ),
    Mutant::new(
        "a parked frame is in the host's reach",
        "state.rs",
        &[(
            "State::Quarantine if !execute && word.owner() == Slot::NONE => leaf,",
            "State::Quarantine if !execute => leaf,",
        )],
        &["blocks::what_is_parked_is_in_nobodys_reach_and_comes_back_when_it_is_asked_for"],
    ),
    Mutant::new(
        "a block is split without a break",
        "stage2/blocks.rs",
        &[("        entry.write(self.machine, Descriptor::MOVING);\n        let first", "        let first")],
        &["blocks::while_a_page_is_cut_out_the_others_stay_in_reach"],
    ),
    Mutant::new(
        "a fault in the middle of a split is the guest's",
        "transition/map.rs",
        &[(
            "if entry.descriptor.is_valid() || entry.descriptor.is_moving() {",
            "if entry.descriptor.is_valid() {",
        )],
        &["blocks::while_a_page_is_cut_out_the_others_stay_in_reach"],
    ),
    Mutant::new(
        "a merged table keeps its leaves",
        "stage2/blocks.rs",
        &[("self.machine.write(table, slot, Descriptor::MOVING.0);", "let _ = slot;")],
        &["blocks::a_walk_that_holds_a_merged_table_starts_again"],
    ),
    Mutant::new(
        "a merge forgets the TLBI",
        "stage2/blocks.rs",
        &[
            ("let pages = if leaves > 1 { entry.span() } else { 1 };", "let pages = 1;"),
            (
                "let mut flush = Flush::begin(self.machine, self.vmid, leaves);",
                "let mut flush = Flush::begin(self.machine, self.vmid, 1);",
            ),
        ],
        &["blocks::page_by_page_it_comes_to_the_same_and_is_merged_when_it_is_whole"],
    ),
    Mutant::new(
        "the host gets a block over a guest's page",
        "transition/structure.rs",
        &[("word.state() == State::Host && !word.is_firmware()", "!word.is_frozen()")],
        &["blocks::the_hosts_block_is_not_merged_over_a_guests_page"],
    ),
    Mutant::new(
        "a range TLBI is one page short",
        "tlb.rs",
        &[(
            "self.machine.tlbi_ripas2e1is(first, self.pages);",
            "self.machine.tlbi_ripas2e1is(first, self.pages - 1);",
        )],
        &["blocks::with_range_tlbi_a_long_run_is_one_invalidation"],
    ),
    Mutant::new(
        "a dead VM's block stays reachable",
        "transition/uproot.rs",
        &[(
            "        entry.write(&self.machine, Descriptor::INVALID);\n        tlb::flush_vmid",
            "        tlb::flush_vmid",
        )],
        &["blocks::every_step_of_a_death_leaves_the_books_in_order"],
    ),
];
