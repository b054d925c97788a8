//! Named tests, told on the console line by line as `tests/README.md` says.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayString;

use crate::vectors::Frame;
use crate::{call, println};

/// Why a test did not pass.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It is wrong; the text says what and where.
    Wrong(ArrayString<200>),
    /// The machine has not got what the test needs.
    Skipped(&'static str),
}

impl Failure {
    /// A failure at a place in a source file.
    pub fn at(file: &str, line: u32, what: fmt::Arguments<'_>) -> Self {
        let mut text = ArrayString::new();
        // A text that does not fit is cut.
        let name = file.rsplit('/').next().unwrap_or(file);
        let _ = write!(text, "{name}:{line}: {what}");
        Self::Wrong(text)
    }
}

/// What a test gives back.
pub type TestResult = Result<(), Failure>;

/// Returns a failure with a formatted text.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::harness::Failure::at(file!(), line!(), format_args!($($arg)*)))
    };
}

/// Fails unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr) => {
        if !$condition { $crate::fail!("not {}", stringify!($condition)); }
    };
    ($condition:expr, $($arg:tt)*) => {
        if !$condition { $crate::fail!($($arg)*); }
    };
}

/// Fails unless both are equal; tells both.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            $crate::fail!("{} is {:x?}, not {:x?}", stringify!($left), left, right);
        }
    }};
    ($left:expr, $right:expr, $($arg:tt)*) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            $crate::fail!("{}: {} is {:x?}, not {:x?}", format_args!($($arg)*), stringify!($left), left, right);
        }
    }};
}

/// What tests have to tell to people: printed when the test has ended, so that its line stays one line.
struct Notes {
    bytes: [AtomicU8; 2048],
    length: AtomicUsize,
}

static NOTES: Notes = Notes { bytes: [const { AtomicU8::new(0) }; 2048], length: AtomicUsize::new(0) };

impl Write for &Notes {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let at = self.length.fetch_add(1, Ordering::Relaxed);
            // What does not fit is cut.
            if let Some(slot) = self.bytes.get(at) {
                slot.store(byte, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Notes {
    fn print(&self) {
        let length = self.length.swap(0, Ordering::Relaxed);
        for byte in self.bytes.iter().take(length) {
            match byte.load(Ordering::Relaxed) {
                b'\n' => crate::println!(),
                byte => crate::console::put(byte),
            }
        }
    }
}

/// Keeps a line `note: ...` that is printed when the test has ended. What [`note!`](crate::note) expands to.
pub fn keep_note(arguments: fmt::Arguments<'_>) {
    // Notes never fail.
    let _ = writeln!(&NOTES, "note: {arguments}");
}

/// Tells something to people, behind the line of the test that runs.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::harness::keep_note(format_args!($($arg)*)) };
}

static PASSED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// Runs one test and tells its outcome. The name is printed first, so that a machine that stops says where.
pub fn run(module: &str, name: &str, test: impl FnOnce() -> TestResult) {
    crate::print!("test {module}::{name} ... ");
    match test() {
        Ok(()) => {
            PASSED.fetch_add(1, Ordering::Relaxed);
            println!("ok");
        }
        Err(Failure::Skipped(why)) => println!("skipped: {why}"),
        Err(Failure::Wrong(why)) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            println!("FAILED: {why}");
        }
    }
    NOTES.print();
}

/// Tells the result and powers off.
pub fn finish() -> ! {
    println!("result: {} passed, {} failed", PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    call::power_off()
}

/// Ends a run that cannot go on: counts one failure more.
pub fn abandon(why: &str) -> ! {
    FAILED.fetch_add(1, Ordering::Relaxed);
    println!("FAILED: {why}");
    NOTES.print();
    finish()
}

/// An exception that nobody expects ends the run.
pub(crate) fn unexpected_exception(kind: u64, frame: &Frame) -> ! {
    println!(
        "FAILED: exception (vector {kind}) at {:#x}: ESR {:#x} FAR {:#x} SPSR {:#x} LR {:#x} image {:#x}",
        frame.elr,
        frame.esr,
        frame.far,
        frame.spsr,
        frame.x[30],
        crate::start::image().start
    );
    abandon("unexpected exception")
}
