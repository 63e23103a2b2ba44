//! Owns the question whether something grows from step to step that should not: readings of several accounts in a
//! bounded number of points, and a test of their trend. It must never take more memory than it has said, nor look at a
//! clock.
//!
//! Readings are kept as the lowest of so many steps in a row: a leak raises the floor, while what comes and goes (a
//! validation, a checkpoint being written, a collector's sawtooth) does not. When there are too many points, two
//! neighbours become one. An account grows where three things hold, of all that was seen or of its last half or quarter
//! (a leak may begin late):
//!
//! - the ranks of its points rise with time beyond chance: the Mann-Kendall test (Mann 1945, Kendall 1975) with the
//!   variance for ties (readings often stand still) and, for neighbours that resemble each other, the effective number of
//!   points of Yue and Wang (2004), from the first autocorrelation of what is left beside the line;
//! - the line, Theil and Sen's (1950, 1968: the median of the slopes between all pairs, which a quarter of bad points
//!   cannot move far), rises over the whole time by more than the points scatter about it, and by a hundredth of the
//!   account;
//! - it goes on: of six parts of the time each lies higher than the one before, by a fair share. Steps (a cache that is
//!   filled once, a validation whose memory stays) raise some parts, and a growth that comes to rest not the last ones.

use std::collections::VecDeque;

use crate::ByteCount;

/// So many accounts can be followed.
pub const LEAK_ACCOUNTS_MAX: usize = 32;
/// So many points of each are kept.
const POINTS_MAX: usize = 480;
/// So many are looked at at once, at most: neighbours are put together until they are no more.
const LOOK_MAX: usize = 120;
/// With fewer nothing is said: what rises for a while and falls again should have fallen by then.
const LOOK_MIN: usize = 60;
/// The end of what was seen needs more readings than all of it: it is looked at where the whole says nothing.
const END_READINGS_MIN: u64 = 240;
const PARTS: usize = 6;
/// What each part has to be above the one before, of what it would be if all rose alike.
const FAIR_SHARE: f64 = 0.5;
/// What chance may do: the one-sided probability of the test.
const CHANCE: f64 = 1e-4;
/// LeakReport of less than this share of the account, in all that was seen, is none.
const GROWTH_MIN: f64 = 0.01;
/// The growth, in spreads of the points about the line.
const SPREADS_MIN: f64 = 2.0;

/// Follows accounts of memory over the steps of a run, and names the one that grows.
///
/// It holds at most 12 KiB an account, however long the run; adding a reading costs some twenty nanoseconds, and asking
/// up to a few hundred microseconds an account, so that it should be asked now and then and not at every step.
///
/// Of a thousand series of a thousand steps that stand still (noise of up to a tenth of the account, sawtooth, one
/// rise, both together), each asked fifty times, at most two are called growing; a leak of a thousandth of the account
/// a step is found within 400 steps after the warm-up beside noise of a fiftieth, validations and a sawtooth of a
/// third; half of them within 160. What cannot be told apart: a sawtooth whose first rise takes longer than all that
/// was seen, and a leak.
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

/// An account that grows, and how.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LeakReport {
    /// Its name, as it was given to [`LeakDetector::add`].
    pub account: String,
    /// The slope of the line through its floor.
    pub bytes_per_step: f64,
    /// Where the line is at the first step that counts.
    pub from: ByteCount,
    /// Where the line is at the last step.
    pub to: ByteCount,
    /// The highest reading in the last sixth of the time: the floor, and what stands on it for a while.
    pub peak: ByteCount,
    /// Steps from the first one that counts to the last: of all that was seen, or of its last half or quarter.
    pub steps: u64,
    /// The last step.
    pub last_step: u64,
    /// One less the probability that chance alone orders the readings like this; above 0.9999.
    pub confidence: f64,
}

impl LeakReport {
    /// The step at which the account's peaks reach `limit`, should it go on as it did; the last step where they already
    /// do, and `None` where that lies beyond what steps are counted in.
    #[must_use]
    pub fn reaches(&self, limit: ByteCount) -> Option<u64> {
        let steps = (limit.saturating_sub(self.peak).0 as f64 / self.bytes_per_step).ceil();
        // A float-to-integer cast saturates, and so does what is not to be reached.
        self.last_step.checked_add(steps as u64)
    }
}

impl LeakDetector {
    /// Follows nothing yet. Steps before `warm_up` do not count: caches fill, pools take their sizes, lazy things come
    /// into being. The first epoch is a good one, if it has a hundred steps.
    #[must_use]
    pub fn new(warm_up: u64) -> LeakDetector {
        LeakDetector { warm_up, last_step: None, accounts: Vec::new() }
    }

    /// Adds what the accounts are at a step. Steps ascend, but need not be consecutive; one that is not later than the
    /// last is passed over. An account that is not named has no reading at this step.
    ///
    /// # Panics
    /// With more than [`LEAK_ACCOUNTS_MAX`] names: they are the program's, and not made while it runs.
    pub fn add(&mut self, step: u64, readings: &[(&str, ByteCount)]) {
        if step < self.warm_up || self.last_step.is_some_and(|last| step <= last) {
            return;
        }
        self.last_step = Some(step);
        for &(name, bytes) in readings {
            let known = self.accounts.iter().position(|account| account.name == name).unwrap_or_else(|| {
                assert!(
                    self.accounts.len() < LEAK_ACCOUNTS_MAX,
                    "no more than {LEAK_ACCOUNTS_MAX} accounts can be followed, and '{name}' is one more"
                );
                self.accounts.push(Account::new(name));
                self.accounts.len() - 1
            });
            self.accounts[known].add(step, bytes);
        }
    }

    /// The account that has grown by the most bytes, if any grows.
    #[must_use]
    pub fn growing(&self) -> Option<LeakReport> {
        self.all_growing().into_iter().next()
    }

    /// Every account that grows, the one that has grown by the most bytes first. One that is a part of another (the
    /// heap, of what is resident) is named beside it.
    #[must_use]
    pub fn all_growing(&self) -> Vec<LeakReport> {
        let mut all: Vec<LeakReport> = self.accounts.iter().filter_map(Account::growth).collect();
        all.sort_by_key(|growth| std::cmp::Reverse(growth.to.saturating_sub(growth.from)));
        all
    }
}

/// The readings of some steps in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Where the lowest of them was.
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
    /// Readings to a point.
    width: u64,
    /// The point that is being gathered, and how many readings it has.
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

    /// How it grows, in the longest time of those that are looked at.
    fn growth(&self) -> Option<LeakReport> {
        let all = self.points.len();
        let enough = |length: usize| length == all || length as u64 * self.width >= END_READINGS_MIN;
        let lengths = [all, all / 2, all / 4].into_iter().filter(|&length| length >= LOOK_MIN && enough(length));
        lengths.filter_map(|length| self.growth_of_last(length)).next()
    }

    fn growth_of_last(&self, length: usize) -> Option<LeakReport> {
        let last: Vec<Point> = self.points.iter().copied().skip(self.points.len() - length).collect();
        // From the end: it is the oldest that may be fewer than the others.
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
        if grown <= 0.0 || grown < GROWTH_MIN * level || grown < SPREADS_MIN * spread || !goes_on(&points, grown) {
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

/// A line through points.
#[derive(Clone, Copy, Debug)]
struct Line {
    slope: f64,
    origin: u64,
    height: f64,
}

impl Line {
    /// Theil and Sen's: the median of the slopes between all pairs, at the median of what is left.
    fn through(points: &[Point]) -> Line {
        let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
        for (at, later) in points.iter().enumerate() {
            for earlier in &points[..at] {
                // The lowest of a point's readings may be its first or last: never the same step as another's.
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

/// Whether each part of the time lies higher than the one before, by a fair share of what has grown.
fn goes_on(points: &[Point], grown: f64) -> bool {
    let bounds = |part: usize| part * points.len() / PARTS..(part + 1) * points.len() / PARTS;
    let middle = |part: usize| median(points[bounds(part)].iter().map(|point| point.low as f64).collect());
    let middles: Vec<f64> = (0..PARTS).map(middle).collect();
    middles.windows(2).all(|pair| pair[1] - pair[0] >= FAIR_SHARE * grown / PARTS as f64)
}

/// The probability that points of this many, in no order of their own, rise as much as these: Mann and Kendall's,
/// one-sided.
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
    // So many times fewer independent points there are, where each resembles the one before.
    let fewer = (1.0 + autocorrelation) / (1.0 - autocorrelation);
    if variance <= 0.0 || rises <= 0 {
        return 1.0;
    }
    upper_tail((rises - 1) as f64 / (variance * fewer).sqrt())
}

/// How much each value resembles the one before, from 0 (not at all, or as an opposite) to 0.9.
fn first_autocorrelation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let all: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let pairs: f64 = values.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if all > 0.0 { (pairs / all).clamp(0.0, 0.9) } else { 0.0 }
}

/// The probability that a standard normal variable is above `z`, for `z >= 0`: Abramowitz and Stegun 26.2.17, to
/// 7.5e-8.
fn upper_tail(z: f64) -> f64 {
    const COEFFICIENTS: [f64; 5] = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let sum = COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// The middle value, or the mean of the two in the middle; 0 of none.
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
