//! Owns several sources as one, each after the other. It must never read anything itself, or let two samples have a name.

use std::mem::size_of;

use super::{Blocks, Reading, SampleRead, Source, SourceError, Unreadable};
use crate::sync::Arc;
use crate::units::SampleId;

/// Titles that the title of all of them names before it says how many more there are.
const TITLES_MAX: usize = 4;

/// What stands in a name between the title of its source and the rest.
const SEPARATORS: [char; 4] = ['/', ':', '#', '!'];

/// Entries that could not be read that are named, of all sources together.
const UNREADABLE_MAX: usize = 1000;

/// Several sources as one: the samples of the first, then those of the second, and so on.
///
/// * Classes are known by name. Where all sources have the same list, that is the list; else it is the union of all,
///   sorted bytewise, and labels are places in that (a note says so).
/// * A sample is called what its source calls it. Where two sources might use the same name, `#2 ` in front says which
///   source it is from; where names begin with the title of their source and titles differ, as with folders, they
///   cannot.
/// * Where any source has [`Blocks`], so has all: a source without is cut into blocks of the mean size of the others'.
///
/// An epoch takes samples from all sources alike; [`Sampling::mixed`](crate::Sampling::mixed) gives each its share.
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
    /// For each part, the sample after its last.
    ends: Box<[u64]>,
    classes: Vec<String>,
    blocks: Option<Blocks>,
    notes: Vec<String>,
    unreadable: Vec<Unreadable>,
}

struct Part {
    source: Arc<dyn Source>,
    /// The label in all of each of its own; none where they are the same.
    labels: Option<Box<[u32]>>,
    /// Whether its names say which part they are of.
    numbered: bool,
}

impl Concat {
    /// These sources, in this order.
    ///
    /// # Errors
    /// [`SourceError::Choice`] where there is none, or where they have more than 2^64 samples.
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn Source>>) -> Result<Self, SourceError> {
        let sources: Vec<Arc<dyn Source>> = sources.into_iter().collect();
        let Some(first) = sources.first() else {
            return Err(SourceError::Choice("no sources were put together: give one at least".to_owned()));
        };
        let mut ends = Vec::with_capacity(sources.len());
        let mut end = 0u64;
        for source in &sources {
            let Some(next) = end.checked_add(source.len()) else {
                let what = format!("{} sources have more samples than can be counted", sources.len());
                return Err(SourceError::Choice(what));
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
                "the {sources} sources have different classes: labels are places in the union of them, {classes} sorted by name"
            ));
        }
        for source in &sources {
            notes.extend(source.notes().iter().map(|note| format!("{}: {note}", source.title())));
        }
        let numbered = ambiguous(&sources);
        let parts = sources.iter().zip(numbered).map(|(source, numbered)| Part {
            source: source.clone(),
            labels: (!same).then(|| places(source.classes(), &classes)),
            numbered,
        });
        let unreadable = sources.iter().flat_map(|source| source.unreadable()).take(UNREADABLE_MAX).cloned().collect();
        Ok(Concat { parts: parts.collect(), blocks: blocks(&sources), ends: ends.into(), classes, notes, unreadable })
    }

    /// For each source, the sample after its last.
    #[must_use]
    pub fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// The sources, in their order.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<dyn Source>> {
        self.parts.iter().map(|part| &part.source)
    }

    /// The place of the source that a sample is of, and what it is there.
    ///
    /// # Panics
    /// Panics if `id` is not in `0..len`.
    #[must_use]
    pub fn origin(&self, id: SampleId) -> (usize, SampleId) {
        assert!(id.0 < self.len(), "{id} was asked of {} samples", self.len());
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
        // Each source is asked for those of its samples that stand together.
        for reads in reads.chunk_by_mut(|a, b| self.origin(a.id).0 == self.origin(b.id).0) {
            let Some(first) = reads.first() else { continue };
            let (place, _) = self.origin(first.id);
            let start = self.start(place);
            reads.iter_mut().for_each(|read| read.id.0 -= start);
            self.parts[place].source.read_many(reads);
            reads.iter_mut().for_each(|read| read.id.0 += start);
        }
    }

    /// A source that is in it twice, or elsewhere as well, counts each time.
    fn index_bytes(&self) -> u64 {
        let strings = |list: &Vec<String>| {
            list.capacity() * size_of::<String>() + list.iter().map(String::capacity).sum::<usize>()
        };
        let labels =
            self.parts.iter().flat_map(|part| &part.labels).map(|labels| size_of_val(&**labels)).sum::<usize>();
        let unreadable = self.unreadable.capacity() * size_of::<Unreadable>()
            + self.unreadable.iter().map(|entry| entry.path.capacity() + entry.cause.capacity()).sum::<usize>();
        let own = size_of::<Self>()
            + size_of_val(&*self.parts)
            + size_of_val(&*self.ends)
            + strings(&self.classes)
            + strings(&self.notes)
            + labels
            + unreadable;
        let of_parts = self.sources().map(|source| source.index_bytes() + source.blocks().map_or(0, Blocks::bytes));
        own as u64 + of_parts.sum::<u64>()
    }

    fn in_memory(&self) -> bool {
        self.sources().all(Source::in_memory)
    }

    fn title(&self) -> String {
        let titles: Vec<String> = self.sources().take(TITLES_MAX).map(Source::title).collect();
        let more = self.parts.len() - titles.len();
        if more > 0 { format!("{} + {more} more", titles.join(" + ")) } else { titles.join(" + ") }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Source by source; the first 1000.
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

    /// As many reads as the source that wants the most. All of them may be of one source, so what each holds is counted as
    /// often as that is more than it asked for. Together goes what the least of those that want it so can take.
    fn reading(&self) -> Reading {
        let all: Vec<Reading> = self.sources().map(Source::reading).collect();
        let at_once = all.iter().map(|reading| reading.at_once).max().unwrap_or(1);
        let held =
            |reading: &Reading| reading.held_bytes.saturating_mul(at_once.div_ceil(reading.at_once.max(1)) as u64);
        let together = all.iter().map(|reading| reading.together_bytes).filter(|&bytes| bytes > 0);
        Reading {
            at_once,
            held_bytes: all.iter().map(held).fold(0, u64::saturating_add),
            together_bytes: together.min().unwrap_or(0),
        }
    }

    fn read_ahead(&self, ids: &[SampleId]) {
        let mut rest = ids;
        let mut of_part = Vec::new();
        while let Some(&first) = rest.first() {
            let (place, _) = self.origin(first);
            let (start, end) = (self.start(place), self.ends[place]);
            // They ascend, so those of one source stand together.
            let count = rest.iter().take_while(|id| (start..end).contains(&id.0)).count();
            of_part.clear();
            of_part.extend(rest[..count].iter().map(|id| SampleId(id.0 - start)));
            self.parts[place].source.read_ahead(&of_part);
            rest = &rest[count..];
        }
    }

    fn forget_pages(&self, forget: bool) {
        self.sources().for_each(|source| source.forget_pages(forget));
    }
}

impl std::fmt::Debug for Concat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Concat({} sources, {} samples)", self.parts.len(), self.len())
    }
}

fn union(sources: &[Arc<dyn Source>]) -> Vec<String> {
    let mut all: Vec<String> = sources.iter().flat_map(|source| source.classes()).cloned().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The place of each class in a sorted list of all.
fn places(own: &[String], all: &[String]) -> Box<[u32]> {
    own.iter().map(|class| all.partition_point(|other| other < class) as u32).collect()
}

/// Whose names could be those of another source.
fn ambiguous(sources: &[Arc<dyn Source>]) -> Vec<bool> {
    let mut numbered = vec![sources.len() > 1; sources.len()];
    let mut known: Vec<(String, usize)> =
        sources.iter().enumerate().filter_map(|(place, source)| Some((beginning(&**source)?, place))).collect();
    known.sort_unstable();
    for (at, (beginning, place)) in known.iter().enumerate() {
        // In sorted order, the next shows whether any other begins like this.
        numbered[*place] = known.get(at + 1).is_some_and(|(next, _)| next.starts_with(beginning));
    }
    numbered
}

/// What all names of a source begin with, where that is its title: looked at are the first and the last.
fn beginning(source: &dyn Source) -> Option<String> {
    let last = SampleId(source.len().checked_sub(1)?);
    let title = source.title();
    let title = title.trim_end_matches('/');
    let after = source.name(SampleId(0)).strip_prefix(title)?.chars().next()?;
    let beginning = format!("{title}{after}");
    // With the stroke behind it, `data` is no beginning of `data2`.
    (SEPARATORS.contains(&after) && source.name(last).starts_with(&beginning)).then_some(beginning)
}

/// The blocks of all sources, if any has some.
fn blocks(sources: &[Arc<dyn Source>]) -> Option<Blocks> {
    let all: Vec<&Blocks> = sources.iter().filter_map(|source| source.blocks()).collect();
    // A source holds twice as many as it mixes: with the least of these, none is asked for more.
    let mixed = all.iter().map(|blocks| blocks.mixed()).min()?;
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
                let cut = 1..=source.len().div_ceil(mean);
                ends.extend(cut.clone().map(|block| start + block.saturating_mul(mean).min(source.len())));
                run_ends.extend(cut.map(|block| first + block));
            }
        }
        start += source.len();
    }
    let blocks = Blocks::new(ends, mixed);
    Some(if in_runs { blocks.in_runs(run_ends) } else { blocks })
}

#[cfg(test)]
#[path = "concat_tests.rs"]
pub(super) mod tests;
