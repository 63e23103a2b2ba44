//! Classification of failed requests and exponential backoff between attempts. No operation outlives its deadline.

use std::error::Error;
use std::time::Duration;

use object_store::client::HttpError;
use tokio::time::{Instant, sleep_until};

use super::backend::credentials_hint;
use super::error::StoreError;
use super::http::ResponseInfo;
use super::options::StoreOptions;
use super::url::StoreKind;
use super::version::ObjectVersion;
use crate::rng::{KeyedRng, Seed};
use crate::units::SampleId;

/// Maximum wait between two attempts, unless the server asks for a longer one.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Maximum wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Maximum number of attempts for failures that are probably permanent.
const HINTED_ATTEMPTS: u32 = 3;
/// Maximum length of a cause, characters: some servers answer with a web page.
const CAUSE_CHARS_MAX: usize = 400;

/// Failure of one attempt.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// It may pass. With a hint it is probably permanent, and is retried less often.
    Transient(Failure),
    /// It will not pass.
    Permanent(Failure),
    /// The object was replaced, by this version where the store returned it.
    Changed(Option<ObjectVersion>),
}

/// Description of a failure.
#[derive(Debug, Default)]
pub(super) struct Failure {
    pub(super) cause: String,
    /// HTTP status, where an answer came.
    pub(super) status: Option<u16>,
    /// Wait that the server asked for.
    pub(super) retry_after: Option<Duration>,
    pub(super) hint: &'static str,
}

impl AttemptError {
    pub(super) fn transient(cause: impl Into<String>) -> Self {
        AttemptError::Transient(Failure { cause: cause.into(), ..Failure::default() })
    }
}

/// Classifies an error of the client by the response, where one came.
pub(super) fn classify(error: &object_store::Error, response: &ResponseInfo, kind: StoreKind) -> AttemptError {
    use object_store::Error as E;
    let response = response.get();
    let failure =
        |hint| Failure { cause: describe(error), status: response.status, retry_after: response.retry_after, hint };
    let permanent = |hint| AttemptError::Permanent(failure(hint));
    let transient = |hint| AttemptError::Transient(failure(hint));
    match response.status {
        Some(412 | 416) => return AttemptError::Changed(None),
        Some(401 | 403) => return permanent(credentials_hint(kind)),
        Some(404 | 410) => return permanent("check the path, and whether the object was moved or deleted"),
        Some(300..=399) => return permanent("the server redirects: check the region, the endpoint and the URL"),
        Some(408 | 429 | 500..=599) => return transient(""),
        Some(400..=499) => return permanent("the server refuses such a request: check the URL and the endpoint"),
        _ => {}
    }
    match error {
        E::NotSupported { .. } => permanent(
            "the server answers a range request with the whole object: use a server that supports ranges (nginx, any \
             object store)",
        ),
        E::NotImplemented { .. } | E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => permanent(""),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => permanent(credentials_hint(kind)),
        // The request was not sent: obtaining credentials failed. Without a network error there are none. With one, the
        // metadata server of a cloud machine may come back, or this machine is not in a cloud.
        E::Generic { .. } if !response.sent && !is_network_error(error) => permanent(credentials_hint(kind)),
        E::Generic { .. } if !response.sent => transient(credentials_hint(kind)),
        _ => transient(""),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    // The limit ends a cyclic chain.
    std::iter::successors(Some(error), |&error| error.source()).take(16)
}

fn is_network_error(error: &object_store::Error) -> bool {
    chain(error).any(|part| part.is::<HttpError>() || part.is::<std::io::Error>())
}

/// First and last message of an error's chain, without those that contain the request's URL (whose query may be a
/// signature).
fn describe(error: &object_store::Error) -> String {
    let texts: Vec<String> = chain(error).map(ToString::to_string).filter(|text| !text.contains("://")).collect();
    let last = texts.last().map_or("no cause was given", String::as_str);
    let text = match texts.first() {
        Some(first) if first.contains("<Message>") || first.contains("<Code>") => without_xml(first),
        Some(first) if !first.contains(last) => format!("{first}: {last}"),
        Some(first) => first.clone(),
        None => last.to_owned(),
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CAUSE_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

/// Code and message of an XML error of S3, GCS or Azure.
fn without_xml(text: &str) -> String {
    let tag = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        after.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim().to_owned())
    };
    let status = text.split('<').next().unwrap_or("").trim_end_matches([' ', ':', '\n']);
    let parts = [Some(status.to_owned()), tag("Code"), tag("Message")];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

/// Attempts of one operation.
pub(super) struct RetryState<'a> {
    operation: &'static str,
    url: &'a str,
    offset: u64,
    bytes: u64,
    pub(super) deadline: Instant,
    started: Instant,
    attempts: u32,
    attempts_max: u32,
    base_backoff: Duration,
    rng: KeyedRng,
    last: Failure,
}

impl<'a> RetryState<'a> {
    /// Starts the clock. `range` is the first byte and the number of bytes.
    pub(super) fn new(operation: &'static str, url: &'a str, range: (u64, u64), options: &StoreOptions) -> Self {
        let started = Instant::now();
        let key = xxhash_rust::xxh3::xxh3_64(url.as_bytes());
        RetryState {
            operation,
            url,
            offset: range.0,
            bytes: range.1,
            deadline: started + options.deadline,
            started,
            attempts: 0,
            attempts_max: options.attempts,
            base_backoff: options.backoff,
            rng: KeyedRng::new(Seed(options.seed.0 ^ key), 0, SampleId(range.0), 0),
            last: Failure::default(),
        }
    }

    /// Counts an attempt that begins.
    pub(super) fn begin(&mut self) {
        self.attempts += 1;
    }

    /// Waits until the next attempt.
    ///
    /// # Errors
    /// The error of the operation, if no attempt or no time is left.
    pub(super) async fn back_off(&mut self, failure: Failure) -> Result<(), StoreError> {
        let max = if failure.hint.is_empty() { self.attempts_max } else { self.attempts_max.min(HINTED_ATTEMPTS) };
        if self.attempts >= max {
            return Err(self.error(failure));
        }
        let wait = self.backoff().max(failure.retry_after.unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX));
        let next = Instant::now() + wait;
        if next >= self.deadline {
            return Err(self.error(Failure { hint: "there was no time for another attempt", ..failure }));
        }
        self.last = failure;
        sleep_until(next).await;
        Ok(())
    }

    /// Backoff after the attempts so far: doubled with each attempt, reduced by a random share of up to one half, so
    /// that requests that failed together do not return together.
    fn backoff(&mut self) -> Duration {
        let doubled = self.base_backoff.saturating_mul(1 << (self.attempts.saturating_sub(1)).min(16)).min(BACKOFF_MAX);
        doubled.mul_f64(self.rng.range(0.5, 1.0))
    }

    /// Error of an operation whose deadline has passed.
    pub(super) fn deadline_error(&mut self) -> StoreError {
        let mut failure = std::mem::take(&mut self.last);
        failure.hint = "";
        if failure.cause.is_empty() {
            failure.cause.push_str("no answer by the deadline");
        } else {
            failure.cause.push_str(", and the next attempt was still under way at the deadline");
        }
        self.error(failure)
    }

    /// Error of the operation.
    pub(super) fn error(&self, failure: Failure) -> StoreError {
        let Failure { cause, status, hint, .. } = failure;
        StoreError::Request {
            operation: self.operation,
            url: self.url.to_owned(),
            offset: self.offset,
            bytes: self.bytes,
            attempts: self.attempts,
            elapsed: self.started.elapsed(),
            status,
            cause,
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_within_bounds_and_repeats_by_key() {
        let waits = |offset| {
            let mut retry = RetryState::new("read", "s3://b/x", (offset, 1), &StoreOptions::default());
            let wait = |_| {
                retry.begin();
                retry.backoff()
            };
            (1..10).map(wait).collect::<Vec<_>>()
        };
        let first = waits(0);
        for (i, wait) in first.iter().enumerate() {
            let full = Duration::from_millis(100 << i).min(BACKOFF_MAX);
            assert!(*wait >= full / 2 && *wait <= full, "{i}: {wait:?}");
        }
        assert_eq!(first, waits(0));
        assert_ne!(first, waits(1));
    }

    #[test]
    fn xml_errors_become_text() {
        let text = "Server returned non-2xx status code: 404 Not Found: <?xml version=\"1.0\"?>\n\
                    <Error><Code>NoSuchBucket\
                    </Code><Message>The bucket does not exist</Message></Error>";
        assert_eq!(
            without_xml(text),
            "Server returned non-2xx status code: 404 Not Found: NoSuchBucket: The bucket does not exist"
        );
    }
}
