//! The story: what Tenure is for, step by step, on a Debian host. Every step is checked; the exit code says if all passed.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use story::driver::{Count, Session};
use story::guest::{Event, Guest, reply};
use story::mapping::{Mapping, Outcome, PipeHold};
use story::show;
use story::steps::Steps;
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::{pin, query, unshare};
use tenure_abi::page::{self, State};
use tenure_abi::{Reply, Status, info, reply as block};
use tenure_test_protocol::{self as protocol, command};

const PAGE: u64 = 4096;
const SIGBUS: Outcome = Outcome::Signal(libc::SIGBUS);
/// The page that outlives the guest.
const LAST: u64 = 8;
/// How long a guest that must wait is watched doing so.
const A_WHILE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let mut steps = Steps::new("story");
    let error = story(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn story(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure: is the driver loaded, under Tenure?")?;
    let told = session.info()?;
    let contained = told.features & info::feature::DMA_CONTAINED != 0;
    steps.say(format!(
        "interface {}.{}; {} KiB of RAM kept by the hypervisor; DMA is {}",
        told.version >> 16,
        told.version & 0xffff,
        told.value[info::KEPT_BYTES as usize] / 1024,
        if contained { "contained" } else { "NOT contained (no IOMMU is driven): unsafe_dma=1 was needed" },
    ));
    let _ = fs::write("/sys/module/tenure/parameters/verify_scrub", "1");
    let before = session.count()?;
    let vm = life(steps, &session)?;
    death(steps, &session, vm)?;
    the_end(steps, &session, before)
}

/// The places of the experiments in the guest's RAM: (offset, guest address).
fn place(index: u64) -> (u64, u64) {
    (FREE + index * PAGE, protocol::FREE + index * PAGE)
}

struct Stage<'a> {
    steps: &'a mut Steps,
    session: &'a Session,
    vm: &'a Vm,
    guest: &'a Guest,
}

impl Stage<'_> {
    /// The page's word, as the hypervisor shows it.
    fn word(&self, offset: u64) -> Result<u64> {
        Ok(self.session.query(self.vm.gmem_fd(), offset, query::UNSHARE)?.answer.word)
    }

    fn state(&self, offset: u64) -> Result<Option<State>> {
        Ok(State::of(self.word(offset)?))
    }

    /// A step about one page: what was answered, and the word afterwards.
    fn page(&mut self, step: &str, answer: &str, offset: u64, good: impl FnOnce(u64) -> bool) -> Result<()> {
        let word = self.word(offset)?;
        self.steps.check(step, format!("{answer} word={}", show::word(word)), good(word));
        Ok(())
    }

    fn reply(&mut self, step: &str, reply: Reply, offset: u64, good: impl FnOnce(u64) -> bool) -> Result<()> {
        self.page(step, &show::answer(&reply), offset, good)
    }

    fn unshare(&self, gpa: u64, pages: u64, flags: u64) -> Result<Reply> {
        self.guest.call(command::UNSHARE, &[gpa, pages, flags])
    }
}

fn is(word: u64, state: State) -> bool {
    State::of(word) == Some(state)
}

/// The life of a protected guest, to its power-off. A page of it is shared with the host then.
fn life(steps: &mut Steps, session: &Session) -> Result<Vm> {
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: true })?;
    vm.place(&image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    let mut stage = Stage { steps, session, vm: &vm, guest: &guest };
    stage.page("a protected guest starts from a guest_memfd", "it asks for work", 0, |word| {
        is(word, State::Private)
    })?;
    private_page(&mut stage)?;
    share_and_pin(&mut stage)?;
    bulk(&mut stage)?;
    revoke(&mut stage)?;
    stock(&mut stage)?;
    observed(&mut stage)?;
    let (_, gpa) = place(LAST);
    guest.write(gpa, 0x6060)?;
    ensure!(guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share before death");
    guest.order(command::OFF, &[])?;
    let end = guest.event()?;
    let off = matches!(&end, Event::Ended(text) if text.starts_with("system event 1"));
    steps.check("the guest powers off", format!("{end:?}"), off);
    Ok(vm)
}

/// The host may not read what is private.
fn private_page(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(0);
    stage.guest.write(gpa, 0x5ec4e7)?;
    let seen = stage.vm.memory.try_read(offset as usize)?;
    stage.page("the host reads a private page", &format!("{seen:?}"), offset, |word| {
        seen == SIGBUS && is(word, State::Private)
    })?;
    let seen = stage.vm.memory.try_write(offset as usize, 1)?;
    let kept = stage.guest.read(gpa)?;
    stage.page("the host writes it", &format!("{seen:?}, the guest reads {kept:#x}"), offset, |_| {
        seen == SIGBUS && kept == 0x5ec4e7
    })
}

/// Share, use, pin, refuse, drain, take back.
fn share_and_pin(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(0);
    let at = offset as usize;
    let reply = stage.guest.call(command::SHARE, &[gpa, 1])?;
    stage
        .reply("the guest shares it", reply, offset, |word| reply.is_success() && is(word, State::Shared))?;

    let memory = &stage.vm.memory;
    let first = memory.read(at);
    memory.write(at, 0x1111);
    let guest_saw = stage.guest.read(gpa)?;
    stage.guest.write(gpa, 0x2222)?;
    let then = memory.read(at);
    let seen = format!(
        "host read {first:#x} wrote 0x1111, guest read {guest_saw:#x} wrote 0x2222, host read {then:#x}"
    );
    stage.page("both write and read it", &seen, offset, |word| {
        first == 0x5ec4e7 && guest_saw == 0x1111 && then == 0x2222 && page::HOST_LEAF.get(word) == 1
    })?;

    let (pinned, result) = stage.session.pin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU, "the story");
    result.context("PIN")?;
    stage.reply("the host pins it", answer(&pinned.answer)?, offset, |word| page::CPU_PINS.get(word) == 1)?;

    let reply = stage.unshare(gpa, 1, 0)?;
    let names: Vec<String> =
        stage.session.holders(stage.vm.gmem_fd(), offset, PAGE)?.iter().map(|holder| holder.name()).collect();
    let seen = format!("{} holder {}", show::answer(&reply), names.join(", "));
    stage.page("the guest's unshare is refused, and the pin named", &seen, offset, |word| {
        reply.status == Status::Busy
            && reply.first == 0
            && reply.mask & block::CPU_PIN != 0
            && names.len() == 1
            && is(word, State::Shared)
    })?;

    stage.guest.order(command::UNSHARE, &[gpa, 1, unshare::DRAIN | unshare::WAIT])?;
    let early = stage.guest.event_within(A_WHILE)?;
    let seen = if early.is_some() { "it did not wait" } else { "it waits" };
    stage.page("with DRAIN it waits", seen, offset, |word| early.is_none() && is(word, State::Draining))?;

    let held = memory_read(stage, at)?;
    stage.page("the holder goes on reading meanwhile", &format!("{held:?}"), offset, |_| {
        held == Outcome::Value(0x2222)
    })?;

    let (unpinned, result) = stage.session.unpin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU);
    result.context("UNPIN")?;
    let woken = reply_of(stage.guest.result()?)?;
    let seen = format!(
        "unpin: {} drained={}; the guest's call: {}",
        show::answer(&answer(&unpinned.answer)?),
        unpinned.drained,
        show::answer(&woken)
    );
    stage.page("the last unpin completes it and wakes the guest", &seen, offset, |word| {
        unpinned.drained == 1 && woken.is_success() && is(word, State::Private)
    })?;

    let seen = memory_read(stage, at)?;
    let kept = stage.guest.read(gpa)?;
    stage.page(
        "the driver has unmapped it: the host reads",
        &format!("{seen:?}, the guest reads {kept:#x}"),
        offset,
        |word| {
            seen == SIGBUS && kept == 0x2222 && page::SCRAP.get(word) == 0 && page::HOST_LEAF.get(word) == 0
        },
    )
}

fn memory_read(stage: &Stage, at: usize) -> Result<Outcome> {
    Ok(stage.vm.memory.try_read(at)?)
}

fn answer(answer: &story::driver::Answer) -> Result<Reply> {
    answer.reply().context("the driver's answer has no status of Tenure's")
}

fn reply_of(result: [u64; 5]) -> Result<Reply> {
    reply(result)
}

/// Four pages, one pinned: nothing changes, and index 2 is named.
fn bulk(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(1);
    ensure!(stage.guest.command(command::FILL, &[gpa, 4, 0])?[0] == protocol::outcome::OK, "fill four pages");
    let reply = stage.guest.call(command::SHARE, &[gpa, 4])?;
    stage.reply("the guest shares four pages", reply, offset, |word| {
        reply.is_success() && reply.done == 4 && is(word, State::Shared)
    })?;
    for index in 0..4 {
        stage.vm.memory.write((offset + index * PAGE) as usize, 0x100 + index);
    }
    let third = offset + 2 * PAGE;
    stage.session.pin(stage.vm.gmem_fd(), third, PAGE, pin::DMA, "a device").1.context("PIN")?;
    let reply = stage.unshare(gpa, 4, 0)?;
    let all_shared =
        (0..4).all(|index| matches!(stage.state(offset + index * PAGE), Ok(Some(State::Shared))));
    stage.reply("a bulk unshare with the third page pinned changes nothing", reply, third, |_| {
        reply.status == Status::Busy
            && reply.done == 0
            && reply.first == 2
            && reply.mask & block::DMA_PIN != 0
            && all_shared
    })?;
    stage.session.unpin(stage.vm.gmem_fd(), third, PAGE, pin::DMA).1.context("UNPIN")?;
    let reply = stage.unshare(gpa, 4, 0)?;
    let kept = (0..4)
        .all(|index| matches!(stage.guest.read(gpa + index * PAGE), Ok(value) if value == 0x100 + index));
    let seen = format!("{}, contents kept: {kept}", show::answer(&reply));
    stage.page("after the unpin it succeeds: the host was asked for its mappings", &seen, third, |word| {
        reply.is_success() && reply.done == 4 && kept && is(word, State::Private)
    })
}

/// A thread of the host reads the page all the time; the guest takes it away; nobody dies.
fn revoke(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(5);
    stage.guest.write(gpa, 0x7777)?;
    ensure!(stage.guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share before the REVOKE");
    // Its own mapping: where the driver unmaps one, the other is gone too.
    let mapping = Mapping::new(stage.vm.gmem(), (offset + PAGE) as usize)?;
    ensure!(mapping.read(offset as usize) == 0x7777, "the host reads what the guest shared");
    stage.session.pin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU, "a reader").1.context("PIN")?;
    let (stop, reads, last) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let (reply, seen_reads) = thread::scope(|scope| -> Result<(Reply, u64)> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                last.store(mapping.read(offset as usize), Ordering::Relaxed);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let reply = stage.unshare(gpa, 1, unshare::REVOKE);
        let at_revoke = reads.load(Ordering::Relaxed);
        let patience = Instant::now();
        while reads.load(Ordering::Relaxed) < at_revoke + 1000 && patience.elapsed() < Duration::from_secs(10)
        {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        Ok((reply?, reads.load(Ordering::Relaxed) - at_revoke))
    })?;
    let last = last.load(Ordering::Relaxed);
    let kept = stage.guest.read(gpa)?;
    let seen = format!(
        "{}; {seen_reads} reads went on, the last gave {last:#x}; the guest reads {kept:#x}",
        show::answer(&reply)
    );
    stage.page("REVOKE under a reading host, which lives", &seen, offset, |word| {
        reply.is_success() && seen_reads >= 1000 && last == 0 && kept == 0x7777 && is(word, State::Private)
    })?;
    stage.session.unpin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU).1.context("UNPIN")?;
    drop(mapping);
    Ok(())
}

/// A stock guest knows only yes and no: BUSY leaves KVM_RUN, and the VMM lets go or refuses.
fn stock(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(6);
    ensure!(stage.guest.command(command::STOCK_SHARE, &[gpa])?[0] == 0, "a stock guest's share");
    stage.session.pin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU, "the VMM").1.context("PIN")?;
    stage.guest.order(command::STOCK_UNSHARE, &[gpa])?;
    let request = match stage.guest.event()? {
        Event::Blocked(request) => request,
        other => anyhow::bail!("instead of KVM_EXIT_MEMORY_FAULT: {other:?}"),
    };
    let seen = format!(
        "KVM_EXIT_MEMORY_FAULT gpa={:#x} pages={} blocked-by={}",
        request.gpa,
        request.pages,
        show::mask(request.mask)
    );
    stage.page("a stock guest's unshare of a pinned page comes to the VMM", &seen, offset, |word| {
        request.gpa == gpa && request.mask & block::CPU_PIN != 0 && is(word, State::Shared)
    })?;
    stage.guest.refuse()?;
    let [refused, ..] = stage.guest.result()?;
    stage.page("the VMM refuses", &format!("the guest's call gives {}", refused as i64), offset, |word| {
        refused as i64 == -3 && is(word, State::Shared)
    })?;
    stage.guest.order(command::STOCK_UNSHARE, &[gpa])?;
    ensure!(matches!(stage.guest.event()?, Event::Blocked(_)), "the second stock unshare is blocked too");
    stage.session.unpin(stage.vm.gmem_fd(), offset, PAGE, pin::CPU).1.context("UNPIN")?;
    stage.guest.retry()?;
    let [done, ..] = stage.guest.result()?;
    stage.page(
        "the VMM lets go and runs it again",
        &format!("the guest's call gives {done}"),
        offset,
        |word| done == 0 && is(word, State::Private),
    )
}

/// A holder who told nobody (a pipe that took the page by vmsplice) is found by the page's count.
fn observed(stage: &mut Stage) -> Result<()> {
    let (offset, gpa) = place(7);
    ensure!(stage.guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share before the observation");
    stage.vm.memory.write(offset as usize, 0x8888);
    let pipe = PipeHold::new(&stage.vm.memory, offset as usize, PAGE as usize)?;
    let reply = stage.unshare(gpa, 1, 0)?;
    let names: Vec<String> =
        stage.session.holders(stage.vm.gmem_fd(), offset, PAGE)?.iter().map(|holder| holder.name()).collect();
    let seen = format!("{} holder {}", show::answer(&reply), names.join(", "));
    stage.page("a holder that declared nothing is found by the page's count", &seen, offset, |word| {
        reply.status == Status::Busy && names.len() == 1 && is(word, State::Shared)
    })?;
    stage.guest.order(command::UNSHARE, &[gpa, 1, unshare::DRAIN | unshare::WAIT])?;
    let early = stage.guest.event_within(A_WHILE)?;
    drop(pipe);
    let woken = match early {
        Some(event) => anyhow::bail!("the guest did not wait: {event:?}"),
        None => reply_of(stage.guest.result()?)?,
    };
    stage.reply("it lets go unasked, the driver notices, and the guest is woken", woken, offset, |word| {
        woken.is_success() && is(word, State::Private)
    })
}

/// The VM dies while a page of it is pinned.
fn death(steps: &mut Steps, session: &Session, vm: Vm) -> Result<()> {
    let (offset, _) = place(LAST);
    ensure!(vm.memory.read(offset as usize) == 0x6060, "the host reads what the guest shared");
    session.pin(vm.gmem_fd(), offset, PAGE, pin::CPU, "a survivor").1.context("PIN")?;
    let pipe = PipeHold::new(&vm.memory, offset as usize, PAGE as usize)?;
    let gmem = vm.gmem().try_clone()?;
    // The last file of the VM: the hypervisor destroys it.
    drop(vm);
    let quarantined = session.count()?.state[State::Quarantine as usize];
    let value = pipe.read()?;
    steps.check(
        "the VM dies with a page pinned: the holder still reads it",
        format!("frames in quarantine: {quarantined}, the holder reads {value:#x}"),
        quarantined == 1 && value == 0x6060,
    );
    let (unpinned, result) = session.unpin(gmem.as_raw_fd(), offset, PAGE, pin::CPU);
    result.context("UNPIN")?;
    steps.check(
        "its unpin sends the page home",
        format!("{} returned={}", show::answer(&answer(&unpinned.answer)?), unpinned.returned),
        unpinned.returned == 1,
    );
    Ok(())
}

/// Every page is back, scrubbed, totals equal to the start.
fn the_end(steps: &mut Steps, session: &Session, before: Count) -> Result<()> {
    let patience = Instant::now();
    let mut after = session.count()?;
    let mut state = driver_state()?;
    while (after != before || state.waiting != 0) && patience.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
        after = session.count()?;
        state = driver_state()?;
    }
    let list = |count: &Count| {
        State::ALL
            .iter()
            .map(|state| format!("{state:?}={}", count.state[*state as usize]))
            .collect::<Vec<_>>()
            .join(" ")
    };
    steps.check(
        "every page is back: the totals are those of the start",
        format!("{} (before: {})", list(&after), list(&before)),
        after == before,
    );
    steps.check(
        "and scrubbed",
        format!("{} frames looked at, {} not zero", state.looked_at, state.dirty),
        state.looked_at > 0 && state.dirty == 0,
    );
    Ok(())
}

/// What the driver counts (debugfs).
struct DriverState {
    waiting: u64,
    looked_at: u64,
    dirty: u64,
}

fn driver_state() -> Result<DriverState> {
    let text = fs::read_to_string("/sys/kernel/debug/tenure/state").context("debugfs is not mounted")?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse().ok()).with_context(|| format!("{name} is missing"))
    };
    Ok(DriverState {
        waiting: value("frames_waiting_for_their_holders")?,
        looked_at: value("frames_back_looked_at")?,
        dirty: value("frames_back_not_scrubbed")?,
    })
}
