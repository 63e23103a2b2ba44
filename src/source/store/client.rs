//! Requests to a store: limited concurrency, a timeout for each, retries of transient failures, and hedging (a slow
//! request is sent a second time, and the first answer counts). Bytes of another version of the object are refused.

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
use super::coalesce::{RangeBuffer, RangeSink};
use super::error::StoreError;
use super::http::ResponseInfo;
use super::latency::Latency;
use super::options::StoreOptions;
use super::retry::{AttemptError, Failure, RetryState, classify};
use super::single_flight::SingleFlight;
use super::url::StoreKind;
use super::version::ObjectVersion;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Maximum number of concurrent hedged requests: each has a buffer of its own.
const HEDGES_MAX: usize = 4;
/// One permit in this many is reserved for hedged requests, so that some are free when all readers wait.
const PERMITS_PER_HEDGE: usize = 8;
/// At most one request in this many is hedged.
const REQUESTS_PER_HEDGE: u64 = 20;
/// Minimum time before a request is hedged: below it, the first answer arrives while the second request is on its way.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(5);

/// Page of a listing, and the token of the next one.
pub(super) type ListPage = (Vec<ListEntry>, Option<String>);

/// Client of one store, shared by its objects.
pub(super) struct StoreClient {
    store: Arc<dyn ObjectStore>,
    lister: Option<Arc<dyn PaginatedListStore>>,
    kind: StoreKind,
    pub(super) root: String,
    pub(super) options: StoreOptions,
    permits: Semaphore,
    /// `None` if `in_flight` is too small to reserve a permit: hedged requests then use a free one.
    hedge_permits: Option<Semaphore>,
    /// Permits for block buffers on their way into the cache.
    pub(super) block_permits: Semaphore,
    pub(super) flights: SingleFlight,
    latency: Latency,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    received_bytes: AtomicU64,
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> StoreCounts {
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

/// Entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ListEntry {
    /// Path in the store, as [`Store::object`](super::Store::object) takes it.
    pub path: String,
    /// Size of the object, bytes.
    pub bytes: u64,
}

/// Counters of a store since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StoreCounts {
    /// Requests sent, including all attempts.
    pub requests: u64,
    /// Attempts after a failed one.
    pub retries: u64,
    /// Requests sent a second time because the first was slow.
    pub hedges: u64,
    /// Hedged requests whose second answer came first.
    pub hedges_won: u64,
    /// Bytes received, including gaps between coalesced reads and failed attempts.
    pub received_bytes: u64,
    /// Blocks found in the cache.
    pub cache_hits: u64,
    /// Blocks missing or damaged in the cache.
    pub cache_misses: u64,
}

/// Path, URL and version of an open object.
#[derive(Debug)]
pub(super) struct ObjectMeta {
    pub(super) path: Path,
    pub(super) url: String,
    pub(super) version: ObjectVersion,
}

/// Number of permits reserved for hedged requests.
pub(super) fn reserved_permits(options: &StoreOptions) -> usize {
    options.hedge_after.map_or(0, |_| (options.in_flight / PERMITS_PER_HEDGE).min(HEDGES_MAX))
}

/// Maximum number of concurrent hedged requests.
pub(super) fn hedges_max(options: &StoreOptions) -> usize {
    match reserved_permits(options) {
        _ if options.hedge_after.is_none() => 0,
        // Each needs a free permit besides that of the slow request.
        0 => options.in_flight / 2,
        reserved => reserved,
    }
}

impl StoreClient {
    pub(super) fn new(backend: Backend, kind: StoreKind, root: String, options: StoreOptions) -> Self {
        let reserved = reserved_permits(&options);
        StoreClient {
            store: backend.store,
            lister: backend.lister,
            kind,
            root,
            permits: Semaphore::new(options.in_flight - reserved),
            hedge_permits: (reserved > 0).then(|| Semaphore::new(reserved)),
            block_permits: Semaphore::new(options.in_flight),
            flights: SingleFlight::default(),
            latency: Latency::new(),
            counters: Counters::default(),
            options,
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    /// Requests the current version of an object.
    pub(super) async fn head(&self, path: &Path, url: &str) -> Result<ObjectVersion, StoreError> {
        let mut retry = RetryState::new("open", url, (0, 0), &self.options);
        loop {
            retry.begin();
            let outcome = timeout_at(retry.deadline, self.head_once(path)).await;
            if let Some(version) = self.resolve(&mut retry, outcome).await? {
                return Ok(version);
            }
        }
    }

    async fn head_once(&self, path: &Path) -> Result<ObjectVersion, AttemptError> {
        let _permit = self.acquire().await;
        let response = ResponseInfo::default();
        let mut options = GetOptions { head: true, ..GetOptions::default() };
        options.extensions.insert(response.clone());
        let result = self.timed(self.store.get_opts(path, options)).await?;
        result.map(|found| ObjectVersion::of(&found.meta)).map_err(|error| classify(&error, &response, self.kind))
    }

    /// Reads a range into `into`.
    pub(super) async fn read(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
        into: &mut dyn RangeSink,
    ) -> Result<(), StoreError> {
        let requested = (range.start, range.end - range.start);
        let mut retry = RetryState::new("read", &object.url, requested, &self.options);
        loop {
            retry.begin();
            let mut outcome = timeout_at(retry.deadline, self.attempt(object, &range, into)).await;
            if let Ok(Err(AttemptError::Changed(found))) = outcome {
                outcome = Ok(Err(self.confirm_change(object, found, retry.deadline).await?));
            }
            if self.resolve(&mut retry, outcome).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Requests the version of an object that a server says has changed, unless it is known. Returns a transient
    /// failure if the object is the same after all: a cache in front of the server, or a change in between.
    async fn confirm_change(
        &self,
        object: &ObjectMeta,
        found: Option<ObjectVersion>,
        deadline: Instant,
    ) -> Result<AttemptError, StoreError> {
        let found = match found {
            Some(found) => Some(found),
            None => timeout_at(deadline, self.head(&object.path, &object.url)).await.ok().and_then(Result::ok),
        };
        match found {
            Some(found) if object.version.matches(&found) => {
                Ok(AttemptError::transient("the server said that the object has changed, and then that it has not"))
            }
            found => Err(StoreError::Changed { url: object.url.clone(), opened: object.version.clone(), found }),
        }
    }

    /// Requests one page of the objects that begin with `prefix`.
    pub(super) async fn list(&self, prefix: &str, token: Option<&str>) -> Result<ListPage, StoreError> {
        let url = self.url(prefix);
        let Some(lister) = &self.lister else { return Err(StoreError::CannotList { url }) };
        let mut retry = RetryState::new("list", &url, (0, 0), &self.options);
        loop {
            retry.begin();
            let outcome = timeout_at(retry.deadline, self.list_once(&**lister, prefix, token)).await;
            if let Some(page) = self.resolve(&mut retry, outcome).await? {
                return Ok(page);
            }
        }
    }

    async fn list_once(
        &self,
        lister: &dyn PaginatedListStore,
        prefix: &str,
        token: Option<&str>,
    ) -> Result<ListPage, AttemptError> {
        let _permit = self.acquire().await;
        let response = ResponseInfo::default();
        let mut options = PaginatedListOptions { page_token: token.map(str::to_owned), ..Default::default() };
        options.extensions.insert(response.clone());
        let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        let result = self.timed(lister.list_paginated(prefix, options)).await?;
        let page = result.map_err(|error| classify(&error, &response, self.kind))?;
        let entries = page.result.objects.into_iter();
        let entries = entries.map(|meta| ListEntry { path: meta.location.to_string(), bytes: meta.size }).collect();
        Ok((entries, page.page_token))
    }

    /// Result of one attempt. `None` means retry; the backoff is over then.
    async fn resolve<T>(
        &self,
        retry: &mut RetryState<'_>,
        outcome: Result<Result<T, AttemptError>, Elapsed>,
    ) -> Result<Option<T>, StoreError> {
        let failure = match outcome {
            Ok(Ok(done)) => return Ok(Some(done)),
            Err(_) => return Err(retry.deadline_error()),
            Ok(Err(AttemptError::Permanent(failure))) => return Err(retry.error(failure)),
            Ok(Err(AttemptError::Transient(failure))) => failure,
            Ok(Err(AttemptError::Changed(_))) => {
                Failure { cause: "the server refused a condition that was not sent".to_owned(), ..Failure::default() }
            }
        };
        retry.back_off(failure).await?;
        self.counters.retries.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Acquires a permit for a request. The caller's deadline limits the wait.
    async fn acquire(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.permits.acquire().await.ok();
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        permit
    }

    async fn timed<T>(&self, work: impl Future<Output = T>) -> Result<T, AttemptError> {
        let limit = self.options.attempt_timeout;
        let late = |_| AttemptError::transient(format!("no whole answer within {:.1} s", limit.as_secs_f64()));
        timeout(limit, work).await.map_err(late)
    }

    /// Makes one attempt, and records the time it took. With a hedged request that is the time since the first was
    /// sent: the time of the second alone would make slow requests look rarer than they are.
    async fn attempt(
        &self,
        object: &ObjectMeta,
        range: &Range<u64>,
        into: &mut dyn RangeSink,
    ) -> Result<(), AttemptError> {
        let _permit = self.acquire().await;
        let started = Instant::now();
        self.hedged(object, range, into).await?;
        self.latency.record(range.end - range.start, started.elapsed());
        Ok(())
    }

    /// Sends a request, and a second one if the first is slow. The first writes into `into`, the second into a buffer;
    /// one task polls both, so nothing is written after one of them has won.
    async fn hedged(
        &self,
        object: &ObjectMeta,
        range: &Range<u64>,
        into: &mut dyn RangeSink,
    ) -> Result<(), AttemptError> {
        let Some(delay) = self.hedge_delay(range.end - range.start) else {
            return self.request(object, range, into).await;
        };
        let mut first = Box::pin(self.request(object, range, into));
        if let Ok(done) = timeout(delay, &mut first).await {
            return done;
        }
        let Some(_permit) = self.acquire_hedge() else { return first.await };
        let mut buffer = RangeBuffer::new(range);
        let mut second = Box::pin(self.request(object, range, &mut buffer));
        tokio::select! {
            done = &mut first => match done {
                // The second request may well succeed where the first failed.
                Err(AttemptError::Transient(_)) => second.await?,
                done => return done,
            },
            done = &mut second => {
                drop(second);
                if done.is_err() {
                    return first.await;
                }
            }
        }
        drop(first);
        self.counters.hedges_won.fetch_add(1, Ordering::Relaxed);
        into.write(range.start, &buffer.bytes);
        Ok(())
    }

    /// Time after which a request of this size is hedged. Requests above the maximum size are never hedged.
    fn hedge_delay(&self, bytes: u64) -> Option<Duration> {
        let multiple = self.options.hedge_after.filter(|_| bytes <= self.options.request_bytes_max)?;
        let delay = self.latency.p95(bytes)?.as_secs_f64() * multiple.max(1.0);
        Duration::try_from_secs_f64(delay).ok().map(|delay| delay.max(HEDGE_DELAY_MIN))
    }

    /// Acquires a permit for a hedged request: at most one request in twenty is hedged, few at the same time.
    fn acquire_hedge(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.hedge_permits.as_ref().unwrap_or(&self.permits).try_acquire().ok()?;
        let requests = self.counters.requests.load(Ordering::Relaxed);
        let allowed = |sent: u64| ((sent + 1) * REQUESTS_PER_HEDGE <= requests).then_some(sent + 1);
        self.counters.hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, allowed).ok()?;
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Some(permit)
    }

    async fn request(
        &self,
        object: &ObjectMeta,
        range: &Range<u64>,
        into: &mut dyn RangeSink,
    ) -> Result<(), AttemptError> {
        self.timed(self.get_range(object, range, into)).await?
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: &Range<u64>,
        into: &mut dyn RangeSink,
    ) -> Result<(), AttemptError> {
        let response = ResponseInfo::default();
        let mut options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: object.version.if_match(),
            ..GetOptions::default()
        };
        options.extensions.insert(response.clone());
        let answer = self.store.get_opts(&object.path, options).await;
        let answer = answer.map_err(|error| classify(&error, &response, self.kind))?;
        let found = ObjectVersion::of(&answer.meta);
        if !object.version.matches(&found) {
            return Err(AttemptError::Changed(Some(found)));
        }
        if answer.range != *range {
            let (from, to) = (answer.range.start, answer.range.end);
            return Err(AttemptError::transient(format!("bytes {from} to {to} came instead")));
        }
        let requested = range.end - range.start;
        let (mut at, mut frames) = (range.start, answer.into_stream());
        while let Some(frame) = frames.next().await {
            let frame = frame.map_err(|error| match classify(&error, &ResponseInfo::default(), self.kind) {
                AttemptError::Transient(failure) | AttemptError::Permanent(failure) => AttemptError::transient(
                    format!("{} of {requested} bytes came: {}", at - range.start, failure.cause),
                ),
                changed => changed,
            })?;
            if frame.len() as u64 > range.end - at {
                return Err(AttemptError::transient(format!("more than the {requested} bytes requested came")));
            }
            into.write(at, &frame);
            at += frame.len() as u64;
            self.counters.received_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        }
        if at == range.end {
            Ok(())
        } else {
            Err(AttemptError::transient(format!("{} of {requested} bytes came", at - range.start)))
        }
    }
}
