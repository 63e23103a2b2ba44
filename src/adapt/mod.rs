//! Adapters to the training loops of other libraries, each behind its own feature.

#[cfg(feature = "burn")]
pub mod burn;
