//! Faulty sources, each of which the conformance check must detect by name.

use super::super::{SourceError, Unreadable};
use super::*;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A source with one fault.
struct Faulty {
    classes: Vec<String>,
    fault: &'static str,
    calls: AtomicU64,
    announced: AtomicBool,
    blocks: OnceLock<Blocks>,
}

impl Faulty {
    fn with(fault: &'static str) -> Self {
        Faulty {
            classes: vec!["a".into(), "b".into()],
            fault,
            calls: AtomicU64::new(0),
            announced: AtomicBool::new(false),
            blocks: OnceLock::new(),
        }
    }

    fn counts(&self, fault: &str) -> u64 {
        if self.fault == fault { self.calls.fetch_add(1, Ordering::Relaxed) } else { 0 }
    }

    fn has_read(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }
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
        match self.fault {
            "label" => id.0 as u32,
            "announced" => u32::from(self.announced.load(Ordering::Relaxed)),
            "labels" => u32::from(self.has_read()),
            _ => 1,
        }
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
            "threads" if calls >= 27 => out[0] ^= 1,
            "read" => {
                return Err(SourceError::Changed { path: "x".into(), indexed_bytes: 16, found_bytes: 1 });
            }
            "panic" if calls >= 27 => panic!("a fault of this test"),
            _ => {}
        }
        Ok(())
    }
    fn read_many(&self, reads: &mut [SampleRead<'_>]) {
        for read in reads {
            match self.fault {
                "many" => read.out.fill(1),
                "moved" => read.id.0 += 1,
                _ => read.result = self.read_into(read.id, read.out),
            }
        }
    }
    fn index_bytes(&self) -> u64 {
        0
    }
    fn title(&self) -> String {
        match self.fault {
            "title" => String::new(),
            "titles" if self.has_read() => "another".into(),
            _ => "faulty".into(),
        }
    }
    fn unreadable(&self) -> &[Unreadable] {
        static ONE: OnceLock<[Unreadable; 1]> = OnceLock::new();
        let one = || [Unreadable { path: "x".into(), cause: "y".into() }];
        if self.fault == "unreadable" { ONE.get_or_init(one) } else { &[] }
    }
    fn unreadable_count(&self) -> u64 {
        0
    }
    fn dimensions(&self, _: SampleId) -> Option<(u32, u32)> {
        Some((7, self.counts("dimensions") as u32))
    }
    fn blocks(&self) -> Option<&Blocks> {
        match self.fault {
            "blocks" => Some(self.blocks.get_or_init(|| Blocks::new([4, 8], 1))),
            "other blocks" if self.has_read() => Some(self.blocks.get_or_init(|| Blocks::new([9], 1))),
            _ => None,
        }
    }
    fn io_profile(&self) -> IoProfile {
        match self.fault {
            "no concurrency" => IoProfile { concurrency: 0, ..IoProfile::default() },
            "more buffers" if self.has_read() => IoProfile { buffer_bytes: 1, ..IoProfile::default() },
            _ => IoProfile::default(),
        }
    }
    fn read_ahead(&self, ids: &[SampleId], _: PageCache) {
        assert!(self.fault != "hint" || !ids.is_empty(), "a fault of this test");
        self.announced.store(true, Ordering::Relaxed);
    }
}

#[test]
fn each_fault_is_found_and_named() {
    for (fault, text) in [
        ("len", "it must never change"),
        ("empty", "is_empty() is true"),
        ("label", "sample 2 ('sample 2') has label 2, but there are 2 classes"),
        ("size", "they must never change"),
        ("huge", "cannot allocate"),
        ("name", "sample 0 has an empty name"),
        ("twins", "sample 0 and sample 1 are both named 'twin'"),
        ("short", "two reads returned different bytes"),
        ("many", "sample 3 ('sample 3'): read_many returned other bytes than read_into"),
        ("moved", "sample 3 ('sample 3') was sample 4 after read_many"),
        ("threads", "reads from several threads returned different bytes"),
        ("read", "cannot be read: x had 16 bytes"),
        ("panic", "a read panicked"),
        ("title", "title() is empty"),
        ("titles", "title() was 'faulty' and is 'another' after reads"),
        ("unreadable", "unreadable_count() is 0, but unreadable() lists 1"),
        ("dimensions", "dimensions were Some((7, 0)) and are Some((7, 1))"),
        ("blocks", "len() is 9, but blocks() has 8 samples"),
        ("other blocks", "blocks() changed after reads"),
        ("no concurrency", "io_profile().concurrency is 0"),
        ("more buffers", "buffer_bytes: 1, coalesce_bytes: 0 } after reads"),
        ("hint", "read_ahead of 0 samples panicked"),
        ("announced", "changed during reads, from (0, 16"),
        ("labels", "changed during reads, from (0, 16"),
    ] {
        let breach = check(&Faulty::with(fault)).expect_err(fault);
        assert!(breach.contains(text), "{fault}: {breach}");
    }
    assert_eq!(check(&Faulty::with("none")), Ok(()));
}

/// A source that records the block of each read.
struct Blocked {
    classes: Vec<String>,
    blocks: Blocks,
    reads: Mutex<Vec<u64>>,
}

impl Source for Blocked {
    fn len(&self) -> u64 {
        self.blocks.sample_count()
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn label(&self, _: SampleId) -> u32 {
        0
    }
    fn encoded_bytes(&self, _: SampleId) -> u64 {
        1
    }
    fn name(&self, id: SampleId) -> String {
        id.to_string()
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        out.fill(id.0 as u8);
        self.reads.lock().expect("no panic").push(self.blocks.block_of(id));
        Ok(())
    }
    fn index_bytes(&self) -> u64 {
        0
    }
    fn blocks(&self) -> Option<&Blocks> {
        Some(&self.blocks)
    }
}

#[test]
fn blocks_are_read_one_after_another() {
    for (blocks, runs, checked) in [
        (30, None, (0..30).collect::<Vec<u64>>()),
        (1000, None, (0..16).map(|i| i * 999 / 15).collect()),
        (1000, Some(vec![10, 600, 1000]), vec![0, 10, 600]),
    ] {
        let all = Blocks::new((1..=blocks).map(|block| block * 7).collect::<Vec<u64>>(), 2);
        let all = runs.into_iter().fold(all, Blocks::with_runs);
        let source = Blocked { classes: vec!["a".into()], blocks: all, reads: Mutex::default() };
        assert_eq!(check(&source), Ok(()));
        let reads = source.reads.into_inner().expect("no panic");
        // The single reads finish a block before the next.
        let alone = &reads[..checked.len() * 14];
        assert_eq!(alone.chunk_by(|a, b| a == b).map(|block| block[0]).collect::<Vec<_>>(), checked);
        assert_eq!(reads.len(), checked.len() * 7 * 7);
    }
}

#[test]
fn checked_samples_are_spread_over_the_source() {
    let ids = |len| spread(len, CHECKED_MAX).iter().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(ids(0), [0; 0]);
    assert_eq!(ids(1), [0]);
    assert_eq!(ids(5), [0, 1, 2, 3, 4]);
    let many = ids(u64::MAX);
    assert_eq!((many.len(), many[0], many[999]), (1000, 0, u64::MAX - 1));
    assert!(many.is_sorted_by(|a, b| a < b));
}
