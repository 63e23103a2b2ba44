//! Errors of a process group, and the rank that they are reported for.

use std::fmt;
use std::io;
use std::time::Duration;

/// Some of the ranks of a run, as an error names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ranks {
    /// The ranks; empty where it is not known which of the others it is.
    pub ranks: Vec<usize>,
    /// Address that was tried to reach them.
    pub address: Option<String>,
}

impl Ranks {
    pub(super) fn new(ranks: impl IntoIterator<Item = usize>) -> Ranks {
        Ranks { ranks: ranks.into_iter().collect(), address: None }
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ranks.as_slice() {
            [] => f.write_str("the other ranks")?,
            [rank] => write!(f, "rank {rank}")?,
            ranks => write!(f, "ranks {}", ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))?,
        }
        self.address.iter().try_for_each(|address| write!(f, " at {address}"))
    }
}

/// Failure of an exchange among ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A setting is out of range, or a required one is missing.
    #[error("{0}")]
    Config(String),
    /// Rank 0 cannot listen for the other processes.
    #[error("rank 0 cannot listen on port {port}: if another run uses it, set MASTER_PORT to a free port")]
    Listen {
        /// TCP port.
        port: u16,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Other ranks did not arrive within the timeout.
    #[error(
        "rank {rank} of {world_size} waited {:.1} s for {late}: check that all {world_size} ranks were started and \
         still \
         run, what they printed last, and that their machines reach each other",
        waited.as_secs_f64()
    )]
    Late {
        /// Rank that waited.
        rank: usize,
        /// Number of ranks of the run.
        world_size: usize,
        /// Time that it waited.
        waited: Duration,
        /// Ranks that it waited for.
        late: Ranks,
    },
    /// Another rank is gone, or does not belong to this run.
    #[error(
        "rank {rank} of {world_size} has lost {lost} after {exchanges} exchanges ({reason}): see what that rank \
         printed last"
    )]
    Lost {
        /// Rank that noticed.
        rank: usize,
        /// Number of ranks of the run.
        world_size: usize,
        /// Number of sums before.
        exchanges: u64,
        /// Ranks that are gone.
        lost: Ranks,
        /// Reason.
        reason: LostReason,
    },
}

/// Reason for which another rank counts as lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// Its communicator was dropped.
    #[error("it has left")]
    Left,
    /// Its end of the connection is closed.
    #[error("it closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(io::Error),
    /// Its vector has another length.
    #[error("it gave {theirs} numbers, this rank has {ours}")]
    Length {
        /// Numbers in its vector.
        theirs: u64,
        /// Numbers in this rank's vector.
        ours: u64,
    },
    /// It is at another exchange.
    #[error("it is at exchange {theirs}, this rank at {ours}")]
    Exchange {
        /// Number of its exchange, from 0.
        theirs: u64,
        /// Number of this rank's exchange, from 0.
        ours: u64,
    },
    /// Another rank ended the run and sent this message.
    #[error("{0}")]
    Told(String),
    /// An earlier exchange of this rank failed.
    #[error("an earlier exchange failed")]
    EarlierFailure,
}

/// Outcome of waiting for another rank that did not deliver.
#[derive(Debug)]
pub(super) enum Problem {
    Late,
    Lost(LostReason),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match error.kind() {
            TimedOut | WouldBlock => Problem::Late,
            UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => Problem::Lost(LostReason::Closed),
            _ => Problem::Lost(LostReason::Connection(error)),
        }
    }
}

impl CollectiveError {
    /// Short form, for the other ranks.
    pub(super) fn summary(&self) -> String {
        match self {
            CollectiveError::Late { late, .. } => format!("{late} did not arrive in time"),
            CollectiveError::Lost { reason: LostReason::Told(text), .. } => text.clone(),
            CollectiveError::Lost { lost, reason, .. } => format!("{lost} was lost ({reason})"),
            other => other.to_string(),
        }
    }
}

/// Rank of a thread, and how long it waits for the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct RankInfo {
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) timeout: Duration,
}

impl RankInfo {
    /// Error of this rank about `ranks`, after `exchanges` sums.
    pub(super) fn error(&self, ranks: Ranks, problem: Problem, exchanges: u64) -> CollectiveError {
        let RankInfo { rank, world_size, timeout } = *self;
        match problem {
            Problem::Late => CollectiveError::Late { rank, world_size, waited: timeout, late: ranks },
            Problem::Lost(reason) => CollectiveError::Lost { rank, world_size, exchanges, lost: ranks, reason },
        }
    }
}
