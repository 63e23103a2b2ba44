//! Owns what can go wrong with a store, in words that name the URL, the numbers and what to do next.
//! It must never show a query or a key: what a URL carries behind `?` is left out before it comes here.

use std::fmt;
use std::time::Duration;

use super::Identity;

/// What went wrong with a store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// A text that names no object of a store.
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A store that could not be set up: a setting is missing or means nothing.
    Setup {
        /// The store.
        url: String,
        /// What was said.
        reason: String,
    },
    /// Bytes, or word of them, that could not be had.
    Request {
        /// What was being done: "read", "look at", "list".
        doing: &'static str,
        /// Which object.
        url: String,
        /// The first byte that was asked for.
        offset: u64,
        /// How many bytes were asked for.
        bytes: u64,
        /// How often it was tried.
        attempts: u32,
        /// How long all of it took.
        elapsed: Duration,
        /// HTTP status of the last answer; `None` where no answer came.
        status: Option<u16>,
        /// What went wrong last.
        cause: String,
        /// What to do about it, where that is known.
        hint: &'static str,
    },
    /// An object that is not the one that was opened any more.
    Changed {
        /// Which object.
        url: String,
        /// What it was.
        opened: Identity,
        /// What it is now, where it said so.
        found: Option<Identity>,
    },
    /// A read past the end of an object.
    PastEnd {
        /// Which object.
        url: String,
        /// The first byte that was asked for.
        offset: u64,
        /// How many bytes were asked for.
        bytes: u64,
        /// How many bytes it has.
        object_bytes: u64,
    },
    /// A listing of what cannot be listed.
    CannotList {
        /// The store.
        url: String,
    },
    /// A prefix that more objects begin with than a listing names.
    TooManyObjects {
        /// The prefix.
        url: String,
        /// How many a listing names.
        object_count_max: usize,
    },
}

impl StoreError {
    /// Returns true if the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Request { status: Some(404 | 410), .. })
    }

    /// Whether storage or the way to it is at fault, and not what was asked for or found there.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, StoreError::Setup { .. } | StoreError::Request { .. })
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, reason } => write!(
                f,
                "'{url}' names no object of a store: {reason}; write it as s3://bucket/path, gs://bucket/path, \
                 az://container/path or https://host/path"
            ),
            Self::Setup { url, reason } => write!(f, "cannot set up {url}: {reason}"),
            Self::Request { doing, url, offset, bytes, attempts, elapsed, cause, hint, .. } => {
                write!(f, "cannot {doing} {url}")?;
                if *bytes > 0 {
                    write!(f, " (bytes {offset} to {}, {bytes} in all)", offset + bytes)?;
                }
                let times = if *attempts == 1 { "1 attempt" } else { &format!("{attempts} attempts") };
                write!(f, " after {times} and {:.1} s: {cause}", elapsed.as_secs_f64())?;
                if hint.is_empty() { Ok(()) } else { write!(f, "; {hint}") }
            }
            Self::Changed { url, opened, found } => {
                write!(f, "{url} was {opened} when it was opened and ")?;
                match found {
                    Some(found) => write!(f, "is {found} now")?,
                    None => f.write_str("is another now")?,
                }
                f.write_str(": leave the data alone during a run, or open the source again")
            }
            Self::PastEnd { url, offset, bytes, object_bytes } => write!(
                f,
                "bytes {offset} to {} of {url} were asked for, and it has {object_bytes}: does its index belong to it?",
                offset.saturating_add(*bytes)
            ),
            Self::CannotList { url } => write!(
                f,
                "{url} cannot be listed, for HTTP has no word for that: name the shards with a brace pattern, as in \
                 https://host/train-{{000..146}}.tar"
            ),
            Self::TooManyObjects { url, object_count_max } => {
                write!(f, "more than {object_count_max} objects begin with {url}: name fewer, by a longer prefix")
            }
        }
    }
}

impl std::error::Error for StoreError {}
