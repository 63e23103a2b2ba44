//! Owns the tables of the page. It must never round in a way that makes a number better than it is.

use std::fmt::Write;

use serde_json::Value;

use super::read::{best, budget, bytes, list, name, number, percent, rate, spread, time};
use crate::cli::chart::escaped;

/// A column: its head, and what it says of a row; both are markup.
type Column<'a, T> = (&'a str, &'a dyn Fn(&T) -> Option<String>);

/// A table whose first column names the rows. Columns that say nothing of any row are left out, and so is the whole
/// where there are no rows.
fn table<T>(caption: &str, class: &str, rows: &[T], columns: &[Column<'_, T>]) -> String {
    let columns: Vec<(&str, Vec<Option<String>>)> = columns
        .iter()
        .map(|(head, cell)| (*head, rows.iter().map(cell).collect::<Vec<_>>()))
        .filter(|(_, cells)| cells.iter().any(Option::is_some))
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let mut html = format!(
        r#"<div class="wide" role="region" tabindex="0" aria-label="{caption}"><table class="{class}"><caption>{caption}</caption><thead><tr>"#
    );
    let mut add = |text: std::fmt::Arguments<'_>| {
        // A string takes everything.
        let _ = html.write_fmt(text);
    };
    for (head, _) in &columns {
        add(format_args!(r#"<th scope="col">{head}</th>"#));
    }
    add(format_args!("</tr></thead><tbody>"));
    for row in 0..rows.len() {
        add(format_args!("<tr>"));
        for (n, (_, cells)) in columns.iter().enumerate() {
            let cell = cells[row].as_deref().unwrap_or("–");
            match n {
                0 => add(format_args!(r#"<th scope="row">{cell}</th>"#)),
                _ => add(format_args!("<td>{cell}</td>")),
            }
        }
        add(format_args!("</tr>"));
    }
    add(format_args!("</tbody></table></div>\n"));
    html
}

/// A median, and below it how far the runs were apart.
fn ranged(value: &Value, text: fn(f64) -> String) -> Option<String> {
    let spread = spread(value)?;
    let (median, least, most) = (text(spread.median), text(spread.least), text(spread.most));
    if least == most {
        return Some(median);
    }
    // The unit once is enough.
    let least = least.strip_suffix(" %").unwrap_or(&least);
    Some(format!("{median}<small>{least} to {most}</small>"))
}

/// All points, in the order in which they were asked for.
pub(super) fn points(report: &Value) -> String {
    let best = best(report);
    let number_of = |point: &Value, key: &str, text: fn(f64) -> String| number(&point[key]).map(text);
    let points: Vec<&Value> = list(report, "points").iter().collect();
    let several = points.len() > 1;
    table(
        "Each budget with each number of workers",
        "points",
        &points,
        &[
            ("budget", &|point| {
                let budget = escaped(&budget(point)?);
                let is_best = several && best.is_some_and(|best| std::ptr::eq(*point, best));
                Some(if is_best { format!(r#"{budget} <span class="tag">best</span>"#) } else { budget })
            }),
            ("workers", &|point| number_of(point, "workers", |count| format!("{count:.0}"))),
            ("images/s", &|point| ranged(&point["images_per_s"], rate)),
            ("utili&shy;sation", &|point| ranged(&point["compute_share"], percent)),
            ("pre&shy;dicted", &|point| spread(&point["predicted_share"]).map(|share| percent(share.median))),
            ("input wait", &|point| spread(&point["input_wait_share"]).map(|share| percent(share.median))),
            ("wait p50", &|point| number_of(point, "wait_p50_s", time)),
            ("wait p99", &|point| number_of(point, "wait_p99_s", time)),
            ("peak RSS", &|point| number_of(point, "peak_rss_bytes", bytes)),
            ("planned", &|point| number_of(point, "planned_bytes", bytes)),
            ("cores busy", &|point| number_of(point, "cores_busy", |cores| format!("{cores:.1}"))),
            ("read", &|point| number_of(point, "encoded_bytes", bytes)),
        ],
    )
}

/// What the threads of each stage did with their time.
pub(super) fn stages(point: &Value) -> String {
    let share = |stage: &Value, key: &str| {
        let (spent, elapsed) = (number(&stage[key])?, number(&stage["elapsed_s"]).filter(|elapsed| *elapsed > 0.0)?);
        let threads = number(&stage["threads"]).unwrap_or(1.0).max(1.0);
        Some(percent((spent / (elapsed * threads)).min(1.0)))
    };
    let count = |stage: &Value, key: &str| number(&stage[key]).map(|count| format!("{count:.0}"));
    let caption = format!("What the threads of each stage did with their time ({})", escaped(&name(point)));
    table(
        &caption,
        "",
        list(point, "stages"),
        &[
            ("stage", &|stage| stage["stage"].as_str().map(escaped)),
            ("threads", &|stage| count(stage, "threads")),
            ("samples", &|stage| count(stage, "samples")),
            ("busy", &|stage| share(stage, "busy_s")),
            ("waits for input", &|stage| share(stage, "wait_in_s")),
            ("waits for room", &|stage| share(stage, "wait_out_s")),
        ],
    )
}

pub(super) fn slowest(point: &Value) -> String {
    let seconds = |sample: &Value, key: &str| number(&sample[key]).map(time);
    let caption = format!("The slowest of all samples ({})", escaped(&name(point)));
    table(
        &caption,
        "samples",
        list(point, "slowest"),
        &[
            // Names may be written from right to left; the row is not.
            ("path", &|sample| Some(format!("<bdi>{}</bdi>", escaped(sample["path"].as_str()?)))),
            ("read", &|sample| seconds(sample, "read_s")),
            ("decode", &|sample| seconds(sample, "decode_s")),
        ],
    )
}

/// What each part comes to alone, and how much of that the loader reached.
pub(super) fn ceilings(report: &Value) -> String {
    let reached = |ceiling: &Value| {
        let alone = spread(&ceiling["images_per_s"])?.median;
        let workers = number(&ceiling["workers"]);
        let alike =
            list(report, "points").iter().filter(|point| workers.is_none() || number(&point["workers"]) == workers);
        let most =
            alike.filter_map(|point| spread(&point["images_per_s"])).map(|speed| speed.median).reduce(f64::max)?;
        (alone > 0.0).then(|| percent(most / alone))
    };
    table(
        "What each part comes to without the others",
        "",
        list(report, "ceilings"),
        &[
            ("what", &|ceiling| ceiling["what"].as_str().map(escaped)),
            ("workers", &|ceiling| number(&ceiling["workers"]).map(|count| format!("{count:.0}"))),
            ("images/s", &|ceiling| ranged(&ceiling["images_per_s"], rate)),
            ("bytes/s", &|ceiling| spread(&ceiling["bytes_per_s"]).map(|speed| format!("{}/s", bytes(speed.median)))),
            ("reached by the loader", &reached),
        ],
    )
}

/// The entries of an object, with the units that their names end in.
pub(super) fn facts(caption: &str, object: &Value) -> String {
    let entries: Vec<(String, String)> =
        object.as_object().into_iter().flatten().filter_map(|(key, value)| fact(key, value)).collect();
    table(
        caption,
        "facts",
        &entries,
        &[("what", &|(what, _)| Some(what.clone())), ("value", &|(_, value)| Some(value.clone()))],
    )
}

fn fact(key: &str, value: &Value) -> Option<(String, String)> {
    let (name, text) = match (value, number(value)) {
        (Value::Null, _) => return None,
        (_, Some(count)) if key.ends_with("_bytes") => (key.strip_suffix("_bytes")?, bytes(count)),
        (_, Some(count)) if key.ends_with("_ms") => (key.strip_suffix("_ms")?, time(count / 1e3)),
        (_, Some(count)) if key.ends_with("_s") && !key.ends_with("_per_s") => (key.strip_suffix("_s")?, time(count)),
        (Value::String(text), _) => (key, text.clone()),
        (Value::Array(values), _) => (key, values.iter().map(plain).collect::<Vec<_>>().join(", ")),
        (other, _) => (key, other.to_string()),
    };
    Some((escaped(&name.replace('_', " ")), escaped(&text)))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
