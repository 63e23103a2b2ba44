//! Owns what was measured and the verdict on it: which budgets were kept, and whether every run made the same batches.
//! It must never call for a measurement, and never round in a budget's favour.

use std::io;

use serde_json::{Value, json};

use feedstock::ByteCount;

use crate::cli::child::Ended;
use crate::cli::failure::Failure;
use crate::cli::table::{columns, counted, facts};

/// One budget, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) budget: ByteCount,
    /// What the plan expected to hold at most.
    pub(super) planned: ByteCount,
    /// The most that was resident: as seen from outside or as the process itself says, whichever is more.
    pub(super) peak: ByteCount,
    /// Anonymous and shared pages alone.
    pub(super) peak_own: ByteCount,
    pub(super) images_per_s: f64,
    pub(super) workers: u64,
    /// Files that could not be used.
    pub(super) bad_samples: u64,
    pub(super) digest: String,
}

/// All runs so far.
#[derive(Clone)]
pub(super) struct Proof {
    pub(super) minimum: ByteCount,
    pub(super) knee: ByteCount,
    /// What was asked for.
    pub(super) about: Value,
    pub(super) points: Vec<Point>,
}

impl Point {
    /// Takes the numbers of a run that ended well.
    pub(super) fn of(budget: ByteCount, ended: io::Result<Ended>) -> Result<Point, Failure> {
        let ended = ended.map_err(|error| Failure::Io(format!("cannot run this program once more: {error}")))?;
        let name = format!("at a budget of {budget}");
        let (said, seen) = (ended.said(&name)?, ended.seen);
        let bytes = |key: &str| said[key].as_u64().map(ByteCount);
        let point = || {
            Some(Point {
                budget: bytes("ram_budget_bytes").filter(|told| *told == budget)?,
                planned: bytes("planned_bytes")?,
                peak: bytes("peak_rss_bytes")?.max(seen.peak_rss),
                peak_own: seen.peak_own,
                images_per_s: said["images_per_s"].as_f64()?,
                workers: said["workers"].as_u64()?,
                bad_samples: said["bad_samples"].as_array()?.len() as u64,
                digest: said["digest"].as_str()?.to_owned(),
            })
        };
        point().ok_or_else(|| ended.failed(&name, &format!("it said {}", ended.out)))
    }

    pub(super) fn kept(&self) -> bool {
        self.peak <= self.budget
    }

    /// The peak's share of the budget.
    pub(super) fn used(&self) -> f64 {
        self.peak.0 as f64 / self.budget.0 as f64
    }
}

impl Proof {
    pub(super) fn new(minimum: ByteCount, knee: ByteCount, about: Value) -> Self {
        Proof { minimum, knee, about, points: Vec::new() }
    }

    /// Every way in which the promise was not kept, a sentence each.
    pub(super) fn breaches(&self) -> Vec<String> {
        let over = self.points.iter().filter(|point| !point.kept()).map(|point| {
            let Point { budget, peak, .. } = point;
            let by = peak.saturating_sub(*budget);
            format!("the budget of {budget} was exceeded: {peak} were resident, {by} ({} bytes) too many", by.0)
        });
        let other = self.points.iter().filter(|point| point.digest != self.points[0].digest).map(|point| {
            let first = &self.points[0];
            format!(
                "the batches differ: at a budget of {} their digest is {}, at {} it is {}",
                point.budget, point.digest, first.budget, first.digest
            )
        });
        over.chain(other).collect()
    }

    pub(super) fn best_images_per_s(&self) -> f64 {
        self.points.iter().map(|point| point.images_per_s).fold(0.0, f64::max)
    }

    fn share_of_best(&self, point: &Point) -> f64 {
        let best = self.best_images_per_s();
        if best > 0.0 { point.images_per_s / best } else { 0.0 }
    }

    pub(super) fn json(&self, out: &str, error: Option<&str>) -> Value {
        let point = |point: &Point| {
            json!({
                "budget_bytes": point.budget.0,
                "planned_bytes": point.planned.0,
                "peak_rss_bytes": point.peak.0,
                "peak_own_bytes": point.peak_own.0,
                "peak_share": point.used(),
                "images_per_s": point.images_per_s,
                "share_of_best": self.share_of_best(point),
                "workers": point.workers,
                "bad_samples": point.bad_samples,
                "digest": point.digest,
                "kept": point.kept(),
            })
        };
        let breaches = self.breaches();
        let mut said = json!({
            "minimum_bytes": self.minimum.0,
            "knee_bytes": self.knee.0,
            "points": self.points.iter().map(point).collect::<Value>(),
            "kept": breaches.is_empty() && error.is_none() && !self.points.is_empty(),
            "breaches": breaches,
            "digest": self.points.first().map(|point| &point.digest),
            "out": out,
            "error": error,
        });
        if let (Value::Object(said), Value::Object(about)) = (&mut said, &self.about) {
            said.extend(about.clone());
        }
        said
    }

    /// A table, and what it comes to.
    pub(super) fn text(&self, out: &str, error: Option<&str>) -> String {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let rows: Vec<[String; 6]> = self
            .points
            .iter()
            .map(|point| {
                let over = if point.kept() { "" } else { "!" };
                [
                    point.budget.to_string(),
                    point.planned.to_string(),
                    format!("{over}{}", point.peak),
                    percent(point.used()),
                    format!("{:.0}", point.images_per_s),
                    percent(self.share_of_best(point)),
                ]
            })
            .collect();
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
        lines.push(("minimum", format!("{}, the least budget that works", self.minimum)));
        lines.push(("knee", format!("{}; more than this buys no throughput", self.knee)));
        if !self.points.is_empty() {
            lines.push(("drawn", out.to_owned()));
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
    let mib = |count: u64| ByteCount(count << 20);
    let mut proof = Proof::new(mib(40), mib(64), json!({ "data": "a <b> & \"c\"", "samples": 7 }));
    proof.points = points
        .iter()
        .map(|&(budget, peak)| Point {
            budget: mib(budget),
            planned: mib(peak + 4),
            peak: mib(peak),
            peak_own: mib(peak - 4),
            images_per_s: 500.0 + budget as f64,
            workers: 2,
            bad_samples: 0,
            digest: "00aa".to_owned(),
        })
        .collect();
    proof
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_to_the_byte() {
        let mut proof = proof_of(&[(48, 40), (64, 64), (128, 60)]);
        assert_eq!(proof.breaches(), [] as [String; 0]);
        assert_eq!(proof.json("x", None)["kept"], true);
        proof.points[1].peak.0 += 1;
        let breaches = proof.breaches();
        assert!(breaches.len() == 1 && breaches[0].contains("64.0 MiB was exceeded"), "{breaches:?}");
        assert!(breaches[0].contains("(1 bytes)"), "{breaches:?}");
        let json = proof.json("x", None);
        assert_eq!(
            (&json["kept"], &json["points"][1]["kept"], &json["points"][2]["kept"]),
            (&false.into(), &false.into(), &true.into())
        );
        assert!(proof.text("x", None).contains("not: 1 breach in 3 runs"), "{}", proof.text("x", None));
    }

    #[test]
    fn batches_that_differ_are_a_breach() {
        let mut proof = proof_of(&[(48, 40), (64, 60), (128, 60)]);
        proof.points[2].digest = "00ab".to_owned();
        let breaches = proof.breaches();
        assert!(breaches.len() == 1 && breaches[0].contains("at a budget of 128 MiB"), "{breaches:?}");
        assert_eq!(proof.json("x", None)["kept"], false);
    }

    #[test]
    fn nothing_run_is_nothing_kept() {
        let proof = proof_of(&[]);
        assert_eq!(proof.json("x", Some("interrupted"))["kept"], false);
        assert!(proof.text("x", None).contains("no run has ended"));
    }
}
