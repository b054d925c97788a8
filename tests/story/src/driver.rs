//! Tenure's own ioctls (`driver/tenure.h`) and the one KVM ioctl that the crates lack.
#![allow(unsafe_code)]
// Reason: ioctl(2) takes pointers; every struct here is plain integers of the size that the number names.

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use tenure_abi::{Reply, Status};

/// The hypervisor's answer inside an ioctl, and the word of the page that it is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer {
    status: i64,
    done: u64,
    first: u64,
    mask: u64,
    /// The page's word.
    pub word: u64,
}

impl Answer {
    /// The four result registers as the interface defines them; `None` for a status that it does not know.
    pub fn reply(&self) -> Option<Reply> {
        Status::from_raw(self.status as u64).map(|status| Reply {
            status,
            done: self.done,
            first: self.first,
            mask: self.mask,
        })
    }
}

/// `struct tenure_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// Version of the interface.
    pub version: u64,
    /// `TENURE_FEATURE_*`.
    pub features: u64,
    /// Value i is figure i of INFO.
    pub value: [u64; 14],
}

/// `struct tenure_count`: frames of the machine by state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames in each state.
    pub state: [u64; 7],
    /// Pins over all frames.
    pub cpu_pins: u64,
    /// Pins over all frames.
    pub dma_pins: u64,
    reserved: [u64; 3],
}

/// `struct tenure_pin`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pin {
    gmem_fd: i32,
    kind: u32,
    offset: u64,
    size: u64,
    tag: [u8; 16],
    /// What the hypervisor said.
    pub answer: Answer,
    /// Pages that finished draining.
    pub drained: u64,
    /// Pages that came back to the host.
    pub returned: u64,
}

/// `struct tenure_query`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    gmem_fd: i32,
    op: u32,
    offset: u64,
    /// The verdict, and the word.
    pub answer: Answer,
    /// Frame number, or 0.
    pub pfn: u64,
    /// Status of the guest address.
    pub status: u64,
}

/// `struct tenure_holder`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder {
    /// Byte offset of the page in the file.
    pub offset: u64,
    /// `TENURE_PIN_*`.
    pub kind: u32,
    /// Pins.
    pub count: u32,
    /// Process, 0 if observed.
    pub pid: i32,
    /// 1 if found by the page's count.
    pub observed: u32,
    tag: [u8; 16],
    comm: [u8; 16],
}

impl Holder {
    /// `tag (comm, pid)`.
    pub fn name(&self) -> String {
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        };
        if self.observed == 1 {
            return "observed by its count".into();
        }
        format!("\"{}\" ({}, pid {})", text(&self.tag), text(&self.comm), self.pid)
    }
}

#[repr(C)]
#[derive(Default)]
struct Holders {
    gmem_fd: i32,
    count: u32,
    offset: u64,
    size: u64,
    holders: u64,
}

/// `struct tenure_request`: the conversion that a vCPU waits for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// Guest physical address.
    pub gpa: u64,
    /// Pages.
    pub pages: u64,
    /// Flags of the guest's call.
    pub flags: u64,
    /// Number of the request.
    pub sequence: u64,
    /// First page that blocks.
    pub first: u64,
    /// What blocks it.
    pub mask: u64,
}

/// `struct kvm_set_memory_attributes2`.
#[repr(C)]
#[derive(Default)]
struct Attributes2 {
    offset: u64,
    size: u64,
    attributes: u64,
    flags: u64,
    error_offset: u64,
    reserved: [u64; 11],
}

const fn number(direction: u32, group: u8, number: u8, size: usize) -> c_ulong {
    ((direction << 30) | ((size as u32) << 16) | ((group as u32) << 8) | number as u32) as c_ulong
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;
const TENURE: u8 = 0xB7;
const KVM: u8 = 0xAE;

fn call<T>(fd: &impl AsRawFd, number: c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is a live, writable struct of exactly the size that the number carries, and the driver
    // keeps no pointer to it.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An open `/dev/tenure`; the pins that it makes die with it.
pub struct Session(File);

impl Session {
    /// Opens the device.
    ///
    /// # Errors
    /// If there is no driver.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open("/dev/tenure").map(Self)
    }

    /// Figures of the hypervisor.
    ///
    /// # Errors
    /// The driver's.
    pub fn info(&self) -> io::Result<Info> {
        let mut info = Info::default();
        call(&self.0, number(READ, TENURE, 0, size_of::<Info>()), &mut info)?;
        Ok(info)
    }

    /// Frames of the whole machine by state.
    ///
    /// # Errors
    /// The driver's.
    pub fn count(&self) -> io::Result<Count> {
        let mut count = Count::default();
        call(&self.0, number(READ, TENURE, 1, size_of::<Count>()), &mut count)?;
        Ok(count)
    }

    /// Declares a use of pages; the struct holds the hypervisor's answer also when it is refused.
    pub fn pin(&self, gmem: RawFd, offset: u64, size: u64, kind: u64, tag: &str) -> (Pin, io::Result<()>) {
        self.pin_call(2, gmem, offset, size, kind, tag)
    }

    /// Takes a pin back.
    pub fn unpin(&self, gmem: RawFd, offset: u64, size: u64, kind: u64) -> (Pin, io::Result<()>) {
        self.pin_call(3, gmem, offset, size, kind, "")
    }

    fn pin_call(
        &self,
        nr: u8,
        gmem_fd: RawFd,
        offset: u64,
        size: u64,
        kind: u64,
        name: &str,
    ) -> (Pin, io::Result<()>) {
        let mut tag = [0; 16];
        for (to, from) in tag.iter_mut().zip(name.bytes().take(15)) {
            *to = from;
        }
        let mut pin = Pin { gmem_fd, kind: kind as u32, offset, size, tag, ..Pin::default() };
        let result = call(&self.0, number(READ | WRITE, TENURE, nr, size_of::<Pin>()), &mut pin);
        (pin, result)
    }

    /// The verdict of an immediate attempt, and the page's word.
    ///
    /// # Errors
    /// The driver's; a refusal by the hypervisor is no error here.
    pub fn query(&self, gmem_fd: RawFd, offset: u64, op: u64) -> io::Result<Query> {
        let mut query = Query { gmem_fd, op: op as u32, offset, ..Query::default() };
        call(&self.0, number(READ | WRITE, TENURE, 4, size_of::<Query>()), &mut query)?;
        Ok(query)
    }

    /// The ledger's entries for a range.
    ///
    /// # Errors
    /// The driver's.
    pub fn holders(&self, gmem_fd: RawFd, offset: u64, size: u64) -> io::Result<Vec<Holder>> {
        let mut list = vec![Holder::default(); 64];
        let mut holders =
            Holders { gmem_fd, count: list.len() as u32, offset, size, holders: list.as_mut_ptr() as u64 };
        call(&self.0, number(READ | WRITE, TENURE, 5, size_of::<Holders>()), &mut holders)?;
        list.truncate(holders.count as usize);
        Ok(list)
    }

    /// An ioctl that does not exist, or whose argument is rubbish.
    pub fn rubbish(&self, group: u8, nr: u8, argument: &mut [u8; 128]) -> io::Result<()> {
        call(&self.0, number(READ | WRITE, group, nr, size_of_val(argument)), argument)
    }
}

/// Sets what the guest may use (on the VM).
///
/// # Errors
/// The driver's.
pub fn set_rights(vm: &impl AsRawFd, mut rights: u64) -> io::Result<()> {
    call(vm, number(WRITE, TENURE, 0x10, size_of::<u64>()), &mut rights)
}

/// The conversion that the vCPU waits for.
///
/// # Errors
/// ENOENT if it waits for none.
pub fn request(vcpu: &impl AsRawFd) -> io::Result<Request> {
    let mut request = Request::default();
    call(vcpu, number(READ, TENURE, 0x20, size_of::<Request>()), &mut request)?;
    Ok(request)
}

/// Refuses it.
///
/// # Errors
/// ENOENT if it waits for none.
pub fn refuse(vcpu: &impl AsRawFd) -> io::Result<()> {
    call(vcpu, number(NONE, TENURE, 0x21, 0), &mut ())
}

/// KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd. An error carries the offset of the page that was in the way.
///
/// # Errors
/// The driver's, with `error_offset`.
pub fn set_private(
    gmem: &impl AsRawFd,
    offset: u64,
    size: u64,
    private: bool,
) -> Result<(), (io::Error, u64)> {
    let mut attributes = Attributes2 {
        offset,
        size,
        attributes: if private { u64::from(kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE) } else { 0 },
        ..Attributes2::default()
    };
    call(gmem, number(READ | WRITE, KVM, 0xd2, size_of::<Attributes2>()), &mut attributes)
        .map_err(|error| (error, attributes.error_offset))
}
