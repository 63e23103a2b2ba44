//! Owns the ways into other libraries' training loops, one file each, behind one feature each.
//! It must never change what a batch holds: it moves it over and hands the slot back.

#[cfg(feature = "burn")]
pub mod burn;
