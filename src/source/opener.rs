//! Opening of shards: a path is a file, a URL is an object of a store.

use std::path::{Path, PathBuf};

use super::file::ShardFile;
use super::path::is_url;
use super::shard_io::ShardIo;
#[cfg(feature = "store")]
use super::store::shard::ObjectStores;
use super::{OpenOptions, SourceError};
use crate::sync::Arc;

/// Opens shards. Shards of one bucket share one store, with its connections and limits.
#[derive(Debug)]
pub(super) struct ShardOpener {
    stores: ObjectStores,
}

impl ShardOpener {
    pub(super) fn new(options: &OpenOptions) -> Self {
        #[cfg(feature = "store")]
        let stores = ObjectStores::new(options.store.clone());
        #[cfg(not(feature = "store"))]
        let (stores, _) = (ObjectStores, options);
        ShardOpener { stores }
    }

    /// Opens a file, or looks up an object. Reads no content.
    pub(super) fn open(&self, path: &Path) -> Result<Arc<dyn ShardIo>, SourceError> {
        match path.to_str().filter(|_| is_url(path)) {
            Some(url) => self.stores.open(url),
            None => Ok(Arc::new(ShardFile::open(path)?)),
        }
    }

    /// URLs of the objects whose URLs begin with `prefix`.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<PathBuf>, SourceError> {
        self.stores.list(prefix)
    }

    /// Upper limit of the memory of requests to the stores opened so far, bytes, if no read is larger than
    /// `read_bytes_max`.
    pub(super) fn buffer_bytes(&self, read_bytes_max: u64) -> u64 {
        self.stores.buffer_bytes(read_bytes_max)
    }
}

/// Stands in for the stores of a build without them.
#[cfg(not(feature = "store"))]
#[derive(Debug)]
struct ObjectStores;

#[cfg(not(feature = "store"))]
impl ObjectStores {
    fn open(&self, url: &str) -> Result<Arc<dyn ShardIo>, SourceError> {
        let cause = "object stores are not supported by this build: build it with the feature `store`";
        Err(SourceError::unusable(Path::new(&super::path::display_name(Path::new(url))), None, cause))
    }

    fn list(&self, url: &str) -> Result<Vec<PathBuf>, SourceError> {
        self.open(url).map(|_| vec![])
    }

    fn buffer_bytes(&self, _: u64) -> u64 {
        0
    }
}
