//! Sizes of a loader: numbers of workers, slots and buffers, decided before anything is allocated, and the byte table
//! that explains them. Pure arithmetic: the same request, facts and profile give the same plan on any machine.
//!
//! The byte equation, whose terms are the accounts of the ledger:
//!
//! ```text
//! budget >= headroom + index + reading + sampling + slots x slot + outputs x output + bookkeeping
//!         + workers x scratch + chunks x chunk + cache + oversized files (as stored) + oversized images
//! ```

mod planner;
mod profile;
mod request;
mod row;
mod sizes;
#[cfg(test)]
mod tests;

pub(crate) use planner::{BATCH_LIMIT, SLOTS_LIMIT, WORKERS_LIMIT};
pub use planner::{CHUNK_SAMPLES_MAX, CHUNK_TARGET_BYTES, LIBRARY_OVERHEAD, OVERHEAD_PER_THREAD};
pub use profile::{ENCODED_BYTES_MAX, Profile};
pub use request::CoresReason;
#[doc(hidden)]
pub use request::{Facts, Request};
pub use row::{BudgetTooSmall, Row, RowDetail};
pub use sizes::{Plan, PoolSizes, SlotsReason, WorkersReason};
