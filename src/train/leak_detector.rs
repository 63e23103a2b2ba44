//! Test whether accounts of memory grow from step to step. It keeps a bounded number of points for each account and
//! reads no clock.
//!
//! A point is the lowest reading of several steps in a row: a leak raises the floor, while temporary memory (a
//! validation, a checkpoint being written, the sawtooth of a collector) does not. At the maximum number of points,
//! neighbors are merged. An account grows if three conditions hold for all points, or for their last half or quarter
//! (a leak may begin late):
//!
//! - The ranks of its points rise with time beyond chance: the Mann-Kendall test (Mann 1945, Kendall 1975) with the
//!   variance for ties (readings are often equal) and, for autocorrelated points, the effective number of points of
//!   Yue and Wang (2004), from the first autocorrelation of the residuals.
//! - The line of Theil and Sen (1950, 1968: the median of the slopes between all pairs, robust to a quarter of
//!   outliers) rises by more than the points scatter about it, and by a hundredth of the account.
//! - The growth continues: of six parts of the time each lies higher than the one before, by a fair share. Steps (a
//!   cache that is filled once, a validation whose memory stays) raise some parts, and growth that ends does not
//!   raise the last ones.

use std::collections::VecDeque;

use crate::ByteCount;

/// Maximum number of accounts.
pub const LEAK_ACCOUNTS_MAX: usize = 32;
/// Maximum number of points of an account.
const POINTS_MAX: usize = 480;
/// Maximum number of points of a test: neighbors are merged until there are no more.
const LOOK_MAX: usize = 120;
/// Minimum number of points of a test: memory that rises for a while should have fallen again by then.
const LOOK_MIN: usize = 60;
/// Minimum number of readings of a test of the last half or quarter.
const END_READINGS_MIN: u64 = 240;
const PARTS: usize = 6;
/// Minimum rise from one part to the next, as a share of a uniform rise.
const FAIR_SHARE: f64 = 0.5;
/// Maximum one-sided probability of chance.
const CHANCE: f64 = 1e-4;
/// Minimum growth over the tested time, as a share of the account.
const GROWTH_MIN: f64 = 0.01;
/// Minimum growth, as a multiple of the spread of the points about the line.
const SPREADS_MIN: f64 = 2.0;

/// Records accounts of memory over the steps of a run, and reports those that grow.
///
/// It holds at most 12 KiB for each account, however long the run. A reading takes about 20 ns; a test takes up to a
/// few hundred microseconds for each account, so test now and then and not at every step.
///
/// Of 1000 series of 1000 steps without a leak (noise of up to a tenth of the account, sawtooth, one rise, both
/// together), each tested 50 times, at most two are reported. A leak of a thousandth of the account a step is found
/// within 400 steps after the warm-up beside noise of a fiftieth, validations and a sawtooth of a third; half of them
/// within 160. A sawtooth whose first rise takes longer than the run so far looks like a leak.
///
/// ```
/// use feedstock::{ByteCount, train::LeakDetector};
///
/// let mut trend = LeakDetector::new(50);
/// for step in 0..400 {
///     let leaking = ByteCount(1_000_000 + 1_000 * step);
///     trend.add(step, &[("model", ByteCount(5_000_000)), ("batches", leaking)]);
/// }
/// let growth = trend.growing().expect("one of the two grows");
/// assert_eq!(growth.account, "batches");
/// assert_eq!(growth.bytes_per_step.round(), 1000.0);
/// // At step 399 there were 1 399 000 bytes.
/// let step = growth.reaches(ByteCount(2_000_000)).expect("it grows");
/// assert!((990..=1010).contains(&step));
/// ```
#[derive(Clone, Debug)]
pub struct LeakDetector {
    warm_up: u64,
    last_step: Option<u64>,
    accounts: Vec<Account>,
}

/// Growth of an account.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LeakReport {
    /// Name of the account, as given to [`LeakDetector::add`].
    pub account: String,
    /// Slope of the line through its floor.
    pub bytes_per_step: f64,
    /// Value of the line at the first step of the test.
    pub from: ByteCount,
    /// Value of the line at the last step.
    pub to: ByteCount,
    /// Highest reading in the last sixth of the time: the floor and the temporary memory on top.
    pub peak: ByteCount,
    /// Number of steps of the test: all, or their last half or quarter.
    pub steps: u64,
    /// Last step.
    pub last_step: u64,
    /// 1 minus the probability that chance orders the readings like this; above 0.9999.
    pub confidence: f64,
}

impl LeakReport {
    /// Step at which the peaks of the account reach `limit` if it continues to grow like this; the last step if they
    /// have, and `None` if the number of that step exceeds a u64.
    #[must_use]
    pub fn reaches(&self, limit: ByteCount) -> Option<u64> {
        let steps = (limit.saturating_sub(self.peak).0 as f64 / self.bytes_per_step).ceil();
        // A cast from float to integer saturates.
        self.last_step.checked_add(steps as u64)
    }
}

impl LeakDetector {
    /// Creates a detector without accounts. It ignores steps before `warm_up`, in which caches and pools grow: use
    /// the first epoch, if it has a hundred steps.
    #[must_use]
    pub fn new(warm_up: u64) -> LeakDetector {
        LeakDetector { warm_up, last_step: None, accounts: Vec::new() }
    }

    /// Adds the readings of a step. Steps ascend, but need not be consecutive; a step that is not later than the last
    /// one is ignored. An account that is not named has no reading at this step.
    ///
    /// # Panics
    /// Panics with more than [`LEAK_ACCOUNTS_MAX`] names.
    pub fn add(&mut self, step: u64, readings: &[(&str, ByteCount)]) {
        if step < self.warm_up || self.last_step.is_some_and(|last| step <= last) {
            return;
        }
        self.last_step = Some(step);
        for &(name, bytes) in readings {
            let known = self.accounts.iter().position(|account| account.name == name).unwrap_or_else(|| {
                assert!(
                    self.accounts.len() < LEAK_ACCOUNTS_MAX,
                    "at most {LEAK_ACCOUNTS_MAX} accounts, and '{name}' is one more"
                );
                self.accounts.push(Account::new(name));
                self.accounts.len() - 1
            });
            self.accounts[known].add(step, bytes);
        }
    }

    /// Growth of the account that has grown by the most bytes, if any grows.
    #[must_use]
    pub fn growing(&self) -> Option<LeakReport> {
        self.all_growing().into_iter().next()
    }

    /// Growth of every account that grows, the one that has grown by the most bytes first. An account that is part of
    /// another (the heap, of resident memory) is reported too.
    #[must_use]
    pub fn all_growing(&self) -> Vec<LeakReport> {
        let mut all: Vec<LeakReport> = self.accounts.iter().filter_map(Account::growth).collect();
        all.sort_by_key(|growth| std::cmp::Reverse(growth.to.saturating_sub(growth.from)));
        all
    }
}

/// Readings of several steps in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Step of the lowest one.
    step: u64,
    low: u64,
    high: u64,
}

impl Point {
    fn with(self, other: Point) -> Point {
        let lower = if other.low < self.low { other } else { self };
        Point { step: lower.step, low: lower.low, high: self.high.max(other.high) }
    }
}

#[derive(Clone, Debug)]
struct Account {
    name: String,
    points: VecDeque<Point>,
    /// Readings in a point.
    width: u64,
    /// Incomplete point, and its number of readings.
    gathered: Option<(Point, u64)>,
    last_step: u64,
}

impl Account {
    fn new(name: &str) -> Account {
        Account {
            name: name.to_owned(),
            points: VecDeque::with_capacity(POINTS_MAX),
            width: 1,
            gathered: None,
            last_step: 0,
        }
    }

    fn add(&mut self, step: u64, bytes: ByteCount) {
        self.last_step = step;
        let point = Point { step, low: bytes.0, high: bytes.0 };
        let (point, readings) =
            self.gathered.map_or((point, 1), |(so_far, readings)| (so_far.with(point), readings + 1));
        if readings < self.width {
            self.gathered = Some((point, readings));
            return;
        }
        self.gathered = None;
        self.points.push_back(point);
        if self.points.len() == POINTS_MAX {
            self.points =
                (0..POINTS_MAX / 2).map(|pair| self.points[2 * pair].with(self.points[2 * pair + 1])).collect();
            self.width *= 2;
        }
    }

    /// Growth in the longest tested time in which it grows.
    fn growth(&self) -> Option<LeakReport> {
        let all = self.points.len();
        let enough = |length: usize| length == all || length as u64 * self.width >= END_READINGS_MIN;
        let lengths = [all, all / 2, all / 4].into_iter().filter(|&length| length >= LOOK_MIN && enough(length));
        lengths.filter_map(|length| self.growth_of_last(length)).next()
    }

    fn growth_of_last(&self, length: usize) -> Option<LeakReport> {
        let last: Vec<Point> = self.points.iter().copied().skip(self.points.len() - length).collect();
        // From the end: only the oldest group may be smaller.
        let mut points: Vec<Point> = last
            .rchunks(length.div_ceil(LOOK_MAX))
            .filter_map(|some| some.iter().copied().reduce(Point::with))
            .collect();
        points.reverse();
        let line = Line::through(&points);
        let (first, last) = (last.first()?.step, last.last()?.step);
        let grown = line.slope * (last - first) as f64;
        let left: Vec<f64> = points.iter().map(|point| point.low as f64 - line.at(point.step)).collect();
        let level = median(points.iter().map(|point| point.low as f64).collect());
        let spread = 1.4826 * median(left.iter().map(|value| value.abs()).collect());
        if grown <= 0.0 || grown < GROWTH_MIN * level || grown < SPREADS_MIN * spread || !continues(&points, grown) {
            return None;
        }
        let chance = chance(&points, first_autocorrelation(&left));
        if chance > CHANCE {
            return None;
        }
        let last_part = &points[points.len() - points.len() / PARTS..];
        Some(LeakReport {
            account: self.name.clone(),
            bytes_per_step: line.slope,
            from: ByteCount(line.at(first).max(0.0) as u64),
            to: ByteCount(line.at(self.last_step).max(0.0) as u64),
            peak: ByteCount(last_part.iter().map(|point| point.high).max().unwrap_or(0)),
            steps: self.last_step - first,
            last_step: self.last_step,
            confidence: 1.0 - chance,
        })
    }
}

/// Line through points.
#[derive(Clone, Copy, Debug)]
struct Line {
    slope: f64,
    origin: u64,
    height: f64,
}

impl Line {
    /// Line of Theil and Sen: the median of the slopes between all pairs, at the median of the residuals.
    fn through(points: &[Point]) -> Line {
        let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
        for (at, later) in points.iter().enumerate() {
            for earlier in &points[..at] {
                // Points do not share steps, so the difference is not 0.
                slopes.push((later.low as f64 - earlier.low as f64) / (later.step - earlier.step) as f64);
            }
        }
        let (slope, origin) = (median(slopes), points[0].step);
        let height =
            median(points.iter().map(|point| point.low as f64 - slope * (point.step - origin) as f64).collect());
        Line { slope, origin, height }
    }

    fn at(&self, step: u64) -> f64 {
        self.height + self.slope * (step as f64 - self.origin as f64)
    }
}

/// Returns true if each part of the time lies higher than the one before, by a fair share of the growth.
fn continues(points: &[Point], grown: f64) -> bool {
    let bounds = |part: usize| part * points.len() / PARTS..(part + 1) * points.len() / PARTS;
    let middle = |part: usize| median(points[bounds(part)].iter().map(|point| point.low as f64).collect());
    let middles: Vec<f64> = (0..PARTS).map(middle).collect();
    middles.windows(2).all(|pair| pair[1] - pair[0] >= FAIR_SHARE * grown / PARTS as f64)
}

/// Probability that points in random order rise as much as these: the one-sided Mann-Kendall test.
fn chance(points: &[Point], autocorrelation: f64) -> f64 {
    let mut rises = 0i64;
    for (at, later) in points.iter().enumerate() {
        rises += points[..at].iter().map(|earlier| (later.low.cmp(&earlier.low)) as i64).sum::<i64>();
    }
    let term = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let mut values: Vec<u64> = points.iter().map(|point| point.low).collect();
    values.sort_unstable();
    let ties: f64 = values.chunk_by(|a, b| a == b).map(|equal| term(equal.len() as f64)).sum();
    let variance = (term(points.len() as f64) - ties) / 18.0;
    // Factor by which autocorrelation reduces the number of independent points.
    let fewer = (1.0 + autocorrelation) / (1.0 - autocorrelation);
    if variance <= 0.0 || rises <= 0 {
        return 1.0;
    }
    upper_tail((rises - 1) as f64 / (variance * fewer).sqrt())
}

/// First autocorrelation, clamped to 0 to 0.9.
fn first_autocorrelation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let all: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let pairs: f64 = values.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if all > 0.0 { (pairs / all).clamp(0.0, 0.9) } else { 0.0 }
}

/// Probability that a standard normal variable is above `z`, for `z >= 0`: Abramowitz and Stegun 26.2.17, to
/// 7.5e-8.
fn upper_tail(z: f64) -> f64 {
    const COEFFICIENTS: [f64; 5] = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let sum = COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// Median; 0 for no values.
fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    let even = values.len().is_multiple_of(2);
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if even { (below.iter().copied().fold(f64::MIN, f64::max) + upper) / 2.0 } else { upper }
}

#[cfg(test)]
#[path = "leak_detector_tests.rs"]
mod tests;
