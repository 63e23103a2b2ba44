//! Tests of orders and their batches. Each arrangement has tests of its own beside it.

use super::*;
use proptest::prelude::*;

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

proptest! {
    #[test]
    fn ranks_cover_every_sample_once(
        samples in 0u64..700, world in 1u64..20, shuffle: bool, seed in any::<u64>(), epoch in any::<u64>()
    ) {
        let whole =
            if shuffle { Order::shuffled(samples, Seed(seed), epoch) } else { Order::sequential(samples) };
        let mut ids = vec![];
        for rank in 0..world {
            let order = whole.clone().for_rank(rank, world).unwrap();
            prop_assert!(order.len() == order.len_common() || order.len() == order.len_common() + 1);
            prop_assert_eq!(order.is_empty(), samples <= rank);
            ids.extend((0..order.len()).map(|position| order.at(position).0));
        }
        ids.sort_unstable();
        prop_assert!(ids.into_iter().eq(0..samples));
    }

    #[test]
    fn batches_follow_each_other(positions in 0u64..5000, batch_size in 1usize..600, drop_last: bool) {
        let batches = Batches::new(positions, size(batch_size), drop_last);
        let mut next = 0;
        for batch in 0..batches.len() {
            let range = batches.positions(batch);
            prop_assert_eq!(range.start, next);
            prop_assert!(range.end - range.start == batch_size as u64 || (!drop_last && batch + 1 == batches.len()));
            next = range.end;
        }
        prop_assert_eq!(next, batches.position_count());
        prop_assert_eq!(next, if drop_last { positions - positions % batch_size as u64 } else { positions });
    }
}

#[test]
fn ranks_share_one_order() {
    let whole = Order::shuffled(101, Seed(3), 4);
    let third = whole.clone().for_rank(2, 3).unwrap();
    assert!((0..third.len()).all(|position| third.at(position) == whole.at(2 + 3 * position)));
}

#[test]
fn sequential_is_by_id() {
    let order = Order::sequential(9).for_rank(1, 4).unwrap();
    assert_eq!((0..order.len()).map(|at| order.at(at).0).collect::<Vec<_>>(), [1, 5]);
}

#[test]
fn an_epoch_of_ten_billion_starts_at_once() {
    let samples = 10_000_000_000;
    let order = Order::shuffled(samples, Seed(1), 0).for_rank(7, 8).unwrap();
    let batches = order.batches(size(256), true);
    assert_eq!((order.len(), batches.len()), (1_250_000_000, 4_882_812));
    let last = batches.positions(batches.len() - 1);
    assert!(last.map(|position| order.at(position).0).all(|id| id < samples));
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let order = Order::shuffled(u64::MAX, Seed(1), u64::MAX).for_rank(u64::MAX - 1, u64::MAX).unwrap();
    assert_eq!(order.len(), 1);
    let _ = order.at(0);
    let whole = Order::sequential(u64::MAX);
    assert_eq!(whole.at(u64::MAX - 1), SampleId(u64::MAX - 1));
    let batches = whole.batches(size(usize::MAX - 1), false);
    assert_eq!(batches.positions(1), u64::MAX - 1..u64::MAX);
}

#[test]
fn a_rank_outside_its_world_is_refused() {
    let refusal = |rank, world| Order::sequential(5).for_rank(rank, world).unwrap_err().to_string();
    assert_eq!(refusal(4, 4), "rank 4 does not exist in a world of 4: expected a rank below the world size");
    assert!(refusal(0, 0).contains("a world of 0"));
}

#[test]
#[should_panic(expected = "position 3 of an order of 3 samples")]
fn a_position_past_the_end_is_misuse() {
    let _ = Order::sequential(5).for_rank(0, 2).unwrap().at(3);
}

#[test]
#[should_panic(expected = "batch 2 of 2 batches")]
fn a_batch_past_the_end_is_misuse() {
    let _ = Order::sequential(5).batches(size(3), false).positions(2);
}

/// An order of each kind that draws, over samples whose class is `id % 5` and which lie in parts of 60, 30 and 10.
fn drawn(seed: u64, epoch: u64) -> [(&'static str, Order); 4] {
    let weights = WeightTable::new((0..100u32).map(f64::from)).unwrap();
    let classes = ClassTable::new(100, 5, |id| (id.0 % 5) as u32).unwrap();
    let mix = |weights: [f64; 3]| Mixture::new(&[60, 90, 100], &weights).unwrap();
    [
        ("weighted", Order::weighted(&weights, 1000, Seed(seed), epoch)),
        ("balanced", Order::balanced(&classes, 1000, Seed(seed), epoch)),
        ("mixed", Order::mixed(&mix([1.0, 2.0, 1.0]), 1000, Seed(seed), epoch)),
        ("mixed by many blocks", Order::mixed(&mix([1.0, 0.3, 1.414]), 1000, Seed(seed), epoch)),
    ]
}

#[test]
fn the_draws_of_a_key_never_change() {
    // As in `permutation.rs`: a change of these numbers is a change of format.
    for ((name, order), golden) in drawn(17, 3).into_iter().zip(GOLDEN) {
        assert_eq!([0, 1, 2, 3, 500, 501, 998, 999].map(|at| order.at(at).0), golden, "{name}");
    }
}

const GOLDEN: [[u64; 8]; 4] = [
    [44, 72, 67, 58, 72, 50, 61, 88],
    [64, 17, 21, 0, 94, 18, 99, 20],
    [93, 64, 55, 73, 85, 23, 88, 66],
    [93, 55, 2, 45, 93, 25, 44, 37],
];

#[test]
fn draws_differ_by_seed_and_epoch() {
    let ids = |order: &Order| (0..1000).map(|at| order.at(at).0).collect::<Vec<_>>();
    for (which, (name, order)) in drawn(17, 3).into_iter().enumerate() {
        let first = ids(&order);
        for (seed, epoch) in [(17, 4), (18, 3), (3, 17)] {
            let other = ids(&drawn(seed, epoch)[which].1);
            let agree = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            // Ten to thirty agree by chance.
            assert!(agree < 70, "{name}: {agree} of 1000 agree");
        }
    }
}

#[test]
fn an_epoch_of_ten_billion_draws_starts_at_once() {
    let draws = 10_000_000_000;
    let weights = WeightTable::new([1.0, 2.0]).unwrap();
    let classes = ClassTable::new(3, 2, |id| (id.0 > 0).into()).unwrap();
    let mix = Mixture::new(&[1 << 40, 1 << 41], &[1.0, 9.0]).unwrap();
    for order in [
        Order::weighted(&weights, draws, Seed(1), 0),
        Order::balanced(&classes, draws, Seed(1), 0),
        Order::mixed(&mix, draws, Seed(1), 0),
        Order::mixed(&mix, u64::MAX, Seed(1), 0),
    ] {
        let last = order.for_rank(7, 8).unwrap();
        let _ = last.at(last.len() - 1);
    }
}
