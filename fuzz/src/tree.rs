//! Any bytes as a device tree: refused, or put through everything that boot does with it, into a tree that is well-formed.

use tenure_dt::edit::{GROWTH, HostView, host_tree};
use tenure_dt::layout::{KernelHeader, Own};
use tenure_dt::place::find_free;
use tenure_dt::{Layout, Region, check, read};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// About what Debian's kernel needs.
const KERNEL: KernelHeader = KernelHeader { text_offset: 0, image_size: 0x223_0000 };

/// Checks, reads, lays out and edits a tree.
///
/// # Panics
/// If the tree that the host would get is malformed, or if Tenure would lie over what is the firmware's.
pub fn run(data: &[u8]) {
    let Ok(tree) = check(data) else { return };
    let Ok(platform) = read::read(tree) else { return };
    let reserved: Vec<Region> = platform.reserved.iter().map(|reserved| reserved.region.pages()).collect();
    let Some(image) = find_free(&platform.ram, &reserved, 2 * MIB, 2 * MIB, PAGE) else { return };
    let guard = |base| Region { base, size: PAGE };
    let own = Own {
        image,
        tree: Region { base: 0xff_f000_0000, size: tree.len() as u64 },
        cpu_area: 0x1_5000,
        cpu_guards: [guard(0), guard(0x1_1000)],
    };
    let Ok(mut layout) = Layout::new(&platform, &own) else { return };
    if let Some(module) = platform.kernel
        && layout.place_kernel(module, KERNEL).is_err()
    {
        return;
    }
    let Ok(place) = layout.place_tree((tree.len() + GROWTH) as u64) else { return };
    for ours in layout.kept.into_iter().chain([place]) {
        let over = reserved.iter().find(|reserved| reserved.size > 0 && reserved.overlaps(ours));
        assert!(over.is_none(), "{ours:x?} lies over {over:x?}");
        assert!(platform.ram.iter().any(|bank| bank.contains(ours)), "{ours:x?} is not in RAM");
    }
    let view = HostView { hidden: &layout.kept, ramdisk: platform.ramdisk, interrupt: None };
    let mut out = vec![0xaa; tree.len() + GROWTH];
    if let Ok(len) = host_tree(tree, &platform, &view, &mut out) {
        assert!(check(&out[..len]).is_ok(), "the host's tree is malformed");
    }
}
