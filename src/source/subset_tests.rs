//! Tests of subsets.

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
fn each_selection_is_a_source() {
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
            let origin = subset.origin(id);
            assert_eq!(subset.name(id), all.name(origin));
            assert_eq!(subset.dimensions(id), all.dimensions(origin));
            assert_eq!(subset.classes()[subset.label(id) as usize], all.classes()[all.label(origin) as usize]);
            let read = |source: &dyn Source, id| {
                let mut out = vec![0; source.encoded_bytes(id) as usize];
                source.read_into(id, &mut out).unwrap();
                out
            };
            assert_eq!(read(subset, id), read(&*all, origin));
        }
    }
    assert_eq!(classes.classes(), ["c", "a"]);
    assert_eq!(listed.title(), "all (3 of 20 samples)");
    assert!(listed.is_in_memory());
    let own = |subset: &Subset| subset.index_bytes() - 1000 - size_of::<Subset>() as u64;
    assert_eq!([own(&listed), own(&range), own(&every)], [12, 0, 0]);
}

#[test]
fn bad_selections_are_refused() {
    let all = || all(&[0; 20]);
    for (refused, words) in [
        (Subset::new(all(), [3, 20]).err(), "id 20 (index 1) is out of range for all, whose ids are below 20"),
        (Subset::new(all(), [3, 5, 3]).err(), "id 3 is given more than once"),
        (Subset::range(all(), 3..21).err(), "3..21 is not a range of the samples of all, which has 20"),
        (Subset::range(all(), Range { start: 4, end: 3 }).err(), "4..3 is not a range"),
        (Subset::every(all(), 0, 0).err(), "stride 0"),
        (Subset::every(all(), 3, 3).err(), "stride 3 with offset 3"),
        (Subset::split(all(), 1.5, 0).err(), "invalid share 1.5"),
        (Subset::split(all(), f64::NAN, 0).err(), "invalid share NaN"),
        (Subset::of_classes(all(), &["a", "dog"]).err(), "unknown class 'dog': all has 3 classes: a, b, c"),
        (Subset::of_classes(all(), &["a", "a"]).err(), "class 'a' is given more than once"),
    ] {
        let text = refused.expect(words).to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_split_depends_on_the_seed_alone() {
    let split = |seed| Subset::split(all(&[0; 20]), 0.25, seed).unwrap();
    let (drawn, others) = split(17);
    // A change of these numbers moves samples from training into validation.
    assert_eq!(origins(&drawn), GOLDEN);
    let mut both = [origins(&drawn), origins(&others)].concat();
    assert!(origins(&others).is_sorted());
    both.sort_unstable();
    assert!(both.into_iter().eq(0..20));
    assert_ne!(origins(&split(18).0), GOLDEN);
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
fn read_ahead_sorts_ids() {
    let all = Arc::new(storage("all", &["a"], &[0; 9]));
    let subset = Subset::new(all.clone(), [8, 2, 5]).unwrap();
    subset.read_ahead(&[0, 1].map(SampleId), PageCache::Keep);
    assert_eq!(*all.ahead.lock().unwrap(), [[2, 8]]);
}

proptest! {
    #[test]
    fn blocks_keep_their_selected_samples(
        sizes in prop::collection::vec(1u64..6, 1..9),
        run in 0usize..4,
        chosen in prop::collection::vec(any::<bool>(), 54),
        step in 1u64..9,
    ) {
        let mut end = 0;
        let ends: Vec<u64> = sizes.iter().map(|size| { end += size; end }).collect();
        let mut blocks = Blocks::new(ends, 2);
        if run > 0 {
            let count = blocks.count();
            let run_ends = (1..=count.div_ceil(run as u64)).map(|i| (i * run as u64).min(count));
            blocks = blocks.with_runs(run_ends.collect::<Vec<_>>());
        }
        let all: Arc<dyn Source> = Arc::new(storage("all", &["a"], &vec![0; end as usize]).in_blocks(blocks.clone()));
        // In descending order: a source in blocks sorts them.
        let ids: Vec<u64> = (0..end).rev().filter(|&id| chosen[id as usize]).collect();
        let listed = Subset::new(all.clone(), ids).unwrap();
        for subset in [listed, Subset::every(all, step, step / 2).unwrap()] {
            prop_assert!(origins(&subset).is_sorted());
            let left = subset.blocks().unwrap();
            prop_assert_eq!(left.sample_count(), subset.len());
            prop_assert_eq!(left.shuffle_window(), 2);
            let block_of = |id: u64| blocks.block_of(subset.origin(SampleId(id)));
            let run_of = |block: u64| (0..blocks.run_count()).find(|&run| blocks.run(run).contains(&block)).unwrap();
            for id in 1..subset.len() {
                let left_block = |id: u64| left.block_of(SampleId(id));
                let left_run = |id: u64| {
                    (0..left.run_count()).find(|&run| left.run(run).contains(&left_block(id))).unwrap()
                };
                let same = left_block(id - 1) == left_block(id);
                prop_assert_eq!(same, block_of(id - 1) == block_of(id));
                prop_assert_eq!(left_run(id - 1) == left_run(id), run_of(block_of(id - 1)) == run_of(block_of(id)));
            }
            conformance::check(&subset).unwrap();
        }
    }
}
