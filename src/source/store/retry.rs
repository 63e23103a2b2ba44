//! Owns the judgement of what went wrong with a request (may it pass?) and the waits between attempts.
//! It must never let a read outlive its deadline.

use std::error::Error;
use std::time::Duration;

use object_store::client::HttpError;
use tokio::time::{Instant, sleep_until};

use super::backend::variables;
use super::http::Seen;
use super::target::Kind;
use super::{Identity, StoreError};
use crate::units::{KeyedRng, SampleId, Seed};

/// The longest wait between two attempts, unless a server asks for a longer one.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The longest wait that a server is granted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Attempts where it is likely that none will do.
const HINTED_ATTEMPTS: u32 = 3;
/// A cause is cut after so many characters: some servers answer with a page.
const CAUSE_CHARS_MAX: usize = 400;

/// What went wrong with one request.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may pass. What is hinted at more likely will not, and is not tried as often.
    Passing { cause: String, after: Option<Duration>, hint: &'static str },
    /// It will not.
    Lasting { cause: String, hint: &'static str },
    /// The object is another, which one if that was said.
    Changed(Option<Identity>),
}

impl Failure {
    pub(super) fn passing(cause: impl Into<String>) -> Self {
        Failure::Passing { cause: cause.into(), after: None, hint: "" }
    }
}

/// Judges an error of a store's, with what the server answered where it did.
pub(super) fn judge(error: &object_store::Error, seen: &Seen, kind: Kind) -> Failure {
    use object_store::Error as E;
    let answer = seen.answer();
    let cause = cause(error);
    let lasting = |hint| Failure::Lasting { cause: cause.clone(), hint };
    let passing = |hint| Failure::Passing { cause: cause.clone(), after: answer.retry_after, hint };
    match answer.status {
        Some(412 | 416) => return Failure::Changed(None),
        Some(401 | 403) => return lasting(variables(kind)),
        Some(404 | 410) => return lasting("check the path, and whether the object was moved or deleted"),
        Some(408 | 429) => return passing(""),
        Some(300..=399) => return lasting("the place is another: check the region, the endpoint and the URL"),
        Some(400..=499) => return lasting("the server does not take such a request: check the URL and the endpoint"),
        Some(500..=599) => return passing(""),
        _ => {}
    }
    match error {
        E::NotSupported { .. } => lasting(
            "the server answers a request for a part with the whole: put the data on one that knows ranges (nginx, any \
             object store)",
        ),
        E::NotImplemented { .. } | E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => lasting(""),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => lasting(variables(kind)),
        // The request was not made: credentials were looked for. Nothing of the network means that there are none; else
        // their server may come back, or (what is asked last is the machine that this would be) does not exist.
        E::Generic { .. } if !answer.asked && !of_the_network(error) => lasting(variables(kind)),
        E::Generic { .. } if !answer.asked => passing(variables(kind)),
        _ => passing(""),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    // Nobody nests deeper; a chain that bites its own tail ends as well.
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
    .take(16)
}

fn of_the_network(error: &object_store::Error) -> bool {
    chain(error).any(|part| part.is::<HttpError>() || part.is::<std::io::Error>())
}

/// The last word of an error's chain and the one before it that says more, without the request's URL (whose query may
/// be a signature).
fn cause(error: &object_store::Error) -> String {
    let texts: Vec<String> = chain(error).map(ToString::to_string).filter(|text| !text.contains("://")).collect();
    let last = texts.last().map_or("no cause was given", String::as_str);
    let text = match texts.first() {
        Some(first) if first.contains("<Message>") || first.contains("<Code>") => spoken(first),
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

/// What an error of S3's, GCS's or Azure's says, without its tags.
fn spoken(text: &str) -> String {
    let tag = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        after.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim().to_owned())
    };
    let status = text.split('<').next().unwrap_or("").trim_end_matches([' ', ':', '\n']);
    let parts = [Some(status.to_owned()), tag("Code"), tag("Message")];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

/// The attempts of one read, listing or look.
pub(super) struct Tries<'a> {
    pub(super) doing: &'static str,
    pub(super) url: &'a str,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) deadline: Instant,
    started: Instant,
    made: u32,
    allowed: u32,
    backoff: Duration,
    rng: KeyedRng,
    last: String,
}

impl<'a> Tries<'a> {
    pub(super) fn new(doing: &'static str, url: &'a str, range: (u64, u64), options: &super::StoreOptions) -> Self {
        let started = Instant::now();
        let key = xxhash_rust::xxh3::xxh3_64(url.as_bytes());
        Tries {
            doing,
            url,
            offset: range.0,
            bytes: range.1,
            deadline: started + options.deadline,
            started,
            made: 0,
            allowed: options.attempts,
            backoff: options.backoff,
            rng: KeyedRng::new(Seed(options.seed.0 ^ key), 0, SampleId(range.0), 0),
            last: String::new(),
        }
    }

    /// Counts an attempt that begins.
    pub(super) fn begin(&mut self) {
        self.made += 1;
    }

    /// Waits for the next attempt after one that failed.
    ///
    /// # Errors
    /// Where there is none: the error of it all.
    pub(super) async fn again(
        &mut self,
        cause: String,
        after: Option<Duration>,
        hint: &'static str,
    ) -> Result<(), StoreError> {
        self.last = cause;
        let allowed = if hint.is_empty() { self.allowed } else { self.allowed.min(HINTED_ATTEMPTS) };
        if self.made >= allowed {
            return Err(self.error(hint));
        }
        let wait = self.wait().max(after.unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX));
        let next = Instant::now() + wait;
        if next >= self.deadline {
            return Err(self.error("there was no time for another attempt"));
        }
        sleep_until(next).await;
        Ok(())
    }

    /// The wait after the attempts so far: doubled with each, less up to a half by chance, so that those who failed
    /// together do not come back together.
    fn wait(&mut self) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << (self.made.saturating_sub(1)).min(16)).min(BACKOFF_MAX);
        doubled.mul_f64(self.rng.range(0.5, 1.0))
    }

    /// The error of a read whose time is up.
    pub(super) fn late(&mut self) -> StoreError {
        if self.last.is_empty() {
            self.last = "no answer by the deadline".to_owned();
        } else {
            self.last.push_str(", and the next attempt was still under way at the deadline");
        }
        self.error("")
    }

    pub(super) fn lasting(&mut self, cause: String, hint: &'static str) -> StoreError {
        self.last = cause;
        self.error(hint)
    }

    fn error(&self, hint: &'static str) -> StoreError {
        let numbers = self.last.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
        StoreError::Request {
            status: numbers.into_iter().find(|status| (400..600).contains(status)),
            doing: self.doing,
            url: self.url.to_owned(),
            offset: self.offset,
            bytes: self.bytes,
            attempts: self.made,
            elapsed: self.started.elapsed(),
            cause: self.last.clone(),
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::store::StoreOptions;

    #[test]
    fn waits_double_within_their_bounds_and_repeat_by_key() {
        let waits = |offset| {
            let mut tries = Tries::new("read", "s3://b/x", (offset, 1), &StoreOptions::default());
            (1..10)
                .map(|_| {
                    tries.begin();
                    tries.wait()
                })
                .collect::<Vec<_>>()
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
    fn a_stores_error_is_told_in_words() {
        let text = "Server returned non-2xx status code: 404 Not Found: <?xml version=\"1.0\"?>\n\
                    <Error><Code>NoSuchBucket\
                    </Code><Message>The bucket does not exist</Message></Error>";
        assert_eq!(
            spoken(text),
            "Server returned non-2xx status code: 404 Not Found: NoSuchBucket: The bucket does not exist"
        );
    }
}
