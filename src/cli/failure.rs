//! Failures of the program with their exit codes, and printing to standard output and standard error.
//!
//! A reader of standard output that closes the pipe is not a failure.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use feedstock::device::DeviceError;
use feedstock::source::SourceError;
use feedstock::{Error, ErrorKind};

/// Exit code of a run whose budget is too small.
pub(crate) const OVER_BUDGET: u8 = 3;

/// Reason why a verb ended early.
pub(crate) enum Failure {
    /// An error of the library.
    Library(Error),
    /// Invalid arguments.
    Usage(String),
    /// The RAM budget is too small.
    Budget(String),
    /// Bad data.
    Data(String),
    /// An I/O or system error.
    Io(String),
    /// Standard output could not be written.
    Output(io::Error),
    /// A check failed: a budget was exceeded or batches differ.
    Broken(String),
    /// A run in a child process failed with this exit code.
    Run { code: u8, what: String },
    /// Interrupted by the user; the verb has reported its progress.
    Interrupted,
    /// A panic.
    Bug,
}

impl Failure {
    /// Prints the failure on standard error.
    pub(crate) fn tell(&self) {
        match self {
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Failure::Output(error) => say("error", format_args!("cannot write to standard output: {error}")),
            Failure::Interrupted => say("interrupted", "ended before the work was done"),
            Failure::Bug => say("error", "this is a bug; please report it with the message above"),
            other => say("error", other.words()),
        }
    }

    /// Message for a report that is printed despite the failure.
    pub(crate) fn words(&self) -> String {
        match self {
            Failure::Library(error) => chain(error),
            Failure::Usage(what) | Failure::Data(what) | Failure::Io(what) | Failure::Budget(what) => what.clone(),
            Failure::Broken(what) | Failure::Run { what, .. } => what.clone(),
            Failure::Output(error) => error.to_string(),
            Failure::Interrupted => "interrupted".to_owned(),
            Failure::Bug => "a bug".to_owned(),
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Library(error) => code_of(error.kind()),
            Failure::Broken(_) => 1,
            Failure::Run { code, .. } => *code,
            Failure::Usage(_) => 2,
            Failure::Budget(_) => 3,
            Failure::Data(_) => 4,
            // The reader closed the pipe, as in `feedstock ... | head`.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Io(_) | Failure::Output(_) => 5,
            Failure::Interrupted => 130,
            Failure::Bug => 70,
        })
    }
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Config => 2,
        ErrorKind::Budget => OVER_BUDGET,
        ErrorKind::Data => 4,
        ErrorKind::Io => 5,
        ErrorKind::Device => 6,
        ErrorKind::Cancelled => 130,
        _ => 70,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Cancelled => Failure::Interrupted,
            _ => Failure::Library(error),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::Library(error.into())
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Failure::Library(error.into())
    }
}

/// The message of an error and those of its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Prints a line to standard error.
pub(crate) fn say(kind: &str, what: impl Display) {
    // Nothing can be reported if standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{kind}: {what}");
}

/// Prints to standard output with a trailing newline.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::Output)
}
