//! What is booted, and what must be seen: one [`Row`] a test.
//!
//! To add a test, add a row to [`rows`]:
//! - a bare-metal host of `tests/hosts`: `Row::host("bare/NAME", "host-NAME")`. It prints the lines of
//!   `tests/README.md`; each of its tests is counted, and its `result:` line is required;
//! - a script on the Debian host: put it at `tests/linux/NAME` (a busybox shell script; the driver is loaded, the
//!   programs of tests/story are in `/bin`) and write `Row::debian("linux/NAME", "NAME")`; it passes if it exits 0;
//! - then say on which machine (`.on(cpu, cpus, gic)`, `.memory(MiB)`), which lines must come in this order
//!   (`.expect(&[...])`; `*` in a line stands for anything), which must never come (`.never(&[...])`, beside
//!   [`crate::qemu::console::FORBIDDEN`]), which forbidden ones are the point of the test (`.allow(&[...])`), how long it may
//!   take (`.seconds(n)`), and whether it belongs to `--quick` or only to `--long`.
//!
//! `cargo xtask test --list` shows the table, `--filter linux/NAME` runs one, `target/log/test-*.log` has the consoles.

use super::row::{Damage, Kind, Row, Tree, When};
use crate::board::data::Way;

/// The CPU models of the matrix: v8.0, v8.2, and all that QEMU has.
const CPUS: [&str; 3] = ["cortex-a53", "cortex-a76", "max"];

/// All tests.
pub fn rows() -> Vec<Row> {
    let mut rows = vec![Row::plain("plain/boot").when(When::Quick)];
    rows.extend(refusals());
    rows.extend(bare_metal());
    rows.extend(debian());
    rows.extend(story());
    rows.extend(boards());
    rows.extend(corners());
    rows
}

/// What Tenure cannot start on: a clear message and a stop.
fn refusals() -> Vec<Row> {
    let tree = |name: &str, tree: Tree| Row::new(name, Kind::Tree(tree)).on("cortex-a53", 1, 2).refuses();
    let bundle = |name: &str, damage: Damage, why: &str| {
        let row = Row::new(name, Kind::Bundle(damage)).on("cortex-a53", 1, 2).refuses().seconds(60);
        row.expect(&[&format!("tenure: cannot start: *{why}")])
    };
    vec![
        Row::debian("refuse/el1", "boot")
            .without_el2()
            .refuses()
            .expect(&["tenure: cannot start: entered at EL1"]),
        tree("refuse/no-tree", Tree::Missing).expect(&["tenure: cannot start: no device tree"]),
        tree("refuse/zero-tree", Tree::Zeros).expect(&["tenure: cannot start: no device tree"]),
        tree("refuse/cut-tree", Tree::Cut).expect(&["tenure: cannot start: the device tree is malformed"]),
        tree("refuse/no-kernel", Tree::Whole).expect(&["tenure: cannot start: *kernel"]),
        bundle("refuse/bundle-bit", Damage::Bit, "its SHA-256 is wrong"),
        bundle("refuse/bundle-cut", Damage::Cut, "its SHA-256 is wrong"),
        bundle("refuse/bundle-size", Damage::Size, "its size is not that of the file"),
        bundle("refuse/bundle-header", Damage::Header, "but no bundle header"),
        bundle("refuse/bundle-two-kernels", Damage::TwoKernels, "two kernels"),
    ]
}

/// Bare-metal hosts: every call, the hostile ones included.
fn bare_metal() -> Vec<Row> {
    let mut rows = Vec::new();
    for cpu in CPUS {
        for gic in [2, 3] {
            let when = if cpu == "cortex-a76" && gic == 3 { When::Quick } else { When::Always };
            rows.push(
                Row::host(&format!("bare/basic-{cpu}-gic{gic}"), "host-basic").on(cpu, 2, gic).when(when),
            );
            rows.push(
                Row::host(&format!("bare/smp-{cpu}-gic{gic}"), "host-smp")
                    .on(cpu, 4, gic)
                    .when(when)
                    .seconds(240),
            );
        }
    }
    // The same seeds take the same steps: what failed once can be run again (`cargo xtask random`).
    for (cpu, cpus, gic, seed, steps, when) in [
        ("cortex-a76", 1, 3, 1, 5_000, When::Quick),
        ("cortex-a53", 1, 2, 2, 10_000, When::Always),
        ("max", 1, 3, 3, 10_000, When::Always),
        ("cortex-a76", 1, 3, 4, 100_000, When::Always),
        ("cortex-a76", 4, 3, 6, 1_000, When::Always),
        ("max", 4, 3, 7, 20_000, When::Long),
        ("cortex-a76", 1, 3, 5, 1_000_000, When::Long),
    ] {
        let name = format!("bare/random-{cpu}-{cpus}cpu-{steps}");
        rows.push(Row::random(&name, seed, steps).on(cpu, cpus, gic).when(when));
    }
    rows
}

/// Debian under Tenure, without guests.
fn debian() -> Vec<Row> {
    let cpus = |count: u8| format!(" with {count} CPUs");
    vec![
        Row::debian("linux/hostile", "hostile")
            .with_programs()
            .expect(&["hostile: passed *", "story: passed *", "init: hostile ended with 0"])
            .allow(&HOSTILE_OOPSES)
            .seconds(180),
        Row::debian("linux/plain", "plain")
            .with_programs()
            .expect(&["plain: passed *", "plain: without unsafe_dma*", "init: plain ended with 0"])
            .never(&["NOT AS IT MUST BE"])
            .seconds(120),
        Row::debian("linux/blocks", "blocks")
            .with_programs()
            .words(STRICT)
            .expect(&["blocks: passed *", "holders: passed *", "init: blocks ended with 0"])
            .never(&["NOT AS IT MUST BE"])
            .seconds(180),
        Row::debian("linux/convert", "convert")
            .with_programs()
            .words(STRICT)
            .expect(&["convert: passed *", "init: convert ended with 0"])
            .never(&["NOT AS IT MUST BE"])
            .seconds(180),
        Row::debian("linux/lend", "lend")
            .with_programs()
            .words(STRICT)
            .expect(&["lend: passed *", "init: lend ended with 0"])
            .never(&["NOT AS IT MUST BE"])
            .seconds(120),
        Row::debian("linux/dma", "dma")
            .with_programs()
            .expect(&[
                "dma: a protected VM is refused",
                "tenure: devices can reach guest memory*",
                "plain: passed *",
                "init: dma ended with 0",
            ])
            .seconds(120),
        Row::debian("linux/killed", "killed")
            .with_programs()
            .expect(&[
                "killed: hibernation is refused",
                "killed: every page is back",
                "killed: the driver is gone",
                "story: passed *",
                "init: killed ended with 0",
            ])
            .seconds(180),
        Row::debian("linux/parallel", "parallel")
            .with_programs()
            .expect(&["plain: passed *", "plain: passed *", "plain: passed *", "init: parallel ended with 0"])
            .never(&["NOT AS IT MUST BE"])
            .seconds(180),
        Row::debian("linux/panic", "panic")
            .with_programs()
            .crashes()
            .expect(&[
                "hold: a guest spins",
                "sysrq triggered crash",
                "tenure: guest memory reads as zeros from now on",
            ])
            .allow(&["Kernel panic - not syncing: sysrq triggered crash", "end Kernel panic"])
            .seconds(120),
        Row::debian("linux/reset", "reset")
            .with_programs()
            .words("loglevel=7")
            .expect(&[
                "hold: a guest spins",
                "init: reset ended with 0",
                "tenure: every guest is gone, every page is the host's",
                "reboot: Power down",
            ])
            .seconds(120),
        kexec("linux/kexec", 4),
        kexec("linux/kexec-1-cpu", 1),
        Row::debian("linux/crash", "crash")
            .with_next()
            .words("crashkernel=256M")
            .expect(&[
                "hold: a guest spins",
                "kexec: a crash kernel is loaded",
                "sysrq triggered crash",
                "init: Debian 6.12* with 1 CPUs",
                "vmcore: read *, private 0 times",
                "crashed: the core file was read to its end",
                "reboot: Restarting system",
            ])
            .never(&["A SECRET", "init: crash*ended"])
            .allow(&["Kernel panic - not syncing: sysrq triggered crash"])
            .seconds(180),
        Row::debian("linux/frames", "frames")
            .on("cortex-a53", 2, 2)
            .words(FRAMES_VIRT)
            .expect(&["frames: 6 words, each as it must be"])
            .seconds(180),
        Row::debian("linux/boot-4g", "boot").memory(4096).expect(&["init: boot ended with 0"]),
        Row::debian("linux/boot-8-cpus-gic3", "boot")
            .on("cortex-a76", 8, 3)
            .expect(&[&cpus(8), "init: boot ended with 0"]),
        Row::debian("linux/boot-8-cpus-gic2", "boot")
            .on("cortex-a53", 8, 2)
            .expect(&[&cpus(8), "init: boot ended with 0"]),
        Row::debian("linux/unknown-resets-a53", "hotplug")
            .unknown_resets()
            .on("cortex-a53", 2, 2)
            .expect(&["init: hotplug ended with 0"]),
        Row::debian("linux/unknown-resets-max", "hotplug")
            .unknown_resets()
            .on("max", 2, 3)
            .expect(&["init: hotplug ended with 0"]),
        Row::debian("linux/hotplug", "hotplug")
            .expect(&["hotplug: all 4 CPUs*", "init: hotplug ended with 0"]),
        Row::debian("linux/reboot", "reboot").reboots().expect(&[
            "init: Debian 6.12*",
            "Restarting system",
            "init: Debian 6.12*",
        ]),
        Row::debian("linux/load", "load").expect(LOAD),
        Row::debian("linux/load-a-minute", "load")
            .words("tenure.seconds=60")
            .expect(LOAD)
            .seconds(240)
            .when(When::Long),
        stories("linux/stories-debug-3", 3).on("cortex-a76", 2, 3),
        stories("linux/stories-debug-100", 100).when(When::Long),
    ]
}

/// From one Debian into another by kexec, with guests alive: the second one has all of the machine.
fn kexec(name: &str, cpus: u8) -> Row {
    Row::debian(name, "kexec")
        .with_next()
        .on("cortex-a76", cpus, 3)
        // Without EFI Linux cannot tell the next kernel where the GIC's tables of LPIs are.
        .words("loglevel=7 irqchip.gicv3_nolpi=1")
        .expect(&[
            "hold: a guest spins",
            "kexec: into another kernel",
            "tenure: every guest is gone, every page is the host's",
            &format!("init: Debian 6.12* with {cpus} CPUs"),
            "kexeced: * MiB were written to",
            "kexeced: every frame is the host's again",
            "story: passed *",
            "init: kexeced ended with 0",
        ])
        .never(&["NOT AS IT MUST BE", "init: kexec ended"])
        .seconds(180)
}

/// The story so many times in a row, in one boot of a host that clears what it frees and dies of a warning.
fn stories(name: &str, times: u64) -> Row {
    Row::debian(name, "stories")
        .with_programs()
        .words(&format!("init_on_free=1 init_on_alloc=1 panic_on_warn=1 tenure.times={times}"))
        .expect(&[
            "stories: * in a row, heap free:on, panic_on_warn=1",
            &format!("stories: {times}: story: passed *"),
            &format!("stories: all {times} passed"),
            "init: stories ended with 0",
        ])
        .never(&["NOT AS IT MUST BE"])
        .seconds(120 + times * 30)
}

/// A host that clears what it frees, and dies of a warning.
const STRICT: &str = "init_on_free=1 panic_on_warn=1";

/// What a heavy job on every CPU ends with.
const LOAD: &[&str] = &["load: * every hash was right", "init: load ended with 0"];

/// What Linux says when a thread reads guest memory through the kernel's own mapping: the thread dies, nobody else.
const HOSTILE_OOPSES: [&str; 2] = ["Internal error: Oops", "Unable to handle kernel"];

/// The story, on the whole matrix.
fn story() -> Vec<Row> {
    let mut rows = Vec::new();
    for cpu in CPUS {
        for gic in [2, 3] {
            for cpus in [1, 4] {
                let when = if (cpu, gic, cpus) == ("cortex-a76", 3, 4) { When::Quick } else { When::Always };
                let name = format!("story/{cpu}-{cpus}cpu-gic{gic}");
                let row = Row::debian(&name, "story")
                    .with_programs()
                    .on(cpu, cpus, gic)
                    .expect(STORY)
                    .never(&["NOT AS IT MUST BE"])
                    .seconds(120);
                rows.push(row.expect(&["init: story ended with 0"]).when(when));
            }
        }
    }
    rows
}

/// Debian's full kernel on every board, by every way in: all CPUs, a shell on each, the story where guests can be.
fn boards() -> Vec<Row> {
    let guests = |row: Row| row.expect(STORY).never(&["NOT AS IT MUST BE"]);
    let refused = |row: Row| {
        row.expect(&["story: stopped: KVM_CREATE_VM: Operation not supported", "board: a VM is refused"])
    };
    let row = |name: &str, board: &str, way: Way| {
        let row = Row::board(name, board, way);
        let row =
            row.expect(&["board: a shell on each of 4 CPUs", "hotplug: all 4 CPUs went and came back twice"]);
        row.seconds(600).when(When::Long)
    };
    let frames = |row: Row, words: &str| row.words(words).expect(&["frames: * words, each as it must be"]);
    vec![
        guests(row("board/qemu-virt-gic3", "qemu-virt", Way::GuestLoader)),
        guests(frames(
            row("board/qemu-virt-gic2", "qemu-virt", Way::GuestLoader).on("cortex-a53", 4, 2),
            FRAMES_VIRT,
        )),
        guests(row("board/qemu-virt-bundle", "qemu-virt", Way::Bundle)).when(When::Always),
        guests(row("board/qemu-virt-u-boot", "qemu-virt", Way::UBoot)).when(When::Always),
        guests(row("board/imx8mp-evk", "imx8mp-evk", Way::Modules)).when(When::Always),
        guests(frames(row("board/zcu102", "zcu102", Way::Modules), FRAMES_ZCU102)),
        guests(frames(row("board/raspi4b-bundle", "raspi4b", Way::Bundle), FRAMES_RASPI4B))
            .when(When::Always),
        guests(row("board/raspi4b-modules", "raspi4b", Way::Modules)),
        refused(row("board/raspi3b-bundle", "raspi3b", Way::Bundle)),
        refused(row("board/raspi3b-modules", "raspi3b", Way::Modules)),
    ]
}

/// GICD and GICC of a GICv2 are the host's, GICH and GICV are not: the first and the last page of each.
const FRAMES_VIRT: &str =
    "tenure.open=0x8000000,0x8010000 tenure.shut=0x8030000,0x803f000,0x8040000,0x804f000";
/// As [`FRAMES_VIRT`]; here with the strides of 64 KiB that the tree tells.
const FRAMES_ZCU102: &str =
    "tenure.open=0xf9010000,0xf903f000 tenure.shut=0xf9040000,0xf905f000,0xf9060000,0xf907f000";
/// As [`FRAMES_VIRT`]; addresses that the tree gives in those of its bus.
const FRAMES_RASPI4B: &str =
    "tenure.open=0xff841000,0xff842000 tenure.shut=0xff844000,0xff845000,0xff846000,0xff847000";

/// The corners of `virt`: the other CPU models, the least and the most of CPUs and of RAM.
fn corners() -> Vec<Row> {
    let corner = |name: &str, cpu: &str, cpus: u8, gic: u8, mebibytes: u32| {
        let row = Row::debian(&format!("corner/{name}"), "story").with_programs().on(cpu, cpus, gic);
        let row = row.memory(mebibytes).expect(&[&format!(" with {cpus} CPUs")]).expect(STORY);
        row.never(&["NOT AS IT MUST BE"]).seconds(300).when(When::Long)
    };
    vec![
        corner("512m-cortex-a57-gic2", "cortex-a57", 1, 2, 512),
        corner("16g-cortex-a72-gic3", "cortex-a72", 4, 3, 16384),
        corner("16g-cortex-a53-gic2", "cortex-a53", 2, 2, 16384),
        corner("8-cpus-cortex-a57-gic3", "cortex-a57", 8, 3, 2048),
        corner("8-cpus-cortex-a72-gic2", "cortex-a72", 8, 2, 2048),
        corner("8-cpus-max-gic3", "max", 8, 3, 2048),
    ]
}

/// The story, line by line: each step with the hypervisor's answer and the page's word.
const STORY: &[&str] = &[
    "story: interface *DMA is NOT contained",
    "a protected guest starts from a guest_memfd ... it asks for work word=Private(vm ",
    "the host reads a private page ... Signal(7) word=Private(vm ",
    "the host writes it ... Signal(7), the guest reads 0x5ec4e7",
    "the guest shares it ... Success done=1 word=Shared(vm ",
    "both write and read it ... host read 0x5ec4e7 wrote 0x1111, guest read 0x1111 wrote 0x2222, host read 0x2222",
    "the host pins it ... Success * word=Shared(vm * cpu-pins=1",
    "the guest's unshare is refused, and the pin named ... Busy done=0 first=0 blocked-by=*CPU_PIN holder ",
    "with DRAIN it waits ... it waits word=Draining(vm ",
    "the holder goes on reading meanwhile ... Value(8738) word=Draining(vm ",
    "the last unpin completes it and wakes the guest ... * drained=1; the guest's call: Success * word=Private(vm ",
    "the driver has unmapped it: the host reads ... Signal(7), the guest reads 0x2222 word=Private(vm ",
    "the guest shares four pages ... Success done=4",
    "a bulk unshare with the third page pinned changes nothing ... Busy done=0 first=2 blocked-by=*DMA_PIN",
    "after the unpin it succeeds* ... Success done=4, contents kept: true word=Private(vm ",
    "REVOKE under a reading host, which lives ... Success *the last gave 0x0; the guest reads 0x7777 word=Private(vm ",
    "a stock guest's unshare of a pinned page comes to the VMM ... KVM_EXIT_MEMORY_FAULT * blocked-by=*CPU_PIN",
    "the VMM refuses ... the guest's call gives -3 word=Shared(vm ",
    "the VMM lets go and runs it again ... the guest's call gives 0 word=Private(vm ",
    "a holder that declared nothing is found by the page's count ... Busy ",
    "it lets go unasked, the driver notices, and the guest is woken ... Success ",
    "the guest powers off ... Ended(",
    "the VM dies with a page pinned: the holder still reads it ... frames in quarantine: 1, the holder reads 0x6060",
    "its unpin sends the page home ... * returned=1",
    "every page is back: the totals are those of the start ... ",
    "and scrubbed ... * frames looked at, 0 not zero",
    "story: passed ",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = rows().into_iter().map(|row| row.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_matrix_is_whole() {
        let story: Vec<Row> = rows().into_iter().filter(|row| row.name.starts_with("story/")).collect();
        assert_eq!(story.len(), 12);
    }

    #[test]
    fn every_board_is_tested_by_every_way_that_it_has() {
        for board in board::all().unwrap() {
            for way in &board.qemu.ways {
                let is = |row: &Row| matches!(&row.kind, Kind::Board { name, way: by } if *name == board.name && by == way);
                assert!(rows().iter().any(is), "{} by {}", board.name, way.name());
            }
        }
    }

    #[test]
    fn scopes_hold_those_before_them() {
        assert!(When::Quick < When::Always && When::Always < When::Long);
    }
}
