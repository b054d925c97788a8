//! What the programs of the Debian host share: a small VMM on the KVM userspace API of `/dev/tenure`.
//!
//! The VMM uses the crates `kvm-ioctls` and `kvm-bindings` as any other does; only Tenure's own ioctls ([`driver`])
//! and the memory mappings ([`mapping`]) need code of their own.

pub mod change;
#[cfg(target_arch = "aarch64")]
pub mod clock;
pub mod driver;
#[cfg(target_arch = "aarch64")]
pub mod guest;
pub mod kexec;
pub mod mapping;
pub mod ring;
pub mod roads;
pub mod secret;
pub mod show;
pub mod signal;
pub mod steps;
#[cfg(target_arch = "aarch64")]
pub mod vmm;
