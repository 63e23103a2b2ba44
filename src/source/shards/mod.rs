//! Shards: tar files of samples, in the layout of WebDataset, read in place and in any order.
//!
//! Nothing is unpacked to disk, and paths in a tar are never opened. An index is used only if it belongs to the shard
//! as it is now.

mod classes;
mod decompressors;
mod index;
mod label;
mod open;
mod scan;
mod source;
mod stream;
mod tar_reader;
#[cfg(test)]
mod tests;
mod zst;

pub use source::TarShards;
