//! Entry point of the program: starts the clock, installs the counting allocator and returns the exit code.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

use feedstock::host::CountingAllocator;

/// Counts the heap, so that a run can report its peak.
#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    cli::run(Instant::now())
}
