//! Owns the rules of the [`Source`] trait as a check that runs on any implementation.
//! It must never know which implementation it is given.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use xxhash_rust::xxh3::xxh3_128;

use super::{Blocks, Reading, SampleRead, Source};
use crate::units::SampleId;

/// Samples that are looked at, spread evenly over the source.
const CHECKED_MAX: u64 = 1000;

/// Runs of blocks that are looked into, where samples come in blocks and are more than that.
const RUNS_MAX: u64 = 16;

/// Samples that are read by one call.
const TOGETHER: usize = 4;

/// Threads that read at the same time.
const READERS: u64 = 4;

/// Checks that a source keeps the rules of the trait, and says which one it broke first.
///
/// It looks at up to 1000 samples, spread evenly and with the first and the last among them, and reads each of them
/// seven times: twice alone, four at a time by one call, then from four threads at once, in different orders. It needs
/// memory for four samples.
/// Samples that come in [`Blocks`] are read block by block, from front to back; where they are more than
/// 1000, those of the first block of 16 runs at most.
///
/// # Errors
/// The first breach, with the sample and the numbers.
///
/// # Example
/// ```
/// use feedstock::source::{MemorySource, conformance};
///
/// let source = MemorySource::new(vec!["cat".into()], vec![(b"tabby".to_vec(), 0)])?;
/// conformance::check(&source).expect("a source that keeps the rules");
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
pub fn check(source: &dyn Source) -> Result<(), String> {
    let about = About::of(source)?;
    let groups = groups(about.len, about.blocks.as_ref());
    let ids = groups.concat();
    let mut names = HashMap::new();
    for &id in &ids {
        check_answers(source, id)?;
        if let Some(other) = names.insert(source.name(id), id) {
            return Err(format!("{other} and {id} are both called '{}': names must differ", source.name(id)));
        }
    }
    let answers = |id: &SampleId| (source.label(*id), source.encoded_bytes(*id), source.name(*id));
    let before: Vec<_> = ids.iter().map(answers).collect();
    check_read_ahead(source, &ids)?;
    let digests = groups
        .iter()
        .map(|ids| ids.iter().map(|&id| check_reads(source, id)).collect())
        .collect::<Result<Vec<Vec<u128>>, String>>()?;
    for (ids, digests) in groups.iter().zip(&digests) {
        check_read_many(source, ids, digests)?;
    }
    check_together(source, &groups, &digests)?;

    about.check_again(source)?;
    match ids.iter().zip(before).find(|(id, before)| answers(id) != *before) {
        Some((id, before)) => Err(format!(
            "{id} ('{}'): label, size and name have changed since it was read, from {before:?} to {:?}",
            source.name(*id),
            answers(id)
        )),
        None => Ok(()),
    }
}

/// What a source says of itself, all of which never changes.
#[derive(PartialEq)]
struct About {
    len: u64,
    title: String,
    reading: Reading,
    blocks: Option<Blocks>,
}

impl About {
    fn of(source: &dyn Source) -> Result<Self, String> {
        let about = About {
            len: source.len(),
            title: source.title(),
            reading: source.reading(),
            blocks: source.blocks().cloned(),
        };
        let len = about.len;
        if source.is_empty() != (len == 0) {
            return Err(format!("len() is {len}, but is_empty() is {}", source.is_empty()));
        }
        if about.title.is_empty() {
            return Err("title() is empty: a report could not say which data it is about".to_owned());
        }
        if about.reading.at_once == 0 {
            return Err("reading() wants 0 reads at once: nothing would ever be read".to_owned());
        }
        if let Some(blocks) = &about.blocks
            && blocks.sample_count() != len
        {
            return Err(format!("len() is {len}, but there are {} samples in blocks()", blocks.sample_count()));
        }
        let (count, listed) = (source.unreadable_count(), source.unreadable().len());
        if count < listed as u64 {
            return Err(format!("unreadable_count() is {count}, but unreadable() lists {listed}"));
        }
        Ok(about)
    }

    fn check_again(&self, source: &dyn Source) -> Result<(), String> {
        let (len, again) = (self.len, Self::of(source)?);
        let what = if again.len != len {
            format!("len() was {len} and is {}", again.len)
        } else if again.title != self.title {
            format!("title() was '{}' and is '{}'", self.title, again.title)
        } else if again.reading != self.reading {
            format!("reading() was {:?} and is {:?}", self.reading, again.reading)
        } else if again.blocks != self.blocks {
            "blocks() are others than before".to_owned()
        } else {
            return Ok(());
        };
        Err(format!("{what} after reading: it must never change"))
    }
}

/// The samples that are looked at, those of one block together.
fn groups(len: u64, blocks: Option<&Blocks>) -> Vec<Vec<SampleId>> {
    let Some(blocks) = blocks else { return vec![spread(len, CHECKED_MAX)] };
    let (blocks_looked_at, samples_max): (Vec<u64>, u64) = if len <= CHECKED_MAX {
        ((0..blocks.count()).collect(), CHECKED_MAX)
    } else {
        let runs = spread(blocks.run_count(), RUNS_MAX);
        (runs.into_iter().map(|run| blocks.run(run.0).start).collect(), CHECKED_MAX / RUNS_MAX)
    };
    let of_block = |block| {
        let samples = blocks.samples(block);
        let places = spread(samples.end - samples.start, samples_max).into_iter();
        places.map(|place| SampleId(samples.start + place.0)).collect()
    };
    blocks_looked_at.into_iter().map(of_block).collect()
}

/// Up to so many ids from `0..len`, the first and the last among them.
fn spread(len: u64, most: u64) -> Vec<SampleId> {
    let count = len.min(most);
    let last = u128::from(len.saturating_sub(1));
    (0..count).map(|i| SampleId((u128::from(i) * last / u128::from(count.max(2) - 1)) as u64)).collect()
}

/// What is told about a sample: in range, and the same each time.
fn check_answers(source: &dyn Source, id: SampleId) -> Result<(), String> {
    let (label, class_count) = (source.label(id), source.classes().len());
    let name = source.name(id);
    if label as usize >= class_count {
        return Err(format!("{id} ('{name}') has label {label}, but there are {class_count} classes"));
    }
    if name.is_empty() {
        return Err(format!("{id} has no name: an error could not say which one it is"));
    }
    let again = (source.label(id), source.encoded_bytes(id), source.name(id));
    let bytes = source.encoded_bytes(id);
    if again != (label, bytes, name.clone()) {
        return Err(format!("{id} ('{name}'): label, size and name must be the same each time they are asked for"));
    }
    let (size, again) = (source.dimensions(id), source.dimensions(id));
    if again != size {
        return Err(format!("{id} ('{name}'): dimensions were {size:?} and are {again:?}: they must stay the same"));
    }
    Ok(())
}

/// Announces all samples that are looked at, then none. What comes of it shows in the reads that follow.
fn check_read_ahead(source: &dyn Source, ids: &[SampleId]) -> Result<(), String> {
    let mut ascending = ids.to_vec();
    ascending.sort_unstable();
    for ids in [&ascending[..], &[]] {
        catch_unwind(AssertUnwindSafe(|| source.read_ahead(ids)))
            .map_err(|_| format!("read_ahead of {} samples panicked: it is a hint, and may do nothing", ids.len()))?;
    }
    Ok(())
}

/// Reads a sample over two different backgrounds: a byte that was not written shows as a difference.
fn check_reads(source: &dyn Source, id: SampleId) -> Result<u128, String> {
    let mut out = Vec::new();
    let first = digest(source, id, 0x00, &mut out)?;
    if digest(source, id, 0xFF, &mut out)? == first {
        Ok(first)
    } else {
        Err(format!(
            "{id} ('{}'): two reads gave different bytes; read_into must fill all of `out`, the same each time",
            source.name(id)
        ))
    }
}

/// Reads a few samples by one call, the last of them first.
fn check_read_many(source: &dyn Source, ids: &[SampleId], digests: &[u128]) -> Result<(), String> {
    let mut outs = vec![Vec::new(); TOGETHER];
    for (ids, digests) in ids.chunks(TOGETHER).zip(digests.chunks(TOGETHER)) {
        let mut reads = Vec::with_capacity(TOGETHER);
        for (&id, out) in ids.iter().zip(&mut outs).rev() {
            make_room(source, id, 0xFF, out)?;
            reads.push(SampleRead::new(id, out));
        }
        source.read_many(&mut reads);
        for (read, (&id, &digest)) in reads.iter().zip(ids.iter().zip(digests).rev()) {
            let name = source.name(id);
            if read.id != id {
                return Err(format!("{id} ('{name}') was {} after read_many: it must stay as it was", read.id));
            }
            read.done.as_ref().map_err(|error| format!("{id} ('{name}') cannot be read by read_many: {error}"))?;
            if xxh3_128(read.out) != digest {
                return Err(format!("{id} ('{name}'): read_many gave other bytes than read_into"));
            }
        }
    }
    Ok(())
}

fn digest(source: &dyn Source, id: SampleId, background: u8, out: &mut Vec<u8>) -> Result<u128, String> {
    make_room(source, id, background, out)?;
    source.read_into(id, out).map_err(|error| format!("{id} ('{}') cannot be read: {error}", source.name(id)))?;
    Ok(xxh3_128(out))
}

/// Makes `out` as long as a sample, and each byte of it `background`.
fn make_room(source: &dyn Source, id: SampleId, background: u8, out: &mut Vec<u8>) -> Result<(), String> {
    let bytes = source.encoded_bytes(id);
    let subject = || format!("{id} ('{}')", source.name(id));
    let len = usize::try_from(bytes).map_err(|_| format!("{}: {bytes} bytes fit into no memory", subject()))?;
    out.clear();
    out.try_reserve_exact(len).map_err(|error| format!("{}: no memory for {bytes} bytes: {error}", subject()))?;
    out.resize(len, background);
    Ok(())
}

/// Reads all samples from several threads at once, each in another order, and all of them block by block.
fn check_together(source: &dyn Source, groups: &[Vec<SampleId>], digests: &[Vec<u128>]) -> Result<(), String> {
    let read_all = |reader: u64| {
        let mut out = Vec::new();
        for (ids, digests) in groups.iter().zip(digests) {
            let count = ids.len();
            for step in 0..count {
                // Two go up and two go down, each from a start of its own.
                let step = if reader.is_multiple_of(2) { step } else { count - 1 - step };
                let place = (step + count * reader as usize / READERS as usize) % count;
                let id = ids[place];
                if digest(source, id, reader as u8, &mut out)? != digests[place] {
                    let name = source.name(id);
                    return Err(format!("{id} ('{name}'): reads from several threads gave different bytes"));
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|reader| scope.spawn(move || read_all(reader))).collect();
        // All are joined before any result is looked at: a panic left behind would become the scope's.
        let results: Vec<Result<(), String>> = readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or_else(|_| Err("a read panicked".to_owned())))
            .collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
#[path = "conformance_tests.rs"]
mod tests;
