//! Conformance check of the [`Source`] trait, for any implementation.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use xxhash_rust::xxh3::xxh3_128;

use super::{Blocks, IoProfile, PageCache, SampleRead, Source};
use crate::units::SampleId;

/// Maximum number of checked samples, spread evenly over the source.
const CHECKED_MAX: u64 = 1000;

/// Maximum number of checked runs of blocks, if there are more than [`CHECKED_MAX`] samples.
const CHECKED_RUNS_MAX: u64 = 16;

/// Samples of one `read_many` call.
const READ_MANY: usize = 4;

/// Number of concurrent readers.
const READERS: u64 = 4;

/// Checks that a source keeps the rules of the [`Source`] trait.
///
/// Up to 1000 samples are checked, spread evenly, including the first and the last. Each is read seven times: twice
/// alone, in calls of [`Source::read_many`] with four samples each, and from four threads at once in different orders.
/// The check needs memory for four samples. Samples that come in [`Blocks`] are read block by block in their order; of
/// more than 1000 samples, those of the first blocks of up to 16 runs.
///
/// # Errors
/// The first violated rule, with the sample and the numbers.
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
    let constants = Constants::of(source)?;
    let groups = groups(constants.len, constants.blocks.as_ref());
    let ids = groups.concat();
    let mut names = HashMap::new();
    for &id in &ids {
        check_answers(source, id)?;
        if let Some(other) = names.insert(source.name(id), id) {
            return Err(format!("{other} and {id} are both named '{}': names must differ", source.name(id)));
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
    check_concurrent_reads(source, &groups, &digests)?;

    constants.check_again(source)?;
    match ids.iter().zip(before).find(|(id, before)| answers(id) != *before) {
        Some((id, before)) => Err(format!(
            "{id} ('{}'): label, size and name changed during reads, from {before:?} to {:?}",
            source.name(*id),
            answers(id)
        )),
        None => Ok(()),
    }
}

/// Properties of a source that never change.
#[derive(PartialEq)]
struct Constants {
    len: u64,
    title: String,
    io_profile: IoProfile,
    blocks: Option<Blocks>,
}

impl Constants {
    fn of(source: &dyn Source) -> Result<Self, String> {
        let constants = Constants {
            len: source.len(),
            title: source.title(),
            io_profile: source.io_profile(),
            blocks: source.blocks().cloned(),
        };
        let len = constants.len;
        if source.is_empty() != (len == 0) {
            return Err(format!("len() is {len}, but is_empty() is {}", source.is_empty()));
        }
        if constants.title.is_empty() {
            return Err("title() is empty: reports need it".to_owned());
        }
        if constants.io_profile.concurrency == 0 {
            return Err("io_profile().concurrency is 0: expected at least 1".to_owned());
        }
        if let Some(blocks) = &constants.blocks
            && blocks.sample_count() != len
        {
            return Err(format!("len() is {len}, but blocks() has {} samples", blocks.sample_count()));
        }
        let (count, listed) = (source.unreadable_count(), source.unreadable().len());
        if count < listed as u64 {
            return Err(format!("unreadable_count() is {count}, but unreadable() lists {listed}"));
        }
        Ok(constants)
    }

    fn check_again(&self, source: &dyn Source) -> Result<(), String> {
        let (len, again) = (self.len, Self::of(source)?);
        let what = if again.len != len {
            format!("len() was {len} and is {}", again.len)
        } else if again.title != self.title {
            format!("title() was '{}' and is '{}'", self.title, again.title)
        } else if again.io_profile != self.io_profile {
            format!("io_profile() was {:?} and is {:?}", self.io_profile, again.io_profile)
        } else if again.blocks != self.blocks {
            "blocks() changed".to_owned()
        } else {
            return Ok(());
        };
        Err(format!("{what} after reads: it must never change"))
    }
}

/// Selects the samples to check, grouped by block.
fn groups(len: u64, blocks: Option<&Blocks>) -> Vec<Vec<SampleId>> {
    let Some(blocks) = blocks else { return vec![spread(len, CHECKED_MAX)] };
    let (checked_blocks, samples_max): (Vec<u64>, u64) = if len <= CHECKED_MAX {
        ((0..blocks.count()).collect(), CHECKED_MAX)
    } else {
        let runs = spread(blocks.run_count(), CHECKED_RUNS_MAX);
        (runs.into_iter().map(|run| blocks.run(run.0).start).collect(), CHECKED_MAX / CHECKED_RUNS_MAX)
    };
    let of_block = |block| {
        let samples = blocks.samples(block);
        let offsets = spread(samples.end - samples.start, samples_max).into_iter();
        offsets.map(|offset| SampleId(samples.start + offset.0)).collect()
    };
    checked_blocks.into_iter().map(of_block).collect()
}

/// Returns up to `max` ids from `0..len`, including the first and the last.
fn spread(len: u64, max: u64) -> Vec<SampleId> {
    let count = len.min(max);
    let last = u128::from(len.saturating_sub(1));
    (0..count).map(|i| SampleId((u128::from(i) * last / u128::from(count.max(2) - 1)) as u64)).collect()
}

/// Checks that the properties of a sample are in range and the same each time.
fn check_answers(source: &dyn Source, id: SampleId) -> Result<(), String> {
    let (label, class_count) = (source.label(id), source.classes().len());
    let name = source.name(id);
    if label as usize >= class_count {
        return Err(format!("{id} ('{name}') has label {label}, but there are {class_count} classes"));
    }
    if name.is_empty() {
        return Err(format!("{id} has an empty name: errors need it"));
    }
    let again = (source.label(id), source.encoded_bytes(id), source.name(id));
    let bytes = source.encoded_bytes(id);
    if again != (label, bytes, name.clone()) {
        return Err(format!("{id} ('{name}'): label, size and name differ between calls: they must never change"));
    }
    let (size, again) = (source.dimensions(id), source.dimensions(id));
    if again != size {
        return Err(format!("{id} ('{name}'): dimensions were {size:?} and are {again:?}: they must never change"));
    }
    Ok(())
}

/// Calls `read_ahead` with all checked samples, then with none. Effects show in the reads that follow.
fn check_read_ahead(source: &dyn Source, ids: &[SampleId]) -> Result<(), String> {
    let mut ascending = ids.to_vec();
    ascending.sort_unstable();
    for ids in [&ascending[..], &[]] {
        catch_unwind(AssertUnwindSafe(|| source.read_ahead(ids, PageCache::Keep)))
            .map_err(|_| format!("read_ahead of {} samples panicked: it is a hint and must not panic", ids.len()))?;
    }
    Ok(())
}

/// Reads a sample into buffers with two different fills: a byte that is not written shows as a difference.
fn check_reads(source: &dyn Source, id: SampleId) -> Result<u128, String> {
    let mut out = Vec::new();
    let first = digest(source, id, 0x00, &mut out)?;
    if digest(source, id, 0xFF, &mut out)? == first {
        Ok(first)
    } else {
        Err(format!(
            "{id} ('{}'): two reads returned different bytes: read_into must fill all of `out`, the same each time",
            source.name(id)
        ))
    }
}

/// Reads samples with `read_many`, in reverse order.
fn check_read_many(source: &dyn Source, ids: &[SampleId], digests: &[u128]) -> Result<(), String> {
    let mut outs = vec![Vec::new(); READ_MANY];
    for (ids, digests) in ids.chunks(READ_MANY).zip(digests.chunks(READ_MANY)) {
        let mut reads = Vec::with_capacity(READ_MANY);
        for (&id, out) in ids.iter().zip(&mut outs).rev() {
            fill(source, id, 0xFF, out)?;
            reads.push(SampleRead::new(id, out));
        }
        source.read_many(&mut reads);
        for (read, (&id, &digest)) in reads.iter().zip(ids.iter().zip(digests).rev()) {
            let name = source.name(id);
            if read.id != id {
                return Err(format!("{id} ('{name}') was {} after read_many: ids must not change", read.id));
            }
            read.result
                .as_ref()
                .map_err(|error| format!("{id} ('{name}') cannot be read with read_many: {}", error.full_message()))?;
            if xxh3_128(read.out) != digest {
                return Err(format!("{id} ('{name}'): read_many returned other bytes than read_into"));
            }
        }
    }
    Ok(())
}

fn digest(source: &dyn Source, id: SampleId, background: u8, out: &mut Vec<u8>) -> Result<u128, String> {
    fill(source, id, background, out)?;
    source
        .read_into(id, out)
        .map_err(|error| format!("{id} ('{}') cannot be read: {}", source.name(id), error.full_message()))?;
    Ok(xxh3_128(out))
}

/// Resizes `out` to a sample's size, with each byte `background`.
fn fill(source: &dyn Source, id: SampleId, background: u8, out: &mut Vec<u8>) -> Result<(), String> {
    let bytes = source.encoded_bytes(id);
    let subject = || format!("{id} ('{}')", source.name(id));
    let len = usize::try_from(bytes).map_err(|_| format!("{}: {bytes} bytes exceed the address space", subject()))?;
    out.clear();
    out.try_reserve_exact(len).map_err(|error| format!("{}: cannot allocate {bytes} bytes: {error}", subject()))?;
    out.resize(len, background);
    Ok(())
}

/// Reads all samples from several threads, each in another order within a block.
fn check_concurrent_reads(source: &dyn Source, groups: &[Vec<SampleId>], digests: &[Vec<u128>]) -> Result<(), String> {
    let read_all = |reader: u64| {
        let mut out = Vec::new();
        for (ids, digests) in groups.iter().zip(digests) {
            let count = ids.len();
            for step in 0..count {
                // Two ascend and two descend, each from its own start.
                let step = if reader.is_multiple_of(2) { step } else { count - 1 - step };
                let index = (step + count * reader as usize / READERS as usize) % count;
                let id = ids[index];
                if digest(source, id, reader as u8, &mut out)? != digests[index] {
                    let name = source.name(id);
                    return Err(format!("{id} ('{name}'): reads from several threads returned different bytes"));
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|reader| scope.spawn(move || read_all(reader))).collect();
        // All threads are joined before a result is returned: the scope would propagate a panic.
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
