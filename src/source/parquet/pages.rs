//! Reading of one column of one row group, value by value, and measurement of the memory that takes. Only the current
//! pages are held. Panics of the `parquet` crate on damaged files become errors.

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

use super::file::OpenFile;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Memory of a load besides pages: codec contexts (150 KiB for zstd, 50 KiB for gzip), buffers for dictionary indices
/// and for headers.
const CODEC_BYTES: u64 = 512 << 10;

/// Memory for the length and the levels of a value while it is decoded, bytes.
const VALUE_BYTES: u64 = 16;

/// Location of a column's pages in one row group: the part of its metadata that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnChunk {
    pub(super) start: u64,
    pub(super) bytes: u64,
    has_dictionary: bool,
    compression: Compression,
}

/// Peak memory of reading a column, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PageMemory {
    /// Largest decompressed data page together with the one before it.
    pub(super) page_bytes: u64,
    /// Decoded dictionary.
    pub(super) dictionary_bytes: u64,
    /// Largest compressed page.
    pub(super) read_bytes: u64,
}

impl PageMemory {
    /// Maximum memory of reading the column again, if its largest value has `value_bytes` bytes.
    ///
    /// While a page is decompressed, its stored bytes and the page before it are in memory. With delta encoding, a
    /// value that shares a prefix with the one before is assembled on the heap, next to that one.
    pub(super) fn load_bytes(&self, rows: u64, value_bytes: u64) -> u64 {
        let pages = self.dictionary_bytes + self.page_bytes + self.read_bytes;
        pages + 2 * value_bytes + rows * VALUE_BYTES + CODEC_BYTES
    }
}

/// Error of one row.
#[derive(Debug)]
pub(super) struct RowError {
    /// Row in the row group, from 0.
    pub(super) row: u64,
    pub(super) cause: ParquetError,
}

impl ColumnChunk {
    /// Location in the metadata. `None` if it lies outside of the file.
    pub(super) fn of(metadata: &ColumnChunkMetaData, file_bytes: u64) -> Option<ColumnChunk> {
        // Some writers store 0 instead of nothing.
        let dictionary = metadata.dictionary_page_offset().filter(|&offset| offset > 0);
        let start = u64::try_from(dictionary.unwrap_or(metadata.data_page_offset())).ok()?;
        let bytes = u64::try_from(metadata.compressed_size()).ok()?;
        let is_inside =
            start.checked_add(bytes).is_some_and(|end| end <= file_bytes) && i64::try_from(file_bytes).is_ok();
        let (has_dictionary, compression) = (dictionary.is_some(), metadata.compression());
        is_inside.then_some(ColumnChunk { start, bytes, has_dictionary, compression })
    }

    /// Name of the codec, if it is not supported.
    pub(super) fn unsupported_codec(&self) -> Option<&'static str> {
        match self.compression {
            Compression::BROTLI(_) => Some("Brotli"),
            Compression::LZO => Some("LZO"),
            _ => None,
        }
    }

    fn metadata(&self, column: &ColumnDescPtr) -> Result<ColumnChunkMetaData, ParquetError> {
        // Both fit, because the size of the file does.
        ColumnChunkMetaData::builder(Arc::clone(column))
            .set_compression(self.compression)
            .set_total_compressed_size(self.bytes as i64)
            .set_data_page_offset(self.start as i64)
            .set_dictionary_page_offset(self.has_dictionary.then_some(self.start as i64))
            .build()
    }
}

/// Passes each value of a column to `take`, in row order, and `None` for a null. `batch` values are decoded at a time.
///
/// # Errors
/// The first row that cannot be read, or the first error of `take`.
pub(super) fn read_values<T: DataType>(
    file: &Arc<OpenFile>,
    column: &ColumnDescPtr,
    chunk: &ColumnChunk,
    rows: u64,
    batch: usize,
    mut take: impl FnMut(u64, Option<&T::T>) -> Result<(), ParquetError>,
) -> Result<PageMemory, RowError> {
    let row = Cell::new(0);
    let peaks = Arc::new(Peaks::default());
    let read = || {
        let pages = SerializedPageReader::new(Arc::clone(file), &chunk.metadata(column)?, rows as usize, None)?;
        let pages = MeasuredPages { pages, last_bytes: 0, peaks: Arc::clone(&peaks) };
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
    // The library does not check everything: some damaged pages make it panic.
    let done = catch_unwind(AssertUnwindSafe(read));
    let cause = match done {
        Ok(Ok(())) => {
            let is_compressed = chunk.compression != Compression::UNCOMPRESSED;
            return Ok(peaks.snapshot(if is_compressed { file.read_bytes_max() } else { 0 }));
        }
        Ok(Err(cause)) => cause,
        Err(_) => ParquetError::General("decoding it panicked".into()),
    };
    Err(RowError { row: row.get(), cause })
}

#[derive(Debug, Default)]
struct Peaks {
    page_bytes: AtomicU64,
    dictionary_bytes: AtomicU64,
}

impl Peaks {
    fn snapshot(&self, read_bytes: u64) -> PageMemory {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        PageMemory { page_bytes: load(&self.page_bytes), dictionary_bytes: load(&self.dictionary_bytes), read_bytes }
    }
}

/// Page reader that measures the pages.
struct MeasuredPages {
    pages: SerializedPageReader<OpenFile>,
    /// Size of the data page before.
    last_bytes: u64,
    peaks: Arc<Peaks>,
}

impl MeasuredPages {
    fn measure(&mut self, page: &Page) {
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

impl Iterator for MeasuredPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for MeasuredPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.measure(page);
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
