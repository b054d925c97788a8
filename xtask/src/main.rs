//! `cargo xtask`: sets up, builds, runs, tests, measures and packs Tenure.
//!
//! One file a task. Every task calls [`setup`] first, so that a fresh clone needs one command only. Tasks end in
//! an [`anyhow::Error`] that names what is missing and how to get it; nothing here panics on the user.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod board;
mod boards;
mod build;
mod ci;
mod exec;
mod fuzz;
mod image;
mod initramfs;
mod paths;
mod qemu;
mod random;
mod run;
mod setup;
mod test;
mod ui;
mod watch;

/// The build tool of Tenure, a type-1 hypervisor for arm64.
///
/// Two commands do all that a newcomer needs, on a fresh machine too: `cargo xtask run` shows the system,
/// `cargo xtask test` tests it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    Bench(bench::Args),
    Random(random::Args),
    Fuzz(fuzz::Args),
    Image(image::Args),
    Boards(boards::Args),
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup(args) => setup::task(&args),
        Task::Build(args) => build::task(&args),
        Task::Run(args) => run::task(&args),
        Task::Test(args) => test::task(&args),
        Task::Bench(args) => bench::task(&args),
        Task::Random(args) => random::task(&args),
        Task::Fuzz(args) => fuzz::task(&args),
        Task::Image(args) => image::task(&args),
        Task::Boards(args) => boards::task(&args),
        Task::Ci(args) => ci::task(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
