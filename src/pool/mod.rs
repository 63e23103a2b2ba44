//! Owns the memory that is used again and again: slots and their parts, read buffers, workers' scratch. Everything here
//! holds its `Reservation` for as long as it holds its bytes.
//! It must never decide how many of each there are (that is `plan`), or when a sample may come in (that is `pipeline`).

mod buffer;
mod cache;
mod countdown;
mod output;
mod ring;
mod scratch;
mod slot;

pub(crate) use buffer::ReadBuffer;
pub(crate) use cache::EncodedCache;
pub(crate) use output::Output;
pub(crate) use ring::{Lent, Recycle, Ring};
pub(crate) use scratch::{JumboError, JumboLane, Scratch, working_set};
pub(crate) use slot::{Filled, Marks, Part, Parts, Pending, Slot, fill};
