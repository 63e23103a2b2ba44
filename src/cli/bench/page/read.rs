//! Owns how a report is read: numbers that can be drawn, the points of each budget, the best of all points, and numbers
//! as people write them. It must never make up what the report does not say.

use serde_json::Value;

use super::super::outcome::AS_GOOD;
use crate::cli::chart::size;
use crate::cli::table::counted;

/// Nothing that is measured is more, and what is would not survive arithmetic.
const MOST: f64 = 1e15;

/// A number that is no nonsense.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| (0.0..=MOST).contains(number))
}

/// What is above zero, as a logarithmic scale needs it.
pub(super) fn positive(value: &Value) -> Option<f64> {
    number(value).filter(|number| *number > 1e-12)
}

/// What several runs came to.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

pub(super) fn spread(value: &Value) -> Option<Spread> {
    let median = number(&value["median"]).or_else(|| number(value))?;
    let or_median = |key: &str| number(&value[key]).unwrap_or(median);
    Some(Spread { median, least: or_median("least").min(median), most: or_median("most").max(median) })
}

/// The entries of a list; none where there is no list.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The budget as it was asked for.
pub(super) fn budget(point: &Value) -> Option<String> {
    let asked = point["budget"].as_str().map(str::to_owned);
    asked.or_else(|| number(&point["budget_bytes"]).map(bytes))
}

pub(super) fn workers(point: &Value) -> Option<String> {
    number(&point["workers"]).map(|count| counted(count as u64, "worker"))
}

/// Which point it is: "256M, 2 workers".
pub(super) fn name(point: &Value) -> String {
    [budget(point), workers(point)].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The points of a budget, by workers.
pub(super) struct Series<'a> {
    pub(super) budget: String,
    pub(super) points: Vec<(f64, &'a Value)>,
}

pub(super) fn by_budget(report: &Value) -> Vec<Series<'_>> {
    let mut all: Vec<Series<'_>> = Vec::new();
    for point in list(report, "points") {
        let (Some(budget), Some(workers)) = (budget(point), positive(&point["workers"])) else { continue };
        match all.iter_mut().find(|series| series.budget == budget) {
            Some(series) => series.points.push((workers, point)),
            None => all.push(Series { budget, points: vec![(workers, point)] }),
        }
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    all
}

/// The point with the fewest workers, then with the smallest budget, that is as good as any.
pub(super) fn best(report: &Value) -> Option<&Value> {
    let points = list(report, "points");
    let judged_by = report["judged_by"].as_str().unwrap_or("images_per_s");
    let merit = |point: &Value| spread(&point[judged_by]).map(|spread| spread.median);
    let most = points.iter().filter_map(merit).fold(0.0, f64::max);
    let good = points.iter().filter(|point| merit(point).is_some_and(|merit| merit >= AS_GOOD * most));
    let cost = |point: &Value| ["workers", "budget_bytes"].map(|key| number(&point[key]).unwrap_or(MOST));
    good.min_by(|a, b| cost(a).partial_cmp(&cost(b)).unwrap_or(std::cmp::Ordering::Equal)).or(points.first())
}

/// Three digits, and none that say nothing.
fn digits(number: f64) -> String {
    match number {
        n if n >= 99.95 => format!("{n:.0}"),
        n => {
            let text = if n >= 9.995 { format!("{n:.1}") } else { format!("{n:.2}") };
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

pub(super) fn time(seconds: f64) -> String {
    let (unit, scale) = match seconds {
        0.0 => return "0 s".to_owned(),
        s if s >= 7200.0 => ("h", 3600.0),
        s if s >= 120.0 => ("min", 60.0),
        s if s >= 0.9995 => ("s", 1.0),
        s if s >= 0.9995e-3 => ("ms", 1e-3),
        _ => ("µs", 1e-6),
    };
    format!("{} {unit}", digits(seconds / scale))
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

pub(super) fn bytes(count: f64) -> String {
    let text = size(count as u64);
    // Hundredths of a large number say nothing.
    match text.split_once(' ').and_then(|(number, unit)| Some((number.parse::<f64>().ok()?, unit))) {
        Some((number, unit)) => format!("{} {unit}", digits(number)),
        None => text,
    }
}

pub(super) fn rate(per_second: f64) -> String {
    if per_second >= 100_000.0 { short(per_second) } else { digits(per_second) }
}

/// A number for an axis.
pub(super) fn short(number: f64) -> String {
    if number < 10_000.0 {
        return digits(number);
    }
    let (mut rest, mut units) = (number / 1e3, ["k", "M", "G", "T"].into_iter());
    let mut unit = units.next();
    while let (true, Some(more)) = (rest >= 999.5, units.next()) {
        (rest, unit) = (rest / 1e3, Some(more));
    }
    format!("{}{}", digits(rest), unit.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0.0, 3.1e-7, 0.000_312_4, 0.001, 0.0125, 0.031_26, 0.999_99, 1.25, 61.0, 180.0, 90_000.0].map(time),
            ["0 s", "0.31 µs", "312 µs", "1 ms", "12.5 ms", "31.3 ms", "1 s", "1.25 s", "61 s", "3 min", "25 h"]
        );
        assert_eq!(
            [0.0, 0.5, 999.0, 2500.0, 12_500.0, 2e6, 1e15].map(short),
            ["0", "0.5", "999", "2500", "12.5k", "2M", "1000T"]
        );
        assert_eq!([0.974, 1.0, 0.0].map(percent), ["97 %", "100 %", "0 %"]);
        assert_eq!([268_435_456.0, 196_443_000.0, 700.0].map(bytes), ["256 MiB", "187 MiB", "700 B"]);
        assert_eq!([12.34, 1234.5, 1_234_567.0].map(rate), ["12.3", "1234", "1.23M"]);
    }

    #[test]
    fn what_is_no_number_is_none() {
        for value in [json!(null), json!("7"), json!(-1), json!(1e300), json!([1])] {
            assert_eq!(number(&value), None, "{value}");
        }
        assert_eq!(positive(&json!(0)), None);
        let odd = spread(&json!({ "median": 5, "least": 7, "most": null })).expect("a spread");
        assert_eq!((odd.least, odd.most), (5.0, 5.0));
    }

    #[test]
    fn the_best_is_the_cheapest_that_is_as_good_as_any() {
        let point = |budget: u64, workers: u64, speed: f64| json!({ "budget_bytes": budget, "workers": workers, "images_per_s": { "median": speed } });
        let report = json!({ "judged_by": "images_per_s", "points": [
            point(9, 4, 200.0), point(9, 2, 198.0), point(5, 2, 197.0), point(5, 1, 100.0)
        ]});
        assert_eq!(best(&report), Some(&report["points"][2]));
        assert_eq!(best(&json!({})), None);
        let none = json!({ "points": [{}, { "workers": 1 }] });
        assert_eq!(best(&none), Some(&none["points"][0]));
    }
}
