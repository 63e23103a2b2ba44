//! Sum of one vector over all ranks of a run.
//!
//! Ranks are threads of one process, or processes, or threads in each of several processes. Threads hand their vectors
//! to the first thread of their process ([`threads`]), the first threads exchange over TCP by way of rank 0
//! ([`processes`]). Every wait ends at a deadline.
//!
//! The order of additions is fixed: within a process by thread, then among processes by rank. So for a given number of
//! threads and processes the sum is the same in every run, bit for bit, and the same on every rank.

mod error;
mod group;
mod processes;
mod threads;

pub use error::{CollectiveError, LostReason, Ranks};
pub use group::{Communicator, ProcessGroup};

#[cfg(test)]
mod tests;
