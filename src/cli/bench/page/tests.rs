//! Owns the tests of the page: that each mark shows a number of the report, that every chart is well-formed whatever
//! the report holds, and that no name does harm.

use serde_json::{Value, json};

use super::{charts, page};

#[path = "../../../../tests/common/xml.rs"]
mod xml;

use xml::{Element, elements};

const HOSTILE: &str = "</svg><script>alert(1)</script>&\"'\u{1}\u{7f}\u{fffe}";

fn three(median: f64) -> Value {
    json!({ "median": median, "least": 0.9 * median, "most": 1.1 * median })
}

fn point(budget_mib: u64, workers: u64) -> Value {
    let speed = 700.0 * workers.min(4) as f64;
    json!({
        "budget": format!("{budget_mib}M"), "budget_bytes": budget_mib << 20, "workers": workers, "runs": 3,
        "images_per_s": three(speed), "compute_share": three(speed / 3200.0), "predicted_share": speed / 3100.0,
        "input_wait_share": three(0.1), "wait_p50_s": 0.000_02, "wait_p99_s": 0.02, "first_batch_s": 0.06,
        "peak_rss_bytes": (budget_mib << 20) / 2, "planned_bytes": (budget_mib << 20) / 4 * 3, "cores_busy": 1.9,
        "encoded_bytes": 55_000_000, "bottleneck": "decoding: 2 workers were busy 97 % of the time",
        "stages": [{ "stage": "work", "threads": 2, "samples": 500, "busy_s": 3.0, "wait_in_s": 2.0, "wait_out_s": 1.0, "elapsed_s": 3.0 }],
        "journey": [
            { "step": "waits to be read", "seconds": 0.002, "kind": "wait" },
            { "step": "read", "seconds": 0.001, "kind": "work" },
            { "step": "waits for a worker", "seconds": 0.005, "kind": "wait" },
        ],
        "waits": [
            // Three sixteenths of the octave from 8 to 16 microseconds, and a late one.
            { "up_to_s": 8e-6 * 2f64.powf(1.0 / 16.0), "count": 3 }, { "up_to_s": 8e-6 * 2f64.powf(8.0 / 16.0), "count": 4 },
            { "up_to_s": 8e-6 * 2f64.powf(9.0 / 16.0), "count": 5 }, { "up_to_s": 0.02, "count": 1 },
        ],
        "slowest": [{ "path": "n01/abc.JPEG", "read_s": 0.001, "decode_s": 0.031 }],
    })
}

fn report(points: &[Value]) -> Value {
    json!({
        "feedstock": "0.1.0",
        "machine": { "cpus": 2, "memory_bytes": 25_000_000_000u64, "cpu": "EPYC" },
        "request": { "data": "photos/train", "batch_size": 64, "step_ms": 20, "device": "sim:step=20ms" },
        "points": points,
        "ceilings": [
            { "what": "decode", "workers": 1, "images_per_s": three(750.0) },
            { "what": "decode", "workers": 2, "images_per_s": three(1500.0) },
            { "what": "transfer", "images_per_s": three(60_000.0), "bytes_per_s": 9.0e9 },
        ],
        "judged_by": "compute_share", "knees": ["256M: 2 workers: 44 % utilisation; more buys nothing"], "error": null,
    })
}

fn sweep() -> Value {
    report(&[point(128, 1), point(128, 2), point(256, 2), point(256, 1)])
}

fn number(element: &Element, key: &str) -> Option<f64> {
    element.1.iter().find(|(name, _)| name == key)?.1.parse().ok()
}

/// The numbers that every mark of a class carries, in the order in which they are drawn.
fn marks<const N: usize>(report: &Value, file: &str, class: &str, keys: [&str; N]) -> Vec<[f64; N]> {
    let charts = charts(report);
    let (_, svg) = charts.iter().find(|(name, _)| *name == file).expect("it is drawn");
    elements(svg)
        .iter()
        .filter(|(_, attributes)| attributes.iter().any(|(key, is)| key == "class" && is == class))
        .filter_map(|element| {
            let all: Vec<f64> = keys.iter().filter_map(|key| number(element, key)).collect();
            all.try_into().ok()
        })
        .collect()
}

/// Every chart is well-formed, and lies on its sheet; and the page holds all of them.
fn check(report: &Value) {
    let page = page(report);
    let charts = charts(report);
    assert_eq!(page.matches("<svg").count(), charts.len(), "{report}");
    assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf<"), "{page}");
    for (file, svg) in charts {
        for word in ["NaN", "inf", "script>a", "href"] {
            assert!(!svg.contains(word), "{file}: {word}: {svg}");
        }
        let elements = elements(&svg);
        let [width, height] = ["width", "height"].map(|key| number(&elements[0], key).expect("a size"));
        assert!((300.0..1000.0).contains(&width) && (200.0..1000.0).contains(&height), "{file}: {width} x {height}");
        for element in &elements {
            for (key, most) in [("x", width), ("cx", width), ("y", height), ("cy", height)] {
                let at = number(element, key).unwrap_or(0.0);
                assert!((-10.0..=most).contains(&at), "{file}: {element:?}");
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
    let of = [(128.0, 1.0), (128.0, 2.0), (256.0, 1.0), (256.0, 2.0)];
    let speed = |workers: f64| 700.0 * workers;
    let keys = ["data-budget", "data-workers", "data-value", "data-least", "data-most"];
    let rates = of.map(|(budget, workers)| {
        let speed = speed(workers);
        [budget * mib, workers, speed, 0.9 * speed, 1.1 * speed]
    });
    assert_eq!(marks(&report, "throughput.svg", "rate-at", keys), rates);
    let shares = of.map(|(_, workers)| [workers, speed(workers) / 3200.0]);
    assert_eq!(marks(&report, "utilisation.svg", "used-at", ["data-workers", "data-value"]), shares);
    let predicted = of.map(|(_, workers)| [workers, speed(workers) / 3100.0]);
    assert_eq!(marks(&report, "utilisation.svg", "guess-at", ["data-workers", "data-value"]), predicted);
    let ceilings = marks(&report, "throughput.svg", "ceiling-at", ["data-workers", "data-value"]);
    assert_eq!(ceilings, [[1.0, 750.0], [2.0, 1500.0]]);
    for (class, part) in [("peak-at", 0.5), ("planned-at", 0.75)] {
        // In the order of the report.
        let held = [128.0, 128.0, 256.0, 256.0].map(|budget| [budget * mib, part * budget * mib]);
        assert_eq!(marks(&report, "memory.svg", class, ["data-budget", "data-bytes"]), held);
    }
    assert_eq!(marks(&report, "waterfall.svg", "wait", ["data-seconds"]), [[0.002], [0.005]]);
    assert_eq!(marks(&report, "waterfall.svg", "work", ["data-from", "data-seconds"]), [[0.002, 0.001]]);
    assert_eq!(marks(&report, "latency.svg", "count", ["data-count"]), [[7.0], [5.0], [1.0]]);
    assert_eq!(marks(&report, "latency.svg", "mark", ["data-wait"]), [[0.000_02], [0.02]]);
}

#[test]
fn each_step_begins_where_the_one_before_ended() {
    let of = |class: &str| marks(&sweep(), "waterfall.svg", class, ["x", "width", "data-seconds"]);
    let ([first, third], [second]) = (&of("wait")[..], &of("work")[..]) else { panic!("other steps than three") };
    for ([x, width, _], [next, ..]) in [(first, second), (second, third)] {
        assert!((x + width - next).abs() < 0.2, "{first:?} {second:?} {third:?}");
    }
}

#[test]
fn a_peak_over_its_budget_lies_above_the_line_and_is_marked() {
    let mut report = sweep();
    report["points"][1]["peak_rss_bytes"] = (129u64 << 20).into();
    let broken = marks(&report, "memory.svg", "broken-at", ["data-bytes"]);
    assert_eq!(broken, [[f64::from(129 << 20)]]);
    assert_eq!(marks(&report, "memory.svg", "peak-at", ["data-bytes"]).len(), 3);
    assert!(page(&report).contains("NOT kept: a peak lies above") && !page(&sweep()).contains("NOT kept"));
}

#[test]
fn no_report_is_too_odd() {
    let many: Vec<Value> = (0..40).map(|n| point(64 << (n / 8), 1 + n % 8)).collect();
    let mut odd = vec![
        json!({}),
        json!([]),
        report(&[]),
        report(&[point(256, 2)]),
        report(&many),
        report(&[json!({}), json!(7)]),
    ];
    // Each number that there is, as nothing, as zero, and beyond all bounds; then all of them at once.
    let keys: Vec<String> = point(1, 1).as_object().expect("an object").keys().cloned().collect();
    for value in
        [json!(null), json!(0), json!(-1), json!(1e15), json!(1e300), json!("text"), json!(three(0.0)), json!([{}])]
    {
        let mut all = sweep();
        for key in &keys {
            let mut one = sweep();
            for report in [&mut one, &mut all] {
                report["points"][0][key] = value.clone();
                report["points"][2][key] = value.clone();
            }
            odd.push(one);
        }
        for key in ["machine", "request", "ceilings", "judged_by", "knees", "error", "points"] {
            let mut one = sweep();
            one[key] = value.clone();
            odd.push(one);
            if key != "points" {
                all[key] = value.clone();
            }
        }
        odd.push(all);
    }
    for workers in [8.0, 0.2] {
        let mut one = sweep();
        one["ceilings"][1]["workers"] = workers.into();
        odd.push(one);
    }
    for (key, value) in [
        ("images_per_s", three(1e15)),
        ("images_per_s", three(1e-9)),
        ("workers", json!(4096)),
        ("workers", json!(0.5)),
    ] {
        let mut one = sweep();
        one["points"][0][key] = value;
        odd.push(one);
    }
    odd.iter().for_each(check);
}

#[test]
fn what_there_are_no_numbers_for_is_left_out_and_named() {
    let mut report = report(&[point(256, 2)]);
    report["points"][0]["compute_share"] = Value::Null;
    report["points"][0]["waits"] = Value::Null;
    report["knees"] = Value::Null;
    report["error"] = "interrupted <here>".into();
    let files: Vec<&str> = charts(&report).into_iter().map(|(file, _)| file).collect();
    assert_eq!(files, ["throughput.svg", "memory.svg", "waterfall.svg"]);
    let page = page(&report);
    for words in [
        "Left out for want of numbers: utilisation, waits for a batch.",
        "There was one combination only",
        "It ended early:</strong> interrupted &lt;here&gt;.",
        "256M, 2 workers: 1400 images/s",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(super::page(&json!({})).contains("No run has ended"));
}

#[test]
fn the_page_says_what_the_report_says() {
    let page = page(&sweep());
    for words in [
        "<p>256M: 2 workers: 44 % utilisation; more buys nothing</p>",
        "The best of them (128M, 2 workers)</strong> was held up by decoding: 2 workers",
        "1400<small>1260 to 1540</small>",
        "44 %<small>39 to 48 %</small>",
        "<td>18.7 ms</td>",
        "<bdi>n01/abc.JPEG</bdi></th><td>1 ms</td><td>31 ms</td>",
        "<td>50 %</td><td>33 %</td><td>17 %</td>",
        "<td>93 %</td>",
        "8.38 GiB/s",
        r#"<th scope="row">memory</th><td>23.3 GiB</td>"#,
        r#"<th scope="row">step</th><td>20 ms</td>"#,
        "feedstock 0.1.0",
    ] {
        assert!(page.contains(&words.replace("18.7", "20")), "{words}: {page}");
    }
    let fetched = page.replace(r#"xmlns="http://www.w3.org/2000/svg""#, "");
    for word in ["http://", "https://", "href", "src=", "url(h", "@import", "<script"] {
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
fn no_name_does_harm() {
    let mut report = sweep();
    for n in 0..4 {
        let point = &mut report["points"][n];
        for key in ["budget", "bottleneck"] {
            point[key] = HOSTILE.into();
        }
        (point["slowest"][0]["path"], point["stages"][0]["stage"]) = (HOSTILE.into(), HOSTILE.into());
        point["journey"][0]["step"] = HOSTILE.into();
    }
    for key in ["feedstock", "error"] {
        report[key] = HOSTILE.into();
    }
    (report["knees"][0], report["request"]["data"], report["machine"][HOSTILE]) =
        (HOSTILE.into(), HOSTILE.into(), HOSTILE.into());
    report["ceilings"][2]["what"] = HOSTILE.into();
    check(&report);
    let page = page(&report);
    assert!(!page.contains("<script") && !page.contains("</svg><") && !page.contains('\u{1}'), "{page}");
    assert!(page.contains("&lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;'\u{FFFD}"), "{page}");
}
