//! What the machine and the hypervisor are.
#![allow(unsafe_code)] // A page of the host, pinned for the time of a call.

use core::sync::atomic::Ordering;

use tenure_abi::info::{self as figure, feature};
use tenure_abi::page::State;
use tenure_abi::trace::{RECORD_SIZE, Record};
use tenure_abi::{PAGE_SIZE, Reply, Status};
use tenure_mm::stage2::GUEST_IPA_BITS;
use tenure_mm::stage2::host::FRAMES;
use tenure_mm::{MAX_VMS, Pfn};

use super::Call;
use crate::machine::mm;
use crate::vcpu::run_page::HostPage;
use crate::vm::{self, MAX_VCPUS};
use crate::{dma, percpu, ring, stats, trace};

/// Pages that VM_ACTIVATE takes: the root table and the scrap frame.
const MIN_POOL: u64 = 2;

/// FEATURES.
pub fn features(at: &mut Call<'_>) -> Reply {
    let fwb = if percpu::forced_types() { feature::FWB } else { 0 };
    let guests = if vm::are_offered() { feature::GUESTS } else { 0 };
    let dma = if dma::CONTAINED { feature::DMA_CONTAINED } else { 0 };
    at.set(4, guests | fwb | dma);
    Reply::done(0)
}

/// INFO(index).
pub fn info(at: &mut Call<'_>) -> Reply {
    let mm = mm();
    let (first, end) = mm.frames().span();
    let value = match at.arg(1) {
        figure::FRAMES => mm.frames().len(),
        figure::KEPT_BYTES => stats::kept_bytes(),
        figure::MAX_VMS => MAX_VMS as u64,
        figure::MAX_VCPUS => MAX_VCPUS as u64,
        // The upper half of the tables is kept for the shared alias.
        figure::IPA_BITS => u64::from(GUEST_IPA_BITS) - 1,
        figure::FIRST_PFN => first.0,
        figure::END_PFN => end.0,
        figure::HOST_ABORTS => mm.stats.host_aborts.load(Ordering::Relaxed),
        figure::SCRAP_TOUCHES => mm.stats.scrap_touches.load(Ordering::Relaxed),
        figure::MIN_POOL => MIN_POOL,
        figure::TLBIS => stats::tlbis(),
        figure::SMCS_REFUSED => stats::refused_smcs(),
        _ => return Reply::refused(Status::Invalid),
    };
    at.set(4, value);
    Reply::done(0)
}

/// COUNT(start_pfn, count).
pub fn count(at: &mut Call<'_>) -> Reply {
    let [first, count] = at.args();
    if tenure_mm::addr::checked_end(first, count, FRAMES).is_none() {
        return Reply::refused(Status::Invalid);
    }
    let (done, totals) = mm().count(Pfn(first), count);
    for (n, sum) in (4..4 + State::ALL.len()).zip(totals.states) {
        at.set(n, sum);
    }
    at.set(11, totals.cpu_pins);
    at.set(12, totals.dma_pins);
    Reply::done(done)
}

/// LOG_READ(offset, pfn).
#[inline(never)] // A page of text on the stack, which no other call should have to set up.
pub fn log_read(at: &mut Call<'_>) -> Reply {
    let [offset, pfn] = at.args();
    tell(at, Pfn(pfn), |page| {
        let mut text = [0; PAGE_SIZE as usize];
        let (copied, next) = ring::log_read(offset, &mut text);
        page.write_bytes(text.get(..copied).unwrap_or(&[]));
        (copied as u64, next)
    })
}

/// TRACE_READ(number, pfn).
#[inline(never)]
pub fn trace_read(at: &mut Call<'_>) -> Reply {
    let [from, pfn] = at.args();
    tell(at, Pfn(pfn), |page| {
        let mut records = [Record::default(); (PAGE_SIZE / RECORD_SIZE) as usize / 8];
        let (mut total, mut next) = (0, from);
        while total < PAGE_SIZE / RECORD_SIZE {
            let (copied, after) = trace::read(next, &mut records);
            if after == next {
                break;
            }
            next = after;
            for record in records.iter().take(copied) {
                let words = [record.time, record.event, record.a, record.b];
                for (word, value) in (0..).zip(words) {
                    page.write((total * RECORD_SIZE + word * 8) as usize, value);
                }
                total += 1;
            }
        }
        (total, next)
    })
}

/// Lets `write` fill a page of the host's, pinned meanwhile; what it returns goes to x4 and x5.
fn tell(at: &mut Call<'_>, frame: Pfn, write: impl FnOnce(HostPage) -> (u64, u64)) -> Reply {
    if let Err(refusal) = mm().hyp_pin(frame) {
        return refusal.at(0);
    }
    // SAFETY: pinned just now, until the end of this function.
    let page = unsafe { HostPage::new(frame) };
    let (written, next) = write(page);
    let unpinned = mm().hyp_unpin(frame);
    at.set(4, written);
    at.set(5, next);
    match unpinned {
        Ok(()) => Reply::done(1),
        Err(refusal) => refusal.at(0),
    }
}
