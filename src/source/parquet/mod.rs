//! Source over Parquet files in the layout of the Hugging Face hub: a row is a sample, a row group is a block. The
//! memory of blocks and pages is known when the source is opened ([`IoProfile::buffer_bytes`]).

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
use std::fs;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use parquet::data_type::ByteArrayType;
use parquet::errors::ParquetError;
use parquet::schema::types::ColumnDescPtr;
use rustix::fs::Advice;

use super::block_cache::{BlockBuffer, BlockCache};
use super::{Blocks, IoProfile, PageCache, SampleRead, Source, SourceError, heap_size};
use crate::sync::Arc;
use crate::units::{ByteCount, SampleId};
pub use options::ParquetOptions;

use columns::LabelKind;
use file::DataFile;
use pages::{ColumnChunk, read_values};
use scan::{ClassNames, NO_LABEL, ScannedFile, location, numbered, row_problem};
use sizes::image_bytes;

/// Row groups that are loaded concurrently.
const LOADS_MAX: usize = 2;

/// Row group size from which on a note is given: several row groups are held at a time.
const BLOCK_BYTES_NOTED: u64 = 256 << 20;

/// Images and labels in Parquet files, in the layout of the Hugging Face hub.
///
/// * Images are in the column `image`, `img` or similar, or in the only one of its type: a struct of `bytes` (binary)
///   and `path`, or a binary column. Only the required columns are read.
/// * Labels are in the column `label`, `labels`, `fine_label`, `cls` or similar: integers, with class names from the
///   metadata of the Hugging Face library (or the numbers), or text, whose distinct values are the classes, sorted
///   bytewise.
/// * A row without bytes or without a label (-1) is a bad sample, which [`OnBadSample`](crate::OnBadSample) handles.
///   [`notes`](Source::notes) contain their number. Files without any readable row are refused.
/// * Rows are read by the row group, which is a block ([`Blocks`]). Row groups of 100 to 1000 images keep memory low.
///
/// Labels and sizes take 8 bytes per row in RAM. Determining the sizes takes one read of the whole file; they are kept
/// in a small index file beside it, which is validated, and replaced after the data was modified.
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
    files: Vec<ParquetFile>,
    groups: Vec<RowGroup>,
    cache: BlockCache,
    blocks: Blocks,
    /// Size of each sample, or the marker of a row without an image.
    sizes: Vec<u32>,
    labels: Vec<u32>,
    classes: Vec<String>,
    notes: Vec<String>,
    load_bytes_max: u64,
}

/// File, its image column, and the sample of its first row.
struct ParquetFile {
    file: DataFile,
    images: ColumnDescPtr,
    first: u64,
}

/// Row group: the index of its file, its number in the file, and the location of its images.
struct RowGroup {
    file: u32,
    number: u32,
    chunk: ColumnChunk,
}

impl ParquetSource {
    /// Opens files with default options. Rows are numbered in the order of the files. Labels are read, and sizes, too,
    /// if there is no index.
    ///
    /// # Errors
    /// * [`SourceError::Io`] if a file cannot be opened or read.
    /// * [`SourceError::Unusable`] if a file is not a complete Parquet file, has no suitable columns, or is damaged;
    ///   with the row group and the row.
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, SourceError> {
        Self::open_with(paths, &ParquetOptions::new())
    }

    /// Opens files with options.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
        options: &ParquetOptions,
    ) -> Result<Self, SourceError> {
        let (mut names, mut files, mut seen) = (ClassNames::default(), Vec::new(), HashSet::new());
        for path in paths {
            let path = path.as_ref();
            let scanned = scan::scan(path, options, &mut names)?;
            if !seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.into())) {
                return Err(scanned.file.unusable("", "the file is given twice: name each file once"));
            }
            files.push(scanned);
        }
        Self::assemble(files, names, options)
    }

    fn assemble(scanned: Vec<ScannedFile>, names: ClassNames, options: &ParquetOptions) -> Result<Self, SourceError> {
        let (classes, class_of) = classes(&scanned, names)?;
        let (mut files, mut groups, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sizes, mut labels, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut end, mut block_bytes_max, mut load_bytes_max) = (0u64, 0u64, 0u64);
        for (file, mut found) in scanned.into_iter().enumerate() {
            let first = end;
            let mut left = found.sizes.rows.as_slice();
            for (&(number, chunk), (rows, memory)) in found.groups.iter().zip(&found.sizes.groups) {
                let (own, rest) = left.split_at(*rows as usize);
                left = rest;
                end += rows;
                ends.push(end);
                groups.push(RowGroup { file: file as u32, number, chunk });
                block_bytes_max = block_bytes_max.max(own.iter().map(|&size| image_bytes(size)).sum());
                let largest = own.iter().map(|&size| image_bytes(size)).max().unwrap_or(0);
                load_bytes_max = load_bytes_max.max(memory.load_bytes(*rows, largest));
            }
            if let Some(class_of) = &class_of {
                let known = found.labels.iter_mut().filter(|label| **label != NO_LABEL);
                known.for_each(|label| *label = class_of[*label as usize]);
            }
            sizes.append(&mut found.sizes.rows);
            labels.append(&mut found.labels);
            notes.append(&mut found.notes);
            files.push(ParquetFile { file: found.file, images: found.image.column, first });
        }
        // Notes that several files share are given once.
        let mut seen = HashSet::new();
        notes.retain(|note| seen.insert(note.clone()));
        notes.extend(note_about_rows(&files, &sizes, &labels)?);
        let blocks = Blocks::new(ends, options.row_groups_shuffled(block_bytes_max));
        if block_bytes_max > BLOCK_BYTES_NOTED {
            notes.push(format!(
                "the largest row group has {} of images, and up to {} row groups are in RAM at a time: smaller row \
                 groups (100 to 1000 rows) need less RAM and shuffle better",
                ByteCount(block_bytes_max),
                (blocks.resident() as u64).min(blocks.count())
            ));
        }
        sizes.shrink_to_fit();
        labels.shrink_to_fit();
        groups.shrink_to_fit();
        let cache = BlockCache::new(blocks.clone(), block_bytes_max, LOADS_MAX);
        Ok(ParquetSource { files, groups, cache, blocks, sizes, labels, classes, notes, load_bytes_max })
    }

    fn file_of(&self, id: SampleId) -> &ParquetFile {
        assert!(id.0 < self.len(), "{id} is not in a source of {} samples", self.len());
        &self.files[self.files.partition_point(|file| file.first <= id.0) - 1]
    }

    /// File of a sample, and its location there.
    fn location_of(&self, id: SampleId) -> (&DataFile, String) {
        let block = self.blocks.block_of(id);
        let group = &self.groups[block as usize];
        let row = id.0 - self.blocks.samples(block).start;
        (&self.files[group.file as usize].file, location(group.number, row))
    }

    fn read(&self, id: SampleId, out: &mut [u8], page_cache: PageCache) -> Result<(), SourceError> {
        let bytes = self.encoded_bytes(id);
        assert_eq!(out.len() as u64, bytes, "{id} has {bytes} bytes");
        if let Some(problem) = row_problem(self.sizes[id.0 as usize], self.labels[id.0 as usize]) {
            let (file, location) = self.location_of(id);
            return Err(file.unusable(&location, format!("the row has {problem}")));
        }
        self.cache.read(id, out, |block, buffer| self.load(block, buffer, page_cache))
    }

    /// Reads the images of a row group.
    fn load(&self, block: u64, buffer: &mut BlockBuffer, page_cache: PageCache) -> Result<(), SourceError> {
        let RowGroup { file, number, chunk } = &self.groups[block as usize];
        let ParquetFile { file, images, .. } = &self.files[*file as usize];
        let samples = self.blocks.samples(block);
        let sizes = &self.sizes[samples.start as usize..samples.end as usize];
        let opened = Arc::new(file.open()?);
        let put = |row: u64, image: Option<&parquet::data_type::ByteArray>| {
            let (size, start) = (sizes[row as usize], buffer.len());
            let bytes = image.map_or(&[][..], |image| image.data());
            // The sizes come from this file, or from an index that names it.
            let is_same =
                image.is_none() == (row_problem(size, 0).is_some()) && bytes.len() as u64 == image_bytes(size);
            if !is_same || buffer.append(bytes).is_none() {
                let message = format!("the image has {} bytes, {} in the index", bytes.len(), image_bytes(size));
                return Err(ParquetError::General(message));
            }
            buffer.add_sample(start..buffer.len());
            Ok(())
        };
        let read = read_values::<ByteArrayType>(&opened, images, chunk, sizes.len() as u64, 1, put);
        if page_cache == PageCache::Drop {
            opened.advise(chunk.start, chunk.bytes, Advice::DontNeed);
        }
        read.map(drop).map_err(|error| file.damaged(&location(*number, error.row), error.cause))
    }
}

/// Names of the classes; and for text labels, the class of each provisional number.
fn classes(scanned: &[ScannedFile], names: ClassNames) -> Result<(Vec<String>, Option<Vec<u32>>), SourceError> {
    let is_text = |found: &&ScannedFile| found.label_kind == LabelKind::Text;
    if let Some(text) = scanned.iter().find(is_text) {
        if let Some(number) = scanned.iter().find(|found| !is_text(found)) {
            let (name, other) = (&number.label_name, text.file.path.display());
            let cause =
                format!("the labels ('{name}') are integers, and those of {other} are text: open the files separately");
            return Err(number.file.unusable("", cause));
        }
        let (classes, class_of) = names.sorted();
        return Ok((classes, Some(class_of)));
    }
    let Some((named, names)) = scanned.iter().find_map(|found| Some((found, found.class_names.as_ref()?))) else {
        let numbered = scanned.iter().map(|found| numbered(&found.labels)).max_by_key(Vec::len);
        return Ok((numbered.unwrap_or_default(), None));
    };
    for found in scanned {
        let other = named.file.path.display();
        if found.class_names.as_ref().is_some_and(|own| own != names) {
            let cause = format!("the class names of '{}' differ from those of {other}", found.label_name);
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

/// Note about the rows that cannot be read.
///
/// # Errors
/// [`SourceError::Unusable`] if there are no other rows.
fn note_about_rows(files: &[ParquetFile], sizes: &[u32], labels: &[u32]) -> Result<Option<String>, SourceError> {
    let Some(first) = files.first() else {
        let cause = "no Parquet file is given: name at least one".into();
        return Err(SourceError::Unusable { path: PathBuf::new(), place: "Parquet".into(), cause });
    };
    let mut problems: BTreeMap<&str, usize> = BTreeMap::new();
    for problem in sizes.iter().zip(labels).filter_map(|(&size, &label)| row_problem(size, label)) {
        *problems.entry(problem).or_default() += 1;
    }
    let bad: usize = problems.values().sum();
    let list: Vec<String> = problems.iter().map(|(problem, rows)| format!("{problem} ({rows})")).collect();
    let list = list.join(", ");
    let hint = "Images must be in the files (the Hugging Face library embeds them), and a test set without labels \
                cannot be used for training";
    let more = if files.len() > 1 { format!(" and {} more files", files.len() - 1) } else { String::new() };
    match (sizes.len(), bad) {
        (0, _) => Err(first.file.unusable("", format!("the file{more} has no rows"))),
        (rows, bad) if rows == bad => {
            Err(first.file.unusable("", format!("no row of the file{more} can be read: {list}. {hint}")))
        }
        (_, 0) => Ok(None),
        (rows, _) => Ok(Some(format!("{bad} of {rows} rows cannot be read: {list}. {hint}"))),
    }
}

impl Source for ParquetSource {
    fn len(&self) -> u64 {
        self.sizes.len() as u64
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Label of a sample; 0 for rows without a label, which cannot be read.
    fn label(&self, id: SampleId) -> u32 {
        Some(self.labels[id.0 as usize]).filter(|&label| label != NO_LABEL).unwrap_or(0)
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        image_bytes(self.sizes[id.0 as usize])
    }

    /// Path of the file, and row in it, from 0.
    fn name(&self, id: SampleId) -> String {
        let file = self.file_of(id);
        format!("{}: row {}", file.file.path.display(), id.0 - file.first)
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.read(id, out, PageCache::Keep)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for read in reads {
            read.result = self.read(read.id, read.out, read.page_cache);
        }
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
        let buffer_bytes = self.cache.capacity_bytes().saturating_add(LOADS_MAX as u64 * self.load_bytes_max);
        IoProfile { concurrency: LOADS_MAX, buffer_bytes, coalesce_bytes: 0 }
    }

    /// Asks the system to read the row groups of these samples ahead, at most as many as are held.
    fn read_ahead(&self, ids: &[SampleId], _: PageCache) {
        let mut last = None;
        let mut asked = 0;
        for block in ids.iter().map(|&id| self.blocks.block_of(id)) {
            if last.replace(block) == Some(block) || self.cache.contains(block) {
                continue;
            }
            let group = &self.groups[block as usize];
            // A file that cannot be opened fails when it is read.
            if let Ok(opened) = self.files[group.file as usize].file.open() {
                opened.advise(group.chunk.start, group.chunk.bytes, Advice::WillNeed);
            }
            asked += 1;
            if asked == self.blocks.resident() {
                return;
            }
        }
    }

    fn index_bytes(&self) -> u64 {
        let paths = self.files.iter().map(|file| file.file.path.capacity()).sum::<usize>();
        let tables = self.files.capacity() * size_of::<ParquetFile>()
            + self.groups.capacity() * size_of::<RowGroup>()
            + (self.sizes.capacity() + self.labels.capacity()) * size_of::<u32>();
        (size_of::<Self>() + paths + tables + heap_size::strings(&self.classes) + heap_size::strings(&self.notes))
            as u64
    }
}

impl fmt::Debug for ParquetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetSource").field("title", &self.title()).field("len", &self.len()).finish_non_exhaustive()
    }
}
