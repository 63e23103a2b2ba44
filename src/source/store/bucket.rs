//! A bucket, container or web server.

use object_store::path::Path;

use super::backend;
use super::cache::{self, DiskCache};
use super::client::{self, ListEntry, ObjectMeta, StoreClient, StoreCounts};
use super::error::StoreError;
use super::object::Object;
use super::options::StoreOptions;
use super::shared::Shared;
use super::url::StoreUrl;
use crate::source::error::SourceError;

/// Maximum memory of a connection, bytes: hyper reads up to 408 KiB ahead, into a new buffer while part of the last one
/// is in use; TLS buffers some records.
const CONNECTION_BYTES: u64 = 1 << 20;
/// Maximum number of objects in a listing.
const LISTED_MAX: usize = 1_000_000;
/// Maximum number of pages in a listing: servers may send short and empty ones.
const PAGES_MAX: usize = 100_000;

/// Bucket, container or web server whose objects are read in parts.
///
/// | URL | credentials and location, from the environment |
/// |---|---|
/// | `s3://bucket/path` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, ... |
/// | `gs://bucket/path` | `GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT`, ... |
/// | `az://container/path`, `abfs://...` | `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, ... |
/// | `https://host/path`, `http://...` | none; a query (a signature) is sent with each request |
///
/// Calls block, for at most [`StoreOptions::deadline`] per request, and may come from any number of threads. Two
/// threads of the store drive its connections. Clones are the same store.
///
/// * At most [`StoreOptions::in_flight`] requests run concurrently. Responses go from the connection straight into the
///   caller's memory; [`held_bytes`](Self::held_bytes) is the memory in addition to that.
/// * Transient failures (resets, timeouts, 408, 429, 5xx, short responses) are retried after a wait; others are errors
///   at once.
/// * A request that takes far longer than others of its size is sent a second time, at most one in twenty. The first
///   response counts, and the other request is dropped.
/// * A response with another version of the object is an error, whatever its bytes.
///
/// # Panics
/// Like all blocking calls, the methods panic in the asynchronous code of a tokio runtime. They work on its blocking
/// threads.
///
/// # Example
/// ```no_run
/// use feedstock::source::store::{Store, StoreOptions};
///
/// let (store, path) = Store::open("s3://bucket/train/000.tar", StoreOptions::default())?;
/// let shard = store.object(&path)?;
/// let mut header = [0; 512];
/// shard.read_at(0, &mut header)?;
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store(Shared);

impl Store {
    /// Configures the store of a URL, and returns it with the path of the object. No request is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] for an invalid URL, [`StoreError::Setup`] for a missing or unknown setting,
    /// [`SourceError::Io`] if threads cannot be started.
    pub fn open(url: &str, options: StoreOptions) -> Result<(Self, String), SourceError> {
        let StoreUrl { kind, root, base, path } = StoreUrl::parse(url)?;
        let options = options.clamped();
        let backend = backend::open(kind, &root, &base, &options)?;
        Ok((Store(Shared::new(StoreClient::new(backend, kind, root, options))?), path))
    }

    /// Opens an object: one request for its size and version.
    ///
    /// # Errors
    /// [`StoreError::Url`] for an invalid path, [`StoreError::Request`] if the request fails.
    pub fn object(&self, path: &str) -> Result<Object, SourceError> {
        let url = self.url(path);
        if path.is_empty() {
            return Err(StoreError::Url { url, reason: "it has no path".to_owned() }.into());
        }
        let parsed = Path::parse(path);
        let path = parsed.map_err(|error| StoreError::Url { url: url.clone(), reason: error.to_string() })?;
        let version = self.0.handle().block_on(self.client().head(&path, &url))?;
        Ok(Object::new(self.0.clone(), ObjectMeta { path, url, version }))
    }

    /// Lists the objects whose paths begin with `prefix`, sorted by path; at most 1,000,000.
    ///
    /// # Errors
    /// [`StoreError::CannotList`] for HTTP, [`StoreError::TooManyObjects`], [`StoreError::Request`].
    pub fn list(&self, prefix: &str) -> Result<Vec<ListEntry>, SourceError> {
        let mut entries = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let (page, next) = self.0.handle().block_on(self.client().list(prefix, token.as_deref()))?;
            entries.extend(page);
            if entries.len() > LISTED_MAX {
                break;
            }
            if next.is_none() {
                entries.sort();
                return Ok(entries);
            }
            token = next;
        }
        Err(StoreError::TooManyObjects { url: self.url(prefix), object_count_max: LISTED_MAX }.into())
    }

    /// Number of reads that can run concurrently: [`StoreOptions::in_flight`] less the permits reserved for hedging.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        let options = &self.client().options;
        options.in_flight - client::reserved_permits(options)
    }

    /// Maximum RAM of all requests in addition to the memory that they fill, bytes, if no read is larger than
    /// `largest_read_bytes`: read-ahead of the connections, buffers of hedged requests, and with a cache the blocks on
    /// their way into it and out of it, as many as requests. A [`Reader`](super::Reader) holds its chunks in addition.
    #[must_use]
    pub fn held_bytes(&self, largest_read_bytes: u64) -> u64 {
        let options = &self.client().options;
        let in_flight = options.in_flight as u64;
        // Small reads that are coalesced make requests of up to the maximum size.
        let coalesced = if options.coalesce_gap_bytes > 0 { options.request_bytes_max } else { largest_read_bytes };
        let cached = options.cache.is_some();
        let request = if cached { cache::BLOCK_BYTES } else { coalesced.min(options.request_bytes_max) };
        let hedged = client::hedges_max(options) as u64 * request;
        let blocks = if cached { in_flight * (cache::BLOCK_BYTES + cache::PAGE_BYTES) } else { 0 };
        in_flight * CONNECTION_BYTES + hedged + blocks
    }

    /// Counters since the store was opened.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        self.client().counters.snapshot()
    }

    /// Notes for the user, one sentence each, such as that the cache is disabled.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.client().options.cache.iter().filter_map(DiskCache::disabled_reason).collect()
    }

    /// URL of an object, without a query.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        self.client().url(path)
    }

    /// Path of a URL that belongs to this store. `None` for other stores, and for URLs with a query of their own.
    pub(in crate::source) fn path_of(&self, url: &str) -> Option<String> {
        let parsed = StoreUrl::parse(url).ok().filter(|parsed| parsed.root == self.client().root)?;
        (!url.contains('?')).then_some(parsed.path)
    }

    fn client(&self) -> &StoreClient {
        &self.0.client
    }
}
