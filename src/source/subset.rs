//! Owns a part of a source as a source: a range, every so many-th sample, a drawn share, some of the classes, or a list.
//! It must never hold more than 8 bytes a sample, or change what a sample is.

use std::mem::size_of;
use std::ops::Range;

use super::{Blocks, Reading, SampleRead, Source, SourceError, Unreadable};
use crate::sync::Arc;
use crate::units::{KeyedRng, SampleId, Seed};

/// Separates this use of a seed from every other: "division" in ASCII.
const SALT: u64 = u64::from_be_bytes(*b"division");

/// Class names that an error lists before it says "and so on".
const NAMES_MAX: usize = 8;

/// Some samples of a source, renumbered from 0. They keep their names.
///
/// A range and a stride take no memory, a list 4 bytes a sample (8 past 4 billion samples). The index of the source counts
/// as this one's; two subsets of one source, in two loaders, both count it.
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
    picks: Picks,
    /// Classes and the new label of each old one, where only some are kept.
    relabelled: Option<Relabelled>,
    blocks: Option<Blocks>,
}

/// Which samples of the source are kept.
#[derive(Debug)]
enum Picks {
    /// `start`, `start + step`, and so on.
    Stride {
        start: u64,
        step: u64,
        count: u64,
    },
    Narrow(Box<[u32]>),
    Wide(Box<[u64]>),
}

struct Relabelled {
    classes: Vec<String>,
    labels: Box<[u32]>,
}

impl Subset {
    /// The samples with these ids, in this order; in the order of their ids where the source has
    /// [`blocks`](Source::blocks).
    ///
    /// # Errors
    /// [`SourceError::Choice`] for the first id that the source does not have, or that comes twice.
    pub fn new(source: Arc<dyn Source>, ids: impl Into<Vec<u64>>) -> Result<Self, SourceError> {
        let mut ids = ids.into();
        let len = source.len();
        if let Some((place, id)) = ids.iter().enumerate().find(|&(_, &id)| id >= len) {
            let what = format!(
                "id {id} (at place {place} of what was chosen) is none of {}, whose ids are below {len}",
                source.title()
            );
            return Err(SourceError::Choice(what));
        }
        if !ids.is_sorted_by(|a, b| a < b) {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                let what = format!("id {} was chosen more than once: choose each sample once", pair[0]);
                return Err(SourceError::Choice(what));
            }
            if source.blocks().is_some() {
                ids = sorted;
            }
        }
        Ok(Self::of(source, Picks::list(ids.into_iter(), len), None))
    }

    /// The samples whose ids are in a range.
    ///
    /// # Errors
    /// [`SourceError::Choice`] for a range that ends before it begins, or past the source's end.
    pub fn range(source: Arc<dyn Source>, ids: Range<u64>) -> Result<Self, SourceError> {
        let Range { start, end } = ids;
        if start > end || end > source.len() {
            let what = format!("samples {start}..{end} are no range of {}, which has {}", source.title(), source.len());
            return Err(SourceError::Choice(what));
        }
        Ok(Self::of(source, Picks::Stride { start, step: 1, count: end - start }, None))
    }

    /// Every `step`th sample, from `offset` on: `offset`, `offset + step`, and so on. With offsets from 0 up to `step`,
    /// such subsets cover all samples.
    ///
    /// # Errors
    /// [`SourceError::Choice`] where `offset` is not below `step`.
    pub fn every(source: Arc<dyn Source>, step: u64, offset: u64) -> Result<Self, SourceError> {
        if offset >= step {
            let what =
                format!("a stride of {step} from {offset} on: give a stride of 1 or more, and an offset below it");
            return Err(SourceError::Choice(what));
        }
        let count = source.len().saturating_sub(offset).div_ceil(step);
        Ok(Self::of(source, Picks::Stride { start: offset, step, count }, None))
    }

    /// Divides a source in two: `share` of its samples, drawn at random, and the others; both in the order of their ids.
    /// Which are drawn follows from the seed and the number of samples alone.
    ///
    /// # Errors
    /// [`SourceError::Choice`] for a share that is not in `[0, 1]`.
    pub fn split(source: Arc<dyn Source>, share: f64, seed: u64) -> Result<(Self, Self), SourceError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(SourceError::Choice(format!("{share} is no share of samples: write a number from 0 to 1")));
        }
        let len = source.len();
        let count = ((len as f64 * share).round() as u64).min(len);
        let drawn = Picks::list(draw(len, count, Seed(seed)).filter_map(|(id, drawn)| drawn.then_some(id)), len);
        let others = Picks::list(draw(len, count, Seed(seed)).filter_map(|(id, drawn)| (!drawn).then_some(id)), len);
        Ok((Self::of(source.clone(), drawn, None), Self::of(source, others, None)))
    }

    /// The samples of these classes, which keep their order; labels are places in `names`.
    ///
    /// # Errors
    /// [`SourceError::Choice`] for a name that is no class of the source's, or that comes twice.
    pub fn of_classes(source: Arc<dyn Source>, names: &[impl AsRef<str>]) -> Result<Self, SourceError> {
        let classes: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        for (place, name) in classes.iter().enumerate() {
            if !source.classes().contains(name) {
                let known = source.classes();
                let listed = known[..known.len().min(NAMES_MAX)].join(", ");
                let more = if known.len() > NAMES_MAX { ", and so on" } else { "" };
                let what =
                    format!("'{name}' is no class of {}; its {} are {listed}{more}", source.title(), known.len());
                return Err(SourceError::Choice(what));
            }
            if classes[..place].contains(name) {
                return Err(SourceError::Choice(format!("class '{name}' was chosen more than once")));
            }
        }
        let new_label = |class: &String| classes.iter().position(|name| name == class);
        let labels: Box<[u32]> =
            source.classes().iter().map(|class| new_label(class).map_or(u32::MAX, |label| label as u32)).collect();
        let kept = |id: &u64| labels[source.label(SampleId(*id)) as usize] != u32::MAX;
        let picks = Picks::list((0..source.len()).filter(kept), source.len());
        Ok(Self::of(source, picks, Some(Relabelled { classes, labels })))
    }

    fn of(source: Arc<dyn Source>, picks: Picks, relabelled: Option<Relabelled>) -> Self {
        let blocks = source.blocks().map(|blocks| picks.blocks(blocks));
        Subset { source, picks, relabelled, blocks }
    }

    /// What a sample of this is in the source that it was chosen from.
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn origin(&self, id: SampleId) -> SampleId {
        assert!(id.0 < self.len(), "{id} was asked of {} samples", self.len());
        SampleId(self.picks.at(id.0))
    }
}

impl Picks {
    /// A list of ids below `len`.
    fn list(ids: impl Iterator<Item = u64>, len: u64) -> Self {
        if len <= u64::from(u32::MAX) {
            Picks::Narrow(ids.map(|id| id as u32).collect())
        } else {
            Picks::Wide(ids.collect())
        }
    }

    fn len(&self) -> u64 {
        match self {
            Picks::Stride { count, .. } => *count,
            Picks::Narrow(ids) => ids.len() as u64,
            Picks::Wide(ids) => ids.len() as u64,
        }
    }

    fn at(&self, place: u64) -> u64 {
        match self {
            Picks::Stride { start, step, .. } => start + place * step,
            Picks::Narrow(ids) => u64::from(ids[place as usize]),
            Picks::Wide(ids) => ids[place as usize],
        }
    }

    /// How many are below an id, where they ascend.
    fn below(&self, id: u64) -> u64 {
        match self {
            Picks::Stride { start, step, count } => id.saturating_sub(*start).div_ceil(*step).min(*count),
            Picks::Narrow(ids) => ids.partition_point(|&other| u64::from(other) < id) as u64,
            Picks::Wide(ids) => ids.partition_point(|&other| other < id) as u64,
        }
    }

    fn table_bytes(&self) -> usize {
        match self {
            Picks::Stride { .. } => 0,
            Picks::Narrow(ids) => size_of_val(&**ids),
            Picks::Wide(ids) => size_of_val(&**ids),
        }
    }

    /// What is left of blocks when only these samples are kept.
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
        let kept = Blocks::new(ends, blocks.mixed());
        if blocks.run_count() < blocks.count() { kept.in_runs(run_ends) } else { kept }
    }
}

/// For each id, whether it is one of `count` that are drawn of `len`: each as likely as all that are left make it (Knuth,
/// "The Art of Computer Programming", volume 2, algorithm S).
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
    fn len(&self) -> u64 {
        self.picks.len()
    }

    fn classes(&self) -> &[String] {
        self.relabelled.as_ref().map_or(self.source.classes(), |relabelled| &relabelled.classes)
    }

    fn label(&self, id: SampleId) -> u32 {
        let label = self.source.label(self.origin(id));
        self.relabelled.as_ref().map_or(label, |relabelled| relabelled.labels[label as usize])
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
        let ids: Vec<SampleId> = reads.iter().map(|read| read.id).collect();
        reads.iter_mut().for_each(|read| read.id = self.origin(read.id));
        self.source.read_many(reads);
        reads.iter_mut().zip(ids).for_each(|(read, id)| read.id = id);
    }

    fn index_bytes(&self) -> u64 {
        let relabelled = self.relabelled.as_ref().map_or(0, |Relabelled { classes, labels }| {
            size_of_val(&**labels)
                + classes.capacity() * size_of::<String>()
                + classes.iter().map(String::capacity).sum::<usize>()
        });
        let own = size_of::<Self>() + self.picks.table_bytes() + relabelled;
        own as u64 + self.source.index_bytes() + self.source.blocks().map_or(0, Blocks::bytes)
    }

    fn in_memory(&self) -> bool {
        self.source.in_memory()
    }

    fn title(&self) -> String {
        format!("{} ({} of {} samples)", self.source.title(), self.len(), self.source.len())
    }

    fn notes(&self) -> &[String] {
        self.source.notes()
    }

    fn unreadable(&self) -> &[Unreadable] {
        self.source.unreadable()
    }

    fn unreadable_count(&self) -> u64 {
        self.source.unreadable_count()
    }

    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        self.source.dimensions(self.origin(id))
    }

    fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    fn reading(&self) -> Reading {
        self.source.reading()
    }

    fn read_ahead(&self, ids: &[SampleId]) {
        let mut there: Vec<SampleId> = ids.iter().map(|&id| self.origin(id)).collect();
        there.sort_unstable();
        self.source.read_ahead(&there);
    }

    fn forget_pages(&self, forget: bool) {
        self.source.forget_pages(forget);
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
