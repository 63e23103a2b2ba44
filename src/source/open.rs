//! Opening of whatever a path stands for: the kind of files decides about the source.

use std::path::{Path, PathBuf};

use super::extensions::has_extension;
use super::opener::ShardOpener;
use super::path::display_name;
use super::resolve::resolve;
use super::{ImageFolder, OpenOptions, Source, SourceError, TarShards};
use crate::sync::Arc;

/// Opens the data at a path: a folder of class folders; shards (tar files, or Parquet files with the feature `parquet`)
/// as one file, as a folder of them, or as a pattern (`train-{0000..0146}.tar`, `train-*.parquet`). With the feature
/// `store` also the URL of a shard, of a pattern with braces, or of a prefix that ends in a slash
/// (`s3://bucket/train/`).
///
/// # Errors
/// Those of [`ImageFolder::open`], [`TarShards::open`] and `ParquetSource::open`.
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Source>, SourceError> {
    open_with(path, &OpenOptions::default())
}

/// Opens the data at a path, as [`open`], with options.
///
/// # Errors
/// Those of [`open`].
pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let path = path.as_ref();
    let opener = ShardOpener::new(options);
    let Some(files) = resolve(path, &opener)? else { return Ok(Arc::new(ImageFolder::open(path)?)) };
    match files.iter().filter(|file| has_extension(file, "parquet")).count() {
        0 => Ok(Arc::new(TarShards::from_files(&display_name(path), &files, options, &opener)?)),
        all if all == files.len() => open_parquet(path, &files, options),
        some => {
            let cause = format!("{some} of {} files are Parquet files: give files of one kind", files.len());
            Err(SourceError::unusable(path, None, cause))
        }
    }
}

#[cfg(feature = "parquet")]
fn open_parquet(_: &Path, files: &[PathBuf], options: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let mut parquet = super::ParquetOptions::new().shuffle_buffer(options.shuffle_buffer);
    if let Some(folder) = &options.index_folder {
        parquet = parquet.index_folder(folder);
    }
    Ok(Arc::new(super::ParquetSource::open_with(files, &parquet)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(path: &Path, _: &[PathBuf], _: &OpenOptions) -> Result<Arc<dyn Source>, SourceError> {
    let cause = "Parquet files are not supported by this build: build it with the feature `parquet`";
    Err(SourceError::unusable(path, None, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_signatures_out() {
        for (url, shown) in [
            ("https://host/*.tar?sig=hunter2", "https://host/*.tar"),
            ("https://host/{0..x}.tar?sig={hunter2}", "'https://host/{0..x}.tar'"),
        ] {
            let error = open(url).err().unwrap().to_string();
            assert!(error.contains(shown) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn files_of_two_kinds_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.tar.zst", "b.TAR", "e.parquet"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let error = open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("1 of 3 files are Parquet files"), "{error}");
        #[cfg(not(feature = "parquet"))]
        {
            let error = open(folder.path().join("e.parquet")).err().unwrap().to_string();
            assert!(error.contains("e.parquet: Parquet files are not supported by this build"), "{error}");
        }
    }
}
