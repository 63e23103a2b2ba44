//! Tests of the page: every mark shows a number of the report, every chart is well-formed for any numbers, and hostile
//! names are escaped.

use super::super::outcome::{Ceiling, Machine, Merit, SweepRequest};
use super::super::report::{LatencyStep, Request, SlowReport, WaitBucket};
use super::*;

#[path = "../../../../tests/common/xml.rs"]
mod xml;

use xml::{Element, elements};

const HOSTILE: &str = "</svg><script>alert(1)</script>{{title}}&\"'\u{1}\u{7f}\u{fffe}";

fn spread(median: f64) -> Spread {
    Spread { median, least: 0.9 * median, most: 1.1 * median }
}

fn point(budget_mib: u64, workers: u64) -> PointReport {
    let speed = 700.0 * workers.min(4) as f64;
    let step = |step: &str, kind, seconds| LatencyStep { step: step.to_owned(), kind, seconds };
    let octave = |part: f64| 8e-6 * 2f64.powf(part / 16.0);
    PointReport {
        budget: format!("{budget_mib}M"),
        budget_bytes: budget_mib << 20,
        workers,
        images_per_s: spread(speed),
        compute_share: Some(spread(speed / 3200.0)),
        predicted_share: Some(speed / 3100.0),
        input_wait_share: spread(0.1),
        wait_p50_s: Some(0.000_02),
        wait_p99_s: Some(0.02),
        peak_rss_bytes: (budget_mib << 20) / 2,
        planned_bytes: (budget_mib << 20) / 4 * 3,
        cores_busy: 1.9,
        encoded_bytes: 55_000_000.0,
        bottleneck: "decoding: 2 workers were busy 97 % of the time".to_owned(),
        stages: vec![StageReport {
            stage: "work".to_owned(),
            threads: 2,
            samples: 500,
            busy_s: 3.0,
            wait_in_s: 2.0,
            wait_out_s: 1.0,
            elapsed_s: 3.0,
        }],
        sample_latency: vec![
            step("waits to be read", StepKind::Wait, 0.002),
            step("read", StepKind::Work, 0.001),
            step("waits for a worker", StepKind::Wait, 0.005),
        ],
        // Three sixteenths of the octave from 8 to 16 microseconds, and a late one.
        waits: [(octave(1.0), 3), (octave(8.0), 4), (octave(9.0), 5), (0.02, 1)]
            .map(|(up_to_s, count)| WaitBucket { up_to_s, count })
            .to_vec(),
        slowest: vec![SlowReport { path: "n01/abc.JPEG".to_owned(), read_s: 0.001, decode_s: 0.031 }],
        ..PointReport::default()
    }
}

fn report(points: Vec<PointReport>) -> SweepReport {
    let ceiling = |what: &str, workers, speed, bytes_per_s| Ceiling {
        what: what.to_owned(),
        workers,
        images_per_s: Some(spread(speed)),
        bytes_per_s,
        ..Ceiling::default()
    };
    SweepReport {
        feedstock: "0.1.0",
        machine: Machine { cpus: 2, memory_bytes: 25_000_000_000, cpu: Some("EPYC".to_owned()), system: "linux" },
        request: SweepRequest {
            run: Request { data: "photos/train".to_owned(), batch_size: 64, ..Request::default() },
            step_ms: Some(20.0),
            ..SweepRequest::default()
        },
        points,
        ceilings: vec![
            ceiling("decode", Some(1), 750.0, None),
            ceiling("decode", Some(2), 1500.0, None),
            ceiling("transfer", None, 60_000.0, Some(9.0e9)),
        ],
        knees: vec!["256M: 2 workers: 44 % utilization; more are not faster".to_owned()],
        ..SweepReport::default()
    }
}

fn sweep() -> SweepReport {
    report(vec![point(128, 1), point(128, 2), point(256, 2), point(256, 1)])
}

fn attribute<'a>(element: &'a Element, key: &str) -> Option<&'a str> {
    element.1.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// Numbers of every mark or bar of a series, in the order in which they are drawn.
fn marks<const N: usize>(report: &SweepReport, file: &str, series: &str, keys: [&str; N]) -> Vec<[f64; N]> {
    let charts = charts(report);
    let (_, svg) = charts.iter().find(|(name, _)| *name == file).expect("it is drawn");
    let all = elements(svg);
    let of = all.iter().filter(|element| attribute(element, "data-series") == Some(series));
    of.map(|element| keys.map(|key| attribute(element, key).expect("present").parse().expect("a number"))).collect()
}

/// Checks that every chart is well-formed and within its sheet, and that the page holds all of them.
fn check(report: &SweepReport) {
    let (page, charts) = (page(report), charts(report));
    assert_eq!(page.matches("<svg").count(), charts.len());
    assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf<"), "{page}");
    for (file, svg) in charts {
        for word in ["NaN", "inf\"", "inf ", "script>a", "href"] {
            assert!(!svg.contains(word), "{file}: {word}: {svg}");
        }
        let elements = elements(&svg);
        let number = |element: &Element, key: &str| attribute(element, key).and_then(|value| value.parse::<f64>().ok());
        let [width, height] = ["width", "height"].map(|key| number(&elements[0], key).expect("a size"));
        assert!((300.0..1000.0).contains(&width) && (200.0..1000.0).contains(&height), "{file}: {width} x {height}");
        for element in &elements {
            for (key, most) in [("x", width), ("y", height)] {
                assert!((-10.0..=most).contains(&number(element, key).unwrap_or(0.0)), "{file}: {element:?}");
            }
        }
        for marked in ["-title\"", "-about\"", "<style>", "xmlns=", "prefers-color-scheme"] {
            assert!(svg.contains(marked), "{file} stands alone: {svg}");
        }
    }
}

#[test]
fn each_mark_shows_a_number_of_the_report() {
    let report = sweep();
    check(&report);
    let mib = f64::from(1 << 20);
    let [one, two] = [1.0, 2.0].map(|workers| {
        let Spread { median, least, most } = spread(700.0 * workers);
        [workers, median, least, most]
    });
    for budget in ["128M", "256M"] {
        let keys = ["data-x", "data-y", "data-low", "data-high"];
        assert_eq!(marks(&report, "throughput.svg", budget, keys), [one, two]);
        let shares = [one, two].map(|[workers, speed, ..]| [workers, speed / 3200.0]);
        assert_eq!(marks(&report, "utilization.svg", budget, ["data-x", "data-y"]), shares);
    }
    let predicted = [one, two, one, two].map(|[workers, speed, ..]| [workers, speed / 3100.0]);
    assert_eq!(marks(&report, "utilization.svg", "", ["data-x", "data-y"]), predicted);
    let ceilings = marks(&report, "throughput.svg", "decoding alone", ["data-x", "data-y"]);
    assert_eq!(ceilings, [[1.0, 750.0], [2.0, 1500.0]]);
    for (series, part) in [("measured peak", 0.5), ("planned", 0.75)] {
        let held = [128.0, 128.0, 256.0, 256.0].map(|budget| [budget * mib, part * budget * mib]);
        assert_eq!(marks(&report, "memory.svg", series, ["data-x", "data-y"]), held);
    }
    let waits = marks(&report, "waterfall.svg", "waiting", ["data-x", "data-x2"]);
    assert_eq!(waits, [[0.0, 0.002], [0.003, 0.008]], "each step begins where the one before ended");
    assert_eq!(marks(&report, "waterfall.svg", "work", ["data-x", "data-x2"]), [[0.002, 0.003]]);
    assert_eq!(marks(&report, "batch_wait.svg", "", ["data-y"]), [[7.0], [5.0], [1.0]]);
    let (_, waits) = charts(&report).remove(3);
    assert!(waits.contains(r#"data-x="0.00002""#) && waits.contains(r#"data-x="0.02""#), "{waits}");
}

#[test]
fn peak_above_its_budget_is_highlighted() {
    let mut report = sweep();
    assert!(!page(&report).contains("NOT kept") && !page(&report).contains("mark alert"));
    report.points[1].peak_rss_bytes = 129 << 20;
    assert!(page(&report).contains("NOT kept: a peak is above") && page(&report).matches("mark alert").count() == 1);
    assert_eq!(marks(&report, "memory.svg", "measured peak", ["data-y"])[3], [f64::from(129 << 20)], "drawn last");
}

#[test]
fn extreme_numbers_are_drawn() {
    let many = (0..40).map(|n| point(64 << (n / 8), 1 + n % 8)).collect();
    let mut odd = vec![report(Vec::new()), report(vec![point(256, 2)]), report(many)];
    for number in [0.0, 1e-9, 1e15, 1e300] {
        let mut report = sweep();
        for n in [0, 2] {
            let point = &mut report.points[n];
            (point.images_per_s, point.compute_share) = (spread(number), Some(spread(number)));
            (point.wait_p50_s, point.wait_p99_s) = (Some(number), None);
            (point.budget_bytes, point.peak_rss_bytes, point.workers) =
                (number as u64 / 2, number as u64, number as u64);
            point.waits.iter_mut().for_each(|bucket| bucket.up_to_s = number);
            point.sample_latency[0].seconds = number;
        }
        (report.ceilings[1].images_per_s, report.request.step_ms) = (Some(spread(number)), Some(number));
        odd.push(report);
    }
    odd.iter().for_each(check);
}

#[test]
fn charts_without_data_are_left_out_and_named() {
    let mut report = report(vec![point(256, 2)]);
    (report.points[0].compute_share, report.judged_by) = (None, Merit::ImagesPerS);
    report.points[0].waits.clear();
    report.knees.clear();
    report.error = Some("interrupted <here>".to_owned());
    let files: Vec<&str> = charts(&report).into_iter().map(|(file, _)| file).collect();
    assert_eq!(files, ["throughput.svg", "memory.svg", "waterfall.svg"]);
    assert_eq!(stale(&report).collect::<Vec<_>>(), ["utilization.svg", "batch_wait.svg"]);
    let page = page(&report);
    for words in [
        "Left out, since there are no data: utilization, batch wait.",
        "There was one combination",
        "It ended early:</strong> interrupted &lt;here&gt;.",
        "256M, 2 workers: 1400 images/s",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn page_shows_the_numbers_of_the_report() {
    let page = page(&sweep());
    for words in [
        "<p>256M: 2 workers: 44 % utilization; more are not faster</p>",
        "Bottleneck of the best combination (128M, 2 workers):</strong> decoding: 2 workers",
        "<td>1400</td><td>1260-1540</td>",
        "<td>44 %</td><td>45 %</td>",
        "<td>20 ms</td>",
        "<bdi>n01/abc.JPEG</bdi></th><td>1 ms</td><td>31 ms</td>",
        "<td>50 %</td><td>33 %</td><td>17 %</td>",
        "<td>93 %</td>",
        "8.38 GiB/s",
        r#"<th scope="row">memory</th><td>23.3 GiB</td>"#,
        r#"<th scope="row">step</th><td>20 ms</td>"#,
        "feedstock 0.1.0",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    let fetched = page.replace(r#"xmlns="http://www.w3.org/2000/svg""#, "");
    for word in ["http://", "https://", "href", "src=", "url(h", "@import", "<script", "{{"] {
        assert!(!fetched.contains(word), "{word}");
    }
    for tag in ["section", "figure", "table", "div", "style", "svg", "p"] {
        let [opened, closed] = [format!("<{tag}"), format!("</{tag}>")];
        let opens =
            page.match_indices(&opened).filter(|(at, _)| !page[at + opened.len()..].starts_with(char::is_alphabetic));
        assert_eq!(opens.count(), page.matches(&closed).count(), "{tag}");
    }
}

#[test]
fn hostile_names_are_escaped() {
    let (mut report, hostile) = (sweep(), HOSTILE.to_owned());
    for point in &mut report.points {
        (point.budget, point.bottleneck) = (hostile.clone(), hostile.clone());
        (point.slowest[0].path, point.stages[0].stage) = (hostile.clone(), hostile.clone());
        point.sample_latency[0].step = hostile.clone();
    }
    (report.error, report.machine.cpu) = (Some(hostile.clone()), Some(hostile.clone()));
    (report.knees[0], report.request.run.data) = (hostile.clone(), hostile.clone());
    report.ceilings[2].what = hostile;
    check(&report);
    let page = page(&report);
    assert!(!page.contains("<script") && !page.contains("</svg><") && !page.contains('\u{1}'), "{page}");
    assert!(page.contains("&lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt;{{title}}&amp;&quot;'\u{FFFD}"), "{page}");
}
