//! Owns the rules of the [`Source`] trait as a check that runs on any implementation.
//! It must never know which implementation it is given.

use std::collections::HashMap;
use std::thread;

use xxhash_rust::xxh3::xxh3_128;

use super::Source;
use crate::units::SampleId;

/// Samples that are looked at, spread evenly over the source.
const CHECKED_MAX: u64 = 1000;

/// Threads that read at the same time.
const READERS: u64 = 4;

/// Checks that a source keeps the rules of the trait, and says which one it broke first.
///
/// It looks at up to 1000 samples, spread evenly and with the first and the last among them, and reads each of them
/// six times: twice alone, then from four threads at once, in different orders. It needs memory for four samples.
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
    let len = source.len();
    if source.is_empty() != (len == 0) {
        return Err(format!("len() is {len}, but is_empty() is {}", source.is_empty()));
    }
    let ids = spread(len);
    let mut names = HashMap::new();
    for &id in &ids {
        check_answers(source, id)?;
        if let Some(other) = names.insert(source.name(id), id) {
            return Err(format!("{other} and {id} are both called '{}': names must differ", source.name(id)));
        }
    }
    let digests = ids.iter().map(|&id| check_reads(source, id)).collect::<Result<Vec<u128>, String>>()?;
    check_together(source, &ids, &digests)?;

    if source.len() != len {
        return Err(format!("len() was {len} and is {} after reading: it must never change", source.len()));
    }
    ids.iter().try_for_each(|&id| check_answers(source, id))
}

/// Up to [`CHECKED_MAX`] ids from `0..len`, the first and the last among them.
fn spread(len: u64) -> Vec<SampleId> {
    let count = len.min(CHECKED_MAX);
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

fn digest(source: &dyn Source, id: SampleId, background: u8, out: &mut Vec<u8>) -> Result<u128, String> {
    let bytes = source.encoded_bytes(id);
    let subject = || format!("{id} ('{}')", source.name(id));
    let len = usize::try_from(bytes).map_err(|_| format!("{}: {bytes} bytes fit into no memory", subject()))?;
    out.clear();
    out.try_reserve_exact(len).map_err(|error| format!("{}: no memory for {bytes} bytes: {error}", subject()))?;
    out.resize(len, background);
    source.read_into(id, out).map_err(|error| format!("{} cannot be read: {error}", subject()))?;
    Ok(xxh3_128(out))
}

/// Reads all samples from several threads at once, each in another order.
fn check_together(source: &dyn Source, ids: &[SampleId], digests: &[u128]) -> Result<(), String> {
    let count = ids.len();
    let read_all = |reader: u64| {
        let mut out = Vec::new();
        for step in 0..count {
            // Two go up and two go down, each from a start of its own.
            let step = if reader.is_multiple_of(2) { step } else { count - 1 - step };
            let place = (step + count * reader as usize / READERS as usize) % count;
            let id = ids[place];
            if digest(source, id, reader as u8, &mut out)? != digests[place] {
                return Err(format!("{id} ('{}'): reads from several threads gave different bytes", source.name(id)));
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
mod tests {
    use super::super::SourceError;
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A source with one fault.
    struct Faulty {
        classes: Vec<String>,
        fault: &'static str,
        calls: AtomicU64,
    }

    impl Source for Faulty {
        fn len(&self) -> u64 {
            if self.fault == "len" { 9 + self.calls.load(Ordering::Relaxed) } else { 9 }
        }
        fn is_empty(&self) -> bool {
            self.fault == "empty"
        }
        fn classes(&self) -> &[String] {
            &self.classes
        }
        fn label(&self, id: SampleId) -> u32 {
            if self.fault == "label" { id.0 as u32 } else { 1 }
        }
        fn encoded_bytes(&self, _: SampleId) -> u64 {
            match self.fault {
                "size" => self.calls.fetch_add(1, Ordering::Relaxed),
                "huge" => u64::MAX >> 1,
                _ => 16,
            }
        }
        fn name(&self, id: SampleId) -> String {
            match self.fault {
                "name" => String::new(),
                "twins" => "twin".into(),
                _ => id.to_string(),
            }
        }
        fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
            let calls = self.calls.fetch_add(1, Ordering::Relaxed);
            let filled = if self.fault == "short" { 15 } else { 16 };
            out[..filled].fill(id.0 as u8);
            match self.fault {
                "threads" if calls >= 18 => out[0] ^= 1,
                "read" => {
                    return Err(SourceError::Changed { path: "x".into(), indexed_bytes: 16, found_bytes: 1 });
                }
                "panic" if calls >= 18 => panic!("a fault that this test asked for"),
                _ => {}
            }
            Ok(())
        }
        fn index_bytes(&self) -> u64 {
            0
        }
    }

    #[test]
    fn each_fault_is_found_and_named() {
        for (fault, text) in [
            ("len", "it must never change"),
            ("empty", "is_empty() is true"),
            ("label", "sample 2 ('sample 2') has label 2, but there are 2 classes"),
            ("size", "must be the same each time"),
            ("huge", "no memory for"),
            ("name", "sample 0 has no name"),
            ("twins", "sample 0 and sample 1 are both called 'twin'"),
            ("short", "two reads gave different bytes"),
            ("threads", "reads from several threads gave different bytes"),
            ("read", "cannot be read: x had 16 bytes"),
            ("panic", "a read panicked"),
        ] {
            let source = Faulty { classes: vec!["a".into(), "b".into()], fault, calls: AtomicU64::new(0) };
            let breach = check(&source).expect_err(fault);
            assert!(breach.contains(text), "{fault}: {breach}");
        }
        let sound = Faulty { classes: vec!["a".into(), "b".into()], fault: "none", calls: AtomicU64::new(0) };
        assert_eq!(check(&sound), Ok(()));
    }

    #[test]
    fn checked_samples_are_spread_over_the_source() {
        let ids = |len| spread(len).iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids(0), [0; 0]);
        assert_eq!(ids(1), [0]);
        assert_eq!(ids(5), [0, 1, 2, 3, 4]);
        let many = ids(u64::MAX);
        assert_eq!((many.len(), many[0], many[999]), (1000, 0, u64::MAX - 1));
        assert!(many.is_sorted_by(|a, b| a < b));
    }
}
