//! The figure of a proof: peak memory and throughput against the budget, as one SVG file.

use super::proof::Proof;
use crate::cli::chart::{Axis, Chart, Line, Panel, Point, Series};
use crate::cli::format::{bytes, short};
use crate::cli::table::counted;

/// Draws the runs so far.
pub(super) fn draw(proof: &Proof) -> String {
    let point = |point: &super::proof::Point| {
        let sizes = [point.budget_bytes, point.planned_bytes, point.peak_rss_bytes];
        let [budget, planned, peak] = sizes.map(|bytes| bytes.max(1024) as f64);
        (budget, planned, peak, format!("budget {}", bytes(budget)))
    };
    let points: Vec<_> = proof.points.iter().map(point).collect();
    let (minimum, knee) = (proof.minimum_bytes as f64, proof.knee_bytes as f64);
    let mut memory = Panel::memory(&points, 368.0, true);
    // The minimum and the knee are on the axis as well.
    let (low, high) = memory.x.range;
    memory.x = Axis::bytes("", (low.min(minimum / 1.06), high.max(knee * 1.06)));
    memory.lines = [("minimum", minimum), ("knee", knee)]
        .map(|(name, budget)| (budget, format!("{name} {}", bytes(budget))))
        .to_vec();
    let speeds = proof.points.iter().zip(&points).map(|(point, (budget, .., name))| {
        let workers = counted(point.workers, "worker");
        let text = format!("{name}: {:.0} images/s, {workers}", point.images_per_s);
        Point { x: *budget, y: point.images_per_s, text, ..Point::default() }
    });
    let speed = Series {
        name: "throughput".to_owned(),
        color: 2,
        line: Line::Solid,
        mark: Some(1),
        points: speeds.collect(),
        ..Series::default()
    };
    let throughput = Panel {
        x: Axis { label: "RAM budget (log scale)".to_owned(), ..memory.x.clone() },
        y: Axis::linear("images per second", proof.best_images_per_s() * 1.15, short),
        height: 170.0,
        series: vec![speed],
        lines: vec![(minimum, String::new()), (knee, String::new())],
        limit: false,
    };
    let kept = match proof.breaches().len() {
        0 => format!("kept in {}", counted(proof.points.len() as u64, "run")),
        breaches => format!("NOT kept: {}", counted(breaches as u64, "breach")),
    };
    let described = proof.request.describe();
    Chart {
        id: "proof",
        title: "Peak memory of the process, and throughput, against the RAM budget",
        subtitle: format!("{described}; {kept}"),
        about: format!("{described}. The budget was {kept}."),
        width: 900.0,
        panels: vec![memory, throughput],
    }
    .svg(true)
}

#[cfg(test)]
mod tests {
    use super::super::proof::proof_of;
    use super::*;

    #[test]
    fn peak_above_its_budget_is_highlighted() {
        let svg = draw(&proof_of(&[(48, 44), (64, 66), (96, 60)]));
        assert_eq!(svg.matches(r#"class="mark alert""#).count(), 1, "{svg}");
        assert!(svg.contains("NOT kept: 1 breach"), "{svg}");
    }

    #[test]
    fn any_number_of_points_is_drawn_and_text_is_escaped() {
        for points in [&[][..], &[(40, 39)], &[(40, 39), (4000, 60), (90_000, 61)], &[(40, 400)]] {
            let svg = draw(&proof_of(points));
            assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;: 7 samples"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
