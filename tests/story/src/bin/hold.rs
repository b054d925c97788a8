//! A guest that lives until its VMM is killed: it spins on its vCPU, while this process has pages of it pinned, and a page of
//! another one that is dead.
//!
//! For tests of what becomes of guests when their VMM, the driver or the host ends.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use story::driver::Session;
use story::guest::Guest;
use story::secret;
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::pin;
use tenure_abi::page::State;
use tenure_test_protocol::{self as protocol, command, outcome};

fn main() -> ExitCode {
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("hold: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold() -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    // A guest that dies, and leaves pages to those who pinned them.
    let (vm, guest) = start()?;
    for kind in [pin::CPU, pin::DMA] {
        session.pin(vm.gmem_fd(), FREE, 4096, kind, "hold").1.context("PIN")?;
    }
    // The pins keep the file, not the VM.
    drop(guest);
    drop(vm);
    let quarantined = session.count()?.state[State::Quarantine as usize];
    ensure!(quarantined > 0, "a dead guest's pinned page is not in quarantine");

    let (vm, guest) = start()?;
    session.pin(vm.gmem_fd(), FREE, 4096, pin::CPU, "hold").1.context("PIN")?;
    session.pin(vm.gmem_fd(), FREE + 4096, 4096, pin::DMA, "hold").1.context("PIN")?;
    guest.order(command::SPIN, &[u64::MAX])?;
    println!("hold: a guest spins, a page of it is pinned");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A guest with 8 pages shared, which the host has mapped, and 56 private ones, all filled.
fn start() -> Result<(Vm, Guest)> {
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: false })?;
    vm.place(&image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    for (start, count, value) in [(8, 56, secret::PRIVATE), (0, 8, secret::SHARED)] {
        let arguments = [protocol::FREE + start * 4096, count, value];
        let [filled, ..] = guest.command(command::FILL, &arguments)?;
        ensure!(filled == outcome::OK, "the guest cannot fill its pages");
    }
    ensure!(guest.call(command::SHARE, &[protocol::FREE, 8])?.is_success(), "share");
    vm.memory.write(FREE as usize, 1);
    Ok((vm, guest))
}
