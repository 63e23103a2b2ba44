//! Owns the charts of one point's time: the way of a sample, and how long the consumer waited for each batch. It must
//! never draw a number that the report does not hold.

use std::collections::BTreeMap;

use serde_json::Value;

use super::panel::{EDGE, Key, LEFT, Panel, RIGHT, shortened, ticks};
use super::read::{best, list, number, percent, positive, short, time};
use crate::cli::chart::{Scale, escaped};
use crate::cli::table::counted;

/// Bars of an octave.
const PER_OCTAVE: f64 = 2.0;
/// So that what is there can be seen.
const LEAST: f64 = 1.5;

/// The steps of a sample's way, each below the one before and beginning where that ended.
pub(super) fn waterfall(report: &Value) -> Option<String> {
    let steps: Vec<(&str, f64, bool)> = list(best(report)?, "journey")
        .iter()
        .filter_map(|step| Some((step["step"].as_str()?, number(&step["seconds"])?, step["kind"] == "work")))
        .collect();
    let total: f64 = steps.iter().map(|(_, seconds, _)| seconds).sum();
    if total <= 0.0 {
        return None;
    }
    let work: f64 = steps.iter().filter(|(.., is_work)| *is_work).map(|(_, seconds, _)| seconds).sum();
    let key = |class: &str, words: &str| Key {
        colour: 6,
        line: "",
        shape: format!(r#"<rect class="{class}" x="2" y="-6" width="24" height="12"/>"#),
        words: words.to_owned(),
    };
    let subtitle = format!("{} on average from first to last, {} of it work", time(total), percent(work / total));
    let mut panel = Panel::new("The way of a sample", &subtitle, &[key("work", "work"), key("wait", "waiting")]);
    let across = Scale::linear(total, (EDGE, RIGHT));
    let row = 40.0;
    (panel.left, panel.bottom) = (EDGE, panel.top + row * steps.len() as f64 + 4.0);
    let top = panel.top - 6.0;
    let mut before = 0.0;
    for (n, (step, seconds, is_work)) in steps.iter().enumerate() {
        let y = top + row * n as f64;
        if n > 0 {
            panel.sheet.line("grid", (EDGE, y - 2.0), (RIGHT, y - 2.0));
        }
        let (from, to) = (across.at(before), across.at(before + seconds));
        let class = if *is_work { "work" } else { "wait" };
        let share = format!("{}, {}", time(*seconds), percent(seconds / total));
        let told = escaped(&format!("{step}: {share}"));
        panel.sheet.text((EDGE, y + 14.0), "ink", "start", &shortened(step, 34));
        panel.sheet.text((RIGHT, y + 14.0), "ink", "end", &share);
        panel.sheet.add(format_args!(
            r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="13" data-from="{before}" data-seconds="{seconds}"><title>{told}</title></rect>"#,
            from.min(RIGHT - LEAST), y + 20.0, (to - from).max(LEAST)
        ));
        before += seconds;
    }
    panel.across(ticks(&across, time), "time since a sample was admitted");
    let about: Vec<String> = steps.iter().map(|(step, seconds, _)| format!("{step} {}", time(*seconds))).collect();
    Some(panel.done("waterfall", &format!("In order: {}.", about.join("; "))))
}

/// Batches by how long each was waited for.
pub(super) fn latency(report: &Value) -> Option<String> {
    let point = best(report)?;
    let bars = bars(list(point, "waits"));
    let (first, last) = (*bars.keys().next()?, *bars.keys().next_back()?);
    let marks = [("half", "wait_p50_s"), ("99 %", "wait_p99_s")];
    let marks: Vec<(&str, f64)> =
        marks.into_iter().filter_map(|(what, key)| Some((what, positive(&point[key])?))).collect();
    let edge = |bar: i32| 1e-6 * 2f64.powf(f64::from(bar) / PER_OCTAVE);
    // Half an octave of air, and more where a mark lies further out.
    let low = marks.iter().fold(edge(first - 2), |low, (_, wait)| low.min(wait / 1.2));
    let high = marks.iter().fold(edge(last + 1), |high, (_, wait)| high.max(wait * 1.2));
    let most = bars.values().fold(0.0, |most: f64, count| most.max(*count));
    let all: f64 = bars.values().sum();

    let mut panel = Panel::new("Waits for a batch", "batches, by how long the consumer waited for each", &[]);
    // Above the bars is a line of text for each mark.
    let rows = 20.0 * marks.len() as f64;
    (panel.top, panel.bottom) = (panel.top + rows, panel.bottom + rows);
    let across = Scale::logarithmic((low, high), (LEFT, RIGHT));
    let up = Scale::linear(1.05 * most, (panel.bottom, panel.top));
    panel.up(ticks(&up, short).into_iter().filter(|(_, text)| !text.contains('.')));
    for (bar, count) in &bars {
        let [from, to] = [bar - 1, *bar].map(|bar| across.at(edge(bar)));
        let top = up.at(*count).min(panel.bottom - LEAST);
        let told =
            format!("{} waited from {} to {}", counted(*count as u64, "batch"), time(edge(bar - 1)), time(edge(*bar)));
        panel.sheet.add(format_args!(
            r#"<rect class="count" x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" data-up-to="{}" data-count="{count}"><title>{told}</title></rect>"#,
            from + 0.5, (to - from - 1.0).max(1.0), panel.bottom - top, edge(*bar)
        ));
    }
    for (n, (what, wait)) in marks.iter().enumerate() {
        let (x, y) = (across.at(*wait), panel.top - rows + 20.0 * n as f64 + 8.0);
        let (anchor, aside) = if x > f64::midpoint(LEFT, RIGHT) { ("end", -6.0) } else { ("start", 6.0) };
        panel.sheet.add(format_args!(
            r#"<path class="mark" d="M{x:.1} {:.1}V{:.1}" data-wait="{wait}"/>"#,
            y - 10.0,
            panel.bottom
        ));
        panel.sheet.text((x + aside, y), "ink", anchor, &format!("{what} within {}", time(*wait)));
    }
    let decades = across.decade_ticks().into_iter().map(|tick| (across.at(tick), time(tick)));
    panel.across(decades, "wait (log scale)");
    let told: Vec<String> = marks.iter().map(|(what, wait)| format!("{what} within {}", time(*wait))).collect();
    Some(panel.done("latency", &format!("{}: {}.", counted(all as u64, "batch"), told.join(", "))))
}

/// How many waits end in each part of an octave; parts are counted from a microsecond, and reach up to it.
fn bars(waits: &[Value]) -> BTreeMap<i32, f64> {
    let mut bars = BTreeMap::new();
    for wait in waits {
        let (Some(up_to), Some(count)) = (positive(&wait["up_to_s"]), positive(&wait["count"])) else { continue };
        // What ends at the edge itself lies below it, however it was rounded.
        let bar = ((up_to * 1e6).log2() * PER_OCTAVE - 1e-3).ceil() as i32;
        *bars.entry(bar).or_insert(0.0) += count;
    }
    bars
}
