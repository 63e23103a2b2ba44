//! Owns the memory that is used again and again: slots and their parts, read buffers, workers' scratch. Everything here
//! holds its `Reservation` for as long as it holds its bytes.
//! It must never decide how many of each there are (that is `plan`), or when a sample may come in (that is `pipeline`).

mod buffer;
mod cache;
mod countdown;
mod output;
mod ring;
mod sample;
mod scratch;
mod slot;

use crate::budget::Reservation;
use crate::device::DeviceError;
use crate::units::ByteCount;

pub(crate) use buffer::ReadBuffer;
pub(crate) use cache::EncodedCache;
pub(crate) use output::Output;
pub(crate) use ring::{Lent, Recycle, Ring};
pub(crate) use sample::{Shown, working_set};
pub(crate) use scratch::{JumboError, JumboLane, Scratch};
pub(crate) use slot::{Filled, Marks, Part, Parts, Pending, Slot, fill};

/// Takes the reservation of a thing that wakes up: all of `bytes`, or none.
///
/// # Errors
/// [`DeviceError::OutOfMemory`] if others hold what was given back. Caps add up to the budget, so they do not.
fn take_again(held: &mut Reservation, bytes: usize) -> Result<(), DeviceError> {
    let asked = ByteCount(bytes as u64);
    held.grow_to(asked.max(held.bytes())).map_err(|refused| DeviceError::OutOfMemory {
        what: "memory that was given back before",
        asked,
        free: Some(refused.available),
        usage: None,
    })
}
