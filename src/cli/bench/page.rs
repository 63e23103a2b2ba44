//! Owns the report that people read: one page that needs nothing else, and its charts as files. It must never hold a
//! number that the run's own report does not, nor anything that is fetched or executed.

use serde_json::Value;

use crate::cli::chart::escaped;
use crate::cli::sheet;

mod curves;
mod journey;
mod panel;
mod read;
mod tables;
#[cfg(test)]
mod tests;

use read::{best, list, name, percent, rate, spread};

/// A browser keeps to it that nothing is fetched and nothing runs, whatever the names of files are.
const POLICY: &str =
    r#"<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"#;

/// Nothing scrolls sideways but a wide table within its box, on a phone; paper is light, and no chart is cut.
const STYLE: &str = "\
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--soft:#59636e;--rule:#d8dee4;--tint:#f6f8fa;--lead:#0550ae;
--bad:#b3202c}
@media screen and (prefers-color-scheme:dark){
:root{--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--rule:#2a313c;--tint:#151b23;--lead:#79c0ff;--bad:#ff9a92}}
*{box-sizing:border-box}
html{background:var(--page);-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1120px;padding:36px 14px 56px;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;
font-variant-numeric:tabular-nums}
@media(min-width:700px){body{padding-left:32px;padding-right:32px}}
h1{font-size:26px;line-height:1.25;margin:0 0 16px;overflow-wrap:anywhere}
h2{font-size:19px;margin:48px 0 12px;padding-top:16px;border-top:1px solid var(--rule)}
p{margin:0 0 12px;max-width:70ch;overflow-wrap:anywhere}
.answer{margin:0;padding:14px 18px;background:var(--tint);border-left:4px solid var(--lead);
border-radius:0 6px 6px 0;font-size:18px}
.answer p{margin:0;max-width:none}.answer p+p{margin-top:4px}
.error{padding:12px 18px;border:2px solid var(--bad);border-radius:6px;color:var(--bad);max-width:none}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:36px 48px;
align-items:start}
.charts>*{margin:0;min-width:0;max-width:600px}
/* The sheets have margins of their own, which lie outside of the column. */
figure svg{display:block;width:106.4%;margin:0 -3.7% 0 -2.7%;height:auto}
figcaption,footer,.note{color:var(--soft);font-size:15px}
figcaption{margin-top:4px}footer{margin-top:48px}
.wide{overflow-x:auto}.wide:focus-visible{outline:2px solid var(--lead);outline-offset:2px}
table{border-collapse:collapse;font-size:15px;line-height:1.35}
caption{text-align:left;color:var(--soft);padding-bottom:6px;max-width:calc(100vw - 28px)}
th,td{padding:7px 12px;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;font-weight:400;
white-space:nowrap}
thead th{color:var(--soft);vertical-align:bottom;white-space:normal}
th:first-child{text-align:left;padding-left:0}td:last-child,th:last-child{padding-right:0}
tbody th{font-weight:600}
.points{width:100%}
.facts td,.facts th,.samples tbody th{white-space:normal;overflow-wrap:anywhere}.facts td{text-align:left}
.facts thead{display:none}
.facts tbody th{font-weight:400;color:var(--soft);min-width:7em}.samples tbody th{font-weight:400;min-width:10em}
@media(max-width:500px){th,td{padding:7px 8px}}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:28px 48px;align-items:start}
.pair>*{min-width:0}
small{display:block;font-size:14px;color:var(--soft)}
.tag{border:1px solid var(--lead);border-radius:9px;padding:0 7px;font-size:14px;font-weight:400;color:var(--lead)}
@media print{@page{size:A4 portrait;margin:14mm}
:root{color-scheme:light}body{padding:0;max-width:none;font-size:11pt}
h2{margin-top:20px;padding-top:8px}h2,.note{break-after:avoid}
figure,tr,.answer,.error,caption,.charts .wide{break-inside:avoid}
.wide{overflow:visible}table{font-size:9pt}th,td{padding:4px 6px}.points,.charts table{font-size:8pt}
.points th,.points td{padding:4px}
.tag,small{font-size:inherit}figcaption,.note,footer{font-size:9pt}footer{margin-top:20px}
.charts{grid-template-columns:1fr 1fr;gap:16px 20px}figure svg{width:100%;margin:0}}";

/// A chart: its file, what it is called, what to see in it, and who draws it.
struct Chart {
    file: &'static str,
    what: &'static str,
    caption: &'static str,
    draw: fn(&Value) -> Option<String>,
}

const CHARTS: [Chart; 5] = [
    Chart {
        file: "utilisation.svg",
        what: "utilisation",
        caption: "How much of the time the device computed. What is missing to 100 % it waited for batches.",
        draw: curves::utilisation,
    },
    Chart {
        file: "throughput.svg",
        what: "throughput",
        caption: "What the loader delivered. Where a ceiling is near, more workers buy nothing.",
        draw: curves::throughput,
    },
    Chart {
        file: "memory.svg",
        what: "memory",
        caption: "A budget is kept where the peak lies below the line.",
        draw: curves::memory,
    },
    Chart {
        file: "latency.svg",
        what: "waits for a batch",
        caption: "Batches that were ready are on the left, those that the consumer had to wait for on the right. The \
                  least bars are drawn as high as a line, so that they can be seen.",
        draw: journey::latency,
    },
    Chart {
        file: "waterfall.svg",
        what: "the way of a sample",
        caption: "The mean of all samples. A long wait for the consumer is a loader that is ahead, a long wait for a \
                  worker one that lacks them.",
        draw: journey::waterfall,
    },
];

/// Each chart that there is data for, by the name of its file.
pub(super) fn charts(report: &Value) -> Vec<(&'static str, String)> {
    CHARTS.iter().filter_map(|chart| Some((chart.file, (chart.draw)(report)?))).collect()
}

/// The files that a report may have, and this one has not: of another run, where they are there.
pub(super) fn left_out(report: &Value) -> Vec<&'static str> {
    let drawn = charts(report);
    CHARTS.iter().map(|chart| chart.file).filter(|file| drawn.iter().all(|(name, _)| name != file)).collect()
}

/// The whole page.
pub(super) fn page(report: &Value) -> String {
    let data = report["request"]["data"].as_str().unwrap_or_default();
    let data = data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let title = if data.is_empty() { "Benchmark".to_owned() } else { format!("Benchmark of {}", escaped(data)) };
    let version = report["feedstock"].as_str().map_or_else(String::new, |version| format!(" {}", escaped(version)));
    let parts = [
        format!("<header><h1>{title}</h1>\n{}\n{}</header>", error(report), answer(report)),
        section("Points", &[held_up(report), tables::points(report)]),
        section("Charts", &[figures(report)]),
        section("Slowest samples", &[best(report).map(tables::slowest).unwrap_or_default()]),
        section("Ceilings", &[tables::ceilings(report)]),
        section("What was run", &[pair(report)]),
        format!("<footer>Written by feedstock{version}.</footer>"),
    ];
    let drawing = sheet::STYLE;
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{POLICY}
<title>{title}</title>
<style>
{STYLE}
{drawing}
</style>
</head>
<body>
{}
</body>
</html>
"#,
        parts.join("\n")
    )
}

/// A heading and what is below it; nothing where that is nothing.
fn section(head: &str, parts: &[String]) -> String {
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{head}</h2>\n{}\n</section>", parts.join("\n"))
}

/// Two tables beside each other, where there is room.
fn pair(report: &Value) -> String {
    let asked = tables::facts("Asked for", &report["request"]);
    let machine = tables::facts("The machine", &report["machine"]);
    if asked.is_empty() && machine.is_empty() {
        return String::new();
    }
    format!(r#"<div class="pair">{asked}{machine}</div>"#)
}

fn error(report: &Value) -> String {
    let told = match &report["error"] {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let told = told.lines().map(escaped).collect::<Vec<_>>().join("<br>");
    format!(
        r#"<p class="error" role="alert"><strong>It ended early:</strong> {told}. What follows is what there was until then.</p>"#
    )
}

/// What to choose: the knees, or what there is to say without any.
fn answer(report: &Value) -> String {
    let mut knees: Vec<String> = list(report, "knees").iter().filter_map(Value::as_str).map(escaped).collect();
    if knees.is_empty() {
        let told = best(report).map_or_else(|| "No run has ended, so there is nothing to say.".to_owned(), in_words);
        knees.push(escaped(&told));
    }
    let knees: Vec<String> = knees.iter().map(|knee| format!("<p>{knee}</p>")).collect();
    format!(r#"<div class="answer">{}</div>"#, knees.join(""))
}

fn in_words(point: &Value) -> String {
    let speed = spread(&point["images_per_s"]).map(|speed| format!("{} images/s", rate(speed.median)));
    let busy = spread(&point["compute_share"]).map(|share| format!("{} utilisation", percent(share.median)));
    let told: Vec<String> = [speed, busy].into_iter().flatten().collect();
    let name = name(point);
    let told = if told.is_empty() { "no numbers".to_owned() } else { told.join(", ") };
    if name.is_empty() { told } else { format!("{name}: {told}") }
}

fn held_up(report: &Value) -> String {
    let told = best(report).and_then(|point| Some((name(point), point["bottleneck"].as_str()?)));
    let several = list(report, "points").len() > 1;
    told.map_or_else(String::new, |(name, bottleneck)| {
        let who = if several { format!("The best of them ({})", escaped(&name)) } else { "The run".to_owned() };
        format!("<p><strong>{who}</strong> was held up by {}.</p>", escaped(bottleneck))
    })
}

/// The charts, a table of the stages beside them, and a sentence about what is not drawn.
fn figures(report: &Value) -> String {
    // All of them have the same style, which the page holds once.
    let style = format!("<style>\n{}\n</style>\n", sheet::STYLE);
    let (mut drawn, mut missing) = (Vec::new(), Vec::new());
    for Chart { what, caption, draw, .. } in &CHARTS {
        match draw(report) {
            Some(svg) => {
                let svg = svg.replacen(&style, "", 1);
                drawn.push(format!("<figure>\n{svg}<figcaption>{caption}</figcaption>\n</figure>"));
            }
            None => missing.push(*what),
        }
    }
    let mut notes = Vec::new();
    if !missing.is_empty() {
        notes.push(format!("Left out for want of numbers: {}.", missing.join(", ")));
    }
    if list(report, "points").len() == 1 {
        notes.push("There was one combination only: it is a single mark where several would be a line.".to_owned());
    } else if let Some(best) = best(report).filter(|_| drawn.len() > 1) {
        notes.push(format!("What shows a single combination shows the best: {}.", escaped(&name(best))));
    }
    drawn.push(best(report).map(tables::stages).unwrap_or_default());
    let notes: String = notes.iter().map(|note| format!("<p class=\"note\">{note}</p>\n")).collect();
    format!("{notes}<div class=\"charts\">\n{}\n</div>", drawn.join("\n"))
}
