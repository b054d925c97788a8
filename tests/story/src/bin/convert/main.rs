//! Conversions of guest_memfd memory, after upstream's `guest_memfd_conversions_test`: the same cases on a plain VM whose
//! guest runs, and on a protected VM before its activation. Then many vCPUs on many slots, both ways.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use story::driver::{self, Session};
use story::guest::Guest;
use story::mapping::{self, Mapping, Outcome, PipeHold};
use story::ring::RingHold;
use story::roads;
use story::steps::Steps;
use story::vmm::{Kind, Vm};
use tenure_abi::flags::{pin, query};
use tenure_abi::page::State;

mod many;

const PAGE: u64 = 4096;
const SIGBUS: Outcome = Outcome::Signal(libc::SIGBUS);
/// The file of the small cases.
const PAGES: u64 = 4;
const SLOT: u32 = 3;
const AT: u64 = 0x6000_0000;

fn main() -> ExitCode {
    let mut steps = Steps::new("convert");
    let error = convert(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn convert(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    {
        let vm = Vm::prepared(Kind { protected: false, revoke: false }, |memory| memory.load(0, &image))?;
        let mut guests = vm.start(many::VCPUS)?;
        cases(steps, &Test { session: &session, vm: &vm, guest: guests.first(), kind: "plain" })?;
        many::plain(steps, &vm, &mut guests)?;
    }
    let vm = Vm::new(Kind { protected: true, revoke: false })?;
    vm.place(&image, true)?;
    cases(steps, &Test { session: &session, vm: &vm, guest: None, kind: "placing" })?;
    many::protected(steps, &vm)
}

struct Test<'a> {
    session: &'a Session,
    vm: &'a Vm,
    /// While a protected VM's image is placed, nobody runs.
    guest: Option<&'a Guest>,
    kind: &'static str,
}

/// Four pages of guest memory, bound for one case.
struct Four<'a> {
    test: &'a Test<'a>,
    file: File,
    memory: Mapping,
}

impl Test<'_> {
    fn four(&self, shared: bool) -> Result<Four<'_>> {
        let file = self.vm.more_memory(PAGES * PAGE, shared)?;
        let memory = Mapping::new(&file, (PAGES * PAGE) as usize)?;
        self.vm.bind(SLOT, AT, &file, 0, PAGES * PAGE).context("slot of four pages")?;
        Ok(Four { test: self, file, memory })
    }

    fn name(&self, case: &str) -> String {
        format!("{}: {case}", self.kind)
    }
}

impl Drop for Four<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.test.vm.unbind(SLOT) {
            println!("convert: the slot of four pages stays: {error}  <== NOT AS IT MUST BE");
        }
    }
}

type Converted = Result<(), (io::Error, u64)>;

fn show(result: &Converted) -> String {
    match result {
        Ok(()) => "done".into(),
        Err((error, offset)) => format!("{error} at {offset:#x}"),
    }
}

impl Four<'_> {
    fn convert(&self, page: u64, pages: u64, private: bool) -> Converted {
        driver::set_private(&self.file, page * PAGE, pages * PAGE, private)
    }

    /// What the host sees of each page: its value, or nothing.
    fn host(&self) -> [Option<u64>; PAGES as usize] {
        std::array::from_fn(|page| roads::peek(&self.memory, page * PAGE as usize))
    }

    /// True if the guest reads these values (or nobody runs).
    fn guest(&self, values: [u64; PAGES as usize]) -> Result<bool> {
        let Some(guest) = self.test.guest else { return Ok(true) };
        for (page, value) in (0..).zip(values) {
            if guest.read(AT + page * PAGE)? != value {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fill(&self, first: u64) -> [u64; PAGES as usize] {
        let values = std::array::from_fn(|page| first + page as u64);
        for (page, value) in (0..).zip(values) {
            self.memory.write((page * PAGE) as usize, value);
        }
        values
    }

    fn state(&self, page: u64) -> Result<Option<State>> {
        let query = self.test.session.query(self.file.as_raw_fd(), page * PAGE, query::UNSHARE)?;
        Ok(if query.answer.word == 0 { None } else { State::of(query.answer.word) })
    }
}

fn cases(steps: &mut Steps, test: &Test) -> Result<()> {
    from_the_start(steps, test)?;
    positions(steps, test)?;
    unallocated(steps, test)?;
    truncated(steps, test)?;
    forked(steps, test)?;
    raised(steps, test)
}

/// Shared, and private, from the start.
fn from_the_start(steps: &mut Steps, test: &Test) -> Result<()> {
    {
        let four = test.four(true)?;
        let values = four.fill(0x10);
        let all = four.host() == values.map(Some) && four.guest(values)?;
        steps.check(&test.name("shared from the start"), "", all);
        let result = four.convert(0, PAGES, true);
        let hidden = four.host() == [None; 4] && four.guest(values)?;
        steps.check(&test.name("then private, contents kept"), show(&result), result.is_ok() && hidden);
    }
    let four = test.four(false)?;
    let hidden = four.host() == [None; 4];
    let guest = four.guest([0; 4])?;
    steps.check(&test.name("private from the start"), "", hidden && guest);
    let result = four.convert(0, PAGES, false);
    let seen = four.host();
    steps.check(
        &test.name("then shared"),
        format!("{}, {seen:?}", show(&result)),
        result.is_ok() && seen == [Some(0); 4],
    );
    Ok(())
}

/// Each page by itself: the others stay as they are, in kind and contents.
fn positions(steps: &mut Steps, test: &Test) -> Result<()> {
    let four = test.four(true)?;
    let values = four.fill(0x20);
    let mut good = true;
    for page in 0..PAGES {
        let there = four.convert(page, 1, true);
        let mut expected = values.map(Some);
        expected[page as usize] = None;
        let alone = four.host() == expected && four.guest(values)?;
        let again = four.convert(page, 1, true);
        let back = four.convert(page, 1, false);
        good &= there.is_ok() && alone && again.is_ok() && back.is_ok();
        good &= four.host() == values.map(Some);
    }
    steps.check(&test.name("every position of four pages, there, there again, and back"), "", good);
    Ok(())
}

/// Where no page stands yet, the address alone changes.
fn unallocated(steps: &mut Steps, test: &Test) -> Result<()> {
    let four = test.four(true)?;
    let result = four.convert(1, 2, true);
    let absent = (0..PAGES).all(|page| matches!(four.state(page), Ok(None)));
    let seen = four.host();
    let expected = [Some(0), None, None, Some(0)];
    if let Some(guest) = test.guest {
        guest.write(AT + PAGE, 0x31)?;
        ensure!(four.state(1)? == Some(State::Private), "the guest's first touch is private");
    }
    let back = four.convert(0, PAGES, false);
    let then = four.memory.try_read(PAGE as usize)?;
    let value = Outcome::Value(if test.guest.is_some() { 0x31 } else { 0 });
    steps.check(
        &test.name("pages that are not there"),
        format!("{}, {seen:?}, {}, {then:?}", show(&result), show(&back)),
        result.is_ok() && absent && seen == expected && back.is_ok() && then == value,
    );
    Ok(())
}

/// The size is for ever; a hole leaves zeros and the kind that the page had.
fn truncated(steps: &mut Steps, test: &Test) -> Result<()> {
    let four = test.four(true)?;
    let values = four.fill(0x40);
    let short = four.file.set_len(2 * PAGE).map_err(|error| error.raw_os_error());
    four.convert(2, 1, true).map_err(|(error, _)| error)?;
    mapping::punch(&four.file, PAGE, 2 * PAGE)?;
    let seen = four.host();
    let [first, .., last] = values;
    let guest = four.guest([first, 0, 0, last])?;
    steps.check(
        &test.name("a hole over a shared and a private page"),
        format!("{short:?}, {seen:?}"),
        short == Err(Some(libc::EINVAL)) && seen == [Some(first), Some(0), None, Some(last)] && guest,
    );
    mapping::punch(&four.file, 0, PAGES * PAGE)?;
    let back = four.convert(0, PAGES, false);
    let seen = four.host();
    steps.check(
        &test.name("a hole over all, then shared"),
        format!("{}, {seen:?}", show(&back)),
        back.is_ok() && seen == [Some(0); 4],
    );
    Ok(())
}

/// A child has the page mapped when it is converted, and uses it after that.
fn forked(steps: &mut Steps, test: &Test) -> Result<()> {
    let four = test.four(true)?;
    four.fill(0x50);
    let access = |private| {
        mapping::in_child_after(
            || drop(four.memory.populate(PAGE as usize, PAGE as usize)),
            || four.convert(1, 1, private).map_err(|(error, _)| error),
            || four.memory.read(PAGE as usize),
        )
    };
    let (private, shared) = (access(true)?, access(false)?);
    steps.check(
        &test.name("a child that has it mapped"),
        format!("private {private:?}, shared again {shared:?}"),
        private == SIGBUS && shared == Outcome::Value(0x51),
    );
    Ok(())
}

/// Who can hold a page.
#[derive(Clone, Copy)]
enum Holder {
    Pipe,
    Ring,
    Pin(u64),
}

const HOLDERS: [(&str, Holder); 4] = [
    ("a pipe (vmsplice)", Holder::Pipe),
    ("io_uring (registered buffer)", Holder::Ring),
    ("a declared CPU pin", Holder::Pin(pin::CPU)),
    ("a declared DMA pin", Holder::Pin(pin::DMA)),
];

/// A held page; dropping it lets go.
trait Held {}
impl Held for PipeHold {}
impl Held for RingHold {}

struct Pinned<'a> {
    four: &'a Four<'a>,
    kind: u64,
    at: u64,
}
impl Held for Pinned<'_> {}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let Four { test, file, .. } = self.four;
        let (_, result) = test.session.unpin(file.as_raw_fd(), self.at, PAGE, self.kind);
        if let Err(error) = result {
            println!("convert: UNPIN: {error}  <== NOT AS IT MUST BE");
        }
    }
}

impl Four<'_> {
    fn hold(&self, holder: Holder, at: u64) -> io::Result<Box<dyn Held + '_>> {
        let (offset, len) = (at as usize, PAGE as usize);
        Ok(match holder {
            Holder::Pipe => Box::new(PipeHold::new(&self.memory, offset, len)?),
            Holder::Ring => Box::new(RingHold::new(&self.memory, offset, len)?),
            Holder::Pin(kind) => {
                self.test.session.pin(self.file.as_raw_fd(), at, PAGE, kind, "a holder").1?;
                Box::new(Pinned { four: self, kind, at })
            }
        })
    }
}

/// Somebody holds one page: it is named, nothing changes, and when he lets go it works.
fn raised(steps: &mut Steps, test: &Test) -> Result<()> {
    let four = test.four(true)?;
    for (name, holder) in HOLDERS {
        let mut good = true;
        for page in 0..PAGES {
            let values = four.fill(0x60 + page);
            let held = four.hold(holder, page * PAGE).with_context(|| format!("{name} at page {page}"))?;
            let refused = four.convert(0, PAGES, true);
            good &= matches!(&refused, Err((error, at))
                if error.raw_os_error() == Some(libc::EAGAIN) && *at == page * PAGE);
            good &= four.host() == values.map(Some) && four.guest(values)?;
            drop(held);
            let done = four.convert(0, PAGES, true);
            good &= done.is_ok() && four.host() == [None; 4] && four.guest(values)?;
            good &= four.convert(0, PAGES, false).is_ok();
            if !good {
                steps.say(format!("page {page}: {}, then {}", show(&refused), show(&done)));
                break;
            }
        }
        steps.check(&test.name(&format!("held at each position by {name}")), "", good);
    }
    Ok(())
}
