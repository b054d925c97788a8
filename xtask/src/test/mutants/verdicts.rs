//! Faults of the one table that decides.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "another VM's page is shared",
        "state.rs",
        &[(
            "state @ (State::Private | State::Shared | State::Draining) if word.owner() == vm => Ok(state),",
            "state @ (State::Private | State::Shared | State::Draining) if word.owner() != Slot::NONE || vm == Slot::NONE => Ok(state),",
        )],
        &["state_table::every_operation_on_every_state_answers_as_the_table_says"],
    ),
    Mutant::new(
        "a frozen word is judged",
        "state.rs",
        &[(
            "const fn stands(word: Word) -> Verdict<Word> {\n    if word.is_frozen() {",
            "const fn stands(word: Word) -> Verdict<Word> {\n    if false {",
        )],
        &["state_table::a_frozen_word_is_retry_for_everyone"],
    ),
    Mutant::new(
        "poison is not final",
        "state.rs",
        &[("State::Poison => Err(Refusal::POISONED),", "State::Poison => Ok(Word::HOST),")],
        &["attacks::poison_is_final"],
    ),
    Mutant::new(
        "a pin is answered RETRY",
        "state.rs",
        &[(
            "_ => Err(Refusal { status: Status::Busy, mask: pins | leaves }),",
            "_ => Err(Refusal { status: Status::Retry, mask: pins | leaves }),",
        )],
        &[
            "scenarios::scenario_22_leaves_are_retry_and_pins_are_busy",
            "scenarios::scenario_11_a_bulk_unshare_with_one_page_pinned_changes_nothing",
        ],
    ),
    Mutant::new(
        "firmware's frame is given away",
        "state.rs",
        &[(
            "|| word.is_firmware() {\n        return Err(Refusal::STATE);\n    }\n    refuse(",
            "{\n        return Err(Refusal::STATE);\n    }\n    refuse(",
        )],
        &["state_table::a_pinned_or_firmware_frame_is_not_donated"],
    ),
    Mutant::new(
        "a page that EL2 uses is given away",
        "state.rs",
        &[(
            "if word.hyp_pins() > 0 {\n        mask |= reply::HYP_PIN;",
            "if false {\n        mask |= reply::HYP_PIN;",
        )],
        &["scenarios::scenario_29_a_page_that_el2_uses_cannot_be_donated"],
    ),
    Mutant::new(
        "a guest leaf does not hold a page",
        "state.rs",
        &[("if word.guest_leaves() > 0 {\n        mask", "if false {\n        mask")],
        &["scenarios::scenario_07_and_08_reclaim_against_faults_and_maps"],
    ),
    Mutant::new(
        "a DMA leaf does not hold a page",
        "state.rs",
        &[("refuse(pins, dma_leaves | host_leaf)?;", "refuse(pins, host_leaf)?;")],
        &["scenarios::scenario_10_dma_leaves_are_asked_for_and_dma_pins_refuse"],
    ),
    Mutant::new(
        "the host's leaf does not hold a page",
        "state.rs",
        &[("refuse(pins, dma_leaves | host_leaf)?;", "refuse(pins, dma_leaves)?;\n    let _ = host_leaf;")],
        &["scenarios::scenario_14_a_failed_conversion_leaves_everything_usable"],
    ),
    Mutant::new(
        "REVOKE takes a page from under a device",
        "state.rs",
        &[("refuse(pins & !reply::CPU_PIN, dma_leaves)?;", "refuse(0, dma_leaves)?;")],
        &["scenarios::scenario_10_dma_leaves_are_asked_for_and_dma_pins_refuse"],
    ),
    Mutant::new(
        "the host's consent overrides its pins",
        "state.rs",
        &[(
            "refuse(pins, dma_leaves)?;\n        return Ok(Unshare::DropHostLeaf(private));",
            "refuse(0, dma_leaves)?;\n        return Ok(Unshare::DropHostLeaf(private));",
        )],
        &["scenarios::scenario_23_a_late_or_repeated_consent_is_checked_again"],
    )
    .always(),
    Mutant::new(
        "a private page of a live guest is reclaimed",
        "state.rs",
        &[(
            "State::Private if sealed => return Err(Refusal::STATE),",
            "State::Private if sealed && word.guest_leaves() > 1 => return Err(Refusal::STATE),",
        )],
        &["scenarios::scenario_28_the_host_may_not_choose_what_is_shared"],
    ),
    Mutant::new(
        "a private leaf of a live guest is unmapped",
        "state.rs",
        &[(
            "if sealed && word.state() == State::Private {",
            "if !sealed && word.state() == State::Private {",
        )],
        &["scenarios::scenario_28_the_host_may_not_choose_what_is_shared"],
    ),
    Mutant::new(
        "a protected VM maps the host's memory",
        "state.rs",
        &[(
            "State::Host if !protected && !word.is_firmware() => {}",
            "State::Host if !word.is_firmware() => {}",
        )],
        &["state_table::every_operation_on_every_state_answers_as_the_table_says"],
    ),
    Mutant::new(
        "a draining page takes a new pin",
        "state.rs",
        &[(
            "State::Host | State::Shared => word.count_up(kind)",
            "State::Host | State::Shared | State::Draining => word.count_up(kind)",
        )],
        &["scenarios::scenario_21_a_guest_that_drains_gets_through_a_host_that_pins_in_a_loop"],
    ),
    Mutant::new(
        "a drain ends before its last pin",
        "state.rs",
        &[(
            "State::Draining if !next.is_host_pinned() && next.dma_leaves() == 0 => {",
            "State::Draining => {",
        )],
        &["scenarios::scenario_21_a_guest_that_drains_gets_through_a_host_that_pins_in_a_loop"],
    ),
    Mutant::new(
        "the waiter bit is kept when a drain ends",
        "state.rs",
        &[(
            "with_host_leaf(false).with_waiter(false).with_redirection(true)))",
            "with_host_leaf(false).with_redirection(true)))",
        )],
        &["scenarios::scenario_21_a_guest_that_drains_gets_through_a_host_that_pins_in_a_loop"],
    ),
    Mutant::new(
        "the waiter bit is kept by a share that cancels",
        "state.rs",
        &[(
            "Share::Swap(word.with_state(State::Shared, vm).with_waiter(false))",
            "Share::Swap(word.with_state(State::Shared, vm))",
        )],
        &["scenarios::scenario_21_a_new_share_cancels_a_drain"],
    ),
    Mutant::new(
        "a drained page leaves the host a hole",
        "state.rs",
        &[("with_waiter(false).with_redirection(true)))", "with_waiter(false)))")],
        &["scenarios::scenario_26_a_holder_that_has_not_touched_yet_can_when_the_drain_begins"],
    ),
    Mutant::new(
        "a holder that has not touched yet falls into a hole",
        "state.rs",
        &[(
            "State::Draining if !execute && (word.cpu_pins() > 0 || word.has_host_leaf()) => leaf,",
            "State::Draining if !execute && word.has_host_leaf() => leaf,",
        )],
        &["scenarios::scenario_26_a_holder_that_has_not_touched_yet_can_when_the_drain_begins"],
    ),
    Mutant::new(
        "a pinned page of a dead VM goes home",
        "state.rs",
        &[(
            "if word.is_host_pinned() || word.dma_leaves() > 0 {\n        return None;",
            "if false {\n        return None;",
        )],
        &["scenarios::scenario_09_a_dead_vms_pinned_page_comes_back_at_its_last_unpin"],
    ),
    Mutant::new(
        "a share leaves the redirection to scrap",
        "state.rs",
        &[(
            "Ok(Share::DropScrap(word.with_state(State::Shared, vm).with_redirection(false)))",
            "Ok(Share::Swap(word.with_state(State::Shared, vm).with_redirection(false)))",
        )],
        &["requirements::a_share_ends_the_redirection_to_scrap_before_the_host_gets_the_page"],
    ),
    Mutant::new(
        "a revoked page is a hole while its VM dies",
        "state.rs",
        &[(
            "State::Private | State::Quarantine if word.is_redirected()",
            "State::Private if word.is_redirected()",
        )],
        &["block_lives::a_holder_finds_its_page_or_its_scrap_at_every_step_of_a_death"],
    ),
    Mutant::new(
        "memory that a plain VM mapped is taken from the host",
        "state.rs",
        &[("        State::Host => bare,\n        State::Private =>", "        State::Private =>")],
        &["block_lives::a_block_of_lent_memory_outlives_its_vm_with_its_contents"],
    ),
    Mutant::new(
        "the kind of a word does not tell its pins",
        "state.rs",
        &[("(word.cpu_pins() > 0) as u64 * page::FROZEN.mask()", "0")],
        &["state_table::words_of_one_kind_change_alike"],
    ),
    Mutant::new(
        "addresses without a frame do not count before a draining page",
        "transition/plan.rs",
        &[("index + run.end - run.start", "index")],
        &["ranges::a_draining_page_in_a_range_answers_pending_with_its_index"],
    ),
];
