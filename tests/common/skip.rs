//! Skips a test: says so on standard error, past the test harness's capture, and fails where CI demands the test.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part of it")]

use std::io::Write;

/// A requirement that a test did not find.
pub enum Missing<'a> {
    /// A program that `.ci/run` installs or builds. With `FEEDSTOCK_FAIL_ON_SKIP` in the environment this fails the
    /// test.
    Program(&'a str),
    /// A permission or a feature of this machine's kernel.
    Privilege(&'a str),
    /// Data that is not part of the repository.
    Data(&'a str),
}

/// Reports that the calling test, or the rest of it, does not run.
///
/// # Panics
/// If a program is missing and `FEEDSTOCK_FAIL_ON_SKIP` is set.
pub fn skip(missing: &Missing<'_>) {
    let what = match missing {
        Missing::Program(what) => {
            let demanded = std::env::var_os("FEEDSTOCK_FAIL_ON_SKIP").is_some();
            assert!(!demanded, "FEEDSTOCK_FAIL_ON_SKIP is set, and this test needs {what}");
            what
        }
        Missing::Privilege(what) | Missing::Data(what) => what,
    };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // `eprintln!` would be captured with the output of a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs {what}");
}
