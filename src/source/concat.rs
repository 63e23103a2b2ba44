//! Several sources as one, in their order.

use std::mem::size_of;

use super::{Blocks, IoProfile, PageCache, SampleRead, Source, SourceError, Unreadable, heap_size};
use crate::sync::Arc;
use crate::units::SampleId;

/// Maximum number of titles in the joint title.
const TITLES_MAX: usize = 4;

/// Separators between the title of a source and the rest of a sample's name.
const SEPARATORS: [char; 4] = ['/', ':', '#', '!'];

/// Maximum number of unreadable entries that are listed, over all sources.
const UNREADABLE_MAX: usize = 1000;

/// Several sources as one: the samples of the first, then those of the second, and so on.
///
/// * Classes are matched by name. If all sources have the same list of classes, it is kept. Otherwise the classes are
///   the union of all lists, sorted bytewise, and a note says so.
/// * A sample keeps its name. If two sources could use the same name, the prefix `#2 ` tells the second source's. Names
///   that begin with the title of their source, as those of folders, need no prefix unless titles are equal.
/// * If any source has [`Blocks`], the others are divided into blocks of the mean size.
///
/// An epoch takes every sample once; [`Sampling::mixed`](crate::Sampling::mixed) sets the share of each source.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::source::{Concat, MemorySource, Source};
/// use std::sync::Arc;
///
/// let source = |classes: [&str; 2], bytes: u8| {
///     let classes = classes.map(String::from).to_vec();
///     MemorySource::new(classes, vec![(vec![bytes], 0), (vec![bytes], 1)])
/// };
/// let pets = Arc::new(source(["cat", "dog"], 1)?);
/// let strays = Arc::new(source(["dog", "ant"], 2)?);
/// let both = Concat::new([pets as Arc<dyn Source>, strays])?;
/// assert_eq!(both.classes(), ["ant", "cat", "dog"]);
/// assert_eq!((0..4).map(|id| both.label(SampleId(id))).collect::<Vec<_>>(), [1, 2, 2, 0]);
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
pub struct Concat {
    parts: Box<[Part]>,
    /// End of each part: the id after its last sample.
    ends: Box<[u64]>,
    classes: Vec<String>,
    blocks: Option<Blocks>,
    notes: Vec<String>,
    unreadable: Vec<Unreadable>,
}

struct Part {
    source: Arc<dyn Source>,
    /// Joint label of each of its own labels. `None` if they are equal.
    labels: Option<Box<[u32]>>,
    /// Its names begin with the number of the part.
    numbered: bool,
}

impl Concat {
    /// Joins sources, in this order.
    ///
    /// # Errors
    /// [`SourceError::Selection`] for an empty list, or for more than 2^64 samples.
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn Source>>) -> Result<Self, SourceError> {
        let sources: Vec<Arc<dyn Source>> = sources.into_iter().collect();
        let Some(first) = sources.first() else {
            return Err(SourceError::Selection("no sources to join: give at least one".to_owned()));
        };
        let mut ends = Vec::with_capacity(sources.len());
        let mut end = 0u64;
        for source in &sources {
            let Some(next) = end.checked_add(source.len()) else {
                let what = format!("{} sources have more than 2^64 samples: join fewer", sources.len());
                return Err(SourceError::Selection(what));
            };
            end = next;
            ends.push(end);
        }
        let mut notes = Vec::new();
        let same = sources.iter().all(|source| source.classes() == first.classes());
        let classes = if same { first.classes().to_vec() } else { union(&sources) };
        if !same {
            let (sources, classes) = (sources.len(), classes.len());
            notes.push(format!(
                "the {sources} sources have different classes: labels index the union of them, {classes} classes \
                 sorted by name"
            ));
        }
        for source in &sources {
            notes.extend(source.notes().iter().map(|note| format!("{}: {note}", source.title())));
        }
        let numbered = ambiguous(&sources);
        let parts = sources.iter().zip(numbered).map(|(source, numbered)| Part {
            source: source.clone(),
            labels: (!same).then(|| positions(source.classes(), &classes)),
            numbered,
        });
        let unreadable = sources.iter().flat_map(|source| source.unreadable()).take(UNREADABLE_MAX).cloned().collect();
        Ok(Concat { parts: parts.collect(), blocks: blocks(&sources), ends: ends.into(), classes, notes, unreadable })
    }

    /// End of each source: the id after its last sample.
    #[must_use]
    pub fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// The sources, in their order.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<dyn Source>> {
        self.parts.iter().map(|part| &part.source)
    }

    /// Index of the source of a sample, and the sample's id in that source.
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn origin(&self, id: SampleId) -> (usize, SampleId) {
        assert!(id.0 < self.len(), "{id} is outside of {} samples", self.len());
        let place = self.ends.partition_point(|&end| end <= id.0);
        (place, SampleId(id.0 - self.start(place)))
    }

    fn start(&self, place: usize) -> u64 {
        place.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn part(&self, id: SampleId) -> (&Part, SampleId) {
        let (place, id) = self.origin(id);
        (&self.parts[place], id)
    }
}

impl Source for Concat {
    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, id: SampleId) -> u32 {
        let (part, id) = self.part(id);
        let label = part.source.label(id);
        part.labels.as_ref().map_or(label, |labels| labels[label as usize])
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        let (part, id) = self.part(id);
        part.source.encoded_bytes(id)
    }

    fn name(&self, id: SampleId) -> String {
        let (place, id) = self.origin(id);
        let Part { source, numbered, .. } = &self.parts[place];
        if *numbered { format!("#{} {}", place + 1, source.name(id)) } else { source.name(id) }
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        let (part, id) = self.part(id);
        part.source.read_into(id, out)
    }

    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        // One call for each run of samples of the same source.
        for reads in reads.chunk_by_mut(|a, b| self.origin(a.id).0 == self.origin(b.id).0) {
            let Some(first) = reads.first() else { continue };
            let (place, _) = self.origin(first.id);
            let start = self.start(place);
            reads.iter_mut().for_each(|read| read.id.0 -= start);
            self.parts[place].source.read_many(reads);
            reads.iter_mut().for_each(|read| read.id.0 += start);
        }
    }

    /// A source that is listed twice, or is used elsewhere too, counts each time.
    fn index_bytes(&self) -> u64 {
        let labels =
            self.parts.iter().flat_map(|part| &part.labels).map(|labels| size_of_val(&**labels)).sum::<usize>();
        let own = size_of::<Self>()
            + size_of_val(&*self.parts)
            + size_of_val(&*self.ends)
            + heap_size::strings(&self.classes)
            + heap_size::strings(&self.notes)
            + heap_size::unreadable(&self.unreadable)
            + labels;
        let of_parts = self.sources().map(|source| source.index_bytes() + source.blocks().map_or(0, Blocks::bytes));
        own as u64 + of_parts.sum::<u64>()
    }

    fn is_in_memory(&self) -> bool {
        self.sources().all(Source::is_in_memory)
    }

    fn title(&self) -> String {
        let titles: Vec<String> = self.sources().take(TITLES_MAX).map(Source::title).collect();
        let more = self.parts.len() - titles.len();
        if more > 0 { format!("{} + {more} more", titles.join(" + ")) } else { titles.join(" + ") }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The first 1000, source by source.
    fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    fn unreadable_count(&self) -> u64 {
        self.sources().map(Source::unreadable_count).sum()
    }

    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        let (part, id) = self.part(id);
        part.source.dimensions(id)
    }

    fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// Concurrency is the maximum of all sources. All reads may be of one source, so its buffers count as often as the
    /// concurrency exceeds its own. The coalescing size is the minimum of those that are not 0.
    fn io_profile(&self) -> IoProfile {
        let all: Vec<IoProfile> = self.sources().map(Source::io_profile).collect();
        let concurrency = all.iter().map(|profile| profile.concurrency).max().unwrap_or(1);
        let buffers = all.iter().map(|profile| {
            profile.buffer_bytes.saturating_mul(concurrency.div_ceil(profile.concurrency.max(1)) as u64)
        });
        let coalesce = all.iter().map(|profile| profile.coalesce_bytes).filter(|&bytes| bytes > 0);
        IoProfile {
            concurrency,
            buffer_bytes: buffers.fold(0, u64::saturating_add),
            coalesce_bytes: coalesce.min().unwrap_or(0),
        }
    }

    fn read_ahead(&self, ids: &[SampleId], page_cache: PageCache) {
        let mut rest = ids;
        let mut of_part = Vec::new();
        while let Some(&first) = rest.first() {
            let (place, _) = self.origin(first);
            let (start, end) = (self.start(place), self.ends[place]);
            // Ids ascend, so those of one source are adjacent.
            let count = rest.iter().take_while(|id| (start..end).contains(&id.0)).count();
            of_part.clear();
            of_part.extend(rest[..count].iter().map(|id| SampleId(id.0 - start)));
            self.parts[place].source.read_ahead(&of_part, page_cache);
            rest = &rest[count..];
        }
    }
}

impl std::fmt::Debug for Concat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Concat({} sources, {} samples)", self.parts.len(), self.len())
    }
}

/// Union of the classes of all sources, sorted bytewise.
fn union(sources: &[Arc<dyn Source>]) -> Vec<String> {
    let mut all: Vec<String> = sources.iter().flat_map(|source| source.classes()).cloned().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Position of each class in the sorted list of all.
fn positions(own: &[String], all: &[String]) -> Box<[u32]> {
    own.iter().map(|class| all.partition_point(|other| other < class) as u32).collect()
}

/// Returns for each source true if its names could be those of another one.
fn ambiguous(sources: &[Arc<dyn Source>]) -> Vec<bool> {
    let mut numbered = vec![sources.len() > 1; sources.len()];
    let mut known: Vec<(String, usize)> =
        sources.iter().enumerate().filter_map(|(place, source)| Some((common_prefix(&**source)?, place))).collect();
    known.sort_unstable();
    for (at, (prefix, place)) in known.iter().enumerate() {
        // In sorted order, a prefix of any other is a prefix of the next.
        numbered[*place] = known.get(at + 1).is_some_and(|(next, _)| next.starts_with(prefix));
    }
    numbered
}

/// Title and separator that all names of a source begin with, judged by the first name and the last.
fn common_prefix(source: &dyn Source) -> Option<String> {
    let last = SampleId(source.len().checked_sub(1)?);
    let title = source.title();
    let title = title.trim_end_matches('/');
    let after = source.name(SampleId(0)).strip_prefix(title)?.chars().next()?;
    let prefix = format!("{title}{after}");
    // The separator keeps `data` from being a prefix of `data2`.
    (SEPARATORS.contains(&after) && source.name(last).starts_with(&prefix)).then_some(prefix)
}

/// Blocks of all sources, if any source has blocks.
fn blocks(sources: &[Arc<dyn Source>]) -> Option<Blocks> {
    let all: Vec<&Blocks> = sources.iter().filter_map(|source| source.blocks()).collect();
    // A source caches twice its shuffle window, so the minimum is within the cache of each.
    let shuffle_window = all.iter().map(|blocks| blocks.shuffle_window()).min()?;
    let (samples, count) = all.iter().fold((0, 0), |sum, b| (sum.0 + b.sample_count(), sum.1 + b.count()));
    let mean = samples.checked_div(count).unwrap_or(1).max(1);
    let in_runs = all.iter().any(|blocks| blocks.run_count() < blocks.count());
    let (mut ends, mut run_ends) = (Vec::new(), Vec::new());
    let mut start = 0;
    for source in sources {
        let first = ends.len() as u64;
        match source.blocks() {
            Some(blocks) => {
                ends.extend((0..blocks.count()).map(|block| start + blocks.samples(block).end));
                run_ends.extend((0..blocks.run_count()).map(|run| first + blocks.run(run).end));
            }
            None => {
                let count = 1..=source.len().div_ceil(mean);
                ends.extend(count.clone().map(|block| start + block.saturating_mul(mean).min(source.len())));
                run_ends.extend(count.map(|block| first + block));
            }
        }
        start += source.len();
    }
    let blocks = Blocks::new(ends, shuffle_window);
    Some(if in_runs { blocks.with_runs(run_ends) } else { blocks })
}

#[cfg(test)]
#[path = "concat_tests.rs"]
pub(super) mod tests;
