//! Any bytes as a picture: the header, and the whole picture behind it. See `tests/common/fuzzing.rs` for what has to hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/common/fuzzing.rs"]
#[allow(dead_code, reason = "the other target's function")]
mod fuzzing;

// The fuzzer's hook ends the process at any panic; those of codecs are caught and are errors, as in a run.
fuzz_target!(
    init: drop(std::panic::take_hook()),
    |input: &[u8]| fuzzing::any_header(input)
);
