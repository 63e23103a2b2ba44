//! Objects of stores as shards.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::bucket::Store;
use super::error::StoreError;
use super::object::Object;
use super::options::StoreOptions;
use crate::source::PageCache;
use crate::source::error::SourceError;
use crate::source::shard_io::{ShardIdentity, ShardIo};
use crate::source::skip_read::{NoSeek, SkipRead};
use crate::sync::{Arc, Mutex, lock};

/// Bytes that a scan requests at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks that a scan requests in advance.
const CHUNKS_AHEAD: usize = 3;
/// Memory of the threads and the client of a store, bytes.
const STORE_BYTES: u64 = 4 << 20;

/// Stores opened so far: shards of one bucket share one, with its connections and limits.
#[derive(Debug)]
pub(in crate::source) struct ObjectStores {
    open: Mutex<Vec<Store>>,
    options: StoreOptions,
}

impl ObjectStores {
    pub(in crate::source) fn new(options: StoreOptions) -> Self {
        ObjectStores { open: Mutex::default(), options }
    }

    /// Opens an object.
    pub(in crate::source) fn open(&self, url: &str) -> Result<Arc<dyn ShardIo>, SourceError> {
        let (store, path) = self.store(url)?;
        let object = store.object(&path)?;
        let is_signed = url.contains('?');
        Ok(Arc::new(ObjectShard { url: object.url().into(), object, store, is_signed }))
    }

    /// URLs of the objects whose URLs begin with `prefix`.
    pub(in crate::source) fn list(&self, prefix: &str) -> Result<Vec<PathBuf>, SourceError> {
        let (store, path) = self.store(prefix)?;
        Ok(store.list(&path)?.iter().map(|object| store.url(&object.path).into()).collect())
    }

    /// Maximum memory of the requests to all stores, bytes.
    pub(in crate::source) fn buffer_bytes(&self, read_bytes_max: u64) -> u64 {
        lock(&self.open).iter().map(|store| store.held_bytes(read_bytes_max) + STORE_BYTES).sum()
    }

    /// Store of a URL, and the path in it.
    fn store(&self, url: &str) -> Result<(Store, String), SourceError> {
        let mut open = lock(&self.open);
        if let Some((store, path)) = open.iter().find_map(|store| Some((store.clone(), store.path_of(url)?))) {
            return Ok((store, path));
        }
        let (store, path) = Store::open(url, self.options.clone())?;
        open.push(store.clone());
        Ok((store, path))
    }
}

/// Object as a shard.
#[derive(Debug)]
struct ObjectShard {
    /// URL without its query.
    url: PathBuf,
    object: Object,
    store: Store,
    /// True if the URL has a query, which may be a signature for this object alone.
    is_signed: bool,
}

impl ShardIo for ObjectShard {
    fn path(&self) -> &Path {
        &self.url
    }

    /// Size, and a hash of size, ETag and time of the last change.
    fn identity(&self) -> ShardIdentity {
        let version = self.object.version();
        ShardIdentity { bytes: version.bytes, version: xxh3_128(version.to_string().as_bytes()) }
    }

    fn read_at(&self, offset: u64, out: &mut [u8], _: PageCache) -> Result<(), SourceError> {
        self.object.read_at(offset, out)
    }

    fn read_many(&self, reads: &mut [(u64, &mut [u8])], _: PageCache) -> Vec<Result<(), SourceError>> {
        self.object.read_many(reads)
    }

    fn reader(&self) -> Result<Box<dyn SkipRead>, SourceError> {
        let reader = self.object.reader(CHUNK_BYTES, CHUNKS_AHEAD);
        Ok(Box::new(NoSeek(BufReader::with_capacity(64 << 10, reader))))
    }

    fn concurrency(&self) -> usize {
        self.store.concurrency()
    }

    fn is_local(&self) -> bool {
        false
    }

    fn read_sibling(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let url = self.url.with_file_name(name);
        let Some(path) = url.to_str().and_then(|url| self.store.path_of(url)) else { return Ok(None) };
        let object = match self.store.object(&path) {
            Ok(object) => object,
            Err(SourceError::Store(error)) if error.is_not_found() => return Ok(None),
            // A signature for the shard alone is refused for other objects.
            Err(SourceError::Store(error)) if self.is_signed && is_refused(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if object.len() > bytes_max {
            return Err(SourceError::TooLarge { path: url, bytes: object.len(), bytes_max });
        }
        let mut bytes = vec![0; object.len() as usize];
        object.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn heap_bytes(&self) -> usize {
        2 * self.url.capacity()
    }
}

fn is_refused(error: &StoreError) -> bool {
    matches!(error, StoreError::Request { status: Some(401 | 403), .. })
}
