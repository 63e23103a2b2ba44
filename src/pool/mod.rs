//! Reused memory: slots and their parts, outputs, read buffers, workers' scratch, the cache of small files. Each object
//! holds its reservation for as long as it holds its bytes. Their numbers are decided by `plan`.

mod buffer;
mod cache;
mod latch;
mod output;
mod reusable;
mod scratch;
mod slot;

pub(crate) use buffer::ReadBuffer;
pub(crate) use cache::EncodedCache;
pub(crate) use output::Output;
pub(crate) use reusable::{Pool, Pooled, Reusable};
pub(crate) use scratch::{OversizedScratch, Scratch};
pub(crate) use slot::{BatchMeta, Filled, Part, Parts, Pending, Slot};
