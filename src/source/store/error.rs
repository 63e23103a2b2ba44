//! Errors of object stores. A message names the URL, the numbers and the next step. The query of a URL may be a
//! signature, so it is removed before a URL is stored in an error.

use std::time::Duration;

use super::version::ObjectVersion;

/// Error of an object store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text is not the URL of an object.
    #[error(
        "'{url}' is not the URL of an object: {reason}; expected s3://bucket/path, gs://bucket/path, \
         az://container/path or https://host/path"
    )]
    Url {
        /// URL without its query.
        url: String,
        /// Reason.
        reason: String,
    },
    /// The store could not be configured: a setting is missing or invalid.
    #[error("cannot configure {url}: {reason}")]
    Setup {
        /// URL of the store.
        url: String,
        /// Reason.
        reason: String,
    },
    /// A request failed, with all its attempts.
    #[error(
        "cannot {operation} {url}{} after {} and {:.1} s: {cause}{}",
        range_text(*.offset, *.bytes), attempts_text(*.attempts), .elapsed.as_secs_f64(), hint_text(.hint)
    )]
    Request {
        /// Operation, as an infinitive: "read", "open", "list".
        operation: &'static str,
        /// URL of the object.
        url: String,
        /// First byte requested.
        offset: u64,
        /// Number of bytes requested; 0 where none were.
        bytes: u64,
        /// Number of attempts.
        attempts: u32,
        /// Time since the first attempt began.
        elapsed: Duration,
        /// HTTP status of the last answer; `None` where no answer came.
        status: Option<u16>,
        /// Message of the last failure. It is text, because the client's own errors contain the URL with its query.
        cause: String,
        /// Advice; may be empty.
        hint: &'static str,
    },
    /// The object was replaced after it was opened.
    #[error(
        "{url} was {opened} when it was opened and is {} now: leave the data alone during a run, or open the source \
         again",
        .found.as_ref().map_or("another object".to_owned(), ToString::to_string)
    )]
    Changed {
        /// URL of the object.
        url: String,
        /// Version that was opened.
        opened: ObjectVersion,
        /// Version found now, where the store returned it.
        found: Option<ObjectVersion>,
    },
    /// A read reaches past the end of the object.
    #[error(
        "cannot read bytes {offset} to {} of {url}, which has {object_bytes} bytes: check that its index belongs to it",
        .offset.saturating_add(*.bytes)
    )]
    PastEnd {
        /// URL of the object.
        url: String,
        /// First byte requested.
        offset: u64,
        /// Number of bytes requested.
        bytes: u64,
        /// Size of the object, bytes.
        object_bytes: u64,
    },
    /// The store cannot list objects.
    #[error(
        "cannot list {url}: HTTP has no listings; name the shards with a brace pattern, as in \
         https://host/train-{{000..146}}.tar"
    )]
    CannotList {
        /// URL of the store.
        url: String,
    },
    /// A listing has more objects than the limit.
    #[error("more than {object_count_max} objects begin with {url}: use a longer prefix")]
    TooManyObjects {
        /// URL of the prefix.
        url: String,
        /// Maximum number of objects in a listing.
        object_count_max: usize,
    },
}

impl StoreError {
    /// Returns true if the storage, the network or the configuration failed, as opposed to the data or the request.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self, StoreError::Setup { .. } | StoreError::Request { .. })
    }

    /// Returns true if the store answered that the object does not exist (HTTP 404 or 410).
    ///
    /// S3 answers 403 instead where the caller may not list the bucket; that is not counted as "not found".
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Request { status: Some(404 | 410), .. })
    }
}

fn range_text(offset: u64, bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" (bytes {offset} to {}, {bytes} in all)", offset + bytes) }
}

fn attempts_text(attempts: u32) -> String {
    if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") }
}

fn hint_text(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}
