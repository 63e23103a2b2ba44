//! The run of one epoch: its threads and the channels between them.
//!
//! ```text
//! admit --> read --> work --> (slot complete) --> transfer --> consumer
//!   ^  \______ retry ___/                           |            |
//!   +------------------- slots, read buffers -------+------------+
//! ```
//!
//! `admit` walks the order and gives each sample its place (slot and position) and its chunk a read buffer; `read`
//! fills the buffer; `work` decodes and transforms into the place; `transfer` takes slots in plan order, as each
//! becomes complete, and delivers them. Reusable objects return through channels that have room for all of them, so no
//! return blocks. Only `admit` waits for memory, and dropping a [`Run`] joins every thread.

mod admit;
mod cancel;
mod chunk;
mod context;
mod engine;
mod governor;
mod read;
mod run;
mod transfer;
mod work;

pub(crate) use engine::{Engine, RunConfig};
pub(crate) use governor::Probe;
pub use governor::{ResizeEvent, ResizeReason};
pub(crate) use run::Run;
