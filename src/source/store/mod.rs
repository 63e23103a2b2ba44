//! Owns the way to objects in S3, GCS and Azure and over HTTP: random parts of them, the whole in order, their names.
//! It must never know what is in an object, and it takes no more memory and no more time than it says beforehand.

mod backend;
mod cache;
pub(super) mod error;
mod fetch;
mod flight;
mod http;
mod identity;
mod join;
mod latency;
mod object;
mod options;
mod reader;
mod retry;
pub(super) mod shard;
mod target;

pub use cache::DiskCache;
pub use error::StoreError;
pub use identity::Identity;
pub use object::Object;
pub use options::{IN_FLIGHT, IN_FLIGHT_MAX, StoreOptions};
pub use reader::Reader;

use std::fmt;

use object_store::path::Path;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::source::SourceError;
use crate::sync::{Arc, STACK_BYTES};
use fetch::{Core, Opened};
use target::Target;

/// What a connection holds of an answer, bytes: hyper reads up to 408 KiB ahead, into a new buffer while somebody still
/// holds a piece of the last; TLS holds some records.
const CONNECTION_BYTES: u64 = 1 << 20;
/// Threads that serve the connections: one of them decrypts some 2 GB/s.
const THREADS: usize = 2;
/// Threads that look up the names of servers.
const NAME_THREADS: usize = 2;
/// Objects that a listing names at most.
const LISTED_MAX: usize = 1_000_000;
/// Pages that a listing asks for at most: servers may send short ones, and empty ones.
const PAGES_MAX: usize = 100_000;

/// A bucket, container or web server whose objects are read in parts.
///
/// | URL | credentials and place, from the environment |
/// |---|---|
/// | `s3://bucket/path` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, ... |
/// | `gs://bucket/path` | `GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT`, ... |
/// | `az://container/path`, `abfs://...` | `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, ... |
/// | `https://host/path`, `http://...` | none; a query (a signature) is sent with each request |
///
/// Calls block, for at most [`StoreOptions::deadline`] a request, and may come from any number of threads; connections
/// are served by two threads of the store's own. Clones are the same store.
///
/// * At most [`StoreOptions::in_flight`] requests are under way. Their answers go from the connection straight into the
///   memory of whoever asked; [`held_bytes`](Self::held_bytes) says what is held besides.
/// * What may pass (resets, timeouts, 408, 429, 5xx, short answers) is tried again after a wait; what will not is an
///   error at once.
/// * A request that takes far longer than others of its size is sent a second time, at most one in twenty; whichever
///   ends first counts, and the other is dropped.
/// * An answer of another version of the object is an error, whatever its bytes.
///
/// # Panics
/// Like all that blocks, its methods panic in the asynchronous code of a tokio runtime. On the runtime's blocking
/// threads they work.
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
#[derive(Clone)]
pub struct Store {
    core: Arc<Core>,
    threads: Arc<Threads>,
}

/// The threads that serve the connections. They end by themselves once nobody has the store any more.
struct Threads {
    handle: Handle,
    /// Taken out by drop alone.
    runtime: Option<Runtime>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: a look-up of a name may hang for minutes, and this may be asynchronous code.
            runtime.shutdown_background();
        }
    }
}

/// What a listing found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The path in the store, as [`Store::object`] takes it.
    pub path: String,
    /// The object's size, bytes.
    pub bytes: u64,
}

/// What a store has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Requests that were sent, all attempts counted.
    pub requests: u64,
    /// Attempts after a failed one.
    pub retries: u64,
    /// Requests that were sent a second time because the first lagged.
    pub hedges: u64,
    /// Of these, those that ended first.
    pub hedges_won: u64,
    /// Bytes of objects that came over the network, those between joined reads and of lost attempts included.
    pub received_bytes: u64,
    /// Blocks that the cache had.
    pub cache_hits: u64,
    /// Blocks that it did not have, or had damaged.
    pub cache_misses: u64,
}

impl Store {
    /// Sets up the store that a URL lies in, and gives the path in it. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] where the URL names none, [`StoreError::Setup`] where a setting is missing or unknown,
    /// [`SourceError::Io`] where threads cannot be started.
    pub fn open(url: &str, options: StoreOptions) -> Result<(Self, String), SourceError> {
        let target = Target::parse(url)?;
        let options = options.sane();
        let backend = backend::open(&target, &options)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(NAME_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("feed-store")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| SourceError::io("start threads for", &target.root, error))?;
        let core = Arc::new(Core::new(backend, target.kind, target.root, options));
        Ok((
            Store { core, threads: Arc::new(Threads { handle: runtime.handle().clone(), runtime: Some(runtime) }) },
            target.path,
        ))
    }

    /// Looks an object up: whether it is there, its size, its identity.
    ///
    /// # Errors
    /// [`StoreError::Url`] where a path is none, [`StoreError::Request`] where the object cannot be had.
    pub fn object(&self, path: &str) -> Result<Object, SourceError> {
        let url = self.core.url(path);
        if path.is_empty() {
            return Err(StoreError::Url { url, reason: "it has no path".to_owned() }.into());
        }
        let parsed = Path::parse(path);
        let path = parsed.map_err(|error| StoreError::Url { url: url.clone(), reason: error.to_string() })?;
        let identity = self.threads.handle.block_on(self.core.look(&path, &url))?;
        Ok(Object::new(self.clone(), Opened { path, url, identity }))
    }

    /// The objects whose paths begin with a text, in order of their paths; at most 1,000,000.
    ///
    /// # Errors
    /// [`StoreError::CannotList`] for HTTP, [`StoreError::TooManyObjects`], [`StoreError::Request`].
    pub fn list(&self, prefix: &str) -> Result<Vec<Listed>, SourceError> {
        let mut listed = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let (page, next) = self.threads.handle.block_on(self.core.list(prefix, token.as_deref()))?;
            listed.extend(page);
            if listed.len() > LISTED_MAX {
                break;
            }
            if next.is_none() {
                listed.sort();
                return Ok(listed);
            }
            token = next;
        }
        Err(StoreError::TooManyObjects { url: self.core.url(prefix), object_count_max: LISTED_MAX }.into())
    }

    /// Reads that can be under way at once without waiting for each other: all places but those that are kept for what
    /// is sent a second time.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        let options = &self.core.options;
        options.in_flight - fetch::kept_places(options)
    }

    /// RAM that requests hold beyond the memory that they fill, at most, bytes, where no read is larger than
    /// `largest_read_bytes`: what connections have read ahead, the memory of requests that were sent a second time, and
    /// with a cache the blocks on their way into it and out of it, as many as requests. A [`Reader`] holds its chunks
    /// besides.
    #[must_use]
    pub fn held_bytes(&self, largest_read_bytes: u64) -> u64 {
        let options = &self.core.options;
        let in_flight = options.in_flight as u64;
        // Joined, small reads make requests as large as one may be.
        let joined = if options.join_gap_bytes > 0 { options.request_bytes_max } else { largest_read_bytes };
        let cached = options.cache.is_some();
        let request = if cached { cache::BLOCK_BYTES } else { joined.min(options.request_bytes_max) };
        let hedged = fetch::hedges_max(options) as u64 * request;
        let blocks = if cached { in_flight * (cache::BLOCK_BYTES + cache::PAGE_BYTES) } else { 0 };
        in_flight * CONNECTION_BYTES + hedged + blocks
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        self.core.counts.all()
    }

    /// What a person should know about it, a sentence each: that the cache has switched itself off.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.core.options.cache.iter().filter_map(DiskCache::note).collect()
    }

    /// The path of a URL that names an object of this store; none where it names another, or carries a query of its own.
    pub(in crate::source) fn path_of(&self, url: &str) -> Option<String> {
        let target = Target::parse(url).ok().filter(|target| target.root == self.core.root)?;
        (!url.contains('?')).then_some(target.path)
    }

    /// What a person calls an object of it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        self.core.url(path)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.core.root).field("options", &self.core.options).finish()
    }
}
