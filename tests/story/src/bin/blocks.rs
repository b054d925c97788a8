//! Guest memory that comes 2 MiB at a time, and goes page by page: the neighbours never notice.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use story::driver::{self, Session};
use story::guest::Guest;
use story::mapping::{self, Mapping};
use story::roads;
use story::steps::Steps;
use story::vmm::{Kind, Vm};
use tenure_abi::flags::{pin, query};
use tenure_abi::page::State;
use tenure_test_protocol::{self as protocol, command, outcome};

const PAGE: u64 = 4096;
const BLOCK: u64 = 512;
/// The second 2 MiB of the guest's RAM: nothing stands there before a test touches it.
const SECOND: u64 = BLOCK * PAGE;
const PARAMETER: &str = "/sys/module/tenure/parameters/blocks";
/// The memory cgroup that this program was started in.
const CHARGED: &str = "/sys/fs/cgroup/vmm/memory.current";

fn main() -> ExitCode {
    let mut steps = Steps::new("blocks");
    let error = blocks(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn blocks(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let before = session.count()?;
    protected(steps, &session, &image)?;
    plain(steps, &session, &image)?;
    let begin = Instant::now();
    let mut after = session.count()?;
    while after.state[1..5] != before.state[1..5] && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
        after = session.count()?;
    }
    // Table pages for the host's own map stay with the hypervisor.
    steps.check(
        "every page is back, but for the host's own tables",
        format!("{:?}, before {:?}", after.state, before.state),
        after.state[1..5] == before.state[1..5]
            && after.state.iter().sum::<u64>() == before.state.iter().sum::<u64>(),
    );
    Ok(())
}

fn frames(session: &Session, state: State) -> Result<u64> {
    Ok(session.count()?.state[state as usize])
}

fn fill(guest: &Guest, start: u64, pages: u64, value: u64) -> Result<()> {
    ensure!(guest.command(command::FILL, &[start, pages, value])?[0] == outcome::OK, "fill {start:#x}");
    Ok(())
}

/// Words of the range that are not `value`.
fn differ(guest: &Guest, start: u64, pages: u64, value: u64) -> Result<u64> {
    let [end, different, ..] = guest.command(command::CHECK, &[start, pages, value])?;
    ensure!(end == outcome::OK, "check {start:#x}");
    Ok(different)
}

/// True if a block holds `value` everywhere but in page `other`, which reads `there`.
fn but_one(guest: &Guest, start: u64, value: u64, other: u64, there: u64) -> Result<bool> {
    let after = other + 1;
    Ok(differ(guest, start, other, value)? == 0
        && differ(guest, start + other * PAGE, 1, there)? == 0
        && differ(guest, start + after * PAGE, BLOCK - after, value)? == 0)
}

fn charged() -> Result<u64> {
    Ok(fs::read_to_string(CHARGED).context("not started in its cgroup")?.trim().parse()?)
}

fn protected(steps: &mut Steps, session: &Session, image: &[u8]) -> Result<()> {
    let vm = Vm::new(Kind { protected: true, revoke: false })?;
    vm.place(image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    let block = protocol::ENTRY + SECOND;
    let (before, charge) = (frames(session, State::Private)?, charged()?);
    guest.write(block + 17 * PAGE, 1)?;
    let (came, charge) = (frames(session, State::Private)? - before, charged()?.saturating_sub(charge));
    steps.check(
        "a touch brings 2 MiB, charged to whoever runs the guest",
        format!("{came} frames, {} KiB", charge / 1024),
        came == BLOCK && charge >= BLOCK * PAGE,
    );
    fill(&guest, block, BLOCK, 0xb10c)?;

    let one = 100;
    let reply = guest.call(command::SHARE, &[block + one * PAGE, 1])?;
    let host = |page: u64| roads::peek(&vm.memory, (SECOND + page * PAGE) as usize);
    let seen = (host(one - 1), host(one), host(one + 1));
    vm.memory.write((SECOND + one * PAGE) as usize, 0xb10c);
    steps.check(
        "one page of it shared: the host reaches that one",
        format!("{seen:x?}"),
        reply.is_success() && seen == (None, Some(0xb10c), None),
    );
    let back = guest.call(command::UNSHARE, &[block + one * PAGE, 1, 0])?;
    let different = differ(&guest, block, BLOCK, 0xb10c)?;
    steps.check(
        "taken back: all contents are there",
        format!("{different} words differ"),
        back.is_success() && different == 0 && host(one).is_none(),
    );

    let gone = guest.call(command::RELINQUISH, &[block + one * PAGE, 1])?;
    let left = frames(session, State::Private)? - before;
    let whole = but_one(&guest, block, 0xb10c, one, 0)?;
    let again = frames(session, State::Private)? - before;
    steps.check(
        "one page of it given back by the guest: a new one comes, alone",
        format!("{left} frames, then {again}"),
        gone.is_success() && left == BLOCK - 1 && whole && again == BLOCK,
    );

    fs::write(PARAMETER, "0")?;
    let third = block + BLOCK * PAGE;
    guest.write(third + PAGE, 1)?;
    let first = frames(session, State::Private)? - before - BLOCK;
    fs::write(PARAMETER, "1")?;
    guest.write(third + 2 * PAGE, 1)?;
    let second = frames(session, State::Private)? - before - BLOCK;
    guest.write(third + BLOCK * PAGE, 1)?;
    let then = frames(session, State::Private)? - before - BLOCK;
    steps.check(
        "page by page where it is turned off, and where something stands already",
        format!("{first}, {second}, {then} frames"),
        (first, second, then) == (1, 2, 2 + BLOCK),
    );
    Ok(())
}

fn plain(steps: &mut Steps, session: &Session, image: &[u8]) -> Result<()> {
    const AT: u64 = 0x6000_0000;
    let vm = Vm::prepared(Kind { protected: false, revoke: false }, |memory| memory.load(0, image))?;
    let guest = Guest::start(vm.vcpu()?)?;
    let file = vm.more_memory(2 * BLOCK * PAGE, true)?;
    let memory = Mapping::new(&file, (2 * BLOCK * PAGE) as usize)?;
    vm.bind(3, AT, &file, 0, 2 * BLOCK * PAGE).context("slot of two blocks")?;
    let before = frames(session, State::Shared)?;
    memory.write(0, 1);
    let host = frames(session, State::Shared)? - before;
    guest.write(AT + BLOCK * PAGE, 1)?;
    let both = frames(session, State::Shared)? - before;
    steps.check(
        "plain: the host's touch brings 2 MiB, the guest's too",
        format!("{host}, {both} frames"),
        (host, both) == (BLOCK, 2 * BLOCK),
    );
    fill(&guest, AT, 2 * BLOCK, 0xb10c)?;

    let (one, offset) = (300, 300 * PAGE);
    session.pin(file.as_raw_fd(), offset, PAGE, pin::CPU, "a holder").1.context("PIN")?;
    let refused = mapping::punch(&file, 0, BLOCK * PAGE).map_err(|error| error.raw_os_error());
    let different = differ(&guest, AT, 2 * BLOCK, 0xb10c)?;
    let all = frames(session, State::Shared)? - before;
    steps.check(
        "a hole over a pinned page is refused, and changes nothing",
        format!("{refused:?}, {different} words differ, {all} frames"),
        refused == Err(Some(libc::EBUSY)) && different == 0 && all == 2 * BLOCK,
    );
    session.unpin(file.as_raw_fd(), offset, PAGE, pin::CPU).1.context("UNPIN")?;
    mapping::punch(&file, offset, PAGE)?;
    let left = frames(session, State::Shared)? - before;
    let whole = but_one(&guest, AT, 0xb10c, one, 0)?;
    steps.check(
        "a hole of one page in the middle: a page of zeros, and its neighbours as they were",
        format!("{left} frames left"),
        left == 2 * BLOCK - 1 && whole,
    );

    let part = (100, 200);
    fill(&guest, AT, BLOCK, 0xb10d)?;
    driver::set_private(&file, part.0 * PAGE, part.1 * PAGE, true).map_err(|(error, _)| error)?;
    let hidden = (0..BLOCK).filter(|page| roads::peek(&memory, (page * PAGE) as usize).is_none()).count();
    let different = differ(&guest, AT, BLOCK, 0xb10d)?;
    driver::set_private(&file, 0, 2 * BLOCK * PAGE, false).map_err(|(error, _)| error)?;
    let seen = (0..BLOCK).filter(|page| roads::peek(&memory, (page * PAGE) as usize) == Some(0xb10d)).count();
    steps.check(
        "a part of it private, and back",
        format!("{hidden} pages hidden, {different} words differ, then {seen} pages seen"),
        hidden as u64 == part.1 && different == 0 && seen as u64 == BLOCK,
    );

    mapping::punch(&file, 0, 2 * BLOCK * PAGE)?;
    let left = frames(session, State::Shared)? - before;
    let word = session.query(file.as_raw_fd(), 0, query::UNSHARE)?.answer.word;
    steps.check("a hole over all of it", format!("{left} frames left"), left == 0 && word == 0);
    vm.unbind(3).context("the slot goes")?;
    Ok(())
}
