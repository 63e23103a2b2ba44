//! Owns the picture of a proof: one SVG that needs nothing else, as readable on a dark page and on paper as on a light
//! one. It must never show a number that the proof does not hold; each mark carries its own, for people and machines.

use serde_json::Value;

use super::proof::{Point, Proof};
use crate::cli::chart::{Scale, size};
use crate::cli::sheet::Sheet;
use crate::cli::table::counted;

const TITLE: &str = "Peak memory of the process, and throughput, against the RAM budget";
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 800.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = WIDTH - 30.0;
/// Top and bottom of the two panels.
const MEMORY: (f64, f64) = (136.0, 504.0);
const SPEED: (f64, f64) = (564.0, 734.0);

/// Draws what there is so far.
pub(super) fn draw(proof: &Proof) -> String {
    Figure::new(proof).draw(proof)
}

struct Figure {
    sheet: Sheet,
    budget: Scale,
    memory: Scale,
    speed: Scale,
}

/// A number of a point's.
type Bytes = fn(&Point) -> u64;

impl Figure {
    fn new(proof: &Proof) -> Self {
        let budgets = || proof.points.iter().map(|point| point.budget.0 as f64);
        let held = || proof.points.iter().flat_map(|point| [point.peak.0, point.planned.0]).map(|bytes| bytes as f64);
        let (minimum, knee) = (proof.minimum.0 as f64, proof.knee.0 as f64);
        let least = |values: &mut dyn Iterator<Item = f64>, or: f64| values.fold(or, f64::min).max(1024.0);
        let most = |values: &mut dyn Iterator<Item = f64>, or: f64| values.fold(or, f64::max).max(1024.0);
        let across = (least(&mut budgets(), minimum) / 1.06, most(&mut budgets(), knee) * 1.06);
        let up = (least(&mut held(), minimum) / 1.12, most(&mut held(), knee) * 1.35);
        let fastest = proof.best_images_per_s();
        Figure {
            sheet: Sheet::default(),
            budget: Scale::logarithmic(across, (LEFT, RIGHT)),
            memory: Scale::logarithmic(up, (MEMORY.1, MEMORY.0)),
            speed: Scale::linear(if fastest > 0.0 { fastest * 1.15 } else { 1.0 }, (SPEED.1, SPEED.0)),
        }
    }

    fn draw(mut self, proof: &Proof) -> String {
        let kept = match proof.breaches().len() {
            0 => format!("kept in {}", counted(proof.points.len() as u64, "run")),
            breaches => format!("NOT kept: {}", counted(breaches as u64, "breach")),
        };
        let about = described(&proof.about);
        self.head(&about, &kept);
        self.over();
        self.axes();
        self.marks(proof);
        self.memory(proof);
        self.speed(proof);
        self.key();
        self.sheet.done("proof", (WIDTH, HEIGHT), TITLE, &format!("{about}. The budget was {kept}."))
    }

    fn head(&mut self, about: &str, kept: &str) {
        self.sheet.add(format_args!(
            r#"<defs><clipPath id="panel"><rect x="{LEFT}" y="{}" width="{}" height="{}"/></clipPath></defs>"#,
            MEMORY.0,
            RIGHT - LEFT,
            MEMORY.1 - MEMORY.0
        ));
        self.sheet.text((LEFT, 34.0), "ink head", "start", TITLE);
        self.sheet.text((LEFT, 56.0), "soft", "start", &format!("{about}; {kept}"));
    }

    /// The side of the line y = x where nothing may lie.
    fn over(&mut self) {
        let [from, to] = self.budget.ends().map(|bytes| (self.budget.at(bytes), self.memory.at(bytes)));
        let top = MEMORY.0.min(to.1);
        self.sheet.add(format_args!(
            r#"<g clip-path="url(#panel)"><path class="over" d="M{:.1} {:.1}L{:.1} {:.1}L{:.1} {top:.1}L{LEFT} {top:.1}Z"/><path class="budget" d="M{:.1} {:.1}L{:.1} {:.1}"/></g>"#,
            from.0, from.1, to.0, to.1, to.0, from.0, from.1, to.0, to.1
        ));
        self.sheet.text((LEFT + 24.0, MEMORY.0 + 20.0), "over-text", "start", "over budget");
    }

    fn axes(&mut self) {
        for (panel, label) in [(MEMORY, "resident memory of the process, peak (log scale)"), (SPEED, "images / s")] {
            let middle = f64::midpoint(panel.0, panel.1);
            self.sheet.add(format_args!(
                r#"<text class="ink" text-anchor="middle" transform="translate(22 {middle:.1}) rotate(-90)">{label}</text>"#
            ));
        }
        let mut free_from = 0.0;
        for tick in self.budget.byte_ticks() {
            let x = self.budget.at(tick as f64);
            for panel in [MEMORY, SPEED] {
                self.sheet.line("grid", (x, panel.0), (x, panel.1));
            }
            // Where two would touch, the first one stays.
            if x >= free_from {
                self.sheet.text((x, SPEED.1 + 20.0), "ink", "middle", &size(tick));
                self.sheet.text((x, MEMORY.1 + 20.0), "ink", "middle", &size(tick));
                free_from = x + 56.0;
            }
        }
        for tick in self.memory.byte_ticks() {
            let y = self.memory.at(tick as f64);
            self.sheet.line("grid", (LEFT, y), (RIGHT, y));
            self.sheet.text((LEFT - 8.0, y + 4.0), "ink", "end", &size(tick));
        }
        for tick in self.speed.ticks() {
            let y = self.speed.at(tick);
            self.sheet.line("grid", (LEFT, y), (RIGHT, y));
            self.sheet.text((LEFT - 8.0, y + 4.0), "ink", "end", &format!("{tick}"));
        }
        for (top, bottom) in [MEMORY, SPEED] {
            self.sheet.add(format_args!(r#"<path class="axis" d="M{LEFT} {top}V{bottom}H{RIGHT}"/>"#));
        }
        self.sheet.text(
            (f64::midpoint(LEFT, RIGHT), SPEED.1 + 46.0),
            "ink",
            "middle",
            "requested RAM budget (log scale)",
        );
    }

    fn marks(&mut self, proof: &Proof) {
        let minimum = self.budget.at(proof.minimum.0 as f64);
        let knee = self.budget.at(proof.knee.0 as f64);
        // Side by side where there is no room for both in the middle.
        let anchors = if knee - minimum < 84.0 { ["end", "start"] } else { ["middle"; 2] };
        let marks = [(minimum, "minimum", proof.minimum), (knee, "knee", proof.knee)];
        for ((x, word, bytes), anchor) in marks.into_iter().zip(anchors) {
            if !(LEFT..=RIGHT).contains(&x) {
                continue;
            }
            for (top, bottom) in [MEMORY, SPEED] {
                self.sheet.line("mark", (x, top), (x, bottom));
            }
            self.sheet.text((x, MEMORY.0 - 24.0), "ink", anchor, word);
            self.sheet.text((x, MEMORY.0 - 8.0), "soft", anchor, &size(bytes.0));
        }
    }

    fn memory(&mut self, proof: &Proof) {
        let lines: [(&str, Bytes); 2] = [("planned", |point| point.planned.0), ("peak", |point| point.peak.0)];
        for (class, value) in lines {
            let place = |point: &Point| (self.budget.at(point.budget.0 as f64), self.memory.at(value(point) as f64));
            self.sheet.path(class, proof.points.iter().map(place));
        }
        for point in &proof.points {
            let Point { budget, planned, peak, .. } = point;
            let x = self.budget.at(budget.0 as f64);
            let (at, y) = (self.memory.at(planned.0 as f64), self.memory.at(peak.0 as f64));
            self.sheet.add(format_args!(
                r#"<path class="planned-at" d="M{x:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5 -4.5Z" data-budget="{}" data-bytes="{}"><title>budget {budget}: planned {planned}</title></path>"#,
                at - 4.5, budget.0, planned.0
            ));
            let class = if point.kept() { "peak-at" } else { "broken-at" };
            self.sheet.add(format_args!(
                r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="4" data-budget="{}" data-bytes="{}"><title>budget {budget}: peak {peak}, {:.1} %</title></circle>"#,
                budget.0, peak.0, point.used() * 100.0
            ));
        }
    }

    fn speed(&mut self, proof: &Proof) {
        let places: Vec<(f64, f64)> = proof
            .points
            .iter()
            .map(|point| (self.budget.at(point.budget.0 as f64), self.speed.at(point.images_per_s)))
            .collect();
        self.sheet.path("speed", places.iter().copied());
        for (point, (x, y)) in proof.points.iter().zip(places) {
            let Point { budget, images_per_s, workers, .. } = point;
            self.sheet.add(format_args!(
                r#"<rect class="speed-at" x="{:.1}" y="{:.1}" width="7" height="7" data-budget="{}" data-rate="{images_per_s}"><title>budget {budget}: {images_per_s:.0} images/s, {}</title></rect>"#,
                x - 3.5, y - 3.5, budget.0, counted(*workers, "worker")
            ));
        }
    }

    /// What the shapes mean.
    fn key(&mut self) {
        let y = 86.0;
        let mut x = LEFT;
        for (class, shape, words, width) in [
            ("peak", r#"<circle class="peak-at" r="4" cx="14"/>"#, "measured peak", 160.0),
            (
                "planned",
                r#"<path class="planned-at" d="M14 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5Z"/>"#,
                "predicted by the plan",
                184.0,
            ),
            ("budget", "", "the budget (y = x)", 188.0),
            ("speed", r#"<rect class="speed-at" x="10.5" y="-3.5" width="7" height="7"/>"#, "throughput", 0.0),
        ] {
            self.sheet.key((x, y), class, shape, words);
            x += width;
        }
    }
}

/// What was run, in a line; of the data's path only the name.
fn described(about: &Value) -> String {
    let word = |key: &str| match &about[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let data = word("data");
    let name = data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let workers =
        about["workers_asked"].as_u64().map_or(String::new(), |count| format!(", {}", counted(count, "worker")));
    let epochs = counted(about["epochs"].as_u64().unwrap_or(1), "epoch");
    let (samples, batch, side) = (word("samples"), word("batch_size"), word("size"));
    format!(
        "{name}: {samples} samples, batches of {batch} x {side}x{side} {} {}{workers}, {epochs} a run",
        word("output"),
        word("layout")
    )
}

#[cfg(test)]
mod tests {
    use super::super::proof::proof_of;
    use super::*;

    #[test]
    fn a_peak_over_its_budget_lies_over_the_line_and_is_marked() {
        let proof = proof_of(&[(48, 44), (64, 66), (96, 60)]);
        let figure = Figure::new(&proof);
        for point in &proof.points {
            let line = figure.memory.at(point.budget.0 as f64);
            let peak = figure.memory.at(point.peak.0 as f64);
            // Up is less.
            assert_eq!(peak < line, !point.kept(), "{point:?}");
        }
        let svg = draw(&proof);
        assert_eq!(svg.matches(r#"class="broken-at""#).count(), 1, "{svg}");
        assert!(svg.contains("NOT kept: 1 breach"), "{svg}");
    }

    #[test]
    fn every_mark_lies_on_the_sheet_and_text_is_escaped() {
        for points in [&[][..], &[(40, 39)], &[(40, 39), (4000, 60), (90_000, 61)], &[(40, 400)]] {
            let svg = draw(&proof_of(points));
            assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;: 7 samples"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            for key in ["cx=\"", "cy=\""] {
                let places = svg.split(key).skip(1).filter_map(|rest| rest.split('"').next()?.parse::<f64>().ok());
                assert!(places.into_iter().all(|place| (0.0..=WIDTH).contains(&place)), "{svg}");
            }
        }
    }
}
