//! The run page: written when a vCPU leaves, read for the host's answer when it is run again.
//!
//! It is the host's memory, pinned by the hypervisor from VCPU_CREATE to the vCPU's end, and the host may write it at any
//! moment: nothing is ever read from it but the one answer, once. Unsafe is needed to reach it by its address.
#![allow(unsafe_code)]

use core::mem::offset_of;

use tenure_abi::{PAGE_SIZE, RunPage};
use tenure_mm::Pfn;

/// A page of host memory that the hypervisor has pinned.
#[derive(Clone, Copy, Debug)]
pub struct HostPage(Pfn);

impl HostPage {
    /// Names a page.
    ///
    /// # Safety
    /// The hypervisor must hold a pin on the frame (`Mm::hyp_pin`) while this is used.
    pub unsafe fn new(frame: Pfn) -> Self {
        Self(frame)
    }

    fn word(&self, offset: usize) -> *mut u64 {
        let offset = (offset % PAGE_SIZE as usize) & !7;
        core::ptr::with_exposed_provenance_mut((self.0.base().0 as usize).wrapping_add(offset))
    }

    /// Reads the aligned 64-bit word at a byte offset, once.
    pub fn read(&self, offset: usize) -> u64 {
        // SAFETY: a frame of RAM, mapped in EL2, kept by the pin; no Rust object lies there, and the access is volatile.
        unsafe { self.word(offset).read_volatile() }
    }

    /// Writes the aligned 64-bit word at a byte offset.
    pub fn write(&self, offset: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word(offset).write_volatile(value) };
    }

    /// Writes bytes from the start of the page, the last word filled up with zeros.
    pub fn write_bytes(&self, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write(index * 8, u64::from_le_bytes(word));
        }
    }
}

/// Tells an exit. Every field is written: what the reason does not name is zero.
pub fn tell(page: HostPage, exit: &RunPage) {
    let RunPage {
        reason,
        gpa,
        count,
        flags,
        sequence,
        first,
        mask,
        status,
        width,
        write,
        data,
        system,
        target,
        esr,
        timer_ctl,
        timer_cval,
        args,
    } = *exit;
    let fields = [
        gpa, count, flags, sequence, first, mask, status, width, write, data, system, target, esr, timer_ctl,
        timer_cval,
    ];
    for (index, value) in fields.into_iter().chain(args).enumerate() {
        page.write(offset_of!(RunPage, gpa) + index * 8, value);
    }
    page.write(offset_of!(RunPage, reason), reason);
}

/// The host's answer to the last exit.
pub fn answer(page: HostPage) -> u64 {
    page.read(offset_of!(RunPage, data))
}
