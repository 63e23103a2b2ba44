//! Owns the charts of what was varied: utilisation and throughput against the workers, memory against the budget. It
//! must never draw a number that the report does not hold.

use serde_json::Value;

use super::panel::{Key, LEFT, Panel, RIGHT, colour, shape, ticks};
use super::read::{Series, Spread, best, by_budget, bytes, list, name, number, percent, positive, rate, short, spread};
use crate::cli::chart::{Scale, escaped};

/// A number of a point's, and the line and the marks that show it.
struct Measure {
    value: fn(&Value) -> Option<Spread>,
    line: &'static str,
    mark: &'static str,
    told: fn(Spread) -> String,
}

const UTILISATION: Measure = Measure {
    value: |point| spread(&point["compute_share"]),
    line: "told",
    mark: "used-at",
    told: |share| format!("{} ({} to {})", percent(share.median), percent(share.least), percent(share.most)),
};
const PREDICTED: Measure = Measure {
    value: |point| spread(&point["predicted_share"]),
    line: "guess",
    mark: "guess-at",
    told: |share| format!("{} predicted", percent(share.median)),
};
const THROUGHPUT: Measure = Measure {
    value: |point| spread(&point["images_per_s"]),
    line: "told",
    mark: "rate-at",
    told: |speed| format!("{} images/s ({} to {})", rate(speed.median), rate(speed.least), rate(speed.most)),
};

pub(super) fn utilisation(report: &Value) -> Option<String> {
    let series = by_budget(report);
    let mut keys = keys(&series, &UTILISATION)?;
    if series.iter().any(|series| series.has(&PREDICTED)) {
        keys.push(key(6, "guess", r#"<circle class="guess-at" r="4" cx="14"/>"#.to_owned(), "predicted"));
    }
    let panel = Panel::new("Utilisation", "share of the time in which the device computed", &keys);
    let mut curves = Curves::new(panel, &series, 1.0, percent);
    curves.draw(&PREDICTED);
    curves.draw(&UTILISATION);
    Some(curves.panel.done("utilisation", &at_best(report, &UTILISATION)))
}

pub(super) fn throughput(report: &Value) -> Option<String> {
    let series = by_budget(report);
    let mut keys = keys(&series, &THROUGHPUT)?;
    let decode = decode_ceiling(report, &series);
    if !decode.is_empty() {
        keys.push(key(6, "ceiling", String::new(), "decoding alone"));
    }
    let rates = series.iter().flat_map(|series| &series.points).filter_map(|(_, point)| (THROUGHPUT.value)(point));
    let most = rates.map(|rate| rate.most).chain(decode.iter().map(|(_, rate)| *rate)).fold(0.0, f64::max);
    // The step's own ceiling is of use where it is near.
    let step = step_ceiling(report).filter(|rate| *rate <= 1.6 * most);
    if step.is_some() {
        keys.push(key(3, "step", String::new(), "the step alone"));
    }
    let high = 1.08 * most.max(step.unwrap_or(0.0));
    let panel = Panel::new("Throughput", "images a second; whiskers: the slowest and the fastest run", &keys);
    let mut curves = Curves::new(panel, &series, if high > 0.0 { high } else { 1.0 }, short);
    curves.ceilings(&decode, step);
    curves.draw(&THROUGHPUT);
    Some(curves.panel.done("throughput", &at_best(report, &THROUGHPUT)))
}

/// What decoding alone comes to, by workers, as far as the loader was run with as many.
fn decode_ceiling(report: &Value, series: &[Series<'_>]) -> Vec<(f64, f64)> {
    let counts = || series.iter().flat_map(|series| &series.points).map(|(count, _)| *count);
    let asked = counts().fold(f64::INFINITY, f64::min)..=counts().fold(0.0, f64::max);
    let decode = list(report, "ceilings").iter().filter(|ceiling| ceiling["what"] == "decode");
    let mut all: Vec<(f64, f64)> = decode
        .filter_map(|ceiling| Some((positive(&ceiling["workers"])?, spread(&ceiling["images_per_s"])?.median)))
        .collect();
    all.retain(|(workers, _)| asked.contains(workers));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// What a device comes to that never waits.
fn step_ceiling(report: &Value) -> Option<f64> {
    let request = &report["request"];
    Some(positive(&request["batch_size"])? / positive(&request["step_ms"])? * 1e3)
}

/// A line for the best point, for who cannot see the chart.
fn at_best(report: &Value, measure: &Measure) -> String {
    let told =
        best(report).and_then(|point| Some(format!("{}: {}", name(point), (measure.told)((measure.value)(point)?))));
    format!("Against the number of workers, one line for each budget. At best {}.", told.unwrap_or_default())
}

fn key(colour: usize, line: &'static str, shape: String, words: &str) -> Key {
    Key { colour, line, shape, words: words.to_owned() }
}

/// One for each budget; `None` where there is nothing to draw.
fn keys(series: &[Series<'_>], measure: &Measure) -> Option<Vec<Key>> {
    let one = |(n, series): (usize, &Series<'_>)| {
        let shape = format!(r#"<path class="told-at" d="{}"/>"#, shape(n, (14.0, 0.0)));
        key(colour(n), measure.line, shape, &series.budget)
    };
    series.iter().any(|series| series.has(measure)).then(|| series.iter().enumerate().map(one).collect())
}

impl Series<'_> {
    fn has(&self, measure: &Measure) -> bool {
        self.points.iter().any(|(_, point)| (measure.value)(point).is_some())
    }
}

/// A chart against the workers.
struct Curves<'a> {
    panel: Panel,
    series: &'a [Series<'a>],
    across: Scale,
    up: Scale,
}

impl<'a> Curves<'a> {
    fn new(mut panel: Panel, series: &'a [Series<'a>], most: f64, tick: fn(f64) -> String) -> Self {
        let mut counts: Vec<f64> = series.iter().flat_map(|series| &series.points).map(|(count, _)| *count).collect();
        counts.sort_by(f64::total_cmp);
        counts.dedup();
        let (least, last) = (counts.first().copied().unwrap_or(1.0), counts.last().copied().unwrap_or(1.0));
        // Where few and many are compared, equal ratios are equally long.
        let wide = last > 12.0 * least;
        let across = match wide {
            true => Scale::logarithmic((least / 1.2, last * 1.2), (LEFT, RIGHT)),
            false => Scale::linear(last + 0.5 * least, (LEFT, RIGHT)),
        };
        let up = Scale::linear(most, (panel.bottom, panel.top));
        panel.up(ticks(&up, tick));
        let counts = counts.into_iter().map(|count| (across.at(count), short(count)));
        panel.across(counts, if wide { "workers (log scale)" } else { "workers" });
        Curves { panel, series, across, up }
    }

    /// Where a point lies. Budgets stand a little beside each other, so that none hides another.
    fn place(&self, series: usize, workers: f64, value: f64) -> (f64, f64) {
        let count = self.series.len() as f64;
        let aside = (series as f64 - (count - 1.0) / 2.0) * (18.0 / count).min(5.0);
        // A share above one would be an error of the clock's.
        (self.across.at(workers) + aside, self.up.at(value.min(self.up.ends()[1])))
    }

    /// One line for each budget, with a mark for each point.
    fn draw(&mut self, measure: &Measure) {
        let Measure { value, line, mark, told } = measure;
        for (n, Series { points, .. }) in self.series.iter().enumerate() {
            let of: Vec<(&Value, Spread, (f64, f64))> = points
                .iter()
                .filter_map(|(workers, point)| {
                    let spread = value(point)?;
                    Some((*point, spread, self.place(n, *workers, spread.median)))
                })
                .collect();
            let sheet = &mut self.panel.sheet;
            sheet.add(format_args!(r#"<g class="c{}">"#, colour(n)));
            if of.len() > 1 {
                sheet.path(line, of.iter().map(|(.., place)| *place));
            }
            for (point, spread, (x, y)) in of {
                let Spread { median, least, most } = spread;
                if least < most {
                    let [low, high] = [least, most].map(|value| self.up.at(value));
                    let left = x - 3.5;
                    sheet.add(format_args!(
                        r#"<path class="spread" d="M{left:.1} {high:.1}h7m-3.5 0V{low:.1}m-3.5 0h7"/>"#
                    ));
                }
                let told = escaped(&format!("{}: {}", name(point), told(spread)));
                let (shape, data) = (shape(n, (x, y)), data(point));
                sheet.add(format_args!(
                    r#"<path class="{mark}" d="{shape}"{data} data-value="{median}" data-least="{least}" data-most="{most}"><title>{told}</title></path>"#
                ));
            }
            sheet.add(format_args!("</g>"));
        }
    }

    fn ceilings(&mut self, decode: &[(f64, f64)], step: Option<f64>) {
        // One number alone is a short line.
        let [low, high] = match decode {
            [(workers, _)] => [0.8, 1.2].map(|part| self.across.at(workers * part)),
            _ => [0.0; 2],
        };
        let places: Vec<(f64, f64)> = match decode {
            [(_, rate)] => [low, high].map(|x| (x.clamp(LEFT, RIGHT), self.up.at(*rate))).to_vec(),
            all => all.iter().map(|(workers, rate)| (self.across.at(*workers), self.up.at(*rate))).collect(),
        };
        let sheet = &mut self.panel.sheet;
        sheet.add(format_args!(r#"<g class="c6">"#));
        if !places.is_empty() {
            sheet.path("ceiling", places.into_iter());
        }
        for (workers, rate) in decode {
            let (x, y) = (self.across.at(*workers), self.up.at(*rate));
            let told = format!("decoding alone, {workers} workers: {} images/s", self::rate(*rate));
            sheet.add(format_args!(
                r#"<circle class="ceiling-at" cx="{x:.1}" cy="{y:.1}" r="2" data-workers="{workers}" data-value="{rate}"><title>{told}</title></circle>"#
            ));
        }
        sheet.add(format_args!("</g>"));
        if let Some(rate) = step {
            let y = self.up.at(rate);
            sheet.add(format_args!(
                r#"<path class="step" d="M{LEFT} {y:.1}H{RIGHT}" data-value="{rate}"><title>the step alone: {} images/s</title></path>"#,
                self::rate(rate)
            ));
        }
    }
}

/// Which point a mark is of.
fn data(point: &Value) -> String {
    [("budget", "budget_bytes"), ("workers", "workers")]
        .into_iter()
        .filter_map(|(name, key)| Some(format!(r#" data-{name}="{}""#, number(&point[key])?)))
        .collect()
}

pub(super) fn memory(report: &Value) -> Option<String> {
    let bytes_of = |point: &Value, key: &str| number(&point[key]).filter(|bytes| *bytes >= 1024.0);
    let mut points: Vec<(f64, &Value)> = list(report, "points")
        .iter()
        .filter(|point| bytes_of(point, "peak_rss_bytes").or(bytes_of(point, "planned_bytes")).is_some())
        .filter_map(|point| Some((bytes_of(point, "budget_bytes")?, point)))
        .collect();
    let is_over =
        |(budget, point): &(f64, &Value)| bytes_of(point, "peak_rss_bytes").is_some_and(|peak| peak > *budget);
    // What is wrong lies on top.
    points.sort_by_key(is_over);
    let subtitle = match points.last().is_some_and(is_over) {
        false => "resident at its peak, and planned (log scale)",
        true => "NOT kept: a peak lies above its budget (log scale)",
    };
    let mut budgets: Vec<f64> = points.iter().map(|(budget, _)| *budget).collect();
    budgets.sort_by(f64::total_cmp);
    budgets.dedup();
    let (least, most) = (*budgets.first()?, *budgets.last()?);
    let held =
        || points.iter().flat_map(|(_, point)| ["peak_rss_bytes", "planned_bytes"].map(|key| bytes_of(point, key)));
    let low = held().flatten().fold(least, f64::min);
    let high = held().flatten().fold(most, f64::max);
    let across = Scale::logarithmic((least / 1.5, most * 1.5), (LEFT, RIGHT));

    let keys = [
        key(6, "", r#"<circle class="peak-at" r="4" cx="14"/>"#.to_owned(), "measured peak"),
        key(6, "", format!(r#"<path class="planned-at" d="{}"/>"#, shape(2, (14.0, 0.0))), "planned"),
        key(6, "budget", String::new(), "the budget (y = x)"),
    ];
    let mut panel = Panel::new("Memory of the process", subtitle, &keys);
    let up = Scale::logarithmic((low / 1.3, high * 1.5), (panel.bottom, panel.top));
    panel.up(up.few_byte_ticks(8).into_iter().map(|tick| (up.at(tick as f64), bytes(tick as f64))));
    panel.across(budgets.iter().map(|budget| (across.at(*budget), bytes(*budget))), "requested RAM budget (log scale)");
    let [from, to] = across.ends().map(|bytes| (across.at(bytes), up.at(bytes)));
    let (top, bottom) = (panel.top, panel.bottom);
    let sheet = &mut panel.sheet;
    let (width, height) = (RIGHT - LEFT, bottom - top);
    sheet.add(format_args!(
        r##"<defs><clipPath id="memory-panel"><rect x="{LEFT}" y="{top}" width="{width}" height="{height}"/></clipPath></defs>
<g clip-path="url(#memory-panel)"><path class="over" d="M{:.1} {:.1}L{:.1} {:.1}V{:.1}H{:.1}Z"/><path class="budget" d="M{:.1} {:.1}L{:.1} {:.1}"/></g>"##,
        from.0, from.1, to.0, to.1, to.1.min(top), from.0, from.0, from.1, to.0, to.1
    ));
    sheet.text((LEFT + 10.0, top + 18.0), "over-text", "start", "over budget");
    for (budget, point) in &points {
        let (x, data) = (across.at(*budget), data(point));
        if let Some(planned) = bytes_of(point, "planned_bytes") {
            let told = escaped(&format!("{}: {} planned", name(point), bytes(planned)));
            let shape = shape(2, (x, up.at(planned)));
            sheet.add(format_args!(
                r#"<path class="planned-at" d="{shape}"{data} data-bytes="{planned}"><title>{told}</title></path>"#
            ));
        }
        if let Some(peak) = bytes_of(point, "peak_rss_bytes") {
            let told = escaped(&format!(
                "{}: {} at the peak, {} of the budget",
                name(point),
                bytes(peak),
                percent(peak / budget)
            ));
            let class = if peak <= *budget { "peak-at" } else { "broken-at" };
            sheet.add(format_args!(
                r#"<circle class="{class}" cx="{x:.1}" cy="{:.1}" r="4"{data} data-bytes="{peak}"><title>{told}</title></circle>"#,
                up.at(peak)
            ));
        }
    }
    Some(panel.done("memory", subtitle))
}
