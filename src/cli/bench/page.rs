//! The report of a sweep as one HTML page and its charts as SVG files.
//!
//! The page needs no other file. Its content security policy forbids the browser to fetch or to run anything, whatever
//! the names of files are. Every number on it is in the JSON report.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::outcome::{POINT_COLUMNS, PointReport, Spread, SweepReport};
use super::report::{StageReport, StepKind};
use crate::cli::chart::{self, Axis, Bar, Chart, Line, NARROW, Panel, Point, Series, escaped, shortened};
use crate::cli::format::{bytes, percent, rate, short, time};
use crate::cli::table::counted;

#[cfg(test)]
mod tests;

/// Height of the charts' panels in pixels.
const HEIGHT: f64 = 210.0;
/// Bars per octave in the histogram of waits.
const PER_OCTAVE: f64 = 2.0;

/// A chart of the page: file name, name, caption, and the function that draws it if there is data for it.
type Entry = (&'static str, &'static str, &'static str, fn(&SweepReport) -> Option<Chart>);

const CHARTS: [Entry; 5] = [
    (
        "utilization.svg",
        "utilization",
        "Share of the time in which the device computed. The rest it waited for batches.",
        utilization,
    ),
    (
        "throughput.svg",
        "throughput",
        "Speed of the loader. Close to a ceiling, more workers are not faster.",
        throughput,
    ),
    ("memory.svg", "memory", "A budget is kept if the peak is below the line.", memory),
    (
        "batch_wait.svg",
        "batch wait",
        "Batches that were ready are on the left, those that the consumer waited for on the right. The smallest bars \
         are drawn as thin lines, so that they can be seen.",
        batch_wait,
    ),
    (
        "waterfall.svg",
        "sample latency",
        "Mean of all samples. A long wait for the consumer means that the loader is ahead; a long wait for a worker \
         means that there are too few.",
        waterfall,
    ),
];

/// The charts that there is data for, by file name.
pub(super) fn charts(report: &SweepReport) -> Vec<(&'static str, String)> {
    CHARTS.iter().filter_map(|(file, .., draw)| Some((*file, draw(report)?.svg(true)))).collect()
}

/// Files of charts that this report does not have: an earlier report may have left them in the folder.
pub(super) fn stale(report: &SweepReport) -> impl Iterator<Item = &'static str> {
    CHARTS.iter().filter(|(.., draw)| draw(report).is_none()).map(|(file, ..)| *file)
}

/// Combinations of a budget with each number of workers, in ascending order of workers.
fn by_budget(report: &SweepReport) -> Vec<Vec<&PointReport>> {
    let mut groups: Vec<Vec<&PointReport>> = Vec::new();
    for point in &report.points {
        match groups.iter_mut().find(|group| group[0].budget == point.budget) {
            Some(group) => group.push(point),
            None => groups.push(vec![point]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_by_key(|point| point.workers));
    groups
}

/// One series for each budget: a measure against the workers.
fn curves(
    report: &SweepReport,
    value: fn(&PointReport) -> Option<Spread>,
    text: fn(f64) -> String,
    unit: &str,
) -> Vec<Series> {
    let groups = by_budget(report);
    let count = groups.len() as f64;
    let series = |(n, group): (usize, &Vec<&PointReport>)| {
        let points = group.iter().filter_map(|point| {
            let Spread { median, least, most } = value(point)?;
            let text = format!("{}: {}{unit} ({} to {})", point.name(), text(median), text(least), text(most));
            Some(Point { x: point.workers as f64, y: median, range: Some((least, most)), text, alert: false })
        });
        Series {
            name: group[0].budget.clone(),
            color: n % 6,
            line: Line::Solid,
            mark: Some(n),
            offset: (n as f64 - (count - 1.0) / 2.0) * (18.0 / count).min(5.0),
            points: points.collect(),
            ..Series::default()
        }
    };
    groups.iter().enumerate().map(series).filter(|series| !series.points.is_empty()).collect()
}

/// A chart against the number of workers.
fn against_workers(
    report: &SweepReport,
    id: &'static str,
    title: &'static str,
    y: Axis,
    series: Vec<Series>,
) -> Option<Chart> {
    let mut ticks: Vec<f64> = report.points.iter().map(|point| point.workers.max(1) as f64).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let (least, most) = (*ticks.first()?, *ticks.last()?);
    // A log scale where few workers are compared with many.
    let log = most > 12.0 * least;
    let range = if log { (least / 1.2, most * 1.2) } else { (0.0, most + 0.5 * least) };
    let label = if log { "workers (log scale)" } else { "workers" }.to_owned();
    let x = Axis { label, range, log, ticks, format: short };
    let best = report.best().map(|best| format!(" The best is {}.", best.name())).unwrap_or_default();
    let about = format!("Against the number of workers, one line for each budget.{best}");
    let panels = vec![Panel { x, y, height: HEIGHT, series, lines: Vec::new(), limit: false }];
    Some(Chart { id, title, subtitle: String::new(), about, width: NARROW, panels })
}

fn utilization(report: &SweepReport) -> Option<Chart> {
    let measured = curves(report, |point| point.compute_share, percent, "");
    let predicted =
        |point: &PointReport| point.predicted_share.map(|share| Spread { median: share, least: share, most: share });
    let mut series = curves(report, predicted, percent, " predicted");
    if measured.is_empty() {
        return None;
    }
    let legend = (!series.is_empty()).then(|| Series { name: "predicted".to_owned(), color: 6, ..Series::default() });
    series.iter_mut().for_each(|series| series.name.clear());
    series.splice(0..0, legend);
    series.iter_mut().for_each(|series| (series.line, series.hollow) = (Line::Dashed, true));
    series.iter_mut().for_each(|series| series.mark = series.mark.or(Some(0)));
    series.extend(measured);
    let y = Axis::linear("share of the time in which the device computed", 1.0, percent);
    against_workers(report, "utilization", "Utilization", y, series)
}

fn throughput(report: &SweepReport) -> Option<Chart> {
    let measured = curves(report, |point| Some(point.images_per_s), rate, " images/s");
    let ends = |series: &Series| series.points.iter().map(|point| point.x).collect::<Vec<_>>();
    let workers: Vec<f64> = measured.iter().flat_map(ends).collect();
    let (least, most) = (workers.iter().copied().reduce(f64::min)?, workers.iter().copied().reduce(f64::max)?);
    // Decoding alone, as far as the loader was run with as many workers.
    let decode = report.ceilings.iter().filter_map(|ceiling| {
        let (workers, speed) = (ceiling.workers? as f64, ceiling.images_per_s?.median);
        let text = format!("decoding alone, {workers} workers: {} images/s", rate(speed));
        (least..=most).contains(&workers).then(|| Point { x: workers, y: speed, text, ..Point::default() })
    });
    let mut decode: Vec<Point> = decode.collect();
    decode.sort_by(|a, b| a.x.total_cmp(&b.x));
    let speeds = report.points.iter().map(|point| point.images_per_s.most);
    let high = speeds.chain(decode.iter().map(|point| point.y)).fold(0.0, f64::max);
    // The ceiling of a device that never waits, unless it is far above.
    let step = report.request.step_ms.filter(|ms| *ms > 0.0);
    let step = step.map(|ms| report.request.run.batch_size as f64 / ms * 1e3).filter(|speed| *speed <= 1.6 * high);
    let dashed = |name: &str, color, mark, points| {
        let name = name.to_owned();
        Series { name, color, line: Line::Dashed, mark, hollow: true, points, ..Series::default() }
    };
    let mut series = Vec::new();
    if let Some(speed) = step {
        let text = format!("the step alone: {} images/s", rate(speed));
        let ends = [0.0, 1e9].map(|x| Point { x, y: speed, text: text.clone(), ..Point::default() });
        series.push(dashed("the step alone", 3, None, ends.to_vec()));
    }
    if !decode.is_empty() {
        series.push(dashed("decoding alone", 6, Some(0), decode));
    }
    series.extend(measured);
    let y = Axis::linear(
        "images per second; whiskers: slowest and fastest run",
        1.08 * high.max(step.unwrap_or(0.0)),
        short,
    );
    against_workers(report, "throughput", "Throughput", y, series)
}

fn memory(report: &SweepReport) -> Option<Chart> {
    let point = |point: &PointReport| {
        let PointReport { budget_bytes, planned_bytes, peak_rss_bytes, .. } = point;
        let [budget, planned, peak] =
            [*budget_bytes, *planned_bytes, *peak_rss_bytes].map(|bytes| bytes.max(1024) as f64);
        (budget, planned, peak, point.name())
    };
    let mut points: Vec<_> = report.points.iter().map(point).collect();
    // Violations are drawn last, so that nothing hides them.
    points.sort_by_key(|(budget, _, peak, _)| peak > budget);
    let kept = points.last().is_some_and(|(budget, _, peak, _)| peak <= budget);
    let about =
        if kept { "Every peak is within its budget." } else { "NOT kept: a peak is above its budget." }.to_owned();
    let mut panel = Panel::memory(&points, HEIGHT, false);
    panel.x.ticks = points.iter().map(|point| point.0).collect();
    panel.x.ticks.sort_by(f64::total_cmp);
    let (id, title, subtitle) = ("memory", "Peak memory against the budget", about.clone());
    (!points.is_empty()).then(|| Chart { id, title, subtitle, about, width: NARROW, panels: vec![panel] })
}

/// Batches by the time that the consumer waited for each.
fn batch_wait(report: &SweepReport) -> Option<Chart> {
    let point = report.best()?;
    // Parts of an octave above a microsecond. A wait exactly at the edge belongs below it, however it was rounded.
    let part = |seconds: f64| ((seconds * 1e6).log2() * PER_OCTAVE - 1e-3).ceil();
    let edge = |part: f64| 1e-6 * 2f64.powf(part / PER_OCTAVE);
    let mut bars: Vec<(f64, u64)> = Vec::new();
    for bucket in point.waits.iter().filter(|bucket| bucket.count > 0 && bucket.up_to_s > 1e-12) {
        match bars.last_mut() {
            Some((last, count)) if *last == part(bucket.up_to_s) => *count += bucket.count,
            _ => bars.push((part(bucket.up_to_s), bucket.count)),
        }
    }
    let (first, last) = (bars.first()?.0, bars.last()?.0);
    let marks = [("p50", point.wait_p50_s), ("p99", point.wait_p99_s)].map(|(name, wait)| Some((name, wait?)));
    let lines = marks.into_iter().flatten().filter(|(_, wait)| *wait > 0.0);
    let lines: Vec<(f64, String)> = lines.map(|(name, wait)| (wait, format!("{name} {}", time(wait)))).collect();
    let low = lines.iter().fold(edge(first - 2.0), |low, (wait, _)| low.min(wait / 1.2));
    let high = lines.iter().fold(edge(last + 1.0), |high, (wait, _)| high.max(wait * 1.2));
    let most = bars.iter().map(|(_, count)| *count).max()?;
    let bar = |(part, count): &(f64, u64)| {
        let (from, to) = (edge(part - 1.0), edge(*part));
        let text = format!("{} waited from {} to {}", counted(*count, "batch"), time(from), time(to));
        Bar { x: (from, to), y: (0.0, *count as f64), text, labels: None }
    };
    let mut y = Axis::linear("batches, by the time that the consumer waited for each", 1.05 * most as f64, short);
    y.ticks.retain(|tick| tick.fract() == 0.0);
    let series = vec![Series { bars: bars.iter().map(bar).collect(), ..Series::default() }];
    let about: Vec<&str> = lines.iter().map(|(_, label)| label.as_str()).collect();
    let total = counted(bars.iter().map(|(_, count)| count).sum(), "batch");
    let about = format!("{total}: {}.", about.join(", "));
    let x = Axis::log("wait (log scale)", (low, high), time);
    let panels = vec![Panel { x, y, height: HEIGHT, series, lines, limit: false }];
    Some(Chart { id: "batch_wait", title: "Batch wait", subtitle: String::new(), about, width: NARROW, panels })
}

/// The steps of a sample's latency, one below the other.
fn waterfall(report: &SweepReport) -> Option<Chart> {
    let steps = &report.best()?.sample_latency;
    let total: f64 = steps.iter().map(|step| step.seconds).sum();
    if total <= 0.0 {
        return None;
    }
    let series = |name: &str, color, hollow| Series { name: name.to_owned(), color, hollow, ..Series::default() };
    let mut series = [series("work", 0, false), series("waiting", 1, true)];
    let mut before = 0.0;
    for (n, step) in (0u32..).zip(steps) {
        let share = format!("{}, {}", time(step.seconds), percent(step.seconds / total));
        let (y, text) = ((f64::from(n) + 0.5, f64::from(n) + 0.85), format!("{}: {share}", step.step));
        let bar = Bar { x: (before, before + step.seconds), y, text, labels: Some((shortened(&step.step, 34), share)) };
        series[usize::from(step.kind == StepKind::Wait)].bars.push(bar);
        before += step.seconds;
    }
    let work = steps.iter().filter(|step| step.kind == StepKind::Work).map(|step| step.seconds).sum::<f64>();
    let label = format!("{} on average from first to last, {} of it work", time(total), percent(work / total));
    let rows = steps.len() as f64;
    // Rows go down, and have no tick labels.
    let y = Axis { label, range: (rows, 0.0), log: false, ticks: Vec::new(), format: short };
    let about: Vec<String> = steps.iter().map(|step| format!("{} {}", step.step, time(step.seconds))).collect();
    let about = format!("In order: {}.", about.join("; "));
    let x = Axis::linear("time since a sample was admitted", total, time);
    let panels = vec![Panel { x, y, height: 40.0 * rows, series: series.to_vec(), lines: Vec::new(), limit: false }];
    Some(Chart { id: "waterfall", title: "Sample latency", subtitle: String::new(), about, width: NARROW, panels })
}

/// The whole page.
pub(super) fn page(report: &SweepReport) -> String {
    let data = report.request.run.data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let title = if data.is_empty() { "Benchmark".to_owned() } else { format!("Benchmark of {}", escaped(data)) };
    let best = report.best();
    let (request, machine) = (facts("Request", &report.request), facts("Machine", &report.machine));
    let sections = [
        ("Points", format!("{}{}", bottleneck(report), points(report))),
        ("Charts", figures(report)),
        ("Slowest samples", best.map(slowest).unwrap_or_default()),
        ("Ceilings", ceilings(report)),
        ("What was run", format!(r#"<div class="pair">{request}{machine}</div>"#)),
    ];
    let sections: Vec<String> = sections
        .iter()
        .filter(|(_, content)| !content.is_empty())
        .map(|(head, content)| format!("<section>\n<h2>{head}</h2>\n{content}\n</section>"))
        .collect();
    // The title comes last: it holds text from elsewhere.
    include_str!("page.html")
        .replace("{{style}}", &[include_str!("page.css"), chart::STYLE].concat())
        .replace("{{version}}", report.feedstock)
        .replacen("{{sections}}", &sections.join("\n"), 1)
        .replacen("{{summary}}", &summary(report), 1)
        .replacen("{{title}}", &title, 2)
}

/// The error if the sweep ended early, and the knees, or the best combination if there are none.
fn summary(report: &SweepReport) -> String {
    let mut html = String::new();
    if let Some(error) = &report.error {
        let error = error.lines().map(escaped).collect::<Vec<_>>().join("<br>");
        let rest = "The results are those up to then.";
        html = format!(r#"<p class="error" role="alert"><strong>It ended early:</strong> {error}. {rest}</p>"#);
    }
    let mut knees = report.knees.clone();
    if knees.is_empty() {
        knees.push(report.best().map_or_else(
            || "No run has ended, so there are no results.".to_owned(),
            |best| {
                let busy = best.compute_share.map(|share| format!(", {} utilization", percent(share.median)));
                let speed = rate(best.images_per_s.median);
                format!("{}: {speed} images/s{}", best.name(), busy.unwrap_or_default())
            },
        ));
    }
    let knees: String = knees.iter().map(|knee| format!("<p>{}</p>", escaped(knee))).collect();
    html + &format!(r#"<div class="answer">{knees}</div>"#)
}

fn bottleneck(report: &SweepReport) -> String {
    let Some(best) = report.best() else { return String::new() };
    let of = if report.points.len() > 1 {
        format!(" of the best combination ({})", escaped(&best.name()))
    } else {
        String::new()
    };
    format!("<p><strong>Bottleneck{of}:</strong> {}.</p>", escaped(&best.bottleneck))
}

/// The charts, a table of the stages, and a note on charts without data.
fn figures(report: &SweepReport) -> String {
    let (mut figures, mut missing) = (String::new(), Vec::new());
    for (_, name, caption, draw) in CHARTS {
        match draw(report) {
            // The page holds the style once.
            Some(chart) => {
                let svg = chart.svg(false);
                let _ = write!(figures, "<figure>\n{svg}<figcaption>{caption}</figcaption>\n</figure>\n");
            }
            None => missing.push(name),
        }
    }
    let mut notes = Vec::new();
    if !missing.is_empty() {
        notes.push(format!("Left out, since there are no data: {}.", missing.join(", ")));
    }
    match report.best() {
        Some(best) if report.points.len() > 1 => {
            notes.push(format!("Charts of a single combination show the best: {}.", escaped(&best.name())));
        }
        Some(_) => notes.push("There was one combination: it is a single mark instead of a line.".to_owned()),
        None => {}
    }
    let notes: String = notes.iter().map(|note| format!("<p class=\"note\">{note}</p>\n")).collect();
    let stages = report.best().map(stages).unwrap_or_default();
    format!("{notes}<div class=\"charts\">\n{figures}{stages}\n</div>")
}

/// A table as HTML. Cells are markup; a column without any cell is left out, and so is a table without rows.
fn table(caption: &str, class: &str, head: &[&str], rows: &[Vec<Option<String>>]) -> String {
    let shown: Vec<usize> = (0..head.len()).filter(|n| rows.iter().any(|row| row[*n].is_some())).collect();
    if shown.is_empty() {
        return String::new();
    }
    let heads: String = shown.iter().map(|n| format!(r#"<th scope="col">{}</th>"#, head[*n])).collect();
    let cell = |row: &[Option<String>], n: usize| {
        let cell = row[n].as_deref().unwrap_or("–");
        if n == 0 { format!(r#"<th scope="row">{cell}</th>"#) } else { format!("<td>{cell}</td>") }
    };
    let body: String = rows
        .iter()
        .map(|row| format!("<tr>{}</tr>", shown.iter().map(|n| cell(row, *n)).collect::<String>()))
        .collect();
    format!(
        r#"<div class="wide" role="region" tabindex="0" aria-label="{caption}"><table class="{class}">
<caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>
"#
    )
}

/// All combinations, in the order in which they were requested.
fn points(report: &SweepReport) -> String {
    let best = report.best().filter(|_| report.points.len() > 1);
    let row = |point: &PointReport| -> Vec<Option<String>> {
        let mut cells: Vec<_> =
            POINT_COLUMNS.iter().map(|(_, cell)| Some(cell(point)).filter(|cell| cell != "-")).collect();
        cells[0] = Some(escaped(&point.budget));
        if best.is_some_and(|best| std::ptr::eq(point, best)) {
            cells[0] = cells[0].take().map(|cell| cell + r#" <span class="tag">best</span>"#);
        }
        cells
    };
    let rows: Vec<_> = report.points.iter().map(row).collect();
    table("Each budget with each number of workers", "points", &POINT_COLUMNS.map(|(head, _)| head), &rows)
}

fn stages(point: &PointReport) -> String {
    let row = |stage: &StageReport| {
        let all = stage.elapsed_s * stage.threads.max(1) as f64;
        let share = |spent: f64| (all > 0.0).then(|| percent((spent / all).min(1.0)));
        let counts = [stage.threads as u64, stage.samples].map(|count| Some(count.to_string()));
        let shares = [stage.busy_s, stage.wait_in_s, stage.wait_out_s].map(share);
        [Some(escaped(&stage.stage))].into_iter().chain(counts).chain(shares).collect()
    };
    let caption = format!("Time of the threads of each stage ({})", escaped(&point.name()));
    let head = ["stage", "threads", "samples", "busy", "waits for input", "waits for room"];
    table(&caption, "", &head, &point.stages.iter().map(row).collect::<Vec<_>>())
}

fn slowest(point: &PointReport) -> String {
    let caption = format!("The slowest samples ({})", escaped(&point.name()));
    // Isolated, since a name may be written from right to left.
    let rows = point.slowest.iter().map(|slow| {
        vec![Some(format!("<bdi>{}</bdi>", escaped(&slow.path))), Some(time(slow.read_s)), Some(time(slow.decode_s))]
    });
    table(&caption, "samples", &["path", "read", "decode"], &rows.collect::<Vec<_>>())
}

/// The speed of each stage alone, and the share of it that the loader reached.
fn ceilings(report: &SweepReport) -> String {
    let rows = report.ceilings.iter().map(|ceiling| {
        let alike = report.points.iter().filter(|point| ceiling.workers.is_none_or(|workers| workers == point.workers));
        let most = alike.map(|point| point.images_per_s.median).reduce(f64::max);
        let alone = ceiling.images_per_s.map(|speed| speed.median).filter(|speed| *speed > 0.0);
        vec![
            Some(escaped(&ceiling.what)),
            ceiling.workers.map(|workers| workers.to_string()),
            ceiling.images_per_s.map(|speed| rate(speed.median)),
            ceiling.bytes_per_s.map(|speed| format!("{}/s", bytes(speed))),
            most.zip(alone).map(|(most, alone)| percent(most / alone)),
        ]
    });
    let head = ["stage", "workers", "images/s", "bytes/s", "reached by the loader"];
    table("Each stage alone", "", &head, &rows.collect::<Vec<_>>())
}

/// The entries of a struct, with the units at the end of their names.
fn facts(caption: &str, entries: &impl Serialize) -> String {
    let Ok(Value::Object(entries)) = serde_json::to_value(entries) else { return String::new() };
    let rows = entries.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
        let (name, text) = match (value.as_f64(), value.as_str()) {
            (Some(count), _) if key.ends_with("_bytes") => (key.trim_end_matches("_bytes"), bytes(count)),
            (Some(count), _) if key.ends_with("_ms") => (key.trim_end_matches("_ms"), time(count / 1e3)),
            (_, Some(text)) => (key.as_str(), text.to_owned()),
            _ => (key.as_str(), value.to_string()),
        };
        vec![Some(escaped(&name.replace('_', " "))), Some(escaped(&text))]
    });
    table(caption, "facts", &["name", "value"], &rows.collect::<Vec<_>>())
}
