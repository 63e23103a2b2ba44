//! Objects in S3, GCS and Azure and over HTTP: random reads, sequential reads and listings. The content of objects is
//! opaque to this module. Memory and time are limited, and known before a read ([`Store::held_bytes`],
//! [`StoreOptions::deadline`]).

mod backend;
mod bucket;
mod cache;
mod client;
mod coalesce;
pub(super) mod error;
mod http;
mod latency;
mod object;
mod options;
mod reader;
mod retry;
pub(super) mod shard;
mod shared;
mod single_flight;
mod url;
mod version;

pub use bucket::Store;
pub use cache::DiskCache;
pub use client::{ListEntry, StoreCounts};
pub use error::StoreError;
pub use object::Object;
pub use options::{IN_FLIGHT, IN_FLIGHT_MAX, StoreOptions};
pub use reader::Reader;
pub use version::ObjectVersion;
