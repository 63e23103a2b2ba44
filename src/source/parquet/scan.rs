//! Owns what is found out about Parquet files when they are opened: their row groups, the labels of all rows, and the
//! sizes of all images, which take a look at every page where they are not known from the last time.
//! It must never keep an image.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::available_parallelism;

use parquet::data_type::{ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use super::SourceError;
use super::columns::{Columns, LabelKind, Leaf, choose};
use super::file::{DataFile, Opened};
use super::options::ParquetOptions;
use super::pages::{Bad, Chunk, Pieces, read_values};
use super::sizes::{NO_IMAGE, ONLY_PATH, Sizes};
use crate::source::parallel::try_map;
use crate::sync::Arc;

/// In place of a label: the row has none.
pub(super) const NO_LABEL: u32 = u32::MAX;

/// Past so many classes, a column holds something else than labels.
const CLASS_COUNT_MAX: usize = 1 << 20;

/// Labels that are decoded at once.
const LABEL_BATCH: usize = 4096;

/// More threads than this do not find the sizes any faster.
const THREADS_MAX: usize = 16;

/// What one file turned out to be.
pub(super) struct Scanned {
    pub(super) file: DataFile,
    pub(super) image: Leaf,
    /// The row groups that have rows: their number in the file, and where their images lie.
    pub(super) groups: Vec<(u32, Chunk)>,
    pub(super) sizes: Sizes,
    pub(super) labels: Vec<u32>,
    pub(super) label_name: String,
    pub(super) label_kind: LabelKind,
    pub(super) class_names: Option<Vec<String>>,
    pub(super) notes: Vec<String>,
}

/// The classes that are told by name, over all files: each with the number that stands for it until all are known.
#[derive(Default)]
pub(super) struct Texts(BTreeMap<String, u32>);

impl Texts {
    /// The names in their final order, and for each provisional number its place in it.
    pub(super) fn sorted(self) -> (Vec<String>, Vec<u32>) {
        let mut places = vec![0; self.0.len()];
        for (place, number) in self.0.values().enumerate() {
            places[*number as usize] = place as u32;
        }
        (self.0.into_keys().collect(), places)
    }

    fn number(&mut self, text: &str) -> Option<u32> {
        if let Some(&number) = self.0.get(text) {
            return Some(number);
        }
        let number = self.0.len() as u32;
        (self.0.len() < CLASS_COUNT_MAX).then(|| *self.0.entry(text.into()).or_insert(number))
    }
}

/// Where in a file something is wrong.
pub(super) fn place(group: u32, row: u64) -> String {
    format!("row group {group}, row {row}")
}

/// Opens a file and finds out all about it.
pub(super) fn scan(path: &Path, options: &ParquetOptions, texts: &mut Texts) -> Result<Scanned, SourceError> {
    let (file, opened) = DataFile::look(path)?;
    let opened = Arc::new(opened);
    let metadata = footer(&file, &opened)?;
    let (image, label) = (options.image_column.as_deref(), options.label_column.as_deref());
    let columns = choose(metadata.file_metadata(), image, label).map_err(|cause| file.unusable("", cause))?;

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
        scan.read_labels(number, group, rows, texts, &mut labels)?;
    }

    let image_name = columns.image.column.path().string();
    let rows: Vec<u64> = groups.iter().map(|(.., rows)| *rows).collect();
    let mut notes = Vec::new();
    let folder = options.index_folder.as_deref();
    let sizes = match Sizes::read(&file, &image_name, &rows, folder) {
        Some(sizes) => sizes,
        None => {
            let sizes = scan.sizes(&groups, &chunks)?;
            if let Err((path, error)) = sizes.write(&file, &image_name, folder) {
                notes.push(format!(
                    "the sizes of the images in {} were found by reading all of it, and cannot be kept for the next time: \
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
        notes.push(format!("the labels are those of the column '{name}'; there are others: {others}"));
    }
    Ok(Scanned {
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

fn footer(file: &DataFile, opened: &Opened) -> Result<ParquetMetaData, SourceError> {
    // As for pages: what is damaged may panic.
    let read = || ParquetMetaDataReader::new().parse_and_finish(opened);
    let read = catch_unwind(AssertUnwindSafe(read));
    let panicked = || Err(ParquetError::General("reading it panicked".into()));
    read.unwrap_or_else(|_| panicked()).map_err(|error| file.damaged("footer", error))
}

struct Scan<'a> {
    file: &'a DataFile,
    opened: &'a Arc<Opened>,
    columns: &'a Columns,
}

impl Scan<'_> {
    fn bad(&self, group: u32, bad: Bad) -> SourceError {
        self.file.damaged(&place(group, bad.row), bad.cause)
    }

    fn chunk(&self, number: u32, group: &RowGroupMetaData, leaf: &Leaf) -> Result<Chunk, SourceError> {
        let unusable = |cause| self.file.unusable(&format!("row group {number}"), cause);
        let name = leaf.column.path().string();
        let Some(chunk) = group.columns().get(leaf.number).and_then(|column| Chunk::of(column, self.file.bytes)) else {
            return Err(unusable(format!(
                "the footer says that the column '{name}' lies outside of the file: it is damaged"
            )));
        };
        match chunk.foreign_codec() {
            None => Ok(chunk),
            Some(codec) => Err(unusable(format!(
                "the column '{name}' is compressed with {codec}, which is not supported: write it with Snappy or Zstandard"
            ))),
        }
    }

    fn read_labels(
        &self,
        number: u32,
        group: &RowGroupMetaData,
        rows: u64,
        texts: &mut Texts,
        labels: &mut Vec<u32>,
    ) -> Result<(), SourceError> {
        let leaf = &self.columns.label;
        let chunk = self.chunk(number, group, leaf)?;
        let class_count = self.columns.class_names.as_ref().map_or(CLASS_COUNT_MAX, Vec::len);
        let mut wrong = None;
        let mut put_number = |row: u64, label: i64| {
            let label = match usize::try_from(label) {
                // The hub's way to say that a row of a test set has none.
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
                    labels.push(texts.number(text).ok_or_else(too_many)?);
                    Ok(())
                })
            }
        };
        done.map_err(|bad| self.bad(number, bad))?;
        match wrong {
            None => Ok(()),
            Some((row, label)) => Err(self.file.unusable(
                &place(number, row),
                format!(
                    "the label is {label}, but there are {class_count} classes at most: is '{}' the column of the labels?",
                    self.columns.label_name
                ),
            )),
        }
    }

    /// Finds the sizes of all images, several row groups at once.
    fn sizes(&self, groups: &[(u32, &RowGroupMetaData, u64)], chunks: &[Chunk]) -> Result<Sizes, SourceError> {
        let threads = available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
        let found = try_map(groups.len(), threads, |at| {
            let (number, group, rows) = groups[at];
            self.sizes_of(number, group, rows, &chunks[at])
        })?;
        let mut sizes = Sizes::default();
        for ((group_sizes, pieces), (.., rows)) in found.into_iter().zip(groups) {
            sizes.rows.extend(group_sizes);
            sizes.groups.push((*rows, pieces));
        }
        Ok(sizes)
    }

    fn sizes_of(
        &self,
        number: u32,
        group: &RowGroupMetaData,
        rows: u64,
        chunk: &Chunk,
    ) -> Result<(Vec<u32>, Pieces), SourceError> {
        let opened = Arc::new(self.opened.afresh());
        let (mut sizes, mut has_nulls) = (Vec::new(), false);
        let pieces = read_values::<ByteArrayType>(&opened, &self.columns.image.column, chunk, rows, 1, |_, image| {
            has_nulls |= image.is_none();
            let too_large = || ParquetError::General("an image of 4 GiB or more".into());
            let size = image.map_or(Some(NO_IMAGE), |image| u32::try_from(image.len()).ok());
            sizes.push(size.filter(|&size| image.is_none() || size < ONLY_PATH).ok_or_else(too_large)?);
            Ok(())
        });
        let pieces = pieces.map_err(|bad| self.bad(number, bad))?;
        if has_nulls && let Some(path) = &self.columns.path {
            let chunk = self.chunk(number, group, path)?;
            read_values::<ByteArrayType>(&opened, &path.column, &chunk, rows, LABEL_BATCH, |row, path| {
                let size = &mut sizes[row as usize];
                if *size == NO_IMAGE && path.is_some() {
                    *size = ONLY_PATH;
                }
                Ok(())
            })
            .map_err(|bad| self.bad(number, bad))?;
        }
        Ok((sizes, pieces))
    }
}

/// The names of classes that have none: their numbers.
pub(super) fn numbered(labels: &[u32]) -> Vec<String> {
    let count = labels.iter().filter(|&&label| label != NO_LABEL).max().map_or(0, |&label| label as usize + 1);
    (0..count).map(|class| class.to_string()).collect()
}

/// What is wrong with a row, if anything: the same words for a note about many and the error of one.
pub(super) fn fault(size: u32, label: u32) -> Option<&'static str> {
    match (size, label) {
        (NO_IMAGE, _) => Some("no image"),
        (ONLY_PATH, _) => Some("the path of an image file, but not its bytes"),
        (_, NO_LABEL) => Some("no label"),
        _ => None,
    }
}
