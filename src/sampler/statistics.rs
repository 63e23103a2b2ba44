//! Statistical tests of the order.
//!
//! Seeds are fixed, so each test gives the same answer each time. Thresholds are five standard deviations: chi-square
//! sums are near enough to normal at these sizes, so one side beyond five is about one in three million (a comment says
//! where few terms make the tail heavier). A fair shuffle fails none of them under nearly any choice of seeds.

use std::collections::HashMap;

use super::{ClassTable, Mixture, Order, Permutation, WeightTable};
use crate::rng::Seed;

fn all(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
    let order = Permutation::new(len, Seed(seed), epoch);
    (0..len).map(|i| order.at(i)).collect()
}

/// The sum of (observed - expected)^2 / expected.
fn chi_square(counts: impl IntoIterator<Item = u64>, expected: f64) -> f64 {
    counts.into_iter().map(|count| (count as f64 - expected).powi(2) / expected).sum()
}

/// Distance of a value from its mean, in standard deviations.
fn deviations(value: f64, mean: f64, variance: f64) -> f64 {
    (value - mean) / variance.sqrt()
}

/// A chi-square value of a fair draw has mean `freedom` and variance twice that. Too even is as wrong as too uneven.
fn assert_fair(chi_square: f64, freedom: f64, what: &str) {
    let off = deviations(chi_square, freedom, 2.0 * freedom);
    println!("{what}: chi-square {chi_square:.0} at {freedom:.0} degrees of freedom, {off:+.2} deviations");
    assert!(off.abs() < 5.0, "{what}: {off:+.2} deviations");
}

#[test]
fn all_orders_of_a_few_elements_are_equally_frequent() {
    for (len, orders, keys) in [(2, 2, 20_000), (3, 6, 60_000), (4, 24, 240_000), (5, 120, 240_000)] {
        for by_epoch in [true, false] {
            let mut counts = HashMap::new();
            for key in 0..keys {
                let (seed, epoch) = if by_epoch { (17, key) } else { (key, 17) };
                *counts.entry(all(len, seed, epoch)).or_insert(0) += 1;
            }
            assert_eq!(counts.len(), orders, "{len}");
            let value = chi_square(counts.into_values(), keys as f64 / orders as f64);
            // With one degree of freedom, five deviations above the mean are one in two hundred; one draw in ten
            // thousand lies beyond ten.
            let freedom = orders as f64 - 1.0;
            println!("{len} elements: chi-square {value:.1} at {freedom}");
            assert!(deviations(value, freedom, 2.0 * freedom) < if orders < 10 { 10.0 } else { 5.0 }, "{len}: {value}");
        }
    }
}

#[test]
fn every_element_comes_to_every_position_equally_often() {
    // Either side of the table's limit and of a power of two, and a length at which nearly half of all results walk on.
    for (len, epochs) in [(10, 20_000), (256, 4000), (257, 4000), (300, 4000), (512, 2000), (513, 2000)] {
        let mut counts = vec![0u64; (len * len) as usize];
        for epoch in 0..epochs {
            for (position, element) in all(len, 42, epoch).into_iter().enumerate() {
                counts[position * len as usize + element as usize] += 1;
            }
        }
        // Rows and columns both have fixed sums, which leaves (n-1)^2 degrees of freedom; a permutation puts exactly
        // one in each row, which stretches the sum by n/(n-1).
        let n = len as f64;
        let value = chi_square(counts, epochs as f64 / n) * (n - 1.0) / n;
        assert_fair(value, (n - 1.0).powi(2), &format!("positions of {len}"));
    }
}

#[test]
fn neighbors_come_from_anywhere() {
    // The step from one element to the next, modulo n, is equally often each of 1..n.
    for (len, epochs) in [(300u64, 4000), (1000, 1000), (4096, 300), (100_000, 100)] {
        let mut counts = vec![0u64; len as usize - 1];
        for epoch in 0..epochs {
            for pair in all(len, 7, epoch).windows(2) {
                counts[((pair[1] + len - pair[0]) % len) as usize - 1] += 1;
            }
        }
        let n = len as f64;
        // An order has n-1 steps of n-1 kinds.
        assert_fair(chi_square(counts, epochs as f64), n - 2.0, &format!("steps of {len}"));
    }
}

/// Pearson's coefficient of two orders of the same elements; for independent ones it has mean 0 (to 1/n) and variance
/// 1/n.
fn correlation(a: &[u64], b: &[u64]) -> f64 {
    let n = a.len() as f64;
    let (mean, variance) = ((n - 1.0) / 2.0, (n * n - 1.0) / 12.0);
    a.iter().zip(b).map(|(&x, &y)| (x as f64 - mean) * (y as f64 - mean)).sum::<f64>() / (n * variance)
}

#[test]
fn an_order_resembles_neither_itself_nor_its_source() {
    let len = 100_000u64;
    let identity: Vec<u64> = (0..len).collect();
    for epoch in 0..10 {
        let order = all(len, 99, epoch);
        let mut against = vec![("its source", correlation(&order, &identity))];
        for lag in [1, 2, 3, 16, 256, 1024, 50_000] {
            let mut shifted = order.clone();
            shifted.rotate_left(lag);
            against.push(("itself", correlation(&order, &shifted)));
        }
        for (what, value) in against {
            assert!(value.abs() * (len as f64).sqrt() < 5.0, "epoch {epoch} against {what}: {value}");
        }
        // Rises from one element to the next: mean (n-1)/2, variance (n+1)/12.
        let rises = order.windows(2).filter(|pair| pair[0] < pair[1]).count() as f64;
        let off = deviations(rises, (len - 1) as f64 / 2.0, (len + 1) as f64 / 12.0);
        assert!(off.abs() < 5.0, "epoch {epoch}: {rises} rises");
    }
}

#[test]
fn elements_stay_in_place_as_often_as_by_chance() {
    // A fair shuffle leaves one element in place on average, and the number is Poisson: over 200 epochs 200 +- 14.
    for len in [100_000u64, 65_536] {
        let stay = |epoch| all(len, 5, epoch).iter().enumerate().filter(|(i, x)| *i as u64 == **x).count();
        let total: usize = (0..200).map(stay).sum();
        println!("{len}: {total} stay");
        assert!(deviations(total as f64, 200.0, 200.0).abs() < 5.0, "{len}: {total}");
    }
}

#[test]
fn epochs_and_seeds_are_independent() {
    let len = 100_000u64;
    let base = all(len, 1000, 1000);
    let mut same_total = 0;
    let keys: Vec<(u64, u64)> =
        (1..=50).flat_map(|i| [(1000, 1000 + i), (1000 + i, 1000), (1000 + i, 1000 - i), (1000, i)]).collect();
    for &(seed, epoch) in &keys {
        let other = all(len, seed, epoch);
        let value = correlation(&base, &other);
        assert!(value.abs() * (len as f64).sqrt() < 5.0, "({seed}, {epoch}): {value}");
        same_total += base.iter().zip(&other).filter(|(a, b)| a == b).count();
    }
    // Two independent orders agree in one place on average, Poisson.
    println!("{same_total} agreements over {} pairs", keys.len());
    let mean = keys.len() as f64;
    assert!(deviations(same_total as f64, mean, mean).abs() < 5.0, "{same_total}");
}

#[test]
fn a_batch_is_a_fair_draw_from_the_whole() {
    // The first 256 elements of each epoch, in 64 equal bins of the data (sorted by class, as folders are): the count
    // of a bin is hypergeometric, which shrinks the chi-square by (N - 256)/(N - 1).
    let (len, drawn, bins, epochs) = (64_000u64, 256u64, 64usize, 500u64);
    let mut value = 0.0;
    for epoch in 0..epochs {
        let order = Permutation::new(len, Seed(3), epoch);
        let mut counts = vec![0u64; bins];
        (0..drawn).for_each(|i| counts[(order.at(i) / 1000) as usize] += 1);
        value += chi_square(counts, drawn as f64 / bins as f64);
    }
    let shrink = (len - drawn) as f64 / (len - 1) as f64;
    assert_fair(value / shrink, (epochs * (bins as u64 - 1)) as f64, "classes of a batch");
}

#[test]
fn samples_are_drawn_in_proportion_to_their_weights() {
    let (len, draws) = (500u64, 1_000_000u64);
    let weight = |id: u64| [0.0, 1.0, 0.25, 7.5, 2.0][(id % 5) as usize];
    let weights = WeightTable::new((0..len).map(weight)).unwrap();
    let sum: f64 = (0..len).map(weight).sum();
    for (seed, epoch) in [(1, 0), (1, 1), (2, 0)] {
        let order = Order::weighted(&weights, draws, Seed(seed), epoch);
        let (mut counts, mut again, mut before) = (vec![0u64; len as usize], 0u64, u64::MAX);
        for index in 0..draws {
            let id = order.at(index).0;
            counts[id as usize] += 1;
            again += u64::from(id == before);
            before = id;
        }
        let mut value = 0.0;
        for id in (0..len).filter(|&id| weight(id) > 0.0) {
            value += chi_square([counts[id as usize]], draws as f64 * weight(id) / sum);
        }
        assert_fair(value, len as f64 * 0.8 - 1.0, "weights");
        assert!((0..len).all(|id| weight(id) > 0.0 || counts[id as usize] == 0));
        // Draws are independent: the same sample comes twice in a row as often as by chance.
        let twice: f64 = (0..len).map(|id| (weight(id) / sum).powi(2)).sum();
        let off = deviations(again as f64, draws as f64 * twice, draws as f64 * twice);
        assert!(off.abs() < 5.0, "{again} in a row: {off:+.2} deviations");
    }
}

#[test]
fn classes_and_their_first_samples_are_uniform() {
    // ClassTable of 7 and of 300 samples in turn; the class of a turn, and the sample of a class's first visit.
    let sizes: Vec<u64> = (0..12).map(|class| if class % 2 == 0 { 7 } else { 300 }).collect();
    let labels: Vec<u32> = (0..12u32).flat_map(|class| (0..sizes[class as usize]).map(move |_| class)).collect();
    let classes = ClassTable::new(labels.len() as u64, 12, |id| labels[id.0 as usize]).unwrap();
    let mut turns = vec![0u64; 12 * 12];
    let mut first = vec![0u64; labels.len()];
    let epochs = 3000;
    for epoch in 0..epochs {
        let order = Order::balanced(&classes, 12, Seed(8), epoch);
        for index in 0..12 {
            let id = order.at(index).0 as usize;
            turns[index as usize * 12 + labels[id] as usize] += 1;
            first[id] += 1;
        }
    }
    // As for positions of a permutation, above.
    assert_fair(chi_square(turns, epochs as f64 / 12.0) * 11.0 / 12.0, 121.0, "turns");
    let value: f64 =
        labels.iter().zip(first).map(|(&l, n)| chi_square([n], epochs as f64 / sizes[l as usize] as f64)).sum();
    assert_fair(value, labels.len() as f64 - 12.0, "first of a class");
    // The windows of one epoch are as different as epochs.
    let order = Order::balanced(&classes, 12 * epochs, Seed(8), 1);
    let mut turns = vec![0u64; 12 * 12];
    for index in 0..12 * epochs {
        turns[(index % 12 * 12) as usize + labels[order.at(index).0 as usize] as usize] += 1;
    }
    assert_fair(chi_square(turns, epochs as f64 / 12.0) * 11.0 / 12.0, 121.0, "turns of windows");
}

#[test]
fn parts_and_their_first_samples_are_uniform() {
    let mix = Mixture::new(&[50, 1000, 1400], &[5.0, 2.0, 1.0]).unwrap();
    let (blocks, part_of) = (20_000u64, |id: u64| usize::from(id >= 50) + usize::from(id >= 1000));
    let order = Order::mixed(&mix, 8 * blocks, Seed(4), 2);
    let mut at = [[0u64; 8]; 3];
    for index in 0..8 * blocks {
        at[part_of(order.at(index).0)][(index % 8) as usize] += 1;
    }
    for (counts, share) in at.into_iter().zip([5.0, 2.0, 1.0]) {
        // A position belongs to the part or not: the variance of each count is smaller by its share.
        let expected = blocks as f64 * share / 8.0;
        let value = chi_square(counts, expected) / (1.0 - share / 8.0) * 7.0 / 8.0;
        assert_fair(value, 7.0, "positions of a part");
    }
    let mut first = vec![0u64; 1400];
    for epoch in 0..4000 {
        let order = Order::mixed(&mix, 8, Seed(4), epoch);
        (0..8).for_each(|index| first[order.at(index).0 as usize] += 1);
    }
    let value = chi_square(first[..50].iter().copied(), 4000.0 * 5.0 / 50.0)
        + chi_square(first[50..1000].iter().copied(), 4000.0 * 2.0 / 950.0)
        + chi_square(first[1000..].iter().copied(), 4000.0 / 400.0);
    // Five of fifty without replacement vary a little less than five draws.
    assert_fair(value, 49.0 * 45.0 / 49.0 + 949.0 + 399.0, "first of a part");
}
