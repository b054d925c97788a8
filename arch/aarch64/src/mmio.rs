//! Device registers: single loads and stores of a fixed width that the compiler neither splits nor drops.
#![allow(unsafe_code)]

/// A 32-bit device register at a fixed address.
#[derive(Clone, Copy, Debug)]
pub struct Reg32(usize);

impl Reg32 {
    /// Names a register.
    ///
    /// # Safety
    /// `addr` must be a multiple of 4 and, whenever the register is used, be mapped as (or, with the MMU off, act as)
    /// device memory, and reads and writes of it may have no effect on memory that Rust knows.
    pub const unsafe fn new(addr: usize) -> Self {
        Self(addr)
    }

    /// Reads it.
    #[inline(always)]
    pub fn read(self) -> u32 {
        // SAFETY: promised at construction.
        unsafe { core::ptr::read_volatile(core::ptr::with_exposed_provenance::<u32>(self.0)) }
    }

    /// Writes it.
    #[inline(always)]
    pub fn write(self, value: u32) {
        // SAFETY: promised at construction.
        unsafe { core::ptr::write_volatile(core::ptr::with_exposed_provenance_mut::<u32>(self.0), value) }
    }
}

/// An 8-bit device register at a fixed address.
#[derive(Clone, Copy, Debug)]
pub struct Reg8(usize);

impl Reg8 {
    /// Names a register.
    ///
    /// # Safety
    /// As [`Reg32::new`], at any address.
    pub const unsafe fn new(addr: usize) -> Self {
        Self(addr)
    }

    /// Reads it.
    #[inline(always)]
    pub fn read(self) -> u8 {
        // SAFETY: promised at construction.
        unsafe { core::ptr::read_volatile(core::ptr::with_exposed_provenance::<u8>(self.0)) }
    }

    /// Writes it.
    #[inline(always)]
    pub fn write(self, value: u8) {
        // SAFETY: promised at construction.
        unsafe { core::ptr::write_volatile(core::ptr::with_exposed_provenance_mut::<u8>(self.0), value) }
    }
}
