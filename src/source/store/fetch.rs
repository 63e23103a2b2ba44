//! Owns the asking: requests within their number, each with its time, tried again where that helps, sent twice where
//! one lags. It must never take bytes of an object that is not the one that was opened.

use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::backend::Backend;
use super::flight::Flights;
use super::http::Seen;
use super::join::{Sink, Whole};
use super::latency::Latency;
use super::retry::{Failure, Tries, judge};
use super::target::Kind;
use super::{Identity, Listed, StoreCounts, StoreError, StoreOptions};
use crate::sync::{Arc, AtomicU64, Ordering};

/// Requests sent a second time that may be under way at once: each has memory of its own.
const HEDGES_MAX: usize = 4;
/// Of so many places one is kept for requests that are sent a second time, lest there be none when all readers wait.
const PLACES_A_HEDGE: usize = 8;
/// Of so many requests one may be sent a second time.
const REQUESTS_A_HEDGE: u64 = 20;
/// A request is not called late sooner: below it, the second one would be on the way while the first arrives.
const LATE_MIN: Duration = Duration::from_millis(5);

/// The way to one store, shared by its objects.
pub(super) struct Core {
    store: Arc<dyn ObjectStore>,
    lists: Option<Arc<dyn PaginatedListStore>>,
    pub(super) kind: Kind,
    pub(super) root: String,
    pub(super) options: StoreOptions,
    places: Semaphore,
    /// None where there are too few places to keep one: a free one has to do.
    hedge_places: Option<Semaphore>,
    /// Memory for whole blocks, which go into the cache.
    pub(super) block_places: Semaphore,
    pub(super) flights: Flights,
    latency: Latency,
    pub(super) counts: Counts,
}

#[derive(Default)]
pub(super) struct Counts {
    requests: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    received_bytes: AtomicU64,
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
}

impl Counts {
    pub(super) fn all(&self) -> StoreCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        StoreCounts {
            requests: load(&self.requests),
            retries: load(&self.retries),
            hedges: load(&self.hedges),
            hedges_won: load(&self.hedges_won),
            received_bytes: load(&self.received_bytes),
            cache_hits: load(&self.cache_hits),
            cache_misses: load(&self.cache_misses),
        }
    }
}

/// An object that was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: Path,
    pub(super) url: String,
    pub(super) identity: Identity,
}

/// Of the places for requests, those that are for none but second ones.
pub(super) fn kept_places(options: &StoreOptions) -> usize {
    options.hedge_after.map_or(0, |_| (options.in_flight / PLACES_A_HEDGE).min(HEDGES_MAX))
}

/// The most requests that are under way a second time at once.
pub(super) fn hedges_max(options: &StoreOptions) -> usize {
    match kept_places(options) {
        _ if options.hedge_after.is_none() => 0,
        // A free place for each, and one more for the request that lags.
        0 => options.in_flight / 2,
        kept => kept,
    }
}

impl Core {
    pub(super) fn new(backend: Backend, kind: Kind, root: String, options: StoreOptions) -> Self {
        let kept = kept_places(&options);
        Core {
            store: backend.store,
            lists: backend.lists,
            kind,
            root,
            places: Semaphore::new(options.in_flight - kept),
            hedge_places: (kept > 0).then(|| Semaphore::new(kept)),
            block_places: Semaphore::new(options.in_flight),
            flights: Flights::default(),
            latency: Latency::new(),
            counts: Counts::default(),
            options,
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    /// Looks at an object: what it is now.
    pub(super) async fn look(&self, path: &Path, url: &str) -> Result<Identity, StoreError> {
        let mut tries = Tries::new("look at", url, (0, 0), &self.options);
        loop {
            tries.begin();
            let outcome = timeout_at(tries.deadline, self.look_once(path)).await;
            if let Some(found) = self.settle(&mut tries, outcome).await? {
                return Ok(found);
            }
        }
    }

    async fn look_once(&self, path: &Path) -> Result<Identity, Failure> {
        let _place = self.place().await;
        let seen = Seen::default();
        let mut options = GetOptions { head: true, ..GetOptions::default() };
        options.extensions.insert(seen.clone());
        let result = self.timed(self.store.get_opts(path, options)).await?;
        result.map(|found| Identity::of(&found.meta)).map_err(|error| match judge(&error, &seen, self.kind) {
            // Nothing was asked for that a change could have spoilt.
            Failure::Changed(_) => Failure::passing("the server refused a condition that was not made"),
            other => other,
        })
    }

    /// Reads a range into its place.
    pub(super) async fn read(&self, object: &Opened, range: Range<u64>, into: &mut dyn Sink) -> Result<(), StoreError> {
        let asked = (range.start, range.end - range.start);
        let mut tries = Tries::new("read", &object.url, asked, &self.options);
        loop {
            tries.begin();
            let failure = match timeout_at(tries.deadline, self.attempt(object, &range, into)).await {
                Err(_) => return Err(tries.late()),
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
            };
            let (cause, after, hint) = match failure {
                Failure::Passing { cause, after, hint } => (cause, after, hint),
                Failure::Lasting { cause, hint } => return Err(tries.lasting(cause, hint)),
                Failure::Changed(found) => {
                    let found = match found {
                        Some(found) => Some(found),
                        None => {
                            let look = self.look(&object.path, &object.url);
                            timeout_at(tries.deadline, look).await.ok().and_then(Result::ok)
                        }
                    };
                    match found {
                        // A server that refuses what it names itself: a cache in front of it, or a change in between.
                        Some(found) if object.identity.agrees_with(&found) => (
                            "the server said that the object has changed, and then that it has not".to_owned(),
                            None,
                            "",
                        ),
                        found => {
                            let (url, opened) = (object.url.clone(), object.identity.clone());
                            return Err(StoreError::Changed { url, opened, found });
                        }
                    }
                }
            };
            tries.again(cause, after, hint).await?;
            self.counts.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lists a page of what begins with a prefix.
    pub(super) async fn list(
        &self,
        prefix: &str,
        token: Option<&str>,
    ) -> Result<(Vec<Listed>, Option<String>), StoreError> {
        let url = self.url(prefix);
        let Some(lists) = &self.lists else { return Err(StoreError::CannotList { url }) };
        let mut tries = Tries::new("list", &url, (0, 0), &self.options);
        loop {
            tries.begin();
            let outcome = timeout_at(tries.deadline, self.list_once(&**lists, prefix, token)).await;
            if let Some(page) = self.settle(&mut tries, outcome).await? {
                return Ok(page);
            }
        }
    }

    async fn list_once(
        &self,
        lists: &dyn PaginatedListStore,
        prefix: &str,
        token: Option<&str>,
    ) -> Result<(Vec<Listed>, Option<String>), Failure> {
        let _place = self.place().await;
        let seen = Seen::default();
        let mut options = PaginatedListOptions { page_token: token.map(str::to_owned), ..Default::default() };
        options.extensions.insert(seen.clone());
        let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        let result = self.timed(lists.list_paginated(prefix, options)).await?;
        let page = result.map_err(|error| judge(&error, &seen, self.kind))?;
        let listed = page.result.objects.into_iter();
        let listed = listed.map(|meta| Listed { path: meta.location.to_string(), bytes: meta.size }).collect();
        Ok((listed, page.page_token))
    }

    /// What follows from an attempt without a condition: its result, or once it is time for another one `None`.
    async fn settle<T>(
        &self,
        tries: &mut Tries<'_>,
        outcome: Result<Result<T, Failure>, Elapsed>,
    ) -> Result<Option<T>, StoreError> {
        match outcome {
            Err(_) => Err(tries.late()),
            Ok(Ok(done)) => Ok(Some(done)),
            Ok(Err(Failure::Passing { cause, after, hint })) => {
                tries.again(cause, after, hint).await?;
                self.counts.retries.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Ok(Err(Failure::Lasting { cause, hint })) => Err(tries.lasting(cause, hint)),
            Ok(Err(Failure::Changed(_))) => {
                Err(tries.lasting("the server refused a condition that was not made".to_owned(), ""))
            }
        }
    }

    /// A place among the requests. It is waited for within a deadline of the caller's.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.places.acquire().await.ok();
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        place
    }

    async fn timed<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let limit = self.options.attempt_timeout;
        let late = |_| Failure::passing(format!("no whole answer within {:.1} s", limit.as_secs_f64()));
        timeout(limit, work).await.map_err(late)
    }

    /// One attempt: a request, and where it lags a second one. The first writes where it belongs, the second into
    /// memory of its own; both are polled here, so that nothing writes once one has won.
    async fn attempt(&self, object: &Opened, range: &Range<u64>, into: &mut dyn Sink) -> Result<(), Failure> {
        let _place = self.place().await;
        let since = Instant::now();
        let bytes = range.end - range.start;
        let mut first = Box::pin(self.request(object, range, into));
        let late = self.late_after(bytes);
        let in_time = match late {
            Some(late) => timeout(late, &mut first).await.ok(),
            None => Some((&mut first).await),
        };
        if let Some(done) = in_time {
            done?;
            self.latency.add(bytes, since.elapsed());
            return Ok(());
        }
        let Some(_hedge) = self.hedge() else {
            first.await?;
            self.latency.add(bytes, since.elapsed());
            return Ok(());
        };
        let mut whole = Whole { start: range.start, bytes: vec![0; bytes as usize] };
        let mut second = Box::pin(self.request(object, range, &mut whole));
        tokio::select! {
            done = &mut first => match done {
                Ok(()) => {
                    self.latency.add(bytes, since.elapsed());
                    return Ok(());
                }
                // What goes wrong with the first may well not go wrong with the second.
                Err(Failure::Passing { .. }) => second.await?,
                Err(failure) => return Err(failure),
            },
            done = &mut second => {
                if done.is_err() {
                    drop(second);
                    first.await?;
                    self.latency.add(bytes, since.elapsed());
                    return Ok(());
                }
                drop(second);
            }
        }
        drop(first);
        self.counts.hedges_won.fetch_add(1, Ordering::Relaxed);
        // The time of the whole, the first's: were it the second's alone, stragglers would be thought rarer than they
        // are.
        self.latency.add(bytes, since.elapsed());
        into.put(range.start, &whole.bytes);
        Ok(())
    }

    /// When a request of so many bytes is late. Larger ones than a request should be are never sent twice.
    fn late_after(&self, bytes: u64) -> Option<Duration> {
        let multiple = self.options.hedge_after.filter(|_| bytes <= self.options.request_bytes_max)?;
        let late = self.latency.p95(bytes)?.as_secs_f64() * multiple.max(1.0);
        Duration::try_from_secs_f64(late).ok().map(|late| late.max(LATE_MIN))
    }

    /// Leave to send a request a second time: one in twenty, few at once.
    fn hedge(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.hedge_places.as_ref().unwrap_or(&self.places).try_acquire().ok()?;
        let requests = self.counts.requests.load(Ordering::Relaxed);
        let allowed = |sent: u64| ((sent + 1) * REQUESTS_A_HEDGE <= requests).then_some(sent + 1);
        self.counts.hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, allowed).ok()?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        Some(place)
    }

    async fn request(&self, object: &Opened, range: &Range<u64>, into: &mut dyn Sink) -> Result<(), Failure> {
        self.timed(self.ask(object, range, into)).await?
    }

    async fn ask(&self, object: &Opened, range: &Range<u64>, into: &mut dyn Sink) -> Result<(), Failure> {
        let seen = Seen::default();
        let mut options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: object.identity.to_match(),
            ..GetOptions::default()
        };
        options.extensions.insert(seen.clone());
        let answer = self.store.get_opts(&object.path, options).await;
        let answer = answer.map_err(|error| judge(&error, &seen, self.kind))?;
        let found = Identity::of(&answer.meta);
        if !object.identity.agrees_with(&found) {
            return Err(Failure::Changed(Some(found)));
        }
        let asked = range.end - range.start;
        if answer.range != *range {
            let (from, to) = (answer.range.start, answer.range.end);
            return Err(Failure::passing(format!("bytes {from} to {to} came instead")));
        }
        let (mut at, mut frames) = (range.start, answer.into_stream());
        while let Some(frame) = frames.next().await {
            let short = |error| match judge(&error, &Seen::default(), self.kind) {
                Failure::Passing { cause, .. } | Failure::Lasting { cause, .. } => {
                    Failure::passing(format!("{} of {asked} bytes came: {cause}", at - range.start))
                }
                changed @ Failure::Changed(_) => changed,
            };
            let frame = frame.map_err(short)?;
            if frame.len() as u64 > range.end - at {
                return Err(Failure::passing(format!("more than the {asked} bytes that were asked for came")));
            }
            into.put(at, &frame);
            at += frame.len() as u64;
            self.counts.received_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        }
        if at == range.end {
            Ok(())
        } else {
            Err(Failure::passing(format!("{} of {asked} bytes came", at - range.start)))
        }
    }
}
