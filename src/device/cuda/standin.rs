//! Owns the unit tests' way to a GPU: the stand-in for the driver (`tests/standin`).
//! It must never be part of anything but tests.

#[path = "../../../tests/standin/mod.rs"]
mod shared;

pub(crate) use shared::{Standin, load};
