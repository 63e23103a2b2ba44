//! Owns what a shard's bytes come from: a file, or an object of a store. It must never know what is in them.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::file::{Identity, ShardFile};
use super::folder::readable;
use super::shards::Forward;
use super::{OpenOptions, SourceError};

/// Whether a path is the URL of an object in a store.
pub(super) fn is_url(path: &Path) -> bool {
    path.to_str()
        .and_then(|text| text.split_once("://"))
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What a person calls what a path stands for: of a URL nothing that may be a signature.
pub(super) fn title(path: &Path) -> String {
    let text = readable(path.as_os_str().as_bytes());
    match text.split_once('?') {
        Some((front, _)) if is_url(path) => front.to_owned(),
        _ => text,
    }
}

/// The bytes of one shard.
#[derive(Debug)]
pub(super) enum Medium {
    File(ShardFile),
    #[cfg(feature = "store")]
    Stored(Stored),
}

/// An object of a store.
#[cfg(feature = "store")]
#[derive(Debug)]
pub(super) struct Stored {
    url: std::path::PathBuf,
    object: super::store::Object,
    store: super::store::Store,
}

/// The stores that have been opened: shards of one bucket share one, with its connections and its limits.
#[derive(Debug)]
pub(super) struct Stores {
    #[cfg(feature = "store")]
    open: crate::sync::Mutex<Vec<super::store::Store>>,
    #[cfg(feature = "store")]
    options: super::store::StoreOptions,
}

impl Stores {
    #[cfg(feature = "store")]
    pub(super) fn new(options: &OpenOptions) -> Self {
        Stores { open: crate::sync::Mutex::default(), options: options.store.clone() }
    }

    #[cfg(not(feature = "store"))]
    pub(super) fn new(_: &OpenOptions) -> Self {
        Stores {}
    }

    /// The store that a URL is in, and the path in it.
    #[cfg(feature = "store")]
    pub(super) fn store(&self, url: &str) -> Result<(super::store::Store, String), SourceError> {
        let mut open = crate::sync::lock(&self.open);
        if let Some((store, path)) = open.iter().find_map(|store| Some((store.clone(), store.path_of(url)?))) {
            return Ok((store, path));
        }
        let (store, path) = super::store::Store::open(url, self.options.clone())?;
        open.push(store.clone());
        Ok((store, path))
    }
}

impl Medium {
    /// Opens a file, or looks an object up. Nothing of it is read yet.
    pub(super) fn open(path: &Path, stores: &Stores) -> Result<Self, SourceError> {
        match path.to_str().filter(|_| is_url(path)) {
            Some(url) => Self::open_url(url, stores),
            None => Ok(Medium::File(ShardFile::open(path)?)),
        }
    }

    #[cfg(feature = "store")]
    fn open_url(url: &str, stores: &Stores) -> Result<Self, SourceError> {
        let (store, path) = stores.store(url)?;
        let object = store.object(&path)?;
        let url = object.url().into();
        Ok(Medium::Stored(Stored { url, object, store }))
    }

    #[cfg(not(feature = "store"))]
    fn open_url(url: &str, _: &Stores) -> Result<Self, SourceError> {
        let cause = "this program was built without object stores: build it with the feature `store`";
        Err(SourceError::unusable(Path::new(&title(Path::new(url))), None, cause))
    }

    /// Its path, or its URL.
    pub(super) fn path(&self) -> &Path {
        match self {
            Medium::File(file) => file.path(),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => &stored.url,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        match self {
            Medium::File(file) => file.identity(),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => {
                let identity = stored.object.identity();
                // An object is known by its tag; 64 bits of it tell versions apart.
                let tag = xxhash_rust::xxh3::xxh3_64(identity.to_string().as_bytes());
                Identity { bytes: identity.bytes, modified_s: tag as i64, modified_ns: 0 }
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.identity().bytes
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Panics
    /// Panics if the range is not in it.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        match self {
            Medium::File(file) => file.read_at(offset, out),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => stored.object.read_at(offset, out),
        }
    }

    /// Fills each piece of memory with the bytes from its offset on, and says of each what came of it.
    pub(super) fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Vec<Result<(), SourceError>> {
        match self {
            Medium::File(file) => reads.iter_mut().map(|(offset, out)| file.read_at(*offset, out)).collect(),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => stored.object.read_many(reads),
        }
    }

    /// All of it from front to back, for one look at it.
    pub(super) fn reader(&self) -> Result<Box<dyn Forward>, SourceError> {
        match self {
            Medium::File(file) => Ok(Box::new(file.reader()?)),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => {
                let reader = stored.object.reader(STORE_CHUNK_BYTES, STORE_CHUNKS_AHEAD);
                Ok(Box::new(super::shards::Stream(std::io::BufReader::with_capacity(64 << 10, reader))))
            }
        }
    }

    /// Whether it is still what was opened. (Each answer of a store was held against that already.)
    ///
    /// # Errors
    /// [`SourceError::Changed`] where it is not.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        match self {
            Medium::File(file) => file.check(),
            #[cfg(feature = "store")]
            Medium::Stored(_) => Ok(()),
        }
    }

    /// How many reads should be under way at once: with a store, each waits for an answer most of the time.
    pub(super) fn at_once(&self) -> usize {
        match self {
            Medium::File(_) => super::Reading::default().at_once,
            #[cfg(feature = "store")]
            Medium::Stored(stored) => stored.store.at_once(),
        }
    }

    /// Whether small pieces of it are cheap to read.
    pub(super) fn is_near(&self) -> bool {
        matches!(self, Medium::File(_))
    }

    /// The whole content of a small file or object beside it; none where there is none, or it has over `bytes_max` bytes.
    pub(super) fn beside(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let path = self.path().parent().unwrap_or(Path::new("")).join(name);
        match self {
            Medium::File(_) => {
                let Some(meta) = std::fs::metadata(&path).ok().filter(|meta| meta.len() <= bytes_max) else {
                    return Ok(None);
                };
                let mut bytes = Vec::with_capacity(meta.len() as usize);
                let read = std::fs::File::open(&path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
                read.map_err(|source| super::file::io_error("read", &path, source))?;
                Ok(Some(bytes))
            }
            #[cfg(feature = "store")]
            Medium::Stored(stored) => {
                let path = path.to_str().and_then(|url| stored.store.path_of(url));
                // That there is none is said in as many ways as there are stores.
                let Some(object) = path.and_then(|path| stored.store.object(&path).ok()) else { return Ok(None) };
                if object.len() > bytes_max {
                    return Ok(None);
                }
                let mut bytes = vec![0; object.len() as usize];
                object.read_at(0, &mut bytes)?;
                Ok(Some(bytes))
            }
        }
    }

    /// The store that it is in, and what to call it.
    #[cfg(feature = "store")]
    pub(super) fn store(&self) -> Option<&super::store::Store> {
        match self {
            Medium::File(_) => None,
            Medium::Stored(stored) => Some(&stored.store),
        }
    }

    /// RAM that it takes beyond itself, bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Medium::File(file) => file.heap_bytes(),
            #[cfg(feature = "store")]
            Medium::Stored(stored) => 2 * stored.url.capacity(),
        }
    }

    /// Asks a local disk for a range, without waiting for it.
    pub(super) fn will_need(&self, offset: u64, len: u64) {
        match self {
            Medium::File(file) => file.will_need(offset, len),
            #[cfg(feature = "store")]
            Medium::Stored(_) => {}
        }
    }

    pub(super) fn forget_pages(&self, forget: bool) {
        match self {
            Medium::File(file) => file.forget_pages(forget),
            #[cfg(feature = "store")]
            Medium::Stored(_) => {}
        }
    }
}

/// What a scan asks a store for at a time, and how many of these ahead.
#[cfg(feature = "store")]
const STORE_CHUNK_BYTES: usize = 4 << 20;
#[cfg(feature = "store")]
const STORE_CHUNKS_AHEAD: usize = 3;
