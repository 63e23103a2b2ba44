//! Limits that decide how much memory and processor time this process may use.

use std::fmt;
use std::path::PathBuf;

use crate::units::ByteCount;

/// Limit that decides how much memory is available.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MemoryLimit {
    /// Available memory of the machine.
    Machine,
    /// Limit of a control group.
    Group {
        /// File that sets the limit: `memory.max`.
        file: &'static str,
        /// Directory of the group.
        group: PathBuf,
        /// The limit.
        limit: ByteCount,
        /// Memory in use that cannot be given back.
        in_use: ByteCount,
    },
    /// No limit could be read.
    Unknown,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryLimit::Machine => f.write_str("the machine's available memory"),
            MemoryLimit::Group { file, group, limit, in_use } => {
                write!(f, "{file} of control group {} ({limit}, {in_use} of it in use)", group.display())
            }
            MemoryLimit::Unknown => f.write_str("unknown: no memory limit could be read"),
        }
    }
}

/// Limit that decides how many CPUs can be kept busy.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CpuLimit {
    /// CPUs that the calling thread may run on.
    Affinity {
        /// Number of CPUs.
        cpus: usize,
    },
    /// Quota of a control group.
    Quota {
        /// File that sets the quota: `cpu.max`.
        file: &'static str,
        /// Directory of the group.
        group: PathBuf,
        /// CPUs' worth of time.
        cpus: f64,
    },
}

impl fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuLimit::Affinity { cpus: 1 } => f.write_str("the one CPU that this process may run on"),
            CpuLimit::Affinity { cpus } => write!(f, "the {cpus} CPUs that this process may run on"),
            CpuLimit::Quota { file, group, cpus } => {
                write!(f, "{file} of control group {} ({cpus:.2} CPUs)", group.display())
            }
        }
    }
}
