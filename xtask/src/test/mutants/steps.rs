//! Faults of the operations: what is written, invalidated, scrubbed and published, and in which order.

use super::Mutant;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "the leaf is not read again",
        "transition.rs",
        &[("if entry.reread(&self.machine) != entry.descriptor {", "if false {")],
        &["scenarios::scenario_25_a_share_whose_frame_moves_meanwhile_fails_or_takes_the_right_page"],
    ),
    Mutant::new(
        "the TLBI of the host's pages is left out",
        "transition/structure.rs",
        &[("frames.for_each(|frame| flush.page(frame));", "drop(frames);")],
        &["scenarios::scenario_13_every_cpu_of_the_host_faults_after_unshare"],
    )
    .always(),
    Mutant::new(
        "the host keeps its mapping of what it gives away",
        "transition/donate.rs",
        &[("self.unmap_own(held.iter().map(Frozen::frame));", "")],
        &["scenarios::scenario_19_two_cpus_populate_one_address_and_one_wins"],
    ),
    Mutant::new(
        "the scrub of a donation is left out",
        "transition/donate.rs",
        &[("self.scrub_all(held.iter().map(Frozen::frame));", "")],
        &["scenarios::scenario_07_and_08_reclaim_against_faults_and_maps"],
    ),
    Mutant::new(
        "the scrub comes before the host's mapping goes",
        "transition/donate.rs",
        &[
            ("let mut inner = vm.lock();", "self.scrub_all(held.iter().map(Frozen::frame));\n        let mut inner = vm.lock();"),
            ("        self.scrub_all(held.iter().map(Frozen::frame));\n        self.machine.drop_instructions();", "        self.machine.drop_instructions();"),
        ],
        &["requirements::the_hosts_mapping_is_gone_before_the_guests_appears"],
    ),
    Mutant::new(
        "a frame is donated against the address's status",
        "transition/donate.rs",
        &[("if entry.descriptor.is_valid() || expected != wanted.kind {", "if entry.descriptor.is_valid() {")],
        &["scenarios::scenario_12_a_conversion_before_population_holds_at_the_first_fault", "scenarios::scenario_28_the_host_may_not_choose_what_is_shared"],
    ),
    Mutant::new(
        "a frame is donated over another",
        "transition/donate.rs",
        &[("if entry.descriptor.is_valid() || expected != wanted.kind {", "if !entry.descriptor.is_valid() && expected != wanted.kind {")],
        &["scenarios::scenario_28_the_host_may_not_choose_what_is_shared"],
    ),
    Mutant::new(
        "table memory is not reserved",
        "transition/donate.rs",
        &[("if inner.pool.free() < tables_needed(&self.machine, root, gfn, count, LEAF_LEVEL) {", "if false {")],
        &["scenarios::scenario_17_running_short_in_the_middle_of_a_range_leaves_no_trace"],
    ),
    Mutant::new(
        "the reserve of the host's pool is spent",
        "transition/donate.rs",
        &[("self.reach_host_leaves(pfn, count, RESERVE)", "self.reach_host_leaves(pfn, count, 0)")],
        &["requirements::the_host_can_always_feed_its_own_pool"],
    ),
    Mutant::new(
        "the wrong page is blamed",
        "transition/convert.rs",
        &[("            if let Err(refusal) = verdict {\n                return refusal.at(index);", "            if let Err(refusal) = verdict {\n                return refusal.at(0);")],
        &["scenarios::scenario_11_a_bulk_unshare_with_one_page_pinned_changes_nothing"],
    ),
    Mutant::new(
        "REVOKE needs no right",
        "transition/convert.rs",
        &[("if has(flags::REVOKE) && !vm.may_revoke() {", "if has(flags::REVOKE) && vm.may_revoke() && false {")],
        &["attacks::revoke_needs_the_right_and_unknown_flags_are_refused"],
    ),
    Mutant::new(
        "the host converts a live protected guest's page",
        "transition/convert.rs",
        &[
            ("if vm.is_sealed() {", "if vm.is_sealed() && gfn.0 != 0 {"),
            // The check is made again where the page is measured.
            ("if vm.is_protected() {", "if vm.is_protected() && !vm.is_active() {"),
        ],
        &["scenarios::scenario_28_the_host_may_not_choose_what_is_shared"],
    ),
    Mutant::new(
        "the clean of the first image is left out",
        "transition/convert.rs",
        &[("fresh.for_each(|frame| self.machine.clean_to_poc(frame));", "drop(fresh);")],
        &["mutations::without_clean_to_poc_the_first_image_is_not_what_the_guest_runs"],
    ),
    Mutant::new(
        "the I-cache is not invalidated for the first image",
        "transition/convert.rs",
        &[("self.machine.drop_instructions();", "")],
        &["mutations::without_icache_maintenance_the_first_image_may_run_stale"],
    ),
    Mutant::new(
        "a drained page is published before the invalidation",
        "transition/pin.rs",
        &[(
            "if word.has_host_leaf() {\n                    self.drop_host_leaves(core::iter::once(frame), 1);\n                }\n                page.publish(next);",
            "page.publish(next);\n                if word.has_host_leaf() {\n                    self.drop_host_leaves(core::iter::once(frame), 1);\n                }",
        )],
        &["scenarios::scenario_26_a_holder_that_has_not_touched_yet_can_when_the_drain_begins"],
    )
    .always(),
    Mutant::new(
        "nobody is woken",
        "transition/pin.rs",
        &[("if word.has_waiter() {", "if next.has_waiter() {")],
        &["scenarios::scenario_21_a_guest_that_drains_gets_through_a_host_that_pins_in_a_loop"],
    ),
    Mutant::new(
        "the scrub at the last unpin is left out",
        "transition/pin.rs",
        &[("self.scrub_all(core::iter::once(frame));", "")],
        &["scenarios::scenario_09_a_dead_vms_pinned_page_comes_back_at_its_last_unpin"],
    ),
    Mutant::new(
        "a pin of EL2 that meets a frozen word is forgotten",
        "transition/pin.rs",
        &[("lock(&self.owed).try_push(frame).map_err(|_| Refusal::FROZEN)", "Ok(())")],
        &["requirements::a_pin_of_the_hypervisor_that_meets_a_frozen_word_ends_later"],
    ),
    Mutant::new(
        "the wrong VMID is invalidated",
        "transition/uproot.rs",
        &[("let mut flush = Flush::begin(&self.machine, vm.vmid(), gone);", "let mut flush = Flush::begin(&self.machine, crate::machine::Vmid::HOST, gone);")],
        &["scenarios::scenario_07_and_08_reclaim_against_faults_and_maps"],
    ),
    Mutant::new(
        "an address forgets its status when its leaf goes",
        "transition/uproot.rs",
        &[("entry.write(&self.machine, Descriptor::status(after));", "entry.write(&self.machine, Descriptor::status(after & 0));")],
        &["scenarios::scenario_07_and_08_reclaim_against_faults_and_maps"],
    ),
    Mutant::new(
        "the host's leaf of a shared page is executable",
        "stage2/descriptor.rs",
        &[("let borrowed = Attr::writable(forced).never_executable();", "let borrowed = Attr::writable(forced);")],
        &["requirements::what_is_shared_with_the_host_is_never_executable_for_it"],
    ),
    Mutant::new(
        "the host decides how a guest's page is cached",
        "stage2/descriptor.rs",
        &[("let borrowed = Attr::writable(forced).never_executable();", "let borrowed = Attr::writable(decides).never_executable();")],
        &["requirements::the_host_decides_about_the_memory_type_of_its_own_frames_only"],
    ),
    Mutant::new(
        "what comes home stays forced to write-back",
        "transition/reclaim.rs",
        &[("word.is_redirected() || word.has_host_leaf() && goes_home", "word.is_redirected() || word.has_host_leaf() && false && goes_home")],
        &["requirements::the_host_decides_about_the_memory_type_of_its_own_frames_only"],
    ),
    Mutant::new(
        "what comes home at its last unpin stays forced to write-back",
        "transition/pin.rs",
        &[(
            "if word.has_host_leaf() {\n                    // As the host's own",
            "if false {\n                    // As the host's own",
        )],
        &["requirements::the_host_decides_about_the_memory_type_of_its_own_frames_only"],
    ),
    Mutant::new(
        "the scrub of what leaves a guest is left out",
        "transition/reclaim.rs",
        &[("self.scrub_all(dirty.map(Frozen::frame));", "let _ = dirty;")],
        &["scenarios::scenario_18_conversion_keeps_contents_and_teardown_scrubs"],
    ),
    Mutant::new(
        "what a holder still uses is scrubbed",
        "transition/reclaim.rs",
        &[("_ => !page.before().is_host_pinned(),", "_ => true,")],
        &["scenarios::scenario_09_a_dead_vms_pinned_page_comes_back_at_its_last_unpin"],
    ),
    Mutant::new(
        "a redirection outlives its VM",
        "transition/reclaim.rs",
        &[("word.is_redirected() || word.has_host_leaf() && goes_home", "word.has_host_leaf() && goes_home")],
        &["attacks::a_scrap_frame_goes_home_after_the_last_leaf_of_the_host_that_leads_to_it"],
    ),
    Mutant::new(
        "a relinquished address keeps its frame in the TLBs",
        "transition/uproot.rs",
        &[("leaves(&mut |_, at| flush.page(Pfn(at.0)));", "leaves(&mut |_, _| ());")],
        &["requirements::zero_is_honoured_and_every_way_out_of_a_guest_scrubs"],
    ),
    Mutant::new(
        "a query promises what an attempt refuses",
        "transition/status.rs",
        &[("state::unshare(word, vm.slot(), UnshareHow::default()).map(|_| ())", "state::unshare(word, vm.slot(), UnshareHow { consent: true, ..UnshareHow::default() }).map(|_| ())")],
        &["scenarios::scenario_22_leaves_are_retry_and_pins_are_busy"],
    ),
    Mutant::new(
        "a dead VM's frames go home before the invalidation",
        "transition/teardown.rs",
        &[("let last = next >= GUEST_FRAMES;", "let last = next >= GUEST_FRAMES;\n        self.retire(&mut held);")],
        &["scenarios::scenario_18_conversion_keeps_contents_and_teardown_scrubs"],
    ),
    Mutant::new(
        "frames without a leaf are forgotten",
        "transition/teardown.rs",
        &[("Teardown::Orphans(_) if vm.orphans.load(Ordering::Relaxed) == 0 => {", "Teardown::Orphans(_) => {")],
        &["attacks::a_scrap_frame_goes_home_after_the_last_leaf_of_the_host_that_leads_to_it"],
    ),
    Mutant::new(
        "a pool gives back more than is spare",
        "pool.rs",
        &[("self.lent.remove(machine)", "self.kept.remove(machine).or_else(|| self.lent.remove(machine))")],
        &["requirements::the_host_can_always_feed_its_own_pool"],
    ),
    Mutant::new(
        "the host's leaf is made before it is counted",
        "transition/host.rs",
        &[("cell.freeze(frame, word, next) else { return false };", "cell.freeze(frame, word, word) else { return false };")],
        &["order::a_leaf_is_counted_before_it_can_be_used_and_until_its_invalidation_is_over"],
    ),
    Mutant::new(
        "a page is zeroed before the host's leaf is gone",
        "transition/convert.rs",
        &[(
            "        if common.drops {\n",
            "        self.commit_contents(op, held.iter().map(Frozen::frame));\n        if common.drops {\n",
        ), (
            "        if common.quick.flip() != 0 {\n",
            "        if false {\n",
        )],
        &["order::an_unshare_freezes_first_and_is_private_when_no_way_of_the_host_is_left"],
    ),
    Mutant::new(
        "a range of mixed pages runs past its end",
        "transition/convert.rs",
        &[("pages = entry.rest(at).min(count - index);", "pages = entry.rest(at);")],
        &["ranges::addresses_beside_a_range_keep_their_status"],
    ),
    Mutant::new(
        "a pin outlives the host's reset",
        "state.rs",
        &[("State::Host | State::Poison if free != word => Forget::Swap(free),", "")],
        &["requirements::a_reset_leaves_nothing_that_the_next_kernel_trips_over"],
    ),
    Mutant::new(
        "what a reset sends home is not scrubbed",
        "transition/reset.rs",
        &[("self.scrub_all(core::iter::once(frame));", "")],
        &["requirements::a_reset_leaves_nothing_that_the_next_kernel_trips_over"],
    ),
    Mutant::new(
        "a lent page stays a table",
        "transition/reset.rs",
        &[("Err(Refusal::STATE) => self.free_lent_table(first),", "Err(Refusal::STATE) => Ok(()),")],
        &["requirements::a_reset_brings_home_what_serves_as_a_table"],
    ),
    Mutant::new(
        "scrap of a panic is shown for ever",
        "state.rs",
        &[("State::Hyp | State::Poison if word.is_redirected() => Forget::DropScrap(free.with_redirection(false)),", "")],
        &["requirements::a_reset_ends_panic_mode"],
    ),
];
