//! Owns the entries of the device ring: memory of one finished batch, made once and fed again and again.
//! It must never be fed before the event that its last reader left has passed.

use super::Recycle;
use crate::budget::Reservation;
use crate::device::{DeviceMemory, Event};

/// Device memory of one finished batch.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) memory: DeviceMemory,
    /// What has to pass before it may be fed again.
    pub(crate) released: Event,
    /// Where device memory comes out of the host's RAM.
    _held: Option<Reservation>,
}

impl Recycle for Output {}

impl Output {
    pub(crate) fn new(memory: DeviceMemory, held: Option<Reservation>) -> Self {
        Output { memory, released: Event::done(), _held: held }
    }
}
