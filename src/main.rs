//! Owns the start of the program: the clock, the exit code, and the count of its heap. It must never do anything else.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

use feedstock::host::CountingAllocator;

/// So that a run can tell what its heap held at most.
#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    cli::run(Instant::now())
}
