//! Measurements of `feedstock prove` and the verdict: whether each budget was kept, and whether every run made the same
//! batches. Nothing is rounded in favor of a budget.

use std::io;

use serde::Serialize;

use feedstock::ByteCount;

use crate::cli::bench::RunReport;
use crate::cli::child::{Ended, Seen};
use crate::cli::failure::Failure;
use crate::cli::table::{columns, counted, facts};

/// One budget and its run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    pub(super) budget_bytes: u64,
    /// Bytes that the plan reserves at most.
    pub(super) planned_bytes: u64,
    /// Peak resident size: as seen from outside or as the process reports, whichever is larger.
    pub(super) peak_rss_bytes: u64,
    /// Anonymous and shared pages alone.
    peak_own_bytes: u64,
    /// The peak's share of the budget.
    peak_share: f64,
    pub(super) images_per_s: f64,
    share_of_best: f64,
    pub(super) workers: u64,
    /// Number of files that could not be used.
    bad_samples: usize,
    digest: String,
    kept: bool,
}

/// All runs so far.
#[derive(Clone, Serialize)]
pub(super) struct Proof {
    pub(super) minimum_bytes: u64,
    pub(super) knee_bytes: u64,
    #[serde(flatten)]
    pub(super) request: Request,
    pub(super) points: Vec<Point>,
}

/// The arguments of all runs.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Request {
    pub(super) data: String,
    pub(super) samples: u64,
    pub(super) batch_size: usize,
    pub(super) size: u32,
    pub(super) dtype: String,
    pub(super) layout: String,
    pub(super) workers_asked: Option<usize>,
    pub(super) epochs: u64,
}

/// The JSON of a proof.
#[derive(Serialize)]
pub(super) struct ProofReport<'a> {
    #[serde(flatten)]
    proof: &'a Proof,
    kept: bool,
    breaches: Vec<String>,
    digest: Option<&'a str>,
    out: &'a str,
    error: Option<&'a str>,
}

impl Request {
    /// The request in a line, with the last part of the data's path.
    pub(super) fn describe(&self) -> String {
        let Request { samples, batch_size, size, dtype, layout, .. } = self;
        let name = self.data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let workers =
            self.workers_asked.map_or(String::new(), |count| format!(", {}", counted(count as u64, "worker")));
        let epochs = counted(self.epochs, "epoch");
        format!(
            "{name}: {samples} samples, batches of {batch_size} x {size}x{size} {dtype} {layout}{workers}, {epochs} \
             per run"
        )
    }
}

impl Point {
    /// The numbers of a run that ended well.
    pub(super) fn of(budget: ByteCount, ended: io::Result<Ended>) -> Result<Point, Failure> {
        let ended = ended.map_err(|error| Failure::Io(format!("cannot run this program once more: {error}")))?;
        let name = format!("at a budget of {budget}");
        let run: RunReport = ended.report(&name)?;
        if run.digest.is_none() || run.ram_budget_bytes != budget.0 {
            return Err(ended.failed(&name, &format!("its report is {}", ended.out)));
        }
        Ok(Point::new(run, ended.seen))
    }

    fn new(run: RunReport, seen: Seen) -> Point {
        let (budget, peak) = (run.ram_budget_bytes, run.peak_rss_bytes.max(seen.peak_rss.0));
        Point {
            budget_bytes: budget,
            planned_bytes: run.planned_bytes,
            peak_rss_bytes: peak,
            peak_own_bytes: seen.peak_own.0,
            peak_share: peak as f64 / budget as f64,
            images_per_s: run.images_per_s,
            share_of_best: 0.0,
            workers: run.workers,
            bad_samples: run.bad_samples.len(),
            digest: run.digest.unwrap_or_default(),
            kept: peak <= budget,
        }
    }
}

impl Proof {
    pub(super) fn push(&mut self, point: Point) {
        self.points.push(point);
        let best = self.best_images_per_s().max(f64::MIN_POSITIVE);
        self.points.iter_mut().for_each(|point| point.share_of_best = point.images_per_s / best);
    }

    /// Every budget that was exceeded and every digest that differs, as a sentence.
    pub(super) fn breaches(&self) -> Vec<String> {
        let over = self.points.iter().filter(|point| !point.kept).map(|point| {
            let by = point.peak_rss_bytes - point.budget_bytes;
            let [budget, peak, too_many] = [point.budget_bytes, point.peak_rss_bytes, by].map(ByteCount);
            format!("the budget of {budget} was exceeded: {peak} were resident, {too_many} ({by} bytes) too many")
        });
        let other = self.points.iter().filter(|point| point.digest != self.points[0].digest).map(|point| {
            let (first, budget) = (&self.points[0], ByteCount(point.budget_bytes));
            format!(
                "the batches differ: at a budget of {budget} their digest is {}, at {} it is {}",
                point.digest,
                ByteCount(first.budget_bytes),
                first.digest
            )
        });
        over.chain(other).collect()
    }

    pub(super) fn best_images_per_s(&self) -> f64 {
        self.points.iter().map(|point| point.images_per_s).fold(0.0, f64::max)
    }

    pub(super) fn report<'a>(&'a self, out: &'a str, error: Option<&'a str>) -> ProofReport<'a> {
        let breaches = self.breaches();
        let kept = breaches.is_empty() && error.is_none() && !self.points.is_empty();
        let digest = self.points.first().map(|point| point.digest.as_str());
        ProofReport { proof: self, kept, breaches, digest, out, error }
    }

    /// A table of the runs and the verdict.
    pub(super) fn text(&self, out: &str, error: Option<&str>) -> String {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let row = |point: &Point| {
            let [budget, planned, peak] =
                [point.budget_bytes, point.planned_bytes, point.peak_rss_bytes].map(ByteCount);
            let over = if point.kept { "" } else { "!" };
            [
                budget.to_string(),
                planned.to_string(),
                format!("{over}{peak}"),
                percent(point.peak_share),
                format!("{:.0}", point.images_per_s),
                percent(point.share_of_best),
            ]
        };
        let rows: Vec<_> = self.points.iter().map(row).collect();
        let table = columns(["budget", "predicted", "peak RSS", "peak/budget", "images/s", "of best"], &rows);
        let runs = counted(self.points.len() as u64, "run");
        let kept = match self.breaches().len() {
            _ if self.points.is_empty() => "no run has ended".to_owned(),
            0 => format!("in {runs}, each with the same batches"),
            breaches => format!("not: {} in {runs}", counted(breaches as u64, "breach")),
        };
        let mut lines = vec![("kept", kept)];
        if let Some(first) = self.points.first() {
            lines.push(("digest", first.digest.clone()));
        }
        lines.push(("minimum", format!("{}, the smallest budget that works", ByteCount(self.minimum_bytes))));
        lines.push(("knee", format!("{}; a larger budget is not faster", ByteCount(self.knee_bytes))));
        if !self.points.is_empty() {
            lines.push(("figure", out.to_owned()));
        }
        if let (Some(error), true) = (error, self.breaches().is_empty()) {
            lines.push(("ended early", error.lines().next().unwrap_or_default().to_owned()));
        }
        format!("{table}\n\n{}", facts(&lines))
    }
}

/// A proof with these budgets and peaks, in MiB, for tests.
#[cfg(test)]
pub(super) fn proof_of(points: &[(u64, u64)]) -> Proof {
    let request = Request { data: "a <b> & \"c\"".to_owned(), samples: 7, ..Request::default() };
    let mut proof = Proof { minimum_bytes: 40 << 20, knee_bytes: 64 << 20, request, points: Vec::new() };
    for &(budget, peak) in points {
        let run = RunReport {
            ram_budget_bytes: budget << 20,
            planned_bytes: (peak + 4) << 20,
            peak_rss_bytes: peak << 20,
            images_per_s: 500.0 + budget as f64,
            digest: Some("00aa".to_owned()),
            ..RunReport::default()
        };
        proof.push(Point::new(run, Seen::default()));
    }
    proof
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_kept_to_the_byte() {
        let mut proof = proof_of(&[(48, 40), (64, 64), (128, 60)]);
        assert_eq!(proof.breaches(), [] as [String; 0]);
        assert!(proof.report("x", None).kept);
        let run = RunReport { ram_budget_bytes: 64, peak_rss_bytes: 65, ..RunReport::default() };
        proof.points[1] = Point { digest: "00aa".to_owned(), ..Point::new(run, Seen::default()) };
        let breaches = proof.breaches();
        assert!(breaches.len() == 1 && breaches[0].contains("64 B was exceeded"), "{breaches:?}");
        assert!(breaches[0].contains("(1 bytes)"), "{breaches:?}");
        assert!(!proof.report("x", None).kept);
        assert_eq!([1, 2].map(|n| proof.points[n].kept), [false, true]);
        assert!(proof.text("x", None).contains("not: 1 breach in 3 runs"), "{}", proof.text("x", None));
    }

    #[test]
    fn different_batches_are_a_breach() {
        let mut proof = proof_of(&[(48, 40), (64, 60), (128, 60)]);
        proof.points[2].digest = "00ab".to_owned();
        let breaches = proof.breaches();
        assert!(breaches.len() == 1 && breaches[0].contains("at a budget of 128 MiB"), "{breaches:?}");
        assert!(!proof.report("x", None).kept);
    }

    #[test]
    fn no_run_is_no_proof() {
        let proof = proof_of(&[]);
        assert!(!proof.report("x", Some("interrupted")).kept);
        assert!(proof.text("x", None).contains("no run has ended"));
    }
}
