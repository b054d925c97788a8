//! How conversions grow with the number of pages of a call: 1 to 512.

use arrayvec::ArrayString;
use core::fmt::Write;
use tenure_abi::flags::vm as vm_flags;
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, exit};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::{command, work};
use tenure_test_rt::harness::{self, Failure};
use tenure_test_rt::{check, check_eq, probe};

use crate::guest::looped;
use crate::{Clock, Measured, instructions};

const IPA: u64 = FREE_GFN * PAGE_SIZE;

/// Measures share, unshare, and unshare with host leaves, for each size.
pub fn run(host: &mut Host, clock: Clock) {
    let mut vm = None;
    harness::run("bench", "a_guest_with_512_pages_starts", || {
        let guest = vm.insert(Vm::new(host, vm_flags::PROTECTED)?);
        guest.boot(host)?;
        guest.fill(host, FREE_GFN, MAX_ATOMIC_PAGES, 1)
    });
    let Some(vm) = &mut vm else { return };
    let sizes = || (0..).map(|power| 1u64 << power).take_while(|size| *size <= MAX_ATOMIC_PAGES);
    for size in sizes() {
        instructions(&name("share", size), || looped(host, vm, clock, (work::SHARE_RANGE, IPA, size), size));
        instructions(&name("unshare", size), || {
            looped(host, vm, clock, (work::UNSHARE_RANGE, IPA, size), size)
        });
        instructions(&name("unshare_host_mapped", size), || mapped(host, vm, clock, size));
    }
    harness::run("bench", "the_guest_with_512_pages_ends", || vm.destroy(host));
}

fn name(what: &str, size: u64) -> ArrayString<64> {
    let mut name = ArrayString::new();
    // A name that does not fit would be cut; none is.
    let _ = write!(name, "{what}_range_{size}_per_page");
    name
}

/// The guest takes pages back that the host maps; the host consents at once, EL2 drops the leaves.
fn mapped(host: &mut Host, vm: &mut Vm, clock: Clock, size: u64) -> Result<Measured, Failure> {
    vm.share(host, FREE_GFN, size)?;
    for index in 0..size {
        check!(!probe::read(memory::address(vm.frame(FREE_GFN + index))).faulted());
    }
    let mut event = vm.order(host, command::LOOP, &[work::UNSHARE_RANGE, IPA, size])?;
    loop {
        match event {
            Event::Idle([_, ticks, answers, ..]) => {
                check_eq!(answers, 0, "answers");
                return Ok(clock.per_step(ticks, size));
            }
            Event::Exit(page) => {
                check_eq!(page.reason, exit::CONVERT);
                let reply = calls::consent(vm.handle, 0, page.sequence);
                check!(reply.is_success(), "CONSENT: {reply}");
            }
        }
        event = vm.run(host)?;
    }
}
