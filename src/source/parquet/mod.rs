//! Owns the source that reads Parquet files as the Hugging Face hub has them: a row is a sample, a row group is a block.
//! It must never decode an image, and never hold more than the blocks and the pages that it has told of.

mod columns;
mod file;
mod options;
mod pages;
mod scan;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use parquet::data_type::ByteArrayType;
use parquet::errors::ParquetError;
use parquet::schema::types::ColumnDescPtr;
use rustix::fs::Advice;

use super::block_cache::{BlockBuffer, BlockCache};
use super::{Blocks, IoProfile, Source, SourceError};
use crate::sync::{Arc, AtomicBool, Ordering};
use crate::units::{ByteCount, SampleId};
pub use options::ParquetOptions;

use columns::LabelKind;
use file::DataFile;
use pages::{Chunk, read_values};
use scan::{NO_LABEL, Scanned, Texts, fault, numbered, place};
use sizes::image_bytes;

/// Row groups that are read at the same time.
const LOADS_MAX: usize = 2;

/// A larger row group is worth a word: several of them are held at once.
const BLOCK_BYTES_NOTED: u64 = 256 << 20;

/// Images and labels in Parquet files, as the Hugging Face hub has them.
///
/// * The images are the column `image`, `img` or the like, or the only one of its kind: a struct of `bytes` (binary) and
///   `path`, or a binary column. Only the columns that are needed are read.
/// * The labels are the column `label`, `labels`, `fine_label`, `cls` or the like: whole numbers, whose classes are named by
///   what the hub's library has written into the file (or by the numbers), or text, whose different values are the
///   classes, sorted bytewise.
/// * A row without bytes or without a label (the hub's -1) is a sample that cannot be read: one bad sample, as the run's
///   policy for those has it. [`notes`](Source::notes) count them. Where no row is any good, the files are refused.
/// * Rows can only be had by the row group, which is a block ([`Blocks`]): row groups of 100 to 1000 images keep memory low.
///
/// Labels and sizes take 8 bytes a row in RAM. Sizes are found by reading all of a file once, and then kept in a small
/// file beside it; it is checked, and made anew when the data has been written to.
///
/// # Example
/// ```no_run
/// use feedstock::source::{ParquetSource, Source};
///
/// let source = ParquetSource::open(["train-00000-of-00001.parquet"])?;
/// println!("{} images in {} classes", source.len(), source.classes().len());
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
pub struct ParquetSource {
    files: Vec<Part>,
    groups: Vec<Group>,
    held: BlockCache,
    blocks: Blocks,
    /// For each sample, its bytes, or what it lacks.
    sizes: Vec<u32>,
    labels: Vec<u32>,
    classes: Vec<String>,
    notes: Vec<String>,
    load_bytes_max: u64,
    drop_page_cache: AtomicBool,
}

/// A file, and the sample that is its first row.
struct Part {
    file: DataFile,
    images: ColumnDescPtr,
    first: u64,
}

/// A row group: of which file, which one of it, and where its images lie.
struct Group {
    part: u32,
    number: u32,
    chunk: Chunk,
}

impl ParquetSource {
    /// Opens files, whose rows follow each other in this order, and reads their labels and, the first time, all sizes.
    ///
    /// # Errors
    /// * [`SourceError::Io`] where a file cannot be opened or read.
    /// * [`SourceError::Unusable`] where it is no whole Parquet file, has no such columns, or is damaged: with the row group
    ///   and the row.
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, SourceError> {
        ParquetOptions::new().open(paths)
    }

    fn assemble(scanned: Vec<Scanned>, texts: Texts, mixed: impl Fn(u64) -> usize) -> Result<Self, SourceError> {
        let (classes, places) = classes(&scanned, texts)?;
        let (mut files, mut groups, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sizes, mut labels, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut end, mut block_bytes_max, mut load_bytes_max) = (0u64, 0u64, 0u64);
        for (part, mut found) in scanned.into_iter().enumerate() {
            let first = end;
            let mut left = found.sizes.rows.as_slice();
            for (&(number, chunk), (rows, pieces)) in found.groups.iter().zip(&found.sizes.groups) {
                let (own, rest) = left.split_at(*rows as usize);
                left = rest;
                end += rows;
                ends.push(end);
                groups.push(Group { part: part as u32, number, chunk });
                block_bytes_max = block_bytes_max.max(own.iter().map(|&size| image_bytes(size)).sum());
                let largest = own.iter().map(|&size| image_bytes(size)).max().unwrap_or(0);
                load_bytes_max = load_bytes_max.max(pieces.load_bytes(*rows, largest));
            }
            if let Some(places) = &places {
                let known = found.labels.iter_mut().filter(|label| **label != NO_LABEL);
                known.for_each(|label| *label = places[*label as usize]);
            }
            sizes.append(&mut found.sizes.rows);
            labels.append(&mut found.labels);
            notes.append(&mut found.notes);
            files.push(Part { file: found.file, images: found.image.column, first });
        }
        // What many files have in common is said once.
        let mut said = HashSet::new();
        notes.retain(|note| said.insert(note.clone()));
        notes.extend(about_rows(&files, &sizes, &labels)?);
        let blocks = Blocks::new(ends, mixed(block_bytes_max));
        if block_bytes_max > BLOCK_BYTES_NOTED {
            notes.push(format!(
                "the largest row group has {} of images, and up to {} are held at once: written with smaller row groups \
                 (of 100 to 1000 rows), the files would take less RAM and mix better",
                ByteCount(block_bytes_max),
                (blocks.resident() as u64).min(blocks.count())
            ));
        }
        sizes.shrink_to_fit();
        labels.shrink_to_fit();
        groups.shrink_to_fit();
        let held = BlockCache::new(blocks.clone(), block_bytes_max, LOADS_MAX);
        let drop_page_cache = AtomicBool::new(false);
        Ok(ParquetSource {
            files,
            groups,
            held,
            blocks,
            sizes,
            labels,
            classes,
            notes,
            load_bytes_max,
            drop_page_cache,
        })
    }

    fn part_of(&self, id: SampleId) -> &Part {
        assert!(id.0 < self.len(), "{id} was asked of a source of {} samples", self.len());
        &self.files[self.files.partition_point(|part| part.first <= id.0) - 1]
    }

    /// Where a sample is: its file, and the row group and the row in that.
    fn place_of(&self, id: SampleId) -> (&DataFile, String) {
        let block = self.blocks.block_of(id);
        let group = &self.groups[block as usize];
        let row = id.0 - self.blocks.samples(block).start;
        (&self.files[group.part as usize].file, place(group.number, row))
    }

    /// Reads the images of a row group.
    fn load(&self, block: u64, buffer: &mut BlockBuffer) -> Result<(), SourceError> {
        let Group { part, number, chunk } = &self.groups[block as usize];
        let Part { file, images, .. } = &self.files[*part as usize];
        let samples = self.blocks.samples(block);
        let sizes = &self.sizes[samples.start as usize..samples.end as usize];
        let opened = Arc::new(file.open()?);
        let put = |row: u64, image: Option<&parquet::data_type::ByteArray>| {
            let (size, start) = (sizes[row as usize], buffer.len());
            let bytes = image.map_or(&[][..], |image| image.data());
            // Sizes were found in this very file, or in what its index says is this very file.
            let is_same = image.is_none() == (fault(size, 0).is_some()) && bytes.len() as u64 == image_bytes(size);
            if !is_same || buffer.append(bytes).is_none() {
                let told = format!("the image has {} bytes, {} in the index", bytes.len(), image_bytes(size));
                return Err(ParquetError::General(told));
            }
            buffer.add_sample(start..buffer.len());
            Ok(())
        };
        let read = read_values::<ByteArrayType>(&opened, images, chunk, sizes.len() as u64, 1, put);
        if self.drop_page_cache.load(Ordering::Relaxed) {
            opened.advise(chunk.start, chunk.bytes, Advice::DontNeed);
        }
        read.map(drop).map_err(|bad| file.damaged(&place(*number, bad.row), bad.cause))
    }
}

/// The names of the classes; and for labels that are text, what place each provisional number has in them.
fn classes(scanned: &[Scanned], texts: Texts) -> Result<(Vec<String>, Option<Vec<u32>>), SourceError> {
    let is_text = |found: &&Scanned| found.label_kind == LabelKind::Text;
    if let Some(text) = scanned.iter().find(is_text) {
        if let Some(number) = scanned.iter().find(|found| !is_text(found)) {
            let (name, other) = (&number.label_name, text.file.path.display());
            let cause = format!("the labels ('{name}') are numbers, while those of {other} are text: open them apart");
            return Err(number.file.unusable("", cause));
        }
        let (classes, places) = texts.sorted();
        return Ok((classes, Some(places)));
    }
    let Some((named, names)) = scanned.iter().find_map(|found| Some((found, found.class_names.as_ref()?))) else {
        let numbered = scanned.iter().map(|found| numbered(&found.labels)).max_by_key(Vec::len);
        return Ok((numbered.unwrap_or_default(), None));
    };
    for found in scanned {
        let other = named.file.path.display();
        if found.class_names.as_ref().is_some_and(|own| own != names) {
            let cause = format!("its classes ('{}') have other names than those of {other}", found.label_name);
            return Err(found.file.unusable("", format!("{cause}: open files of one data set together")));
        }
        let outside = |&label: &u32| label != NO_LABEL && label as usize >= names.len();
        if let Some(row) = found.labels.iter().position(outside) {
            let (label, count) = (found.labels[row], names.len());
            let cause = format!("the label is {label}, but {other} names {count} classes");
            return Err(found.file.unusable(&format!("row {row}"), cause));
        }
    }
    Ok((names.clone(), None))
}

/// A word about rows that are no samples.
///
/// # Errors
/// [`SourceError::Unusable`] where there are no others.
fn about_rows(files: &[Part], sizes: &[u32], labels: &[u32]) -> Result<Option<String>, SourceError> {
    let Some(first) = files.first() else {
        let cause = "no Parquet file was given: name one at least".into();
        return Err(SourceError::Unusable { path: PathBuf::new(), place: "Parquet".into(), cause });
    };
    let mut faults: BTreeMap<&str, usize> = BTreeMap::new();
    for fault in sizes.iter().zip(labels).filter_map(|(&size, &label)| fault(size, label)) {
        *faults.entry(fault).or_default() += 1;
    }
    let bad: usize = faults.values().sum();
    let told: Vec<String> = faults.iter().map(|(fault, rows)| format!("{fault} ({rows})")).collect();
    let told = told.join(", ");
    let hint = "Images have to be in the files (the hub's library embeds them when it writes), and a test set without labels \
                cannot be trained on";
    let more = if files.len() > 1 { format!(" and {} more files", files.len() - 1) } else { String::new() };
    match (sizes.len(), bad) {
        (0, _) => Err(first.file.unusable("", format!("there are no rows in it{more}"))),
        (rows, bad) if rows == bad => {
            Err(first.file.unusable("", format!("no row of it{more} is of use: {told}. {hint}")))
        }
        (_, 0) => Ok(None),
        (rows, _) => Ok(Some(format!("{bad} of {rows} rows cannot be read as samples: {told}. {hint}"))),
    }
}

impl Source for ParquetSource {
    fn len(&self) -> u64 {
        self.sizes.len() as u64
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Of a row without one, the first class: such a row cannot be read.
    fn label(&self, id: SampleId) -> u32 {
        Some(self.labels[id.0 as usize]).filter(|&label| label != NO_LABEL).unwrap_or(0)
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        image_bytes(self.sizes[id.0 as usize])
    }

    /// The file and the row in it, from 0.
    fn name(&self, id: SampleId) -> String {
        let part = self.part_of(id);
        format!("{}: row {}", part.file.path.display(), id.0 - part.first)
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        let bytes = self.encoded_bytes(id);
        assert_eq!(out.len() as u64, bytes, "{id} has {bytes} bytes");
        if let Some(fault) = fault(self.sizes[id.0 as usize], self.labels[id.0 as usize]) {
            let (file, place) = self.place_of(id);
            return Err(file.unusable(&place, format!("the row has {fault}")));
        }
        self.held.read(id, out, |block, buffer| self.load(block, buffer))
    }

    fn title(&self) -> String {
        match self.files.as_slice() {
            [] => String::new(),
            [only] => only.file.path.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.file.path.display(), rest.len()),
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn blocks(&self) -> Option<&Blocks> {
        Some(&self.blocks)
    }

    fn io_profile(&self) -> IoProfile {
        let buffer_bytes = self.held.capacity_bytes().saturating_add(LOADS_MAX as u64 * self.load_bytes_max);
        IoProfile { concurrency: LOADS_MAX, buffer_bytes, coalesce_bytes: 0 }
    }

    /// Asks the system to read the row groups that these samples are in, but no more of them than are held.
    fn read_ahead(&self, ids: &[SampleId]) {
        let mut last = None;
        let mut asked = 0;
        for block in ids.iter().map(|&id| self.blocks.block_of(id)) {
            if last.replace(block) == Some(block) || self.held.contains(block) {
                continue;
            }
            let group = &self.groups[block as usize];
            // A file that cannot be opened says so when it is read.
            if let Ok(opened) = self.files[group.part as usize].file.open() {
                opened.advise(group.chunk.start, group.chunk.bytes, Advice::WillNeed);
            }
            asked += 1;
            if asked == self.blocks.resident() {
                return;
            }
        }
    }

    fn set_drop_page_cache(&self, forget: bool) {
        self.drop_page_cache.store(forget, Ordering::Relaxed);
    }

    fn index_bytes(&self) -> u64 {
        let strings = |list: &Vec<String>| {
            list.capacity() * size_of::<String>() + list.iter().map(String::capacity).sum::<usize>()
        };
        let paths = self.files.iter().map(|part| part.file.path.capacity()).sum::<usize>();
        let tables = self.files.capacity() * size_of::<Part>()
            + self.groups.capacity() * size_of::<Group>()
            + (self.sizes.capacity() + self.labels.capacity()) * size_of::<u32>();
        (size_of::<Self>() + paths + tables + strings(&self.classes) + strings(&self.notes)) as u64
    }
}

impl fmt::Debug for ParquetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetSource").field("title", &self.title()).field("len", &self.len()).finish_non_exhaustive()
    }
}
