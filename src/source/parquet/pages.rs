//! Owns the reading of one column of one row group, value by value, and what memory that takes.
//! It must never hold more than the pages that it is at, and a damaged file must never get past it as a panic.

use std::cell::Cell;
use std::mem::size_of;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use super::file::Opened;
use crate::sync::{Arc, AtomicU64, Ordering};

/// What a load takes besides pages: contexts of codecs (zstd's has 150 KiB, gzip's 50), buffers for the numbers of
/// values in a dictionary and for headers.
const CODEC_BYTES: u64 = 512 << 10;

/// What lengths and levels of a value take while it is decoded, bytes.
const VALUE_BYTES: u64 = 16;

/// Where the pages of a column lie, for one row group: all that is kept of its metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) bytes: u64,
    has_dictionary: bool,
    compression: Compression,
}

/// The largest pieces of memory that reading a column has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// The largest page of data, decompressed, with the one before it.
    pub(super) page_bytes: u64,
    /// The dictionary, decoded.
    pub(super) dictionary_bytes: u64,
    /// The largest page as stored, where it has to be decompressed.
    pub(super) read_bytes: u64,
}

impl Pieces {
    /// The most that reading the column again takes, where its largest value has `value_bytes` bytes.
    ///
    /// While a page is decompressed, it is there as stored as well, and so is the page before. A value that shares its front with the one before
    /// (delta encoding) is put together on the heap, next to that one.
    pub(super) fn load_bytes(&self, rows: u64, value_bytes: u64) -> u64 {
        let pages = self.dictionary_bytes + self.page_bytes + self.read_bytes;
        pages + 2 * value_bytes + rows * VALUE_BYTES + CODEC_BYTES
    }
}

/// A value that could not be read, or was not wanted.
#[derive(Debug)]
pub(super) struct Bad {
    /// In the row group, from 0.
    pub(super) row: u64,
    pub(super) cause: ParquetError,
}

impl Chunk {
    /// Where the metadata says that the pages lie, if that can be.
    pub(super) fn of(metadata: &ColumnChunkMetaData, file_bytes: u64) -> Option<Chunk> {
        // Some writers say 0 for none.
        let dictionary = metadata.dictionary_page_offset().filter(|&offset| offset > 0);
        let start = u64::try_from(dictionary.unwrap_or(metadata.data_page_offset())).ok()?;
        let bytes = u64::try_from(metadata.compressed_size()).ok()?;
        let is_inside =
            start.checked_add(bytes).is_some_and(|end| end <= file_bytes) && i64::try_from(file_bytes).is_ok();
        let (has_dictionary, compression) = (dictionary.is_some(), metadata.compression());
        is_inside.then_some(Chunk { start, bytes, has_dictionary, compression })
    }

    /// What the pages are compressed with, where that cannot be undone here.
    pub(super) fn foreign_codec(&self) -> Option<&'static str> {
        match self.compression {
            Compression::BROTLI(_) => Some("Brotli"),
            Compression::LZO => Some("LZO"),
            _ => None,
        }
    }

    fn metadata(&self, column: &ColumnDescPtr) -> Result<ColumnChunkMetaData, ParquetError> {
        // Both fit: the file's size does.
        ColumnChunkMetaData::builder(Arc::clone(column))
            .set_compression(self.compression)
            .set_total_compressed_size(self.bytes as i64)
            .set_data_page_offset(self.start as i64)
            .set_dictionary_page_offset(self.has_dictionary.then_some(self.start as i64))
            .build()
    }
}

/// Hands each value of a column to `take`, in the order of rows, `None` for a null; `batch` of them are decoded at once.
/// Returns what memory that took.
///
/// # Errors
/// The first row that cannot be read, or the first error of `take`.
pub(super) fn read_values<T: DataType>(
    file: &Arc<Opened>,
    column: &ColumnDescPtr,
    chunk: &Chunk,
    rows: u64,
    batch: usize,
    mut take: impl FnMut(u64, Option<&T::T>) -> Result<(), ParquetError>,
) -> Result<Pieces, Bad> {
    let row = Cell::new(0);
    let peaks = Arc::new(Peaks::default());
    let read = || {
        let pages = SerializedPageReader::new(Arc::clone(file), &chunk.metadata(column)?, rows as usize, None)?;
        let pages = Watched { pages, last_bytes: 0, peaks: Arc::clone(&peaks) };
        let mut reader = get_typed_column_reader::<T>(get_column_reader(Arc::clone(column), Box::new(pages)));
        let (mut values, mut levels) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
        while row.get() < rows {
            values.clear();
            levels.clear();
            let wanted = (rows - row.get()).min(batch as u64) as usize;
            let (read, ..) = reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
            if read == 0 {
                return Err(ParquetError::EOF(format!("the row group ends after {} of {rows} rows", row.get())));
            }
            let mut values = values.iter();
            for at in 0..read {
                let is_null = levels.get(at).is_some_and(|&level| level < column.max_def_level());
                take(row.get(), if is_null { None } else { values.next() })?;
                row.set(row.get() + 1);
            }
        }
        Ok(())
    };
    // The library checks much of what it reads, not all: it has places where a damaged page ends in a panic.
    let done = catch_unwind(AssertUnwindSafe(read));
    let cause = match done {
        Ok(Ok(())) => {
            let is_compressed = chunk.compression != Compression::UNCOMPRESSED;
            return Ok(peaks.pieces(if is_compressed { file.read_bytes_max() } else { 0 }));
        }
        Ok(Err(cause)) => cause,
        Err(_) => ParquetError::General("decoding it panicked".into()),
    };
    Err(Bad { row: row.get(), cause })
}

#[derive(Debug, Default)]
struct Peaks {
    page_bytes: AtomicU64,
    dictionary_bytes: AtomicU64,
}

impl Peaks {
    fn pieces(&self, read_bytes: u64) -> Pieces {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Pieces { page_bytes: load(&self.page_bytes), dictionary_bytes: load(&self.dictionary_bytes), read_bytes }
    }
}

/// Pages that are looked at as they pass.
struct Watched {
    pages: SerializedPageReader<Opened>,
    /// Of the page of data before.
    last_bytes: u64,
    peaks: Arc<Peaks>,
}

impl Watched {
    fn see(&mut self, page: &Page) {
        let bytes = page.buffer().len() as u64;
        if page.is_dictionary_page() {
            let bytes = bytes + u64::from(page.num_values()) * size_of::<ByteArray>() as u64;
            self.peaks.dictionary_bytes.fetch_max(bytes, Ordering::Relaxed);
        } else {
            self.peaks.page_bytes.fetch_max(self.last_bytes + bytes, Ordering::Relaxed);
            self.last_bytes = bytes;
        }
    }
}

impl Iterator for Watched {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Watched {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.see(page);
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }
}
