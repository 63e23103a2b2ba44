//! Sizes of the images of a Parquet file, and the index file that keeps them between runs. An index is used only for
//! the file, size and modification time for which it was written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::file::DataFile;
use super::pages::PageMemory;
use crate::source::index_file::{candidates, write_atomically};

/// Size of a row without an image.
pub(super) const NO_IMAGE: u32 = u32::MAX;

/// Size of a row with the path of an image, but not its bytes.
pub(super) const ONLY_PATH: u32 = u32::MAX - 1;

/// First bytes of an index file. The digit is the version of the format.
const MAGIC: &[u8; 8] = b"FEEDPQI1";

/// Size of a row group in an index file, and of the rest.
const GROUP_BYTES: u64 = 32;
const FRAME_BYTES: u64 = 8 + 8 + 16 + 8 + 8 + 8;

/// Sizes of all images of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageSizes {
    /// Size for each row of the file, bytes.
    pub(super) rows: Vec<u32>,
    /// Number of rows and peak memory of each row group.
    pub(super) groups: Vec<(u64, PageMemory)>,
}

/// Size of an image, 0 for rows without one.
pub(super) fn image_bytes(size: u32) -> u64 {
    if size >= ONLY_PATH { 0 } else { u64::from(size) }
}

impl ImageSizes {
    /// Reads the index of a file and a column, if there is a valid one.
    pub(super) fn read(file: &DataFile, column: &str, group_rows: &[u64], folder: Option<&Path>) -> Option<ImageSizes> {
        let is_same = |sizes: &ImageSizes| sizes.groups.iter().map(|(rows, _)| *rows).eq(group_rows.iter().copied());
        let rows = group_rows.iter().try_fold(0u64, |sum, rows| sum.checked_add(*rows))?;
        let bytes = FRAME_BYTES + column.len() as u64 + GROUP_BYTES * group_rows.len() as u64 + rows.checked_mul(4)?;
        candidates(&file.path, folder, "parquet").iter().find_map(|path| {
            let index = File::open(path).ok()?;
            // The size is checked first, so that another file takes no memory.
            if index.metadata().ok()?.len() != bytes {
                return None;
            }
            let mut text = Vec::new();
            index.take(bytes).read_to_end(&mut text).ok()?;
            ImageSizes::parse(&text, file, column).filter(is_same)
        })
    }

    /// Writes the index beside the file, or else into the cache folder; or into `folder`, if there is one.
    ///
    /// # Errors
    /// The error for the first of these paths, if none can be written.
    pub(super) fn write(
        &self,
        file: &DataFile,
        column: &str,
        folder: Option<&Path>,
    ) -> Result<PathBuf, (PathBuf, io::Error)> {
        let text = self.text(file, column);
        let mut first = None;
        for path in candidates(&file.path, folder, "parquet") {
            match write_atomically(&path, |file| file.write_all(&text)) {
                Ok(()) => return Ok(path),
                Err(error) => first = first.or(Some((path, error))),
            }
        }
        Err(first.unwrap_or_else(|| (file.path.clone(), io::ErrorKind::NotFound.into())))
    }

    fn text(&self, file: &DataFile, column: &str) -> Vec<u8> {
        let mut text = MAGIC.to_vec();
        let mut put = |number: u64| text.extend(number.to_le_bytes());
        put(file.bytes);
        put(file.modified.0 as u64);
        put(file.modified.1 as u64);
        put(self.groups.len() as u64);
        put(column.len() as u64);
        for (rows, memory) in &self.groups {
            [*rows, memory.page_bytes, memory.dictionary_bytes, memory.read_bytes].into_iter().for_each(&mut put);
        }
        text.extend(column.as_bytes());
        self.rows.iter().for_each(|size| text.extend(size.to_le_bytes()));
        let sum = xxh3_64(&text);
        text.extend(sum.to_le_bytes());
        text
    }

    fn parse(text: &[u8], file: &DataFile, column: &str) -> Option<ImageSizes> {
        let (text, sum) = text.split_last_chunk()?;
        if xxh3_64(text) != u64::from_le_bytes(*sum) {
            return None;
        }
        let mut rest = text.strip_prefix(MAGIC)?;
        let mut number = || {
            let (number, left) = rest.split_first_chunk()?;
            rest = left;
            Some(u64::from_le_bytes(*number))
        };
        let found = [number()?, number()?, number()?];
        if found != [file.bytes, file.modified.0 as u64, file.modified.1 as u64] {
            return None;
        }
        let (group_count, name_bytes) = (number()?, number()?);
        let mut group = || {
            let rows = number()?;
            Some((rows, PageMemory { page_bytes: number()?, dictionary_bytes: number()?, read_bytes: number()? }))
        };
        let groups = (0..group_count).map(|_| group()).collect::<Option<Vec<_>>>()?;
        let (name, sizes) = rest.split_at_checked(usize::try_from(name_bytes).ok()?)?;
        let (sizes, odd) = sizes.as_chunks();
        let rows: Vec<u32> = sizes.iter().map(|size| u32::from_le_bytes(*size)).collect();
        let is_whole = odd.is_empty() && groups.iter().map(|(rows, _)| rows).sum::<u64>() == rows.len() as u64;
        (is_whole && name == column.as_bytes()).then_some(ImageSizes { rows, groups })
    }
}
