//! A small VMM: one guest_memfd as RAM, one vCPU, the test guest as image.
#![allow(unsafe_code)]
// Reason: two calls of kvm-ioctls are unsafe or give raw descriptors; each is one line with its argument.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_MEM_GUEST_MEMFD, kvm_create_guest_memfd, kvm_userspace_memory_region2,
    kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use tenure_abi::flags;
use tenure_test_protocol::{self as protocol, command};

use crate::driver;
use crate::guest::Guest;
use crate::mapping::Mapping;

/// Bytes of the guest's RAM.
pub const RAM: u64 = protocol::DEFAULT_RAM_BYTES;
/// Offset in RAM of the memory for experiments.
pub const FREE: u64 = protocol::FREE - protocol::ENTRY;

/// Upstream's flags of KVM_CREATE_GUEST_MEMFD (kvm-bindings follows an older kernel).
const GMEM_MMAP: u64 = 1 << 0;
const GMEM_INIT_SHARED: u64 = 1 << 1;
/// KVM_VM_TYPE_ARM_PROTECTED.
const TYPE_PROTECTED: u64 = 1 << 31;
/// ID of x0 for KVM_SET_ONE_REG: KVM_REG_ARM64, 64 bits, core register; each 32-bit step of `struct kvm_regs` is 1.
pub const REG_X0: u64 = 0x6030_0000_0010_0000;
/// ID of the program counter.
pub const REG_PC: u64 = REG_X0 + 2 * 32;
const REG_PSTATE: u64 = REG_X0 + 2 * 33;
/// EL1 with SP_EL1, all exceptions masked.
const PSTATE_EL1H: u64 = 0x3c5;

/// Stacks of further vCPUs, behind the image and before the memory for experiments.
const STACKS: u64 = protocol::ENTRY + 0x8_0000;
const STACK: u64 = 0x4000;

fn memory_of(vm: &VmFd, size: u64, shared: bool) -> Result<File> {
    let flags = GMEM_MMAP | if shared { GMEM_INIT_SHARED } else { 0 };
    let fd = vm
        .create_guest_memfd(kvm_create_guest_memfd { size, flags, ..Default::default() })
        .context("KVM_CREATE_GUEST_MEMFD")?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A VM and its memory, before its vCPU is handed to a thread.
pub struct Vm {
    vm: VmFd,
    gmem: File,
    /// The guest's RAM in this process.
    pub memory: Mapping,
    // Last: closed when nothing else is left.
    _kvm: Kvm,
}

/// What kind of VM, and what its guest may do.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Protected: once active, only the guest decides what is shared.
    pub protected: bool,
    /// The guest may revoke.
    pub revoke: bool,
}

impl Vm {
    /// A VM whose RAM is one guest_memfd at the guest's entry address, shared for now.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(kind: Kind) -> Result<Self> {
        Self::prepared(kind, |_| ())
    }

    /// As [`Vm::new`]; `prepare` may write to the memory before a slot makes it the guest's.
    ///
    /// # Errors
    /// The driver's.
    pub fn prepared(kind: Kind, prepare: impl FnOnce(&Mapping)) -> Result<Self> {
        let kvm = Kvm::new_with_path(c"/dev/tenure").context("cannot open /dev/tenure")?;
        let limit = u64::from(kvm.get_host_ipa_limit() as u32);
        let vm_type = limit | if kind.protected { TYPE_PROTECTED } else { 0 };
        let vm = kvm.create_vm_with_type(vm_type).context("KVM_CREATE_VM")?;
        driver::set_rights(&vm, if kind.revoke { flags::vm::RIGHT_REVOKE } else { 0 })
            .context("SET_RIGHTS")?;
        let gmem = memory_of(&vm, RAM, true)?;
        let memory = Mapping::new(&gmem, RAM as usize).context("mmap of the guest_memfd")?;
        prepare(&memory);
        let region = kvm_userspace_memory_region2 {
            slot: 0,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: protocol::ENTRY,
            memory_size: RAM,
            userspace_addr: memory.at(0) as u64,
            guest_memfd_offset: 0,
            guest_memfd: gmem.as_raw_fd() as u32,
            ..Default::default()
        };
        let this = Self { vm, gmem, memory, _kvm: kvm };
        this.region(region).context("KVM_SET_USER_MEMORY_REGION2")?;
        Ok(this)
    }

    /// Writes the image through the shared mapping, then turns all RAM private, contents included.
    ///
    /// # Errors
    /// The driver's.
    pub fn place(&self, image: &[u8], private: bool) -> Result<()> {
        ensure!(image.len() as u64 <= protocol::IMAGE_BYTES, "the guest's image is too large");
        self.memory.load(0, image);
        // The guest's stack and tables begin as zeros: touch them, so that they are placed too.
        for page in (image.len().div_ceil(4096) as u64..protocol::IMAGE_BYTES / 4096).map(|page| page * 4096)
        {
            self.memory.write(page as usize, 0);
        }
        if private {
            driver::set_private(&self.gmem, 0, RAM, true).map_err(|(error, offset)| {
                anyhow::anyhow!("SET_MEMORY_ATTRIBUTES2: {error} at {offset:#x}")
            })?;
        }
        Ok(())
    }

    /// Creates the vCPU and sets its entry.
    ///
    /// # Errors
    /// The driver's.
    pub fn vcpu(&self) -> Result<VcpuFd> {
        let vcpu = self.new_vcpu(0, 0)?;
        for (id, value) in [(REG_PC, protocol::ENTRY), (REG_X0, RAM), (REG_PSTATE, PSTATE_EL1H)] {
            vcpu.set_one_reg(id, &value.to_le_bytes()).with_context(|| format!("KVM_SET_ONE_REG {id:#x}"))?;
        }
        Ok(vcpu)
    }

    /// Creates a further vCPU, which is off until another turns it on.
    ///
    /// # Errors
    /// The driver's.
    pub fn second_vcpu(&self, index: u64) -> Result<VcpuFd> {
        self.new_vcpu(index, 1 << KVM_ARM_VCPU_POWER_OFF)
    }

    fn new_vcpu(&self, index: u64, features: u32) -> Result<VcpuFd> {
        let vcpu = self.vm.create_vcpu(index).context("KVM_CREATE_VCPU")?;
        let mut init = kvm_vcpu_init::default();
        self.vm.get_preferred_target(&mut init).context("KVM_ARM_PREFERRED_TARGET")?;
        init.features[0] |= features;
        vcpu.vcpu_init(&init).context("KVM_ARM_VCPU_INIT")?;
        Ok(vcpu)
    }

    /// Starts a guest with this many vCPUs, each of which takes commands.
    ///
    /// # Errors
    /// The driver's, or the guest's.
    pub fn start(&self, vcpus: u64) -> Result<Vec<Guest>> {
        let first = self.vcpu()?;
        let others = (1..vcpus).map(|index| self.second_vcpu(index)).collect::<Result<Vec<_>>>()?;
        let mut guests = vec![Guest::start(first)?];
        for (index, vcpu) in (1..).zip(others) {
            let guest = Guest::begin(vcpu);
            let stack = STACKS + index * STACK;
            let [answer, ..] = guests[0].command(command::START, &[index, stack, STACK])?;
            ensure!(answer == 0, "CPU_ON of vCPU {index}: {answer:#x}");
            guest.ready()?;
            guests.push(guest);
        }
        Ok(guests)
    }

    /// Another guest_memfd of this VM.
    ///
    /// # Errors
    /// The driver's.
    pub fn more_memory(&self, size: u64, shared: bool) -> Result<File> {
        memory_of(&self.vm, size, shared)
    }

    /// Puts pages of a guest_memfd at a guest address, as a slot.
    ///
    /// # Errors
    /// The driver's.
    pub fn bind(&self, slot: u32, gpa: u64, memory: &File, offset: u64, len: u64) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 {
            slot,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: gpa,
            memory_size: len,
            guest_memfd_offset: offset,
            guest_memfd: memory.as_raw_fd() as u32,
            ..Default::default()
        })
    }

    /// Takes such a slot away.
    ///
    /// # Errors
    /// The driver's.
    pub fn unbind(&self, slot: u32) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 { slot, flags: KVM_MEM_GUEST_MEMFD, ..Default::default() })
    }

    /// Lends memory of this process to the guest as slot 2.
    ///
    /// # Errors
    /// The driver's.
    pub fn lend(&self, gpa: u64, memory: &Mapping, len: u64) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 {
            slot: 2,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: memory.at(0) as u64,
            ..Default::default()
        })
    }

    /// Takes slot 2 away.
    ///
    /// # Errors
    /// The driver's.
    pub fn unlend(&self) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 { slot: 2, ..Default::default() })
    }

    /// Tries to take the slot away.
    ///
    /// # Errors
    /// The driver's.
    pub fn remove_slot(&self) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 {
            slot: 0,
            flags: KVM_MEM_GUEST_MEMFD,
            ..Default::default()
        })
    }

    /// Tries to add a slot of one page at `gpa`, backed by the first page of the same file.
    ///
    /// # Errors
    /// The driver's.
    pub fn add_slot_of(&self, gpa: u64) -> io::Result<()> {
        self.region(kvm_userspace_memory_region2 {
            slot: 1,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: gpa,
            memory_size: 4096,
            userspace_addr: self.memory.at(0) as u64,
            guest_memfd: self.gmem.as_raw_fd() as u32,
            ..Default::default()
        })
    }

    fn region(&self, region: kvm_userspace_memory_region2) -> io::Result<()> {
        // SAFETY: as in `new`: the memory outlives the VM and is never accessed by reference.
        unsafe { self.vm.set_user_memory_region2(region) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    /// The VM's file.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The guest_memfd.
    pub fn gmem(&self) -> &File {
        &self.gmem
    }

    /// The guest_memfd's descriptor.
    pub fn gmem_fd(&self) -> RawFd {
        self.gmem.as_raw_fd()
    }
}
