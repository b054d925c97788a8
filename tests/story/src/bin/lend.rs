//! Memory of the VMM lent to a plain guest: whatever Linux does with it, the guest sees what stands there, and nothing else.

use std::fs;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use story::change::{self, Copy};
use story::driver::Session;
use story::guest::{Event, Guest};
use story::mapping::{self, Mapping};
use story::steps::Steps;
use story::vmm::{Kind, Vm};
use tenure_test_protocol::{command, outcome};

const PAGE: u64 = 4096;
const BLOCK: u64 = 512 * PAGE;
/// Where the memory is lent: three times 2 MiB.
const LENT: u64 = 0x7000_0000;
const LEN: u64 = 3 * BLOCK;

fn main() -> ExitCode {
    let mut steps = Steps::new("lend");
    let error = lend(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn lend(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let before = session.count()?;
    {
        let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
        let vm = Vm::prepared(Kind { protected: false, revoke: false }, |memory| memory.load(0, &image))?;
        let guest = Guest::start(vm.vcpu()?)?;
        let test = Test { vm: &vm, guest: &guest };
        anonymous(steps, &test)?;
        file(steps, &test)?;
    }
    let after = session.count()?;
    steps.check("every page is back", format!("{after:?}"), after.state[..4] == before.state[..4]);
    Ok(())
}

struct Test<'a> {
    vm: &'a Vm,
    guest: &'a Guest,
}

impl Test<'_> {
    fn read(&self, offset: u64) -> Result<u64> {
        self.guest.read(LENT + offset)
    }

    fn write(&self, offset: u64, value: u64) -> Result<()> {
        self.guest.write(LENT + offset, value)
    }

    /// A guest's write that must end in a memory fault there, and then go through when `mend` has been done.
    fn refused_then(&self, offset: u64, value: u64, mend: impl FnOnce() -> io::Result<()>) -> Result<String> {
        self.guest.order(command::WRITE, &[LENT + offset, value])?;
        match self.guest.event()? {
            Event::Nothing(gpa) if gpa == LENT + offset => {}
            other => bail!("instead of a memory fault: {other:?}"),
        }
        mend()?;
        self.guest.retry()?;
        let [done, ..] = self.guest.result()?;
        ensure!(done == outcome::OK, "the write ended with {done}");
        Ok(format!("a memory fault at {:#x}, then it went through", LENT + offset))
    }
}

/// Anonymous memory.
fn anonymous(steps: &mut Steps, test: &Test) -> Result<()> {
    let memory = Mapping::aligned(LEN as usize, BLOCK as usize)?;
    change::advise(&memory, 0, LEN as usize, libc::MADV_NOHUGEPAGE)?;
    test.vm.lend(LENT, &memory, LEN).context("slot without guest_memfd")?;

    memory.write(0, 0x11);
    test.write(8, 0x22)?;
    let (guest, host) = (test.read(0)?, memory.read(8));
    steps.check(
        "both read what the other wrote",
        format!("{guest:#x} {host:#x}"),
        (guest, host) == (0x11, 0x22),
    );

    change::advise(&memory, 0, PAGE as usize, libc::MADV_DONTNEED)?;
    let (first, second) = (test.read(0)?, test.read(8)?);
    test.write(0, 0x33)?;
    let host = memory.read(0);
    steps.check(
        "DONTNEED: the guest finds zeros, and then the new page",
        format!("{first:#x} {second:#x}, the host reads {host:#x}"),
        (first, second, host) == (0, 0, 0x33),
    );

    copy_on_write(steps, test, &memory)?;
    moved(steps, test, &memory)?;

    let seen = {
        change::protect(&memory, PAGE as usize, PAGE as usize, libc::PROT_READ)?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        test.refused_then(PAGE, 0x44, || change::protect(&memory, PAGE as usize, PAGE as usize, rights))?
    };
    let host = memory.read(PAGE as usize);
    steps.check("memory that may not be written is not the guest's", seen, host == 0x44);

    test.write(2 * PAGE, 0x55)?;
    change::unmap(&memory, 2 * PAGE as usize, PAGE as usize)?;
    let seen =
        test.refused_then(2 * PAGE, 0x66, || change::renew(&memory, 2 * PAGE as usize, PAGE as usize))?;
    let host = memory.read(2 * PAGE as usize);
    steps.check("munmap: nothing is there, until something is", seen, host == 0x66);

    storm(steps, test, &memory)?;
    ensure!(test.vm.unlend().is_ok(), "the lent slot is taken away");
    let [after, value, ..] = test.guest.command(command::LOAD, &[LENT, 8])?;
    steps.check(
        "the slot goes: its address is a device",
        format!("{after} {value}"),
        (after, value) == (outcome::OK, 0),
    );
    Ok(())
}

/// A fork makes the pages read-only for both: the guest writes to the parent's copy only.
fn copy_on_write(steps: &mut Steps, test: &Test, memory: &Mapping) -> Result<()> {
    test.write(0, 0x77)?;
    let child = Copy::new()?;
    test.write(0, 0x88)?;
    let (parent, copy, guest) = (memory.read(0), child.read(memory, 0)?, test.read(0)?);
    steps.check(
        "fork: what the guest writes is not the child's",
        format!("parent {parent:#x}, child {copy:#x}, guest {guest:#x}"),
        (parent, copy, guest) == (0x88, 0x77, 0x88),
    );
    drop(child);
    memory.write(0, 0x99);
    let guest = test.read(0)?;
    steps.check("and the parent's next write is the guest's", format!("guest {guest:#x}"), guest == 0x99);
    Ok(())
}

/// Linux moves the pages to other frames, under a guest that has all of them mapped.
fn moved(steps: &mut Steps, test: &Test, memory: &Mapping) -> Result<()> {
    let at = BLOCK as usize;
    let [filled, ..] = test.guest.command(command::FILL, &[LENT + BLOCK, 512, 0xaaaa])?;
    ensure!(filled == outcome::OK, "the guest fills 2 MiB");
    let before = change::frame(memory, at)?;
    change::collapse(memory, at, BLOCK as usize).context("MADV_COLLAPSE")?;
    let after = change::frame(memory, at)?;
    let [checked, different, ..] = test.guest.command(command::CHECK, &[LENT + BLOCK, 512, 0xaaaa])?;
    test.write(BLOCK, 0xbbbb)?;
    memory.write(at + 8, 0xcccc);
    let (host, guest) = (memory.read(at), test.read(BLOCK + 8)?);
    steps.check(
        "512 pages move to a huge page, with what the guest wrote",
        format!("{} words differ; then {host:#x} {guest:#x}", different),
        checked == outcome::OK
            && different == 0
            && before.is_some()
            && before != after
            && (host, guest) == (0xbbbb, 0xcccc),
    );
    // Whatever compaction finds to move: the contents stay.
    fs::write("/proc/sys/vm/compact_memory", "1").context("compaction")?;
    let kept = (test.read(BLOCK)?, test.read(BLOCK + 8)?, test.read(BLOCK + 16)?);
    steps.check("compaction", format!("{kept:x?}"), kept == (0xbbbb, 0xcccc, 0xaaaa));
    Ok(())
}

/// The guest writes and compares all the time, while Linux takes the pages away again and again.
fn storm(steps: &mut Steps, test: &Test, memory: &Mapping) -> Result<()> {
    const ROUNDS: usize = 20;
    let at = 2 * BLOCK as usize;
    let stop = AtomicBool::new(false);
    let taken = thread::scope(|scope| -> Result<u64> {
        let taker = scope.spawn(|| -> io::Result<u64> {
            let mut taken = 0;
            while !stop.load(Ordering::Relaxed) {
                // The first 32 pages keep their contents, the others lose them.
                let _copy = Copy::new()?;
                change::protect(memory, at, 32 * PAGE as usize, libc::PROT_READ)?;
                change::protect(memory, at, 32 * PAGE as usize, libc::PROT_READ | libc::PROT_WRITE)?;
                change::advise(memory, at + 32 * PAGE as usize, 32 * PAGE as usize, libc::MADV_DONTNEED)?;
                taken += 1;
            }
            Ok(taken)
        });
        let rounds = (|| -> Result<()> {
            for round in 0..ROUNDS as u64 {
                for (page, kept) in [(0, true), (32, false)] {
                    let start = LENT + 2 * BLOCK + page * PAGE;
                    let [filled, ..] = again(test, command::FILL, &[start, 32, round])?;
                    let [checked, different, ..] = again(test, command::CHECK, &[start, 32, round])?;
                    ensure!(filled == outcome::OK && checked == outcome::OK, "round {round}");
                    ensure!(!kept || different == 0, "round {round}: {different} words were lost");
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let taken = taker.join().map_err(|_| anyhow::anyhow!("the taker died"))??;
        rounds.map(|()| taken)
    })?;
    steps.check(
        "taken away in a loop under a guest that writes",
        format!("{ROUNDS} rounds against {taken} forks, mprotects and DONTNEEDs, nothing lost"),
        taken > 0,
    );
    Ok(())
}

/// A command during which pages may be read-only for a moment: a memory fault is tried again.
fn again(test: &Test, what: u64, arguments: &[u64]) -> Result<[u64; 5]> {
    test.guest.order(what, arguments)?;
    loop {
        match test.guest.event()? {
            Event::Result(result) => return Ok(result),
            Event::Nothing(_) => test.guest.retry()?,
            other => bail!("instead of a result: {other:?}"),
        }
    }
}

/// A file in memory, mapped shared.
fn file(steps: &mut Steps, test: &Test) -> Result<()> {
    let file = change::memory_file(LEN)?;
    let memory = Mapping::new(&file, LEN as usize)?;
    test.vm.lend(LENT, &memory, LEN).context("slot over a file")?;
    let other = Mapping::new(&file, LEN as usize)?;
    test.write(0, 0x1234)?;
    let seen = other.read(0);
    mapping::punch(&file, 0, PAGE)?;
    let after = test.read(0)?;
    test.write(0, 0x4321)?;
    let then = other.read(0);
    steps.check(
        "a file's page, and a hole in it",
        format!("{seen:#x}, then {after:#x}, then {then:#x}"),
        (seen, after, then) == (0x1234, 0, 0x4321),
    );
    file.set_len(PAGE)?;
    let seen = test.refused_then(PAGE, 0x5678, || file.set_len(LEN))?;
    let then = other.read(PAGE as usize);
    steps.check("beyond the end of a shortened file there is nothing", seen, then == 0x5678);
    ensure!(test.vm.unlend().is_ok(), "the slot over the file is taken away");
    Ok(())
}
