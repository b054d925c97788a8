//! A plain VM on the KVM API: here the host may convert guest_memfd memory at any time, with the same refusals.

use std::fs;
use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use story::driver::{self, Session};
use story::guest::Guest;
use story::mapping::{self, Mapping, Outcome, PipeHold};
use story::show;
use story::steps::Steps;
use story::vmm::{self, FREE, Kind, Vm};
use tenure_abi::flags::{pin, query};
use tenure_abi::info;
use tenure_abi::page::State;
use tenure_test_protocol::{self as protocol, command, outcome};

const PAGE: u64 = 4096;
const SIGBUS: Outcome = Outcome::Signal(libc::SIGBUS);
/// Where memory of the VMM itself is lent to the guest.
const LENT: u64 = 0x7000_0000;

fn main() -> ExitCode {
    let mut steps = Steps::new("plain");
    let error = plain(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn place(index: u64) -> (u64, u64) {
    (FREE + index * PAGE, protocol::FREE + index * PAGE)
}

fn plain(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    api(steps)?;
    // The image is in the file before there is a slot: it moves into the guest with it.
    let vm = Vm::prepared(Kind { protected: false, revoke: false }, |memory| memory.load(0, &image))?;
    let mut vcpu = vm.vcpu()?;
    vcpus(steps, &vm, &mut vcpu)?;
    let guest = Guest::start(vcpu)?;
    let test = Test { session: &session, vm: &vm, guest: &guest };
    steps.check("an image written before the slot starts", "the guest asks for work", true);
    there_and_back(steps, &test)?;
    every_position(steps, &test)?;
    unpopulated(steps, &test)?;
    pinned(steps, &test)?;
    hole(steps, &test)?;
    lent(steps, &test)?;
    contained(steps, &test)
}

struct Test<'a> {
    session: &'a Session,
    vm: &'a Vm,
    guest: &'a Guest,
}

impl Test<'_> {
    fn word(&self, offset: u64) -> Result<u64> {
        Ok(self.session.query(self.vm.gmem_fd(), offset, query::UNSHARE)?.answer.word)
    }

    fn convert(&self, offset: u64, pages: u64, private: bool) -> Result<(), (io::Error, u64)> {
        driver::set_private(self.vm.gmem(), offset, pages * PAGE, private)
    }
}

fn show_result(result: &Result<(), (io::Error, u64)>) -> String {
    match result {
        Ok(()) => "done".into(),
        Err((error, offset)) => format!("{error} at offset {offset:#x}"),
    }
}

/// What a VMM asks before it begins.
fn api(steps: &mut Steps) -> Result<()> {
    let kvm = Kvm::new_with_path(c"/dev/kvm").context("cannot open /dev/kvm")?;
    let version = kvm.get_api_version();
    steps.check("/dev/kvm answers", format!("API version {version}"), version == 12);
    let has = [
        Cap::UserMemory,
        Cap::UserMemory2,
        Cap::SyncMmu,
        Cap::GuestMemfd,
        Cap::OneReg,
        Cap::ArmPsci02,
        Cap::ImmediateExit,
    ];
    let all = has.into_iter().all(|cap| kvm.check_extension(cap));
    let not = [Cap::Irqchip, Cap::ReadonlyMem, Cap::MpState, Cap::DeviceCtrl];
    let none = !not.into_iter().any(|cap| kvm.check_extension(cap));
    steps.check("capabilities that are there, and that are not", format!("{all}, {none}"), all && none);
    Ok(())
}

/// vCPUs before they run: registers, immediate exit, and what is refused.
fn vcpus(steps: &mut Steps, vm: &Vm, vcpu: &mut VcpuFd) -> Result<()> {
    let mut bytes = [0; 8];
    let pc = vcpu.get_one_reg(vmm::REG_PC, &mut bytes).map(|_| u64::from_le_bytes(bytes));
    let none = vcpu.get_one_reg(vmm::REG_X0 | 1 << 15, &mut bytes).map_err(|error| error.errno());
    steps.check(
        "registers before the first run",
        format!("pc {pc:x?}; one that is not there: errno {:?}", none.err()),
        pc == Ok(protocol::ENTRY) && none == Err(libc::ENOENT),
    );
    vcpu.set_kvm_immediate_exit(1);
    let now = vcpu.run().map(|exit| format!("{exit:?}")).map_err(|error| error.errno());
    vcpu.set_kvm_immediate_exit(0);
    steps.check("immediate_exit", format!("{now:?}"), now == Err(libc::EINTR));
    let mut second = vm.vm().create_vcpu(1)?;
    let raw = second.run().map(|exit| format!("{exit:?}")).map_err(|error| error.errno());
    let twice = vm.vm().create_vcpu(1).map(drop).map_err(|error| error.errno());
    let mut init = kvm_vcpu_init { target: 5, ..Default::default() };
    init.features[0] = 1 << 7;
    let unknown = second.vcpu_init(&init).map_err(|error| error.errno());
    steps.check(
        "a vCPU that was not initialised, made twice, asked for what there is not",
        format!("errno {:?}, {:?}, {:?}", raw, twice, unknown),
        raw == Err(libc::ENOEXEC) && twice == Err(libc::EEXIST) && unknown == Err(libc::EINVAL),
    );
    Ok(())
}

/// Private and back, with contents.
fn there_and_back(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = place(0);
    test.vm.memory.write(offset as usize, 0xbeef);
    let result = test.convert(offset, 1, true);
    let (host, guest) = (test.vm.memory.try_read(offset as usize)?, test.guest.read(gpa)?);
    let word = test.word(offset)?;
    steps.check(
        "the host makes a page private",
        format!("{}; host {host:?}, guest reads {guest:#x} word={}", show_result(&result), show::word(word)),
        result.is_ok() && host == SIGBUS && guest == 0xbeef && State::of(word) == Some(State::Private),
    );
    let result = test.convert(offset, 1, false);
    let host = test.vm.memory.try_read(offset as usize)?;
    steps.check(
        "and shared again, contents kept",
        format!("{}; host {host:?}", show_result(&result)),
        result.is_ok() && host == Outcome::Value(0xbeef),
    );
    Ok(())
}

/// Four pages, a holder at each position in turn: the offset is named, nothing changes, then it works.
fn every_position(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = place(4);
    for index in 0..4 {
        test.vm.memory.write((offset + index * PAGE) as usize, 0x40 + index);
    }
    for index in 0..4 {
        let held = offset + index * PAGE;
        let pipe = PipeHold::new(&test.vm.memory, held as usize, PAGE as usize)?;
        let refused = test.convert(offset, 4, true);
        let shared = (0..4).all(|i| {
            test.vm
                .memory
                .try_read((offset + i * PAGE) as usize)
                .is_ok_and(|seen| seen == Outcome::Value(0x40 + i))
        });
        let named =
            matches!(&refused, Err((error, at)) if error.raw_os_error() == Some(libc::EAGAIN) && *at == held);
        drop(pipe);
        let done = test.convert(offset, 4, true);
        let kept = (0..4).all(|i| test.guest.read(gpa + i * PAGE).is_ok_and(|value| value == 0x40 + i));
        let back = test.convert(offset, 4, false);
        steps.check(
            &format!("a raised reference at page {index} of 4"),
            format!("{}; then {}", show_result(&refused), show_result(&done)),
            named && shared && done.is_ok() && kept && back.is_ok(),
        );
    }
    Ok(())
}

/// A page that is not there yet is converted both ways: the status holds at the first touch.
fn unpopulated(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = place(16);
    let empty = test.word(offset)? == 0;
    let result = test.convert(offset, 1, true);
    let host = test.vm.memory.try_read(offset as usize)?;
    test.guest.write(gpa, 0x77)?;
    let word = test.word(offset)?;
    steps.check(
        "an absent page made private: the guest's first touch is private",
        format!("{}; host {host:?}, word={}", show_result(&result), show::word(word)),
        empty && result.is_ok() && host == SIGBUS && State::of(word) == Some(State::Private),
    );
    let (offset, gpa) = place(17);
    let there = test.convert(offset, 1, true);
    let back = test.convert(offset, 1, false);
    test.guest.write(gpa, 0x78)?;
    let host = test.vm.memory.try_read(offset as usize)?;
    steps.check(
        "and back to shared before any touch",
        format!("{}, {}; host {host:?}", show_result(&there), show_result(&back)),
        there.is_ok() && back.is_ok() && host == Outcome::Value(0x78),
    );
    Ok(())
}

/// A declared pin: EAGAIN with the offset, the verdict of QUERY says BUSY.
fn pinned(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, _) = place(20);
    for index in 0..3 {
        test.vm.memory.write((offset + index * PAGE) as usize, 1);
    }
    let middle = offset + PAGE;
    test.session.pin(test.vm.gmem_fd(), middle, PAGE, pin::DMA, "a device").1.context("PIN")?;
    let result = test.convert(offset, 3, true);
    let verdict = test.session.query(test.vm.gmem_fd(), middle, query::UNSHARE)?.answer.reply();
    let good =
        matches!(&result, Err((error, at)) if error.raw_os_error() == Some(libc::EAGAIN) && *at == middle);
    steps.check(
        "a declared pin in the middle",
        format!(
            "{}; QUERY: {}",
            show_result(&result),
            verdict.map(|reply| show::answer(&reply)).unwrap_or_default()
        ),
        good && verdict.is_some_and(|reply| reply.status == tenure_abi::Status::Busy),
    );
    test.session.unpin(test.vm.gmem_fd(), middle, PAGE, pin::DMA).1.context("UNPIN")?;
    Ok(())
}

/// A hole is punched: the next touch finds a new page of zeros.
fn hole(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = place(24);
    test.guest.write(gpa, 0x99)?;
    let before = test.vm.memory.try_read(offset as usize)?;
    let punched = mapping::punch(test.vm.gmem(), offset, PAGE);
    let after = test.guest.read(gpa)?;
    steps.check(
        "a punched hole reads zero",
        format!("before {before:?}, {punched:?}, the guest reads {after:#x}"),
        before == Outcome::Value(0x99) && punched.is_ok() && after == 0,
    );
    Ok(())
}

/// The guest asks for itself whether devices can reach its memory, and is told what the host is told.
fn contained(steps: &mut Steps, test: &Test) -> Result<()> {
    let host = test.session.info()?.features & info::feature::DMA_CONTAINED != 0;
    test.guest.command(command::QUERY, &[place(0).1])?;
    // x6 of the reply.
    let [_, guest, ..] = test.guest.command(command::MORE, &[])?;
    steps.check(
        "the guest's own query tells if DMA is contained",
        format!("guest {guest}, host {host}"),
        guest == u64::from(host),
    );
    Ok(())
}

/// The VMM's own memory as a slot.
fn lent(steps: &mut Steps, test: &Test) -> Result<()> {
    let memory = Mapping::anonymous(4 * PAGE as usize)?;
    memory.write(0, 0x1234);
    test.vm.lend(LENT, &memory, 4 * PAGE).context("slot without guest_memfd")?;
    let seen = test.guest.command(command::LOAD, &[LENT, 8])?;
    let stored = test.guest.command(command::STORE, &[LENT + 2 * PAGE, 8, 0x4321])?;
    let host = memory.read(2 * PAGE as usize);
    steps.check(
        "memory of the VMM lent to the guest",
        format!("the guest reads {:#x}, the host then {host:#x}", seen[1]),
        seen[0] == outcome::OK && seen[1] == 0x1234 && stored[0] == outcome::OK && host == 0x4321,
    );
    ensure!(test.vm.unlend().is_ok(), "the lent slot is taken away");
    let [after, value, ..] = test.guest.command(command::LOAD, &[LENT, 8])?;
    steps.check(
        "and taken back: its address is a device again",
        format!("outcome {after}, value {value:#x}"),
        after == outcome::OK && value == 0,
    );
    Ok(())
}
