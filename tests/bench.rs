//! `feedstock bench` from the command line: sweeps and their report, stages alone, the timeline, the metrics.
#![cfg(feature = "cli")]

mod browser;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::tempdir;

use common::{bench, class_folders, feedstock, finish, run, said, small_set, words};

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn sweep_runs_every_combination_and_writes_a_report() {
    let set = small_set();
    let place = tempdir().expect("a folder");
    let (csv, out) = (place.path().join("runs.csv"), place.path().join("out"));
    let more = format!(
        "--workers 1,2 --ram-budget 64M,1G --rounds 2 --device sim:step=2ms --json --csv {} --report {}",
        csv.display(),
        out.display()
    );
    let swept = bench(set.path(), &more).ok().json();
    let points = list(&swept, "points");
    let asked: Vec<_> =
        points.iter().map(|point| (point["budget_bytes"].as_u64(), point["workers"].as_u64())).collect();
    let (small, large) = (Some(64 << 20), Some(1 << 30));
    assert_eq!(asked, [(small, Some(1)), (small, Some(2)), (large, Some(1)), (large, Some(2))]);
    for point in points {
        assert_eq!(point["runs"], 2, "{point}");
        let speed = &point["images_per_s"];
        let number = |key: &str| speed[key].as_f64().expect("a number");
        assert!(0.0 < number("least") && number("least") <= number("median") && number("median") <= number("most"));
        assert!(point["peak_rss_bytes"].as_u64() > Some(1 << 20) && point["bottleneck"].is_string(), "{point}");
        assert!(point["wait_p50_s"].as_f64() <= point["wait_p99_s"].as_f64(), "{point}");
        let share = point["predicted_share"].as_f64().expect("there is a step");
        assert!(0.0 < share && share <= 1.0, "{point}");
        assert_eq!((list(point, "stages").len(), list(point, "sample_latency").len()), (5, 7), "{point}");
        assert_eq!(list(point, "slowest").len(), 12, "there are no more samples: {point}");
        let waits: u64 = list(point, "waits").iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
        assert_eq!(waits, 3, "one for each batch: {point}");
    }
    let parts: Vec<_> =
        list(&swept, "ceilings").iter().map(|part| (part["what"].as_str(), part["workers"].as_u64())).collect();
    let one = Some(1);
    assert_eq!(parts[..2], [(Some("decode"), one), (Some("decode"), Some(2))]);
    assert_eq!(parts[2..], [(Some("read"), None), (Some("transfer"), None)]);
    assert_eq!(list(&swept, "knees").len(), 2, "{swept}");
    for lines in [&csv, &out.join("report.csv")].map(|path| fs::read_to_string(path).expect("written")) {
        assert_eq!(lines.lines().count(), 1 + 4 * 2, "{lines}");
        assert!(lines.lines().all(|line| line.split(',').count() == 13), "{lines}");
    }
    let kept: Value = serde_json::from_slice(&fs::read(out.join("report.json")).expect("written")).expect("JSON");
    assert_eq!(kept, swept, "the same numbers");
    for chart in ["utilization", "throughput", "memory", "waterfall", "batch_wait"] {
        let svg = fs::read_to_string(out.join(format!("{chart}.svg"))).expect("written");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{chart}");
    }
    browser::check_page(&out.join("index.html"), 5);

    // Another report in the same folder removes charts that it does not have.
    bench(set.path(), &format!("--ram-budget 64M --rounds 1 --report {}", out.display())).ok();
    assert!(!out.join("utilization.svg").exists() && out.join("throughput.svg").exists(), "there was no step");

    let refused = run(words("plan --data DIR --workers 1,2", set.path()));
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("only bench accepts lists"), "{refused:?}");
    let refused = bench(set.path(), "--workers 1,2 --trace t.json");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("--trace and --metrics are for one run"), "{refused:?}");
    let refused = bench(set.path(), "--workers 1,2 --mode decode");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("--mode is for one run"), "{refused:?}");
    let refused = bench(set.path(), "--report /proc/nowhere");
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.err.contains("cannot write /proc/nowhere"), "{refused:?}");
}

#[test]
fn stages_run_alone_with_a_ceiling() {
    let set = small_set();
    for (mode, more) in [("decode", ""), ("read", ""), ("transfer", "--dtype f32"), ("transfer", "--device sim")] {
        let alone =
            bench(set.path(), &format!("--mode {mode} --workers 2 --ram-budget 256M --json {more}")).ok().json();
        assert_eq!(alone["mode"], mode);
        let number = |key: &str| alone[key].as_f64().unwrap_or_else(|| panic!("{key} of {alone}"));
        assert!(number("images_per_s") > 0.0 && number("cpu_s_per_image") > 0.0, "{alone}");
        let share = number("images_per_s") / number("ceiling_images_per_s");
        assert!((number("share_of_ceiling") - share).abs() < 1e-9 && alone["ceiling"].is_string(), "{alone}");
    }
    let none = bench(set.path(), "--mode transfer --layout nhwc --device cpu").ok();
    assert!(none.out.contains("nothing is transferred"), "{none:?}");
    fs::write(set.path().join("ant/broken.jpg"), "no image").expect("written");
    bench(set.path(), "--mode decode --workers 1 --ram-budget 256M").ok();
    let tight = bench(set.path(), "--mode decode --workers 2 --ram-budget 60K");
    assert_eq!(tight.code, Some(3), "{tight:?}");
}

#[test]
fn a_model_may_be_the_consumer() {
    let set = small_set();
    let more = "--model small --dtype f32 --normalize --ram-budget 64M --workers 1 --epochs 2 --warmup-epochs 1 --json";
    let trained = bench(set.path(), more).ok().json();
    assert_eq!((&trained["images"], &trained["epochs"]), (&24.into(), &2.into()), "{trained}");
    assert!(trained["compute_share"].as_f64().is_some_and(|share| 0.0 < share && share <= 1.0), "{trained}");
    assert!(trained["images_per_s"].as_f64() > Some(0.0) && trained["digest"].is_null(), "{trained}");
    for (more, expected) in
        [("--model small", "--dtype f32"), ("--model small --dtype f32 --step-ms 3", "leave --step-ms out")]
    {
        let refused = bench(set.path(), more);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains(expected), "{refused:?}");
    }
}

#[test]
fn timeline_has_every_sample_and_batch_and_changes_nothing() {
    let (set, place) = (tempdir().expect("a folder"), tempdir().expect("a folder"));
    // Large enough that each sample takes a visible time on a fast machine.
    class_folders(set.path(), &["ant", "bee"], 6, &[(500, 400)]);
    let path = place.path().join("timeline.json");
    let more = "--workers 2 --ram-budget 64M --device sim:step=15ms --epochs 2 --json";
    let plain = bench(set.path(), more).ok().json();
    let traced = bench(set.path(), &format!("{more} --trace {}", path.display())).ok();
    assert!(traced.err.contains("the timeline is in"), "{traced:?}");
    let traced = traced.json();
    assert_eq!(traced["digest"], plain["digest"]);
    assert_eq!(traced["ram_budget_bytes"], plain["ram_budget_bytes"], "the timeline's bytes are within the budget");
    let events: Vec<Value> = serde_json::from_slice(&fs::read(&path).expect("written")).expect("JSON");
    let named = |phase: &str, name: &str| events.iter().filter(|e| e["ph"] == phase && e["name"] == name).count();
    assert_eq!(named("X", "sample"), 24);
    for stage in ["admit", "transfer", "next", "copy", "convert"] {
        assert_eq!(named("X", stage), 6, "{stage}");
    }
    // The trainer's call, and its work on the device.
    assert_eq!(named("X", "step"), 12);
    let arrows: BTreeMap<&str, BTreeSet<&str>> = ["s", "t", "f"]
        .into_iter()
        .map(|phase| {
            let of = events.iter().filter(|event| event["ph"] == phase);
            (phase, of.filter_map(|event| event["id"].as_str()).collect())
        })
        .collect();
    assert_eq!(arrows["s"], ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"].into());
    assert!(arrows["s"] == arrows["t"] && arrows["t"] == arrows["f"], "{arrows:?}");
    let threads: BTreeSet<&str> = events
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .filter_map(|event| event["args"]["name"].as_str())
        .collect();
    let expected = [
        "feedstock-admit",
        "feedstock-transfer",
        "feedstock-work-0",
        "feedstock-read",
        "device: copy stream",
        "device: compute stream",
    ];
    assert!(expected.iter().all(|name| threads.contains(name)), "{threads:?}");
    assert!(events.iter().any(|event| event["ph"] == "C" && event["args"]["slots"].as_u64() > Some(0)));
    // Slices of a thread are nested or disjoint: viewers draw no others.
    let mut by_thread: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let number = |key: &str| event[key].as_f64().expect("a number");
        by_thread
            .entry(event["tid"].as_u64().expect("a thread"))
            .or_default()
            .push((number("ts"), number("ts") + number("dur")));
    }
    for (thread, mut slices) in by_thread {
        slices.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut open: Vec<f64> = Vec::new();
        for (begin, end) in slices {
            // Ends are sums, and so differ a little from the start of the next slice.
            open.retain(|outer| *outer > begin + 0.0005);
            assert!(open.iter().all(|outer| end <= outer + 0.002), "slices of thread {thread} overlap");
            open.push(end);
        }
    }
    let refused = bench(set.path(), "--trace /proc/nowhere/t.json");
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.err.contains("cannot write /proc/nowhere/t.json"), "{refused:?}");
}

/// The server's response to a request.
fn get(address: &str, request: &str) -> String {
    let mut connection = TcpStream::connect(address).expect("it listens");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    write!(connection, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn served_metrics_are_the_documented_ones() {
    let set = small_set();
    let more = "bench --data DIR --size 32 --batch-size 5 --ram-budget 64M --device sim:step=1ms --epochs 1000000 \
                --metrics 127.0.0.1:0";
    let mut child = feedstock(words(more, set.path())).spawn().expect("started");
    let pid = Pid::from_child(&child);
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert!(lines.read_line(&mut line).expect("readable") > 0, "it printed the address");
        if let Some(address) = line.trim().strip_prefix("note: metrics at http://") {
            break address.trim_end_matches("/metrics").to_owned();
        }
    };
    // Silent connections neither block others nor the end of the program.
    let _silent: Vec<_> = (0..4).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    let metrics = loop {
        let metrics = get(&address, "GET /metrics");
        if !metrics.contains("feedstock_samples_total{loader=\"bench\",stage=\"consume\"} 0\n") {
            break metrics;
        }
    };
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(get(&address, "GET /other").starts_with("HTTP/1.1 404"));
    assert!(get(&address, "POST /metrics").starts_with("HTTP/1.1 405"));
    assert!(get(&address, "nonsense").starts_with("HTTP/1.1 400"));
    kill_process(pid, Signal::INT).expect("sent");
    std::thread::spawn(move || drop(lines.read_to_string(&mut String::new())));
    let ended = said(finish(child));
    assert_eq!(ended.code, Some(130), "{ended:?}");

    let (_, body) = metrics.split_once("\r\n\r\n").expect("a head and a body");
    let mut names = BTreeSet::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(kinds.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            let name = sample.split('{').next().expect("a name");
            let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
            let family = family.filter(|family| kinds.get(family) == Some(&"histogram")).unwrap_or(name);
            assert!(kinds.contains_key(family), "{line} has no TYPE");
            names.insert(family.to_owned());
        }
    }
    // The simulated device has no GPU memory.
    let mut told: BTreeSet<_> = kinds.keys().map(|name| (*name).to_owned()).collect();
    assert!(told.contains("feedstock_device_memory_bytes") && names.is_subset(&told));
    let document = include_str!("../docs/METRICS.md");
    let documented: BTreeSet<_> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `feedstock_")?.split('`').next())
        .map(|name| format!("feedstock_{name}"))
        .collect();
    assert_eq!(documented, told, "docs/METRICS.md");
    let row = |name: &str| document.lines().find(|line| line.starts_with(&format!("| `{name}`"))).expect("a row");
    assert!(kinds.iter().all(|(name, kind)| row(name).contains(&format!("| {kind} |"))), "docs/METRICS.md: kinds");
    let dashboard: Value = serde_json::from_str(include_str!("../docs/grafana.json")).expect("JSON");
    for name in ["bucket", "sum", "count"] {
        told.extend(kinds.keys().filter(|known| kinds[*known] == "histogram").map(|known| format!("{known}_{name}")));
    }
    let mut used = 0;
    for panel in list(&dashboard, "panels").iter().flat_map(|panel| list(panel, "targets")) {
        let query = panel["expr"].as_str().expect("a query");
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for name in query.split(|c| !is_name(c)).filter(|word| word.starts_with("feedstock_")) {
            assert!(told.contains(name), "the dashboard asks for {name}");
            used += 1;
        }
    }
    assert!(used > 15, "{used} metrics in the dashboard");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address");
    let refused = bench(set.path(), &format!("--metrics {taken}"));
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.err.contains(&format!("cannot serve metrics at {taken}")), "{refused:?}");
}
