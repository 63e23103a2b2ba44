//! The stand-in for the driver (`tests/standin`), for unit tests.

#[path = "../../../tests/standin/mod.rs"]
mod shared;

pub(crate) use shared::{Standin, load};
