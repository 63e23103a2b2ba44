//! Scan of a Parquet file when it is opened: row groups, the labels of all rows, and the sizes of all images. Without
//! an index from an earlier run, the sizes need every page. No image is kept.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::available_parallelism;

use parquet::data_type::{ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use super::columns::{Columns, LabelKind, Leaf, select};
use super::file::{DataFile, OpenFile};
use super::options::ParquetOptions;
use super::pages::{ColumnChunk, PageMemory, RowError, read_values};
use super::sizes::{ImageSizes, NO_IMAGE, ONLY_PATH};
use crate::source::error::SourceError;
use crate::source::parallel::try_map;
use crate::sync::Arc;

/// Label of a row without one.
pub(super) const NO_LABEL: u32 = u32::MAX;

/// Maximum number of classes: a column with more is not a label column.
const CLASS_COUNT_MAX: usize = 1 << 20;

/// Labels decoded at a time.
const LABEL_BATCH: usize = 4096;

/// Maximum number of scan threads: more are not faster.
const THREADS_MAX: usize = 16;

/// Result of the scan of a file.
pub(super) struct ScannedFile {
    pub(super) file: DataFile,
    pub(super) image: Leaf,
    /// Row groups with rows: their number in the file, and the location of their images.
    pub(super) groups: Vec<(u32, ColumnChunk)>,
    pub(super) sizes: ImageSizes,
    pub(super) labels: Vec<u32>,
    pub(super) label_name: String,
    pub(super) label_kind: LabelKind,
    pub(super) class_names: Option<Vec<String>>,
    pub(super) notes: Vec<String>,
}

/// Class names of text labels over all files, each with a provisional number until all names are known.
#[derive(Default)]
pub(super) struct ClassNames(BTreeMap<String, u32>);

impl ClassNames {
    /// Sorted names, and the class index for each provisional number.
    pub(super) fn sorted(self) -> (Vec<String>, Vec<u32>) {
        let mut classes = vec![0; self.0.len()];
        for (class, number) in self.0.values().enumerate() {
            classes[*number as usize] = class as u32;
        }
        (self.0.into_keys().collect(), classes)
    }

    fn number(&mut self, text: &str) -> Option<u32> {
        if let Some(&number) = self.0.get(text) {
            return Some(number);
        }
        let number = self.0.len() as u32;
        (self.0.len() < CLASS_COUNT_MAX).then(|| *self.0.entry(text.into()).or_insert(number))
    }
}

/// Location of a row, for messages.
pub(super) fn location(group: u32, row: u64) -> String {
    format!("row group {group}, row {row}")
}

/// Opens and scans a file.
pub(super) fn scan(path: &Path, options: &ParquetOptions, names: &mut ClassNames) -> Result<ScannedFile, SourceError> {
    let (file, opened) = DataFile::open_new(path)?;
    let opened = Arc::new(opened);
    let metadata = footer(&file, &opened)?;
    let (image, label) = (options.image_column.as_deref(), options.label_column.as_deref());
    let columns = select(metadata.file_metadata(), image, label).map_err(|cause| file.unusable("", cause))?;

    let groups: Vec<(u32, &RowGroupMetaData, u64)> = (0u32..)
        .zip(metadata.row_groups())
        .filter_map(|(number, group)| u64::try_from(group.num_rows()).ok().map(|rows| (number, group, rows)))
        .filter(|(.., rows)| *rows > 0)
        .collect();
    let scan = Scan { file: &file, opened: &opened, columns: &columns };
    let chunks = groups.iter().map(|&(number, group, _)| scan.chunk(number, group, &columns.image));
    let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
    let mut labels = Vec::new();
    for &(number, group, rows) in &groups {
        scan.read_labels(number, group, rows, names, &mut labels)?;
    }

    let image_name = columns.image.column.path().string();
    let rows: Vec<u64> = groups.iter().map(|(.., rows)| *rows).collect();
    let mut notes = Vec::new();
    let folder = options.index_folder.as_deref();
    let sizes = match ImageSizes::read(&file, &image_name, &rows, folder) {
        Some(sizes) => sizes,
        None => {
            let sizes = scan.sizes(&groups, &chunks)?;
            if let Err((path, error)) = sizes.write(&file, &image_name, folder) {
                notes.push(format!(
                    "the index of {}, which took a read of the whole file, could not be saved for the next run: \
                     {}: {error}",
                    file.path.display(),
                    path.display()
                ));
            }
            sizes
        }
    };
    if !columns.other_labels.is_empty() {
        let (name, others) = (&columns.label_name, columns.other_labels.join(", "));
        notes.push(format!("labels are read from the column '{name}'; other candidates: {others}"));
    }
    Ok(ScannedFile {
        groups: groups.iter().map(|(number, ..)| *number).zip(chunks).collect(),
        image: columns.image,
        sizes,
        labels,
        label_name: columns.label_name,
        label_kind: columns.label_kind,
        class_names: columns.class_names,
        notes,
        file,
    })
}

fn footer(file: &DataFile, opened: &OpenFile) -> Result<ParquetMetaData, SourceError> {
    // As for pages: what is damaged may panic.
    let read = || ParquetMetaDataReader::new().parse_and_finish(opened);
    let read = catch_unwind(AssertUnwindSafe(read));
    let panicked = || Err(ParquetError::General("reading it panicked".into()));
    read.unwrap_or_else(|_| panicked()).map_err(|error| file.damaged("footer", error))
}

struct Scan<'a> {
    file: &'a DataFile,
    opened: &'a Arc<OpenFile>,
    columns: &'a Columns,
}

impl Scan<'_> {
    fn row_error(&self, group: u32, error: RowError) -> SourceError {
        self.file.damaged(&location(group, error.row), error.cause)
    }

    fn chunk(&self, number: u32, group: &RowGroupMetaData, leaf: &Leaf) -> Result<ColumnChunk, SourceError> {
        let unusable = |cause| self.file.unusable(&format!("row group {number}"), cause);
        let name = leaf.column.path().string();
        let Some(chunk) = group.columns().get(leaf.index).and_then(|column| ColumnChunk::of(column, self.file.bytes))
        else {
            return Err(unusable(format!("the footer is damaged: it places the column '{name}' outside of the file")));
        };
        match chunk.unsupported_codec() {
            None => Ok(chunk),
            Some(codec) => Err(unusable(format!(
                "unsupported codec {codec} of the column '{name}': write it with Snappy or Zstandard"
            ))),
        }
    }

    fn read_labels(
        &self,
        number: u32,
        group: &RowGroupMetaData,
        rows: u64,
        names: &mut ClassNames,
        labels: &mut Vec<u32>,
    ) -> Result<(), SourceError> {
        let leaf = &self.columns.label;
        let chunk = self.chunk(number, group, leaf)?;
        let class_count = self.columns.class_names.as_ref().map_or(CLASS_COUNT_MAX, Vec::len);
        let mut wrong = None;
        let mut put_number = |row: u64, label: i64| {
            let label = match usize::try_from(label) {
                // -1 in test sets of the hub: the row has no label.
                Err(_) => NO_LABEL,
                Ok(label) if label < class_count => label as u32,
                Ok(label) => {
                    wrong = wrong.take().or(Some((row, label)));
                    NO_LABEL
                }
            };
            labels.push(label);
            Ok(())
        };
        let opened = self.opened;
        let done = match self.columns.label_kind {
            LabelKind::Int32 => {
                read_values::<Int32Type>(opened, &leaf.column, &chunk, rows, LABEL_BATCH, |row, label| {
                    put_number(row, label.map_or(-1, |&label| i64::from(label)))
                })
            }
            LabelKind::Int64 => {
                read_values::<Int64Type>(opened, &leaf.column, &chunk, rows, LABEL_BATCH, |row, label| {
                    put_number(row, label.copied().unwrap_or(-1))
                })
            }
            LabelKind::Text => {
                read_values::<ByteArrayType>(opened, &leaf.column, &chunk, rows, LABEL_BATCH, |_, text| {
                    let Some(text) = text else {
                        labels.push(NO_LABEL);
                        return Ok(());
                    };
                    let text = text.as_utf8()?;
                    let too_many = || ParquetError::General(format!("more than {CLASS_COUNT_MAX} different labels"));
                    labels.push(names.number(text).ok_or_else(too_many)?);
                    Ok(())
                })
            }
        };
        done.map_err(|error| self.row_error(number, error))?;
        match wrong {
            None => Ok(()),
            Some((row, label)) => Err(self.file.unusable(
                &location(number, row),
                format!(
                    "the label is {label}, but there are at most {class_count} classes: is '{}' the label column?",
                    self.columns.label_name
                ),
            )),
        }
    }

    /// Determines the sizes of all images, several row groups in parallel.
    fn sizes(
        &self,
        groups: &[(u32, &RowGroupMetaData, u64)],
        chunks: &[ColumnChunk],
    ) -> Result<ImageSizes, SourceError> {
        let threads = available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
        let found = try_map(groups.len(), threads, |at| {
            let (number, group, rows) = groups[at];
            self.sizes_of(number, group, rows, &chunks[at])
        })?;
        let mut sizes = ImageSizes::default();
        for ((group_sizes, memory), (.., rows)) in found.into_iter().zip(groups) {
            sizes.rows.extend(group_sizes);
            sizes.groups.push((*rows, memory));
        }
        Ok(sizes)
    }

    fn sizes_of(
        &self,
        number: u32,
        group: &RowGroupMetaData,
        rows: u64,
        chunk: &ColumnChunk,
    ) -> Result<(Vec<u32>, PageMemory), SourceError> {
        let opened = Arc::new(self.opened.with_new_maximum());
        let (mut sizes, mut has_nulls) = (Vec::new(), false);
        let memory = read_values::<ByteArrayType>(&opened, &self.columns.image.column, chunk, rows, 1, |_, image| {
            has_nulls |= image.is_none();
            let too_large = || ParquetError::General("the image has 4 GiB or more".into());
            let size = image.map_or(Some(NO_IMAGE), |image| u32::try_from(image.len()).ok());
            sizes.push(size.filter(|&size| image.is_none() || size < ONLY_PATH).ok_or_else(too_large)?);
            Ok(())
        });
        let memory = memory.map_err(|error| self.row_error(number, error))?;
        if has_nulls && let Some(path) = &self.columns.path {
            let chunk = self.chunk(number, group, path)?;
            read_values::<ByteArrayType>(&opened, &path.column, &chunk, rows, LABEL_BATCH, |row, path| {
                let size = &mut sizes[row as usize];
                if *size == NO_IMAGE && path.is_some() {
                    *size = ONLY_PATH;
                }
                Ok(())
            })
            .map_err(|error| self.row_error(number, error))?;
        }
        Ok((sizes, memory))
    }
}

/// Class names for labels without names: their numbers.
pub(super) fn numbered(labels: &[u32]) -> Vec<String> {
    let count = labels.iter().filter(|&&label| label != NO_LABEL).max().map_or(0, |&label| label as usize + 1);
    (0..count).map(|class| class.to_string()).collect()
}

/// Reason for which a row cannot be read, for the note about all of them and the error of one.
pub(super) fn row_problem(size: u32, label: u32) -> Option<&'static str> {
    match (size, label) {
        (NO_IMAGE, _) => Some("no image"),
        (ONLY_PATH, _) => Some("the path of an image file, but not its bytes"),
        (_, NO_LABEL) => Some("no label"),
        _ => None,
    }
}
