//! A part of a source as a source: a range, a stride, a random share, some classes, or a list of ids.

use std::mem::size_of;
use std::ops::Range;

use super::error::first_names;
use super::{Blocks, IoProfile, PageCache, SampleRead, Source, SourceError, Unreadable, heap_size};
use crate::rng::{KeyedRng, Seed};
use crate::sync::Arc;
use crate::units::SampleId;

/// Key of this use of a seed: "division" in ASCII.
const SALT: u64 = u64::from_be_bytes(*b"division");

/// Some samples of a source, renumbered from 0. They keep their names.
///
/// A range and a stride take no memory, a list takes 4 bytes a sample (8 beyond 4 billion samples). The index of the
/// source counts as the subset's; two subsets of one source, in two loaders, both count it.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::source::{MemorySource, Source, Subset};
/// use std::sync::Arc;
///
/// let classes = vec!["cat".to_owned(), "dog".to_owned()];
/// let all = Arc::new(MemorySource::new(classes, (0..100).map(|i| (vec![i as u8], i % 2)).collect())?);
/// let (train, validation) = Subset::split(all.clone(), 0.9, 17)?;
/// assert_eq!((train.len(), validation.len()), (90, 10));
///
/// let dogs = Subset::of_classes(all, &["dog"])?;
/// assert_eq!((dogs.len(), dogs.label(SampleId(0))), (50, 0));
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
pub struct Subset {
    source: Arc<dyn Source>,
    selection: Selection,
    /// `None` if all classes are kept.
    relabeled: Option<Relabeled>,
    blocks: Option<Blocks>,
}

/// The ids of the selected samples.
#[derive(Debug)]
enum Selection {
    /// `start`, `start + step`, and so on.
    Stride {
        start: u64,
        step: u64,
        count: u64,
    },
    Narrow(Box<[u32]>),
    Wide(Box<[u64]>),
}

/// The kept classes.
struct Relabeled {
    classes: Vec<String>,
    /// New label of each label of the source; `u32::MAX` for classes that are not kept.
    labels: Box<[u32]>,
}

impl Subset {
    /// Selects the samples with these ids, in this order; in ascending order if the source has
    /// [`blocks`](Source::blocks).
    ///
    /// # Errors
    /// [`SourceError::Selection`] for the first id that is out of range or repeated.
    pub fn new(source: Arc<dyn Source>, ids: impl Into<Vec<u64>>) -> Result<Self, SourceError> {
        let mut ids = ids.into();
        let len = source.len();
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id >= len) {
            let what =
                format!("id {id} (index {index}) is out of range for {}, whose ids are below {len}", source.title());
            return Err(SourceError::Selection(what));
        }
        if !ids.is_sorted_by(|a, b| a < b) {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                let what = format!("id {} is given more than once: give each id once", pair[0]);
                return Err(SourceError::Selection(what));
            }
            if source.blocks().is_some() {
                ids = sorted;
            }
        }
        Ok(Self::of(source, Selection::list(ids.into_iter(), len), None))
    }

    /// Selects the samples whose ids are in a range.
    ///
    /// # Errors
    /// [`SourceError::Selection`] for a range that ends before it begins, or beyond the source's end.
    pub fn range(source: Arc<dyn Source>, ids: Range<u64>) -> Result<Self, SourceError> {
        let Range { start, end } = ids;
        if start > end || end > source.len() {
            let what = format!(
                "{start}..{end} is not a range of the samples of {}, which has {}",
                source.title(),
                source.len()
            );
            return Err(SourceError::Selection(what));
        }
        Ok(Self::of(source, Selection::Stride { start, step: 1, count: end - start }, None))
    }

    /// Selects every `step`th sample from `offset` on: `offset`, `offset + step`, ... Subsets with the offsets
    /// `0..step` cover all samples.
    ///
    /// # Errors
    /// [`SourceError::Selection`] if `offset` is not below `step`.
    pub fn every(source: Arc<dyn Source>, step: u64, offset: u64) -> Result<Self, SourceError> {
        if offset >= step {
            let what =
                format!("stride {step} with offset {offset}: expected a stride of at least 1 and an offset below it");
            return Err(SourceError::Selection(what));
        }
        let count = source.len().saturating_sub(offset).div_ceil(step);
        Ok(Self::of(source, Selection::Stride { start: offset, step, count }, None))
    }

    /// Splits a source in two: a random `share` of its samples, and the rest, both in the order of their ids. The split
    /// depends on the seed and the number of samples alone.
    ///
    /// # Errors
    /// [`SourceError::Selection`] for a share that is not in `[0, 1]`.
    pub fn split(source: Arc<dyn Source>, share: f64, seed: u64) -> Result<(Self, Self), SourceError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(SourceError::Selection(format!("invalid share {share}: expected a number from 0 to 1")));
        }
        let len = source.len();
        let count = ((len as f64 * share).round() as u64).min(len);
        let drawn = Selection::list(draw(len, count, Seed(seed)).filter_map(|(id, drawn)| drawn.then_some(id)), len);
        let others =
            Selection::list(draw(len, count, Seed(seed)).filter_map(|(id, drawn)| (!drawn).then_some(id)), len);
        Ok((Self::of(source.clone(), drawn, None), Self::of(source, others, None)))
    }

    /// Selects the samples of these classes, in their order. Labels index `names`.
    ///
    /// # Errors
    /// [`SourceError::Selection`] for a name that is not a class of the source, or that is repeated.
    pub fn of_classes(source: Arc<dyn Source>, names: &[impl AsRef<str>]) -> Result<Self, SourceError> {
        let classes: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        for (place, name) in classes.iter().enumerate() {
            if !source.classes().contains(name) {
                let known = source.classes();
                return Err(SourceError::Selection(format!(
                    "unknown class '{name}': {} has {} classes: {}",
                    source.title(),
                    known.len(),
                    first_names(known)
                )));
            }
            if classes[..place].contains(name) {
                return Err(SourceError::Selection(format!("class '{name}' is given more than once")));
            }
        }
        let new_label = |class: &String| classes.iter().position(|name| name == class);
        let labels: Box<[u32]> =
            source.classes().iter().map(|class| new_label(class).map_or(u32::MAX, |label| label as u32)).collect();
        let kept = |id: &u64| labels[source.label(SampleId(*id)) as usize] != u32::MAX;
        let selection = Selection::list((0..source.len()).filter(kept), source.len());
        Ok(Self::of(source, selection, Some(Relabeled { classes, labels })))
    }

    fn of(source: Arc<dyn Source>, selection: Selection, relabeled: Option<Relabeled>) -> Self {
        let blocks = source.blocks().map(|blocks| selection.blocks(blocks));
        Subset { source, selection, relabeled, blocks }
    }

    /// Id of a sample in the source that it was selected from.
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn origin(&self, id: SampleId) -> SampleId {
        assert!(id.0 < self.len(), "{id} is outside of {} samples", self.len());
        SampleId(self.selection.at(id.0))
    }
}

impl Selection {
    /// Creates a list of ids, all below `len`.
    fn list(ids: impl Iterator<Item = u64>, len: u64) -> Self {
        if len <= u64::from(u32::MAX) {
            Selection::Narrow(ids.map(|id| id as u32).collect())
        } else {
            Selection::Wide(ids.collect())
        }
    }

    fn len(&self) -> u64 {
        match self {
            Selection::Stride { count, .. } => *count,
            Selection::Narrow(ids) => ids.len() as u64,
            Selection::Wide(ids) => ids.len() as u64,
        }
    }

    fn at(&self, place: u64) -> u64 {
        match self {
            Selection::Stride { start, step, .. } => start + place * step,
            Selection::Narrow(ids) => u64::from(ids[place as usize]),
            Selection::Wide(ids) => ids[place as usize],
        }
    }

    /// Number of ids below `id`, if they ascend.
    fn below(&self, id: u64) -> u64 {
        match self {
            Selection::Stride { start, step, count } => id.saturating_sub(*start).div_ceil(*step).min(*count),
            Selection::Narrow(ids) => ids.partition_point(|&other| u64::from(other) < id) as u64,
            Selection::Wide(ids) => ids.partition_point(|&other| other < id) as u64,
        }
    }

    fn table_bytes(&self) -> usize {
        match self {
            Selection::Stride { .. } => 0,
            Selection::Narrow(ids) => size_of_val(&**ids),
            Selection::Wide(ids) => size_of_val(&**ids),
        }
    }

    /// The parts of blocks that are selected.
    fn blocks(&self, blocks: &Blocks) -> Blocks {
        let (mut ends, mut run_ends) = (Vec::new(), Vec::new());
        for run in 0..blocks.run_count() {
            for block in blocks.run(run) {
                let end = self.below(blocks.samples(block).end);
                if end > ends.last().copied().unwrap_or(0) {
                    ends.push(end);
                }
            }
            let end = ends.len() as u64;
            if end > run_ends.last().copied().unwrap_or(0) {
                run_ends.push(end);
            }
        }
        let kept = Blocks::new(ends, blocks.shuffle_window());
        if blocks.run_count() < blocks.count() { kept.with_runs(run_ends) } else { kept }
    }
}

/// Draws `count` of `len` ids: returns for each id true if it is drawn (Knuth, "The Art of Computer Programming",
/// volume 2, algorithm S: selection sampling).
fn draw(len: u64, count: u64, seed: Seed) -> impl Iterator<Item = (u64, bool)> {
    let mut rng = KeyedRng::new(seed, 0, SampleId(0), SALT);
    let mut left = count;
    (0..len).map(move |id| {
        let drawn = rng.below(len - id) < left;
        left -= u64::from(drawn);
        (id, drawn)
    })
}

impl Source for Subset {
    delegate! {
        this => this.source;
        is_in_memory() -> bool;
        notes() -> &[String];
        unreadable() -> &[Unreadable];
        unreadable_count() -> u64;
        io_profile() -> IoProfile;
    }

    fn len(&self) -> u64 {
        self.selection.len()
    }

    fn classes(&self) -> &[String] {
        self.relabeled.as_ref().map_or(self.source.classes(), |relabeled| &relabeled.classes)
    }

    fn label(&self, id: SampleId) -> u32 {
        let label = self.source.label(self.origin(id));
        self.relabeled.as_ref().map_or(label, |relabeled| relabeled.labels[label as usize])
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.source.encoded_bytes(self.origin(id))
    }

    fn name(&self, id: SampleId) -> String {
        self.source.name(self.origin(id))
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.source.read_into(self.origin(id), out)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        // A single read needs no list of ids.
        if let [read] = reads {
            let id = read.id;
            read.id = self.origin(id);
            self.source.read_many(std::slice::from_mut(read));
            read.id = id;
            return;
        }
        let ids: Vec<SampleId> = reads.iter().map(|read| read.id).collect();
        reads.iter_mut().for_each(|read| read.id = self.origin(read.id));
        self.source.read_many(reads);
        reads.iter_mut().zip(ids).for_each(|(read, id)| read.id = id);
    }

    fn index_bytes(&self) -> u64 {
        let relabeled = self
            .relabeled
            .as_ref()
            .map_or(0, |Relabeled { classes, labels }| size_of_val(&**labels) + heap_size::strings(classes));
        let own = size_of::<Self>() + self.selection.table_bytes() + relabeled;
        own as u64 + self.source.index_bytes() + self.source.blocks().map_or(0, Blocks::bytes)
    }

    fn title(&self) -> String {
        format!("{} ({} of {} samples)", self.source.title(), self.len(), self.source.len())
    }

    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        self.source.dimensions(self.origin(id))
    }

    fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    fn read_ahead(&self, ids: &[SampleId], page_cache: PageCache) {
        let mut origins: Vec<SampleId> = ids.iter().map(|&id| self.origin(id)).collect();
        origins.sort_unstable();
        self.source.read_ahead(&origins, page_cache);
    }
}

impl std::fmt::Debug for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subset({})", self.title())
    }
}

#[cfg(test)]
#[path = "subset_tests.rs"]
mod tests;
