//! Many series with and without a leak, from generators with fixed seeds: they verify the rates that
//! [`LeakDetector`] documents.

use super::*;
use crate::SampleId;
use crate::rng::{KeyedRng, Seed};
use proptest::prelude::*;

const LEVEL: f64 = 3e8;
const WARM_UP: u64 = 50;

/// Noise about zero with a spread of one.
struct Noise(KeyedRng);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(KeyedRng::new(Seed(seed), 0, SampleId(0), 0))
    }

    fn next(&mut self) -> f64 {
        (0..12).map(|_| self.0.unit()).sum::<f64>() - 6.0
    }
}

/// Course of an account that does not leak, as a share of its level at each step.
#[derive(Clone, Copy, Debug)]
enum Still {
    /// Constant, but for the noise.
    Flat,
    /// Each value resembles the one before.
    Sluggish,
    /// Rises for this many steps, and falls at once.
    Sawtooth(u64),
    /// Is higher for a while, every this many steps.
    Visits(u64),
    /// Rises once, for good.
    Rise(u64),
    /// Rises twice, for good, and is a sawtooth besides.
    Rises(u64, u64),
    /// Fills what it has, ever more slowly.
    Filling(f64),
}

fn still(still: Still, noise: f64, seed: u64, steps: u64) -> Vec<ByteCount> {
    let mut random = Noise::new(seed);
    let mut drift = 0.0;
    let value = |step: u64| {
        let white = random.next();
        // As widely spread as the white noise.
        drift = 0.9 * drift + 0.436 * white;
        let after = |at: u64| f64::from(u8::from(step >= at));
        let shape = match still {
            Still::Flat => white * noise,
            Still::Sluggish => drift * noise,
            Still::Sawtooth(period) => white * noise + 0.3 * (step % period) as f64 / period as f64,
            Still::Visits(period) => white * noise + if step % period < period / 8 { 0.5 } else { 0.0 },
            Still::Rise(at) => white * noise + 0.4 * after(at),
            Still::Rises(first, second) => {
                white * noise + 0.2 * after(first) + 0.3 * after(second) + 0.1 * (step % 17) as f64 / 17.0
            }
            Still::Filling(steps) => white * noise - 0.5 * (-(step as f64) / steps).exp(),
        };
        ByteCount((LEVEL * (1.0 + shape)).max(0.0) as u64)
    };
    (0..steps).map(value).collect()
}

/// Tests every 20 steps, and returns the first growth that is reported.
fn ever_growing(series: &[ByteCount]) -> Option<LeakReport> {
    let mut trend = LeakDetector::new(WARM_UP);
    for (step, &bytes) in (0..).zip(series) {
        trend.add(step, &[("account", bytes)]);
        if step % 20 == 0
            && let Some(growth) = trend.growing()
        {
            return Some(growth);
        }
    }
    None
}

#[test]
fn few_series_without_a_leak_are_reported() {
    const SERIES: u64 = 1000;
    let mut alarms = Vec::new();
    for seed in 0..SERIES {
        let mut choice = KeyedRng::new(Seed(seed), 1, SampleId(0), 0);
        let noise = choice.range(0.0, 0.1);
        let kind = match seed % 7 {
            0 => Still::Flat,
            1 => Still::Sluggish,
            2 => Still::Sawtooth(2 + choice.below(38)),
            3 => Still::Visits(10 + choice.below(200)),
            4 => Still::Rise(choice.below(1000)),
            5 => Still::Rises(choice.below(1000), choice.below(1000)),
            _ => Still::Filling(choice.range(1.0, 12.0)),
        };
        if let Some(growth) = ever_growing(&still(kind, noise, seed, 1000)) {
            alarms.push((seed, kind, noise, growth));
        }
    }
    println!("{} of {SERIES}: {alarms:#?}", alarms.len());
    assert!(alarms.len() <= 2, "{alarms:#?}");
}

#[test]
fn a_leak_of_a_thousandth_is_found_within_400_steps() {
    const SERIES: u64 = 200;
    let mut late = Vec::new();
    let mut taken = Vec::new();
    for seed in 0..SERIES {
        let noise = 0.02 * (seed % 5) as f64 / 4.0;
        let background = [Still::Flat, Still::Sawtooth(13), Still::Visits(60)][(seed % 3) as usize];
        let others = [still(Still::Sluggish, 0.05, seed + 1000, 500), still(Still::Rise(150), 0.02, seed + 2000, 500)];
        let leaking = still(background, noise, seed, 500);
        let mut trend = LeakDetector::new(WARM_UP);
        let mut found = None;
        for step in 0..WARM_UP + 400 {
            let at = step as usize;
            let leaked = leaking[at] + ByteCount((LEVEL * 0.001 * step as f64) as u64);
            // The others are larger: the size does not matter.
            let large = ByteCount(others[0][at].0 * 10);
            trend.add(step, &[("large", large), ("leaking", leaked), ("rising", others[1][at])]);
            if step % 10 == 0
                && let Some(growth) = trend.growing()
            {
                assert_eq!(growth.account, "leaking", "{growth:?}");
                assert!(growth.confidence > 0.9999);
                let right = LEVEL * 0.001;
                assert!((growth.bytes_per_step / right - 1.0).abs() < 0.5, "{growth:?}");
                found.get_or_insert(step - WARM_UP);
            }
        }
        match found {
            Some(steps) => taken.push(steps),
            None => late.push((seed, background, noise)),
        }
    }
    taken.sort_unstable();
    println!("found after {} steps in the middle, {:?} at most", taken[taken.len() / 2], taken.last());
    assert!(late.is_empty(), "{late:?}");
    assert!(taken[taken.len() / 2] <= 160);
}

#[test]
fn a_slow_leak_is_found_in_a_long_run() {
    // Two hundredths of the account in a hundred thousand steps, beside noise of half a hundredth.
    let mut random = Noise::new(9);
    let mut trend = LeakDetector::new(1000);
    for step in 0..100_000 {
        let bytes = LEVEL * (1.0 + 0.02 * step as f64 / 100_000.0 + 0.005 * random.next());
        trend.add(step, &[("heap", ByteCount(bytes as u64))]);
    }
    let growth = trend.growing().expect("it is found");
    assert!((growth.bytes_per_step / (LEVEL * 2e-7) - 1.0).abs() < 0.2, "{growth:?}");
    assert!((98_900..=98_999).contains(&growth.steps) && growth.last_step == 99_999, "{growth:?}");
    assert_eq!(trend.accounts[0].points.capacity(), POINTS_MAX, "it has taken no more than it said");
}

#[test]
fn a_leak_that_begins_late_is_found() {
    let mut random = Noise::new(11);
    let mut trend = LeakDetector::new(1000);
    let mut found = None;
    for step in 0..100_000u64 {
        let leaked = step.saturating_sub(60_000) as f64 * 1e-5;
        trend.add(step, &[("heap", ByteCount((LEVEL * (1.0 + leaked + 0.01 * random.next())) as u64))]);
        if step % 500 == 0
            && let Some(growth) = trend.growing()
        {
            found.get_or_insert((step, growth));
        }
    }
    let (step, growth) = found.expect("it is found");
    assert!((60_000..80_000).contains(&step), "{step}: {growth:?}");
    assert!((growth.bytes_per_step / (LEVEL * 1e-5) - 1.0).abs() < 0.3, "{growth:?}");
}

#[test]
fn growth_that_ends_is_no_longer_reported() {
    let mut trend = LeakDetector::new(0);
    let mut seen = false;
    for step in 0..3000u64 {
        trend.add(step, &[("cache", ByteCount(1_000_000 + 2_000 * step.min(500)))]);
        if step == 450 {
            seen = trend.growing().is_some();
        }
    }
    assert!(seen);
    assert_eq!(trend.growing(), None);
}

#[test]
fn shrinking_and_constant_accounts_do_not_grow() {
    let mut trend = LeakDetector::new(10);
    assert_eq!(trend.growing(), None);
    for step in 0..500u64 {
        let shrinking = ByteCount(10_000_000 - 10_000 * step);
        trend.add(step, &[("shrinking", shrinking), ("empty", ByteCount::ZERO), ("constant", ByteCount(77))]);
    }
    assert_eq!(trend.growing(), None);
}

#[test]
fn early_and_repeated_steps_are_ignored() {
    let mut trend = LeakDetector::new(100);
    for step in 0..100 {
        trend.add(step, &[("a", ByteCount(step * 1_000_000))]);
    }
    assert!(trend.accounts.is_empty());
    for step in (100..200).chain(0..200) {
        trend.add(step, &[("a", ByteCount(5))]);
    }
    assert_eq!(trend.accounts[0].points.len(), 100);
}

#[test]
fn the_largest_growth_comes_first() {
    let mut trend = LeakDetector::new(0);
    for step in 0..=500u64 {
        let (slow, fast) = (ByteCount(1_000_000 + 1_000 * step), ByteCount(1_000_000 + 5_000 * step));
        trend.add(step, &[("slow", slow), ("fast", fast)]);
    }
    let all = trend.all_growing();
    assert_eq!(all.iter().map(|growth| growth.account.as_str()).collect::<Vec<_>>(), ["fast", "slow"]);
    let fast = &all[0];
    assert_eq!((fast.from, fast.to, fast.steps), (ByteCount(1_000_000), ByteCount(3_500_000), 500));
    // The last reading may be of a point that is not full yet.
    let step = fast.reaches(ByteCount(6_000_000)).expect("it is reached");
    assert!((1000..=1010).contains(&step), "{step}");
    assert_eq!(fast.reaches(ByteCount(10)), Some(500), "it is beyond that");
}

#[test]
#[should_panic(expected = "at most 32 accounts, and 'account 32' is one more")]
fn too_many_names_are_a_mistake() {
    let mut trend = LeakDetector::new(0);
    for number in 0..=LEAK_ACCOUNTS_MAX as u64 {
        trend.add(number, &[(&format!("account {number}"), ByteCount(1))]);
    }
}

#[test]
fn the_normal_tail_matches_tables() {
    for (z, right) in [(0.0, 0.5), (1.0, 0.158_655_254), (1.959_964, 0.025), (3.090_232, 0.001), (4.0, 3.167_124e-5)] {
        assert!((upper_tail(z) - right).abs() < 1e-7, "{z}: {} and not {right}", upper_tail(z));
    }
}

#[test]
fn the_mann_kendall_test_matches_textbooks() {
    let points =
        |lows: &[u64]| -> Vec<Point> { (0..).zip(lows).map(|(step, &low)| Point { step, low, high: low }).collect() };
    // Ten values in order: S = 45, the variance is 125, so that z = 44 / sqrt(125) = 3.9355.
    let rising = chance(&points(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), 0.0);
    assert!((rising - upper_tail(3.935_48)).abs() < 1e-9, "{rising}");
    // With ties of 2 and 3: S = 42, the variance is (2250 - 18 - 66) / 18 = 120.33.
    let tied = chance(&points(&[1, 2, 2, 3, 4, 5, 5, 5, 6, 7]), 0.0);
    let pairs = 45.0 - 1.0 - 3.0;
    assert!((tied - upper_tail((pairs - 1.0) / (2166.0f64 / 18.0).sqrt())).abs() < 1e-9, "{tied}");
    assert_eq!(chance(&points(&[5, 5, 5, 5]), 0.0), 1.0);
    assert_eq!(chance(&points(&[4, 3, 2, 1]), 0.0), 1.0);
}

proptest! {
    #[test]
    fn the_median_is_the_middle_of_the_sorted_values(values in prop::collection::vec(-1e9..1e9f64, 1..50)) {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        prop_assert_eq!(median(values), (below + above) / 2.0);
    }

    #[test]
    fn the_line_is_robust_to_a_quarter_of_outliers(
        slope in -1000i64..1000, bad in prop::collection::vec(0u64..1 << 40, 10), seed in any::<u64>(),
    ) {
        let mut random = KeyedRng::new(Seed(seed), 0, SampleId(0), 0);
        let mut points: Vec<Point> = (0..40u64).map(|step| {
            let low = (1i64 << 30).strict_add(slope * step as i64) as u64;
            Point { step: step * 3, low, high: low }
        }).collect();
        for low in bad {
            points[random.below(40) as usize].low = low;
        }
        let line = Line::through(&points);
        let right = slope as f64 / 3.0;
        // A quarter of the points are in less than half of the pairs.
        prop_assert!((line.slope - right).abs() <= 1e-6 * right.abs() + 1e-6, "{} and not {right}", line.slope);
    }

    #[test]
    fn any_readings_are_accepted(readings in prop::collection::vec((0u64..5, any::<u64>()), 0..400)) {
        let mut trend = LeakDetector::new(3);
        let mut step = 0u64;
        for (later, bytes) in readings {
            step += later;
            trend.add(step, &[("a", ByteCount(bytes))]);
        }
        if let Some(growth) = trend.growing() {
            prop_assert!(growth.to >= growth.from && growth.bytes_per_step > 0.0, "{growth:?}");
            prop_assert!(growth.reaches(ByteCount(u64::MAX)).is_none_or(|at| at >= growth.last_step));
        }
    }
}
