//! Owns what is expected of a part of a source. It must never touch storage.

use proptest::prelude::*;

use super::super::concat::tests::storage;
use super::*;
use crate::source::conformance;

fn all(labels: &[u32]) -> Arc<dyn Source> {
    Arc::new(storage("all", &["a", "b", "c"], labels))
}

fn origins(subset: &Subset) -> Vec<u64> {
    (0..subset.len()).map(|id| subset.origin(SampleId(id)).0).collect()
}

#[test]
fn each_way_to_choose_gives_a_source() {
    let labels: Vec<u32> = (0..20).map(|i| i * 7 % 3).collect();
    let all = all(&labels);
    let listed = Subset::new(all.clone(), [19, 3, 0]).unwrap();
    let range = Subset::range(all.clone(), 5..9).unwrap();
    let every = Subset::every(all.clone(), 6, 1).unwrap();
    let classes = Subset::of_classes(all.clone(), &["c", "a"]).unwrap();
    let kept: Vec<u64> = (0..20).filter(|&id| labels[id as usize] != 1).collect();
    let empty = Subset::range(all.clone(), 20..20).unwrap();
    for (subset, expected) in [
        (&listed, &[19, 3, 0][..]),
        (&range, &[5, 6, 7, 8]),
        (&every, &[1, 7, 13, 19]),
        (&classes, &kept),
        (&empty, &[]),
    ] {
        conformance::check(subset).unwrap();
        assert_eq!(origins(subset), expected);
        for id in (0..subset.len()).map(SampleId) {
            let there = subset.origin(id);
            assert_eq!(subset.name(id), all.name(there));
            assert_eq!(subset.dimensions(id), all.dimensions(there));
            assert_eq!(subset.classes()[subset.label(id) as usize], all.classes()[all.label(there) as usize]);
            let read = |source: &dyn Source, id| {
                let mut out = vec![0; source.encoded_bytes(id) as usize];
                source.read_into(id, &mut out).unwrap();
                out
            };
            assert_eq!(read(subset, id), read(&*all, there));
        }
    }
    assert_eq!(classes.classes(), ["c", "a"]);
    assert_eq!(listed.title(), "all (3 of 20 samples)");
    assert!(listed.in_memory());
    let own = |subset: &Subset| subset.index_bytes() - 1000 - size_of::<Subset>() as u64;
    assert_eq!([own(&listed), own(&range), own(&every)], [12, 0, 0]);
}

#[test]
fn what_is_not_there_is_refused_in_words() {
    let all = || all(&[0; 20]);
    for (refused, words) in [
        (
            Subset::new(all(), [3, 20]).err(),
            "id 20 (at place 1 of what was chosen) is none of all, whose ids are below 20",
        ),
        (Subset::new(all(), [3, 5, 3]).err(), "id 3 was chosen more than once"),
        (Subset::range(all(), 3..21).err(), "samples 3..21 are no range of all, which has 20"),
        (Subset::range(all(), Range { start: 4, end: 3 }).err(), "samples 4..3 are no range"),
        (Subset::every(all(), 0, 0).err(), "a stride of 0"),
        (Subset::every(all(), 3, 3).err(), "a stride of 3 from 3 on"),
        (Subset::split(all(), 1.5, 0).err(), "1.5 is no share"),
        (Subset::split(all(), f64::NAN, 0).err(), "NaN is no share"),
        (Subset::of_classes(all(), &["a", "dog"]).err(), "'dog' is no class of all; its 3 are a, b, c"),
        (Subset::of_classes(all(), &["a", "a"]).err(), "class 'a' was chosen more than once"),
    ] {
        let text = refused.expect(words).to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_division_follows_from_the_seed_and_never_changes() {
    let divided = |seed| Subset::split(all(&[0; 20]), 0.25, seed).unwrap();
    let (drawn, others) = divided(17);
    // A change of these numbers moves samples from training into validation.
    assert_eq!(origins(&drawn), GOLDEN);
    let mut both = [origins(&drawn), origins(&others)].concat();
    assert!(origins(&others).is_sorted());
    both.sort_unstable();
    assert!(both.into_iter().eq(0..20));
    assert_ne!(origins(&divided(18).0), GOLDEN);
    for (share, len) in [(0.0, 0), (1.0, 20)] {
        assert_eq!(Subset::split(all(&[0; 20]), share, 3).unwrap().0.len(), len);
    }
}

const GOLDEN: [u64; 5] = [6, 11, 14, 16, 18];

#[test]
fn each_sample_is_drawn_equally_often() {
    let (len, count, seeds) = (50u64, 10u64, 20_000u64);
    let mut counts = vec![0u64; len as usize];
    for seed in 0..seeds {
        draw(len, count, Seed(seed)).filter(|&(_, drawn)| drawn).for_each(|(id, _)| counts[id as usize] += 1);
    }
    // Each count is binomial, 4000 +- 57, and of 50 none is beyond five deviations.
    assert!(counts.iter().all(|count| count.abs_diff(4000) < 5 * 57), "{counts:?}");
    assert_eq!(counts.iter().sum::<u64>(), count * seeds);
}

#[test]
fn reading_ahead_is_told_in_the_order_of_storage() {
    let all = Arc::new(storage("all", &["a"], &[0; 9]));
    let subset = Subset::new(all.clone(), [8, 2, 5]).unwrap();
    subset.read_ahead(&[0, 1].map(SampleId));
    assert_eq!(*all.ahead.lock().unwrap(), [[2, 8]]);
}

proptest! {
    #[test]
    fn what_is_left_of_blocks_are_the_samples_of_each(
        sizes in prop::collection::vec(1u64..6, 1..9), run in 0usize..4, chosen in prop::collection::vec(any::<bool>(), 54),
        step in 1u64..9,
    ) {
        let mut end = 0;
        let ends: Vec<u64> = sizes.iter().map(|size| { end += size; end }).collect();
        let mut blocks = Blocks::new(ends, 2);
        if run > 0 {
            let count = blocks.count();
            blocks = blocks.in_runs((1..=count.div_ceil(run as u64)).map(|i| (i * run as u64).min(count)).collect::<Vec<_>>());
        }
        let all: Arc<dyn Source> = Arc::new(storage("all", &["a"], &vec![0; end as usize]).in_blocks(blocks.clone()));
        // From the last down: a source in blocks has them put into order.
        let ids: Vec<u64> = (0..end).rev().filter(|&id| chosen[id as usize]).collect();
        let listed = Subset::new(all.clone(), ids).unwrap();
        for subset in [listed, Subset::every(all, step, step / 2).unwrap()] {
            prop_assert!(origins(&subset).is_sorted());
            let left = subset.blocks().unwrap();
            prop_assert_eq!(left.sample_count(), subset.len());
            prop_assert_eq!(left.mixed(), 2);
            let block_of = |id: u64| blocks.of(subset.origin(SampleId(id)));
            let run_of = |block: u64| (0..blocks.run_count()).find(|&run| blocks.run(run).contains(&block)).unwrap();
            for id in 1..subset.len() {
                let same = left.of(SampleId(id - 1)) == left.of(SampleId(id));
                prop_assert_eq!(same, block_of(id - 1) == block_of(id));
                let left_run = |id: u64| (0..left.run_count()).find(|&run| left.run(run).contains(&left.of(SampleId(id)))).unwrap();
                prop_assert_eq!(left_run(id - 1) == left_run(id), run_of(block_of(id - 1)) == run_of(block_of(id)));
            }
            conformance::check(&subset).unwrap();
        }
    }
}
