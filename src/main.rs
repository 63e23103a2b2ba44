//! Owns the start of the program: the clock, and the exit code. It must never do anything else.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    cli::run(Instant::now())
}
