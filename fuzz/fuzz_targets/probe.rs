//! Decodes any bytes as a whole image. `tests/common/fuzzing.rs` has the properties that hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/common/fuzzing.rs"]
#[allow(dead_code, reason = "the other target's function")]
mod fuzzing;

// The fuzzer's hook ends the process at any panic, but a codec's panic is contained and becomes an error.
fuzz_target!(
    init: drop(std::panic::take_hook()),
    |input: &[u8]| fuzzing::any_header(input)
);
