//! Warnings about facts that could not be read.

use std::io;
use std::path::PathBuf;

/// A fact about the host that could not be read, and the assumption made in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostWarning {
    /// The control groups of this process are unknown.
    #[error("{path} cannot be read, so control groups are not taken into account: {error}")]
    GroupsUnknown {
        /// The kernel's file.
        path: &'static str,
        /// Reason.
        error: io::ErrorKind,
    },
    /// The control group of this process lies outside of every mount.
    #[error(
        "control group {} is outside of what is mounted at {}; the limits found there are used",
        .group.display(), .mount.display()
    )]
    GroupNotMounted {
        /// Path of the group in its hierarchy.
        group: PathBuf,
        /// The mount that is used instead.
        mount: PathBuf,
    },
    /// A controller is in use, but its hierarchy is not mounted.
    #[error("control groups with {controller} limits are not mounted here; unseen limits may apply")]
    ControllerNotMounted {
        /// "memory" or "cpu".
        controller: &'static str,
    },
    /// A file cannot be read, and is ignored.
    #[error("{} is ignored: {error}", .path.display())]
    FileUnreadable {
        /// The kernel's file.
        path: PathBuf,
        /// Reason.
        error: io::ErrorKind,
    },
    /// A file has a content that is not understood, and is ignored.
    #[error("{} is ignored: '{text}' is not understood", .path.display())]
    FileInvalid {
        /// The kernel's file.
        path: PathBuf,
        /// The first 40 characters of its content.
        text: String,
    },
    /// The memory use of a control group is unknown, and counts as none.
    #[error("the memory use of control group {} is unknown and counts as none", .group.display())]
    GroupUsageUnknown {
        /// Directory of the group.
        group: PathBuf,
    },
    /// The memory of the machine is unknown.
    #[error("the machine's memory could not be read; only control group limits are known")]
    MemoryUnknown,
    /// The CPU affinity is unknown.
    #[error("the CPU affinity cannot be read ({error}); {assumed} CPUs are assumed")]
    AffinityUnknown {
        /// CPUs that are assumed.
        assumed: usize,
        /// Reason.
        error: io::ErrorKind,
    },
    /// An environment variable of a launcher is not a number of ranks, and is ignored.
    #[error("{variable}={} is not a number of ranks and is ignored", .value.escape_debug())]
    RanksInvalid {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
}
