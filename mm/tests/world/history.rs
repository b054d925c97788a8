//! Histories: lists of calls of several VMs and of the host, made to a world one after the other, on any CPU. Property
//! tests and fuzzing make them up.

use tenure_abi::flags::{pin, status};
use tenure_abi::page::State;
use tenure_mm::fake::on_cpu;

use super::{Layout, World};

/// First guest frame that is used: ranges from here cross from one level-3 table to the next.
pub const GFN: u64 = 508;
/// Guest frames that are used.
pub const GFNS: u64 = 10;

/// One call; VMs, frames and addresses by number.
#[derive(Clone, Debug)]
pub enum Call {
    Create(usize, u64),
    Activate(usize),
    Destroy(usize),
    /// Between the steps the host gives up pins of frames from this number on.
    DestroyWhile(usize, u64, u64),
    Rights(usize, u64),
    Topup(Option<usize>, u64, u64),
    DrainPool(Option<usize>, u64),
    SetStatus(usize, u64, u64, u64),
    Donate(usize, u64, u64, u64, u64),
    Reclaim(usize, u64, u64),
    Convert(usize, u64, u64, u64),
    GuestMap(usize, u64, u64, u64),
    GuestUnmap(usize, u64, u64),
    Share(usize, u64, u64),
    Unshare(usize, u64, u64, u64),
    Consent(usize, u64, u64, u64),
    Relinquish(usize, u64, u64),
    Guest(usize, u64, Option<u64>),
    Host(u64, Option<u64>),
    HostMap(u64, u64),
    HostUnmap(u64, u64),
    Pin(u64, u64, u64),
    Unpin(u64, u64, u64),
    Poison(u64),
    DmaMap(u64),
    DmaUnmap(u64),
    HypPin(u64, bool),
    Reset,
}

/// Makes a call.
pub fn make(world: &mut World, call: &Call) {
    match *call {
        Call::Create(vm, flags) => world.create(vm, flags),
        Call::Activate(vm) => {
            let _ = world.activate(vm);
        }
        Call::Destroy(vm) => world.destroy(vm),
        Call::DestroyWhile(vm, pfn, count) => {
            let frames: Vec<_> = (pfn..pfn + count).map(|number| world.frame(number)).collect();
            world.destroy_while(vm, &frames);
        }
        Call::Rights(vm, rights) => {
            let _ = world.set_rights(vm, rights);
        }
        Call::Topup(vm, pfn, count) => {
            let _ = world.topup(vm, world.frame(pfn), count);
        }
        Call::DrainPool(vm, max) => {
            let _ = world.drain_pool(vm, max);
        }
        Call::SetStatus(vm, gfn, count, to) => {
            let _ = world.set_status(vm, gfn, count, to);
        }
        Call::Donate(vm, gfn, pfn, count, kind) => {
            let _ = world.donate(vm, gfn, world.frame(pfn), count, kind);
        }
        Call::Reclaim(vm, pfn, count) => {
            let _ = world.reclaim(vm, world.frame(pfn), count);
        }
        Call::Convert(vm, gfn, count, to) => {
            let _ = world.convert(vm, gfn, count, to);
        }
        Call::GuestMap(vm, gfn, pfn, count) => {
            let _ = world.guest_map(vm, gfn, world.frame(pfn), count);
        }
        Call::GuestUnmap(vm, gfn, count) => {
            let _ = world.guest_unmap(vm, gfn, count);
        }
        Call::Share(vm, gfn, count) => {
            let _ = world.share(vm, gfn, count);
        }
        Call::Unshare(vm, gfn, count, flags) => {
            let _ = world.unshare(vm, gfn, count, flags);
        }
        Call::Consent(vm, gfn, count, flags) => {
            let _ = world.consent(vm, gfn, count, flags);
        }
        Call::Relinquish(vm, gfn, count) => {
            let _ = world.relinquish(vm, gfn, count);
        }
        Call::Guest(vm, gfn, value) => {
            if world.handles.contains_key(&vm) {
                let _ = world.guest(vm, gfn, value);
            }
        }
        Call::Host(pfn, value) => {
            let _ = world.touch(world.frame(pfn), value);
        }
        Call::HostMap(pfn, count) => {
            let _ = world.host_map(world.frame(pfn), count);
        }
        Call::HostUnmap(pfn, count) => {
            let _ = world.host_unmap(world.frame(pfn), count);
        }
        Call::Pin(pfn, count, kind) => {
            let _ = world.pin(world.frame(pfn), count, kind);
        }
        Call::Unpin(pfn, count, kind) => {
            let _ = world.unpin(world.frame(pfn), count, kind);
        }
        Call::Poison(pfn) => {
            let _ = world.poison(world.frame(pfn));
        }
        Call::DmaMap(pfn) => {
            let _ = world.dma_map(world.frame(pfn));
        }
        Call::DmaUnmap(pfn) => {
            let _ = world.dma_unmap(world.frame(pfn));
        }
        Call::HypPin(pfn, on) => {
            let _ = world.hyp_pin(world.frame(pfn), on);
        }
        Call::Reset => world.reset(),
    }
}

/// Two VMs that have started, so that short histories get somewhere: 0 is protected and active, 1 is plain.
pub fn furnished(layout: Layout) -> World {
    let mut world = World::new(layout);
    for (vm, flags) in [(0, 3), (1, 2)] {
        world.create(vm, flags);
        world.topup(Some(vm), world.frame(vm as u64 * 6), 6);
        world.set_status(vm, GFN, GFNS, status::PRIVATE);
        world.donate(vm, GFN, world.frame(12 + vm as u64 * 4), 4, status::PRIVATE);
        world.activate(vm);
        world.share(vm, GFN, 3);
    }
    world
}

/// Makes the calls of a history, each on its CPU, and ends the world.
pub fn run(mut world: World, history: &[(usize, Call)]) {
    play(&mut world, history);
    end(world);
}

/// Makes the calls of a history, each on its CPU.
pub fn play(world: &mut World, history: &[(usize, Call)]) {
    for (cpu, call) in history {
        on_cpu(*cpu, || make(world, call));
    }
}

/// The host ends without a word to its holders: after its reset every page is back.
pub fn end_by_reset(mut world: World) {
    for (&pfn, frame) in &world.model.frames.clone() {
        (0..frame.dma_leaves).for_each(|_| {
            let _ = world.dma_unmap(tenure_mm::Pfn(pfn));
        });
        (0..frame.hyp_pins).for_each(|_| {
            let _ = world.mm.hyp_unpin(tenure_mm::Pfn(pfn));
            world.model.hyp_pin(pfn, false);
        });
    }
    world.reset();
    let odd: Vec<_> = world
        .model
        .frames
        .range(world.frame(0).0..u64::MAX)
        .filter(|(_, frame)| {
            let gone = State::Host == frame.state && !frame.firmware || frame.state == State::Poison;
            !gone || frame.cpu_pins + frame.dma_pins + frame.hyp_pins + frame.guest_leaves > 0
        })
        .collect();
    assert!(odd.is_empty(), "the next kernel trips over {odd:#x?}");
}

/// Every VM dies, every holder lets go, and every page is back.
pub fn end(mut world: World) {
    // After any number of lives every page is back (B6): whatever is still pinned is let go.
    for vm in 0..3 {
        world.destroy(vm);
    }
    let pinned: Vec<_> = world.model.frames.iter().map(|(&pfn, frame)| (pfn, frame.clone())).collect();
    for (pfn, frame) in pinned {
        let pfn = tenure_mm::Pfn(pfn);
        (0..frame.dma_leaves).for_each(|_| {
            let _ = world.dma_unmap(pfn);
        });
        (0..frame.cpu_pins).for_each(|_| {
            let _ = world.unpin(pfn, 1, pin::CPU);
        });
        (0..frame.dma_pins).for_each(|_| {
            let _ = world.unpin(pfn, 1, pin::DMA);
        });
    }
    while world.drain_pool(None, 8).is_some_and(|pages| !pages.is_empty()) {}
    let kept = world.model.totals();
    let firmware_and_host = kept.get(&0).copied().unwrap_or(0);
    let poisoned = kept.get(&6).copied().unwrap_or(0);
    assert_eq!(
        firmware_and_host + poisoned + world.boot_pages,
        kept.values().sum::<u64>(),
        "pages are missing"
    );
}
