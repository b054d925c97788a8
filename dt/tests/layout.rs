//! Device trees that are not QEMU's: what the layout makes of them, by example and by generated boards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/board.rs"]
mod board;
mod common;

use board::{Board, Kind, Memory};
use common::{MIB, PAGE, boot, load_image, own, wrong};
use proptest::prelude::*;
use tenure_dt::{Claim, Layout, Platform, Refusal, Region, Why, check, read};

const RAM: u64 = 0x4000_0000;

fn at(base: u64, size: u64) -> Region {
    Region { base, size }
}

/// A board with 512 MiB, the kernel at 64 MiB and a RAM disk at 128 MiB.
fn usual() -> Board {
    Board {
        kernel: Some(at(RAM + 64 * MIB, 32 * MIB)),
        initrd: Some(at(RAM + 128 * MIB, 4 * MIB + 100)),
        ..Board::default()
    }
    .memory(&[at(RAM, 512 * MIB)])
}

/// Boots a board whose image is at `image`, checks the layout, and shows it.
fn lay_out(board: &Board, image: u64) -> Result<Layout, String> {
    let tree = board.tree();
    let p = read::read(check(&tree).unwrap()).map_err(|refusal| refusal.to_string())?;
    let placed = boot(&tree, &p, own(at(image, 2 * MIB), &tree))?;
    assert_eq!(wrong(&p, &placed), None, "{board:x?}");
    // A second opinion, which is too strict about names for the trees of real boards.
    dtoolkit::fdt::Fdt::new(&placed.host).unwrap();
    Ok(placed.layout)
}

fn platform_of(board: &Board, look: impl FnOnce(Result<Platform<'_>, Refusal<'_>>)) {
    let tree = board.tree();
    look(read::read(check(&tree).unwrap()));
}

#[test]
fn a_plain_board_is_laid_out_behind_the_image() {
    let layout = lay_out(&usual(), RAM + 2 * MIB).unwrap();
    assert_eq!(layout.kept[1].base, RAM + 4 * MIB);
    assert!(!layout.crowded && layout.firmware.is_empty());
}

#[test]
fn banks_unsorted_overlapping_touching_and_empty_become_what_they_cover() {
    let board = Board::default()
        .memory(&[at(0x8000_0000, 64 * MIB), at(0, 0), at(RAM + 32 * MIB, 64 * MIB)])
        .memory(&[at(RAM, 40 * MIB), at(RAM + 96 * MIB, 4 * MIB)]);
    platform_of(&board, |p| {
        assert_eq!(p.unwrap().ram[..], [at(RAM, 100 * MIB), at(0x8000_0000, 64 * MIB)]);
    });
}

#[test]
fn a_disabled_bank_is_no_ram_and_half_a_page_is_no_page() {
    let mut board = Board::default().memory(&[at(RAM + 0x100, 16 * MIB)]);
    board.memory.push(Memory { regions: vec![at(0x8000_0000, MIB)], usable: None, disabled: true });
    platform_of(&board, |p| assert_eq!(p.unwrap().ram[..], [at(RAM + PAGE, 16 * MIB - PAGE)]));
}

#[test]
fn addresses_of_one_cell_and_of_two_say_the_same() {
    for (address_cells, size_cells) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let board = Board { address_cells, size_cells, ..usual() };
        let layout = lay_out(&board, RAM + 2 * MIB).unwrap();
        assert_eq!(layout.ram[..], [at(RAM, 512 * MIB)]);
    }
}

#[test]
fn memory_above_what_el2_maps_is_refused_by_name() {
    let board = Board::default().memory(&[at(RAM, MIB)]).memory(&[at(0x80_0000_0000, MIB)]);
    platform_of(&board, |p| {
        let refusal = p.unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "memory@1: reg: ends at 0x8000100000, above the 512 GiB that Tenure maps"
        );
    });
}

#[test]
fn what_usable_memory_leaves_out_has_words_but_nobody_uses_it() {
    let mut board = usual();
    board.memory[0].usable = Some(vec![at(RAM + 32 * MIB, 448 * MIB)]);
    let layout = lay_out(&board, RAM + 33 * MIB + MIB).unwrap();
    assert_eq!(layout.ram[..], [at(RAM, 512 * MIB)]);
    assert_eq!(layout.firmware[..], [at(RAM, 32 * MIB), at(RAM + 480 * MIB, 32 * MIB)]);
    let board = Board { usable_range: Some(vec![at(RAM + 32 * MIB, 448 * MIB)]), ..usual() };
    assert_eq!(lay_out(&board, RAM + 34 * MIB).unwrap().firmware, layout.firmware);
}

#[test]
fn each_kind_of_reservation_is_left_alone_and_only_the_firmwares_is_the_firmwares() {
    let kinds = [Kind::NoMap, Kind::Kept, Kind::Reusable, Kind::Disabled];
    for kind in kinds {
        let board = Board { reserved: vec![(kind, at(RAM + 4 * MIB, 16 * MIB))], ..usual() };
        let layout = lay_out(&board, RAM + 2 * MIB).unwrap();
        let of_firmware = layout.firmware.contains(&at(RAM + 4 * MIB, 16 * MIB));
        assert_eq!(of_firmware, matches!(kind, Kind::NoMap | Kind::Kept), "{kind:?}");
        // A disabled one is as if it were not there.
        let behind = if kind == Kind::Disabled { 4 * MIB } else { 20 * MIB };
        assert_eq!(layout.kept[1].base, RAM + behind, "{kind:?}");
    }
}

#[test]
fn a_reservation_of_the_hosts_own_choice_keeps_its_room() {
    // All of a small range that the host may place its pool in, right behind the image.
    let within = at(RAM + 4 * MIB, 8 * MIB);
    let board = Board { reserved: vec![(Kind::Dynamic(Some(within)), at(0, 8 * MIB))], ..usual() };
    let layout = lay_out(&board, RAM + 2 * MIB).unwrap();
    assert!(!layout.crowded && !layout.kept[1].overlaps(within));
    // Where nothing else is left, Tenure comes first, and says so.
    let ram = at(RAM, 64 * MIB);
    let board = Board {
        memory: vec![],
        kernel: Some(at(RAM + 4 * MIB, 32 * MIB)),
        reserved: vec![(Kind::Dynamic(None), at(0, 24 * MIB))],
        ..Board::default()
    };
    assert!(lay_out(&board.memory(&[ram]), RAM).unwrap().crowded);
}

#[test]
fn modules_that_the_boot_loader_lists_as_reserved_are_the_hosts() {
    let initrd = at(RAM + 128 * MIB, 4 * MIB + 100);
    let listed = vec![initrd, at(RAM, MIB), at(RAM + 2 * MIB, 2 * MIB)];
    let board = Board { listed, initrd_is_module: false, ..usual() };
    let layout = lay_out(&board, RAM + 2 * MIB).unwrap();
    // The image's own frames are in the list too: Tenure sets its words last.
    assert_eq!(layout.firmware[..], [at(RAM, MIB), at(RAM + 2 * MIB, 2 * MIB)]);
}

#[test]
fn a_spin_table_is_never_given_away_wherever_it_is() {
    let reserved = vec![(Kind::NoMap, at(RAM + 8 * MIB, MIB))];
    for release in [RAM + 4 * MIB + 0xd8, RAM + 8 * MIB + 0xd8, RAM + 400 * MIB, 0xd8] {
        let board = Board { cpus: vec![None, Some(release)], reserved: reserved.clone(), ..usual() };
        let layout = lay_out(&board, RAM + 2 * MIB).unwrap();
        let page = at(release & !0xfff, PAGE);
        assert!(layout.reach.iter().any(|r| r.contains(page)), "EL2 reaches {release:#x}");
        let is_ram = layout.ram[0].contains(page);
        assert_eq!(layout.firmware.iter().any(|f| f.contains(page)), is_ram, "{release:#x}");
    }
}

#[test]
fn a_ram_disk_at_either_end_is_kept() {
    for base in [RAM + 4 * MIB, RAM + 500 * MIB] {
        let board = Board { initrd: Some(at(base, 8 * MIB + 1)), ..usual() };
        lay_out(&board, RAM + 2 * MIB).unwrap();
    }
}

#[test]
fn the_kernel_goes_where_it_reaches_its_ram_disk() {
    let high = at(100 << 30, 4 << 30);
    let board = Board { initrd: Some(at((102 << 30) + MIB, MIB)), ..usual() }.memory(&[high]);
    let tree = board.tree();
    let p = read::read(check(&tree).unwrap()).unwrap();
    let placed = boot(&tree, &p, own(at(RAM + 2 * MIB, 2 * MIB), &tree)).unwrap();
    assert!(high.contains(placed.kernel.unwrap()), "{:x?}", placed.kernel);
}

#[test]
fn what_cannot_be_is_refused_by_node_and_property() {
    let with = |change: &dyn Fn(&mut Board)| {
        let mut board = usual();
        change(&mut board);
        lay_out(&board, RAM + 2 * MIB).unwrap_err()
    };
    let no_map = |base, size| move |b: &mut Board| b.reserved.push((Kind::NoMap, at(base, size)));
    for (change, want) in [
        (&no_map(RAM + 3 * MIB, MIB) as &dyn Fn(&mut Board), "area0: reg: lies over Tenure's image"),
        (&no_map(RAM + 70 * MIB, MIB), "multiboot,kernel: reg: 0x44000000 is not in RAM that"),
        (&|b: &mut Board| b.kernel = Some(at(0x1000, MIB)), "multiboot,kernel: reg: 0x1000 is not in RAM"),
        (
            &|b: &mut Board| b.kernel = Some(at(RAM + 3 * MIB, MIB)),
            "multiboot,kernel: reg: lies over Tenure's",
        ),
        (
            &|b: &mut Board| b.initrd = b.kernel,
            "multiboot,ramdisk or linux,initrd-start: reg: lies over the kernel",
        ),
        (
            &|b: &mut Board| b.cpus.push(Some(RAM + 3 * MIB)),
            "cpu: cpu-release-addr: lies over Tenure's image",
        ),
        (
            &|b: &mut Board| b.memory[0].regions = vec![at(0x8000_0000, MIB)],
            "memory: reg: 0x40200000 is not in RAM",
        ),
        (&|b: &mut Board| b.memory[0].regions = vec![at(0, 0)], "memory: reg: there is none"),
        (&|b: &mut Board| b.reserved.push((Kind::Kept, at(u64::MAX - 9, 100))), "area0: reg: wraps around"),
        (&|b: &mut Board| b.listed.push(at(u64::MAX - 9, 100)), "/memreserve/: : wraps around"),
        (&no_map(RAM + 4 * MIB, 508 * MIB), "multiboot,kernel: reg: "),
    ] {
        let refusal = with(change);
        assert!(refusal.starts_with(want), "{refusal}");
    }
    let full = Board { memory: vec![], ..usual() }
        .memory(&[at(RAM + 2 * MIB, 2 * MIB), at(RAM + 64 * MIB, 80 * MIB)]);
    lay_out(&full, RAM + 2 * MIB).unwrap();
    let full = Board { kernel: None, initrd: None, memory: vec![], ..full }
        .memory(&[at(RAM + 2 * MIB, 2 * MIB + PAGE)]);
    assert!(lay_out(&full, RAM + 2 * MIB).unwrap_err().starts_with("memory: reg: no free stretch of "));
    let many = |n: u64| Board {
        listed: (0..n).map(|i| at(RAM + 256 * MIB + 2 * i * PAGE, PAGE)).collect(),
        ..usual()
    };
    lay_out(&many(62), RAM + 2 * MIB).unwrap();
    assert!(lay_out(&many(65), RAM + 2 * MIB).unwrap_err().contains("more entries"));
    assert_eq!(Why::TooMany.to_string(), "more entries than Tenure has room for");
}

/// A few regions in a window of 96 MiB, at page or odd bounds.
fn region() -> impl Strategy<Value = Region> {
    let odd = prop_oneof![4 => Just(0u64), 1 => 1..PAGE];
    (0..96 * MIB / PAGE, odd, prop_oneof![Just(0u64), 1..64u64, 1..8192u64], 0..2u64)
        .prop_map(|(page, odd, pages, more)| at(page * PAGE + odd, pages * PAGE + more * 17))
}

fn shifted(region: Region, base: u64) -> Region {
    Region { base: base + region.base, ..region }
}

fn memories() -> impl Strategy<Value = Vec<Memory>> {
    let usable = prop_oneof![6 => Just(None), 1 => prop::collection::vec(region(), 1..3).prop_map(Some)];
    let memory = (prop::collection::vec(region(), 1..4), usable, prop::bool::weighted(0.1))
        .prop_map(|(regions, usable, disabled)| Memory { regions, usable, disabled });
    // Mostly a big bank among them, that something fits.
    let whole = Memory { regions: vec![at(0, 96 * MIB)], usable: None, disabled: false };
    (prop::collection::vec(memory, 0..4), prop::bool::weighted(0.7)).prop_map(move |(mut all, big)| {
        if big {
            all.push(whole.clone());
        }
        all
    })
}

fn reservation() -> impl Strategy<Value = (Kind, Region)> {
    let kind = prop_oneof![
        Just(Kind::NoMap),
        Just(Kind::Kept),
        Just(Kind::Reusable),
        Just(Kind::Disabled),
        Just(Kind::Dynamic(None)),
        region().prop_map(|r| Kind::Dynamic(Some(r))),
    ];
    let small = (region(), 1..256u64).prop_map(|(r, pages)| at(r.base, r.size.min(pages * PAGE)));
    (kind, small)
}

prop_compose! {
    fn any_board()(
        base in prop_oneof![Just(0u64), Just(RAM), Just(0xffff_0000 - 64 * MIB), Just(0x40_0000_0000u64)],
        cells in (1u32..=2, 1u32..=2),
        memory in memories(),
        reserved in prop::collection::vec(reservation(), 0..6),
        listed in prop::collection::vec(region(), 0..2),
        usable_range in prop_oneof![8 => Just(None), 1 => prop::collection::vec(region(), 1..3).prop_map(Some)],
        cpus in prop::collection::vec(prop::option::weighted(0.3, 0..96 * MIB), 1..5),
        modules in (prop::option::of(0..47u64), prop::option::of((region(), any::<bool>()))),
    ) -> Board {
        let address_cells = if base > u64::from(u32::MAX) - 96 * MIB { 2 } else { cells.0 };
        let move_all = |all: Vec<Region>| all.into_iter().map(|r| shifted(r, base)).collect::<Vec<_>>();
        let kind = |kind| match kind {
            Kind::Dynamic(Some(within)) => Kind::Dynamic(Some(shifted(within, base))),
            kind => kind,
        };
        Board {
            address_cells,
            size_cells: cells.1,
            memory: memory.into_iter().map(|m| Memory {
                regions: move_all(m.regions), usable: m.usable.map(move_all), ..m
            }).collect(),
            reserved: reserved.into_iter().map(|(k, r)| (kind(k), shifted(r, base))).collect(),
            listed: move_all(listed).into_iter().filter(|r| r.size > 0).collect(),
            usable_range: usable_range.map(move_all),
            cpus: cpus.into_iter().map(|release| release.map(|at| base + (at & !7))).collect(),
            kernel: modules.0.map(|n| at(base + 2 * n * MIB, 3 * MIB)),
            initrd: modules.1.map(|(r, _)| at(base + r.base, r.size.clamp(PAGE, 3 * MIB))),
            initrd_is_module: modules.1.is_some_and(|(_, module)| module),
        }
    }
}

/// Pages of the window that `regions` cover wholly (`whole`) or touch.
fn bitmap(regions: &[Region], base: u64, whole: bool) -> Vec<bool> {
    let pages = 132 * MIB / PAGE;
    // A page is covered when the union covers it: byte counts would be slow, so edges are looked at one by one.
    let mut map = vec![false; pages as usize];
    for (index, cell) in map.iter_mut().enumerate() {
        let page = at(base + index as u64 * PAGE, PAGE);
        *cell = if whole {
            let mut at = page.base;
            while let Some(r) = regions.iter().find(|r| r.base <= at && at < r.end()) {
                at = r.end();
            }
            at >= page.end()
        } else {
            regions.iter().any(|r| r.size > 0 && r.overlaps(page))
        };
    }
    map
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    /// Whatever the board: a layout that keeps every promise, or a refusal in words; the words of RAM and what EL2 maps
    /// agree, page by page, with what a bitmap says.
    #[test]
    fn every_board_is_laid_out_or_refused(board in any_board()) {
        let tree = board.tree();
        let base = board.memory.iter().flat_map(|m| &m.regions).map(|r| r.base).min().unwrap_or(0) & !(128 * MIB - 1);
        let tree = check(&tree).unwrap();
        let p = match read::read(tree) {
            Ok(p) => p,
            Err(refusal) => {
                prop_assert!(!refusal.to_string().is_empty());
                return Ok(());
            }
        };
        let said: Vec<Region> =
            board.memory.iter().filter(|m| !m.disabled).flat_map(|m| m.regions.clone()).collect();
        let ram = bitmap(&said, base, true);
        prop_assert_eq!(&bitmap(&p.ram, base, true), &ram);
        let Some(image) = load_image(&p) else { return Ok(()) };
        let placed = match boot(tree, &p, own(image, tree)) {
            Ok(placed) => placed,
            Err(refusal) => {
                prop_assert!(refusal.contains(": "), "{}", refusal);
                return Ok(());
            }
        };
        prop_assert_eq!(wrong(&p, &placed), None);
        let layout = &placed.layout;
        let mut firmware: Vec<Region> =
            p.reserved.iter().filter(|r| r.claim != Claim::Reusable).map(|r| r.region).collect();
        let releases: Vec<Region> = p.cpus.iter().filter_map(|c| Region::new(c.release?, 8)).collect();
        let kept = bitmap(&firmware, base, false);
        firmware.extend(&releases);
        let modules: Vec<Region> = p.kernel.into_iter().chain(p.ramdisk).collect();
        let (modules, spins) = (bitmap(&modules, base, false), bitmap(&releases, base, false));
        let words = bitmap(&layout.firmware, base, true);
        let reach = bitmap(&layout.reach, base, true);
        let areas = layout.store.cpus;
        for (page, is_ram) in ram.iter().enumerate() {
            let here = at(base + page as u64 * PAGE, PAGE);
            let of_firmware = *is_ram && ((kept[page] && !modules[page]) || spins[page]);
            prop_assert_eq!(words[page], of_firmware, "word of {:x?}", here);
            // Guard pages are looked at by name only: which they are is the caller's matter.
            if !image.contains(here) && !areas.contains(here) {
                prop_assert_eq!(reach[page], (*is_ram && !of_firmware) || spins[page], "EL2 at {:x?}", here);
            }
        }
    }
}
