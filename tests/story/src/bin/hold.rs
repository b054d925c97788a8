//! A guest that lives until its VMM is killed: it spins on its vCPU, while this process has a page of it pinned.
//!
//! For tests of what becomes of guests when their VMM, the driver or the host ends.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use story::driver::Session;
use story::guest::Guest;
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::pin;
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
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: false })?;
    vm.place(&image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    let [filled, ..] = guest.command(command::FILL, &[protocol::FREE, 64, 0x5ec4e7])?;
    ensure!(filled == outcome::OK, "the guest cannot fill its pages");
    ensure!(guest.call(command::SHARE, &[protocol::FREE, 8])?.is_success(), "share");
    vm.memory.write(FREE as usize, 1);
    session.pin(vm.gmem_fd(), FREE, 4096, pin::CPU, "hold").1.context("PIN")?;
    guest.order(command::SPIN, &[u64::MAX])?;
    println!("hold: a guest spins, a page of it is pinned");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
