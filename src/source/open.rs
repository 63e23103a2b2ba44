//! Owns what a path stands for: a folder of class folders, shards, Parquet files, or a pattern of these. It must never look
//! into a file: names tell.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::file::io_error;
use super::medium::{Stores, is_url, title};
use super::{ImageFolder, SHUFFLE_BUFFER, Source, SourceError, TarShards, pattern};
use crate::sync::Arc;
use crate::units::ByteCount;

/// What files of many samples are called.
pub const SHARD_EXTENSIONS: [&str; 4] = ["tar", "tar.zst", "tzst", "parquet"];

/// What a shard's name is followed by in that of its index.
pub(super) const INDEX_SUFFIX: &str = "feedstock-index";

/// How data is opened.
///
/// ```no_run
/// use feedstock::ByteCount;
/// use feedstock::source::{OpenOptions, open_with};
///
/// let options = OpenOptions { shuffle_buffer: ByteCount(128 << 20), ..OpenOptions::default() };
/// let source = open_with("train-{000..099}.tar.zst", &options)?;
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// How much is shuffled at a time where samples come in [`Blocks`](super::Blocks). [`SHUFFLE_BUFFER`].
    pub shuffle_buffer: ByteCount,
    /// Where the indices of shards are kept. None: beside the shards, or in the user's cache folder where that cannot be.
    pub index_folder: Option<PathBuf>,
    /// How stores are read.
    #[cfg(feature = "store")]
    pub store: super::store::StoreOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            shuffle_buffer: SHUFFLE_BUFFER,
            index_folder: None,
            #[cfg(feature = "store")]
            store: super::store::StoreOptions::default(),
        }
    }
}

/// Opens whatever lies at a path: a folder of class folders; shards (tars, or Parquet files with the feature `parquet`), as
/// one file, as a folder of them, or as a pattern (`train-{0000..0146}.tar`, `train-*.parquet`); with the feature `store` also
/// by the URL of one, of a pattern with braces, or of all that begin like it (`s3://bucket/train/`).
///
/// # Errors
/// As [`ImageFolder::open`], [`TarShards::open`] and `ParquetSource::open`.
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Source>, SourceError> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], in another way than the usual one.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let path = path.as_ref();
    let stores = Stores::new(options);
    let Some(files) = files(path, &stores)? else { return Ok(Arc::new(ImageFolder::open(path)?)) };
    let parquet = files.iter().filter(|file| is_called(file, "parquet")).count();
    match parquet {
        0 => Ok(Arc::new(TarShards::of(&title(path), &files, options, &stores)?)),
        some if some == files.len() => parquet_files(path, &files, options),
        some => {
            let cause =
                format!("{some} of {} files are Parquet, and the others are not: name those of one kind", files.len());
            Err(SourceError::unusable(path, None, cause))
        }
    }
}

#[cfg(feature = "parquet")]
fn parquet_files(_: &Path, files: &[PathBuf], options: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let mut parquet = super::ParquetOptions::new().shuffle_buffer(options.shuffle_buffer);
    if let Some(folder) = &options.index_folder {
        parquet = parquet.index_folder(folder);
    }
    Ok(Arc::new(parquet.open(files)?))
}

#[cfg(not(feature = "parquet"))]
fn parquet_files(path: &Path, _: &[PathBuf], _: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let cause = "this program was built without Parquet: build it with the feature `parquet`";
    Err(SourceError::unusable(path, None, cause))
}

/// The files of samples that a path stands for; none where it is a folder without any (or nothing at all).
pub(super) fn files(path: &Path, stores: &Stores) -> Result<Option<Vec<PathBuf>>, SourceError> {
    if let Some(url) = path.to_str().filter(|_| is_url(path)) {
        return objects(url, stores).map(Some);
    }
    if path.is_dir() {
        let shards = listed(path)?;
        return Ok((!shards.is_empty()).then_some(shards));
    }
    match path.to_str().filter(|text| pattern::is_pattern(text) && !path.exists()) {
        Some(text) => pattern::expand(text).map(Some),
        None => {
            Ok((path.is_file() || SHARD_EXTENSIONS.iter().any(|one| is_called(path, one))).then(|| vec![path.into()]))
        }
    }
}

/// The objects that a URL stands for: those of a pattern, or all shards below one that ends with a slash.
fn objects(url: &str, stores: &Stores) -> Result<Vec<PathBuf>, SourceError> {
    if url.ends_with('/') {
        return shards_below(url, stores);
    }
    // What follows a '?' on the web is a signature as like as not: no pattern, and nothing to repeat.
    let (url, query) = match url.find('?').filter(|_| url.get(..4).is_some_and(|web| web.eq_ignore_ascii_case("http")))
    {
        Some(at) => url.split_at(at),
        None => (url, ""),
    };
    if url.contains('*') {
        let cause =
            "a '*' stands for local files only: write a range such as {0000..0146}, or end the URL with a slash";
        return Err(SourceError::Pattern { pattern: title(Path::new(url)), cause: cause.to_owned() });
    }
    let mut shards = pattern::expand(url)?;
    shards.iter_mut().for_each(|shard| shard.as_mut_os_string().push(query));
    Ok(shards)
}

#[cfg(feature = "store")]
fn shards_below(url: &str, stores: &Stores) -> Result<Vec<PathBuf>, SourceError> {
    let (store, path) = stores.store(url)?;
    let listed = store.list(&path)?;
    let called = |path: &str| SHARD_EXTENSIONS.iter().any(|one| is_called(Path::new(path), one));
    Ok(listed.iter().filter(|one| called(&one.path)).map(|one| store.url(&one.path).into()).collect())
}

#[cfg(not(feature = "store"))]
fn shards_below(_: &str, _: &Stores) -> Result<Vec<PathBuf>, SourceError> {
    // Nothing is opened: whoever opens the first says what is missing.
    Ok(vec![])
}

/// The shards directly in a folder, sorted by name.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let refuse = |source| io_error("list", folder, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(refuse)? {
        let name = entry.map_err(refuse)?.file_name();
        let is_shard = SHARD_EXTENSIONS.iter().any(|one| is_called(Path::new(&name), one));
        if is_shard && !name.as_bytes().starts_with(b".") {
            found.push(folder.join(name));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a file has this extension, in any case.
fn is_called(file: &Path, extension: &str) -> bool {
    let name = file.as_os_str().as_bytes().to_ascii_lowercase();
    name.strip_suffix(extension.as_bytes()).is_some_and(|front| front.ends_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_not_repeated() {
        assert_eq!(title(Path::new("https://host/a.tar?sig=hunter2")), "https://host/a.tar");
        assert_eq!(title(Path::new("what?/a.tar")), "what?/a.tar");
        let error = open("https://host/*.tar?sig=hunter2").err().unwrap().to_string();
        assert!(error.contains("https://host/*.tar") && !error.contains("hunter2"), "{error}");
        let error = open("https://host/{0..x}.tar?sig={hunter2}").err().unwrap().to_string();
        assert!(error.contains("'https://host/{0..x}.tar'") && !error.contains("hunter2"), "{error}");
        let stores = Stores::new(&OpenOptions::default());
        let shards = objects("https://host/{0..1}.tar?sig=*{h}", &stores).unwrap();
        assert_eq!(shards, ["https://host/0.tar?sig=*{h}", "https://host/1.tar?sig=*{h}"].map(PathBuf::from));
    }

    #[test]
    fn names_tell_what_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(files(folder.path(), &Stores::new(&OpenOptions::default())).unwrap(), None);
        for name in ["b.TAR", "a.tar.zst", ".c.tar", "tar", "a.tar.zst.feedstock-index", "d.jpg"] {
            fs::write(at(name), "").unwrap();
        }
        assert_eq!(
            files(folder.path(), &Stores::new(&OpenOptions::default())).unwrap(),
            Some(vec![at("a.tar.zst"), at("b.TAR")])
        );
        let error = files(&at("[ab]*.{tar,x}"), &Stores::new(&OpenOptions::default())).unwrap_err().to_string();
        assert!(error.contains("stands for no shards"), "{error}");
        assert_eq!(
            files(&at("{a,b}.{tar.zst,TAR}"), &Stores::new(&OpenOptions::default())).unwrap().map(|all| all.len()),
            Some(4)
        );
        assert_eq!(
            files(&at("missing.tar"), &Stores::new(&OpenOptions::default())).unwrap(),
            Some(vec![at("missing.tar")])
        );
        assert_eq!(files(&at("missing"), &Stores::new(&OpenOptions::default())).unwrap(), None);
        fs::write(at("e.parquet"), "").unwrap();
        let error = open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("1 of 3 files are Parquet"), "{error}");
        #[cfg(not(feature = "parquet"))]
        {
            let error = open(at("e.parquet")).err().unwrap().to_string();
            assert!(error.contains("e.parquet: this program was built without Parquet"), "{error}");
        }
    }
}
