//! What Tenure says: to the log ring always, to the console at start and in a crash.
//!
//! The front end is the `log` crate. Every line goes into the ring of [`crate::ring`], which the host reads by a call; until the host
//! runs, and again when EL2 crashes, it goes to the UART too. While the host runs the UART is the host's.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use spin::mutex::SpinMutex;
use tenure_boards::console::Console;

use crate::ring;

static CONSOLE: SpinMutex<Option<Console>> = SpinMutex::new(None);
static LOGGER: Logger = Logger;
/// The UART is ours: before the host has it, and after it has lost it.
static OURS: AtomicBool = AtomicBool::new(true);

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        line(format_args!("tenure: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Makes `console` the one that is written to, and `log` ours.
pub fn set_up(console: Option<Console>) {
    *CONSOLE.lock() = console;
    // A second call finds the same logger set, which is as good.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Leaves the UART to the host: from here on, lines go to the ring only.
pub fn hand_over() {
    OURS.store(false, Ordering::Relaxed);
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.flush();
    }
}

/// Writes one line.
pub fn line(text: core::fmt::Arguments<'_>) {
    let _ = writeln!(ring::Writer, "{text}");
    if OURS.load(Ordering::Relaxed)
        && let Some(console) = CONSOLE.lock().as_mut()
    {
        let _ = writeln!(console, "{text}");
    }
}

/// Writes one line from a CPU that has failed: to the UART in any case, whoever may hold its lock.
pub fn last_words(text: core::fmt::Arguments<'_>) {
    let _ = writeln!(ring::Writer, "{text}");
    for _ in 0..1 << 16 {
        if let Some(mut guard) = CONSOLE.try_lock() {
            if let Some(console) = guard.as_mut() {
                let _ = writeln!(console, "{text}");
            }
            return;
        }
        core::hint::spin_loop();
    }
}
