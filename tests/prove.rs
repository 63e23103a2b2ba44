//! `feedstock prove` from the command line: the figure, the numbers, and its failures.
#![cfg(all(feature = "cli", target_os = "linux"))]

mod common;
#[path = "common/xml.rs"]
mod xml;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use common::{Said, class_folders, feedstock, finish, said, words};
use xml::{Element, elements};

/// A folder of images, and a path for the figure outside of it.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempdir().expect("a folder");
        class_folders(&root.path().join("data"), &["ant", "bee"], 8, &[(80, 60), (64, 64), (300, 200)]);
        Place { root }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    fn figure(&self) -> PathBuf {
        self.root.path().join("figure.svg")
    }

    fn start(&self, more: &str) -> Child {
        let figure = self.figure();
        let data = self.data();
        let text = format!("prove --data DIR --size 32 --batch-size 5 {more} --out");
        let args = words(&text, &data).into_iter().chain([figure.to_str().expect("a plain name")]);
        feedstock(args).spawn().expect("started")
    }

    fn prove(&self, more: &str) -> Said {
        said(finish(self.start(more)))
    }
}

/// Coordinates of every mark of a series, in the order in which they are drawn.
fn marks(elements: &[Element], series: &str) -> Vec<(u64, f64)> {
    let number = |element: &Element, key: &str| -> Option<f64> {
        element.1.iter().find(|(name, _)| name == key)?.1.parse().ok()
    };
    elements
        .iter()
        .filter(|(_, attributes)| attributes.iter().any(|(key, is)| key == "data-series" && is == series))
        .filter_map(|element| Some((number(element, "data-x")? as u64, number(element, "data-y")?)))
        .collect()
}

#[test]
fn the_figure_the_table_and_the_json_agree() {
    let place = Place::new();
    let ran = place.prove("--budgets 1G,64M,32M,64M --workers 2 --epochs 2 --json").ok();
    assert!(ran.err.is_empty(), "progress is for terminals only: {ran:?}");
    let json = ran.json();
    let points = json["points"].as_array().expect("points");
    let of = |key: &str| -> Vec<f64> { points.iter().map(|point| point[key].as_f64().expect("a number")).collect() };
    assert_eq!(of("budget_bytes"), [32, 64, 1024].map(|mib| f64::from(mib * (1 << 20))));
    assert_eq!((&json["kept"], &json["error"], &json["samples"]), (&true.into(), &Value::Null, &16.into()));
    for (point, (budget, peak)) in points.iter().zip(of("budget_bytes").iter().zip(of("peak_rss_bytes"))) {
        assert!(peak > 1e6 && peak <= *budget, "{point}");
        assert!(point["peak_own_bytes"].as_f64().is_some_and(|own| own > 1e5 && own <= peak), "{point}");
        assert!((point["peak_share"].as_f64().expect("a share") - peak / budget).abs() < 1e-9, "{point}");
        assert_eq!((&point["digest"], &point["kept"]), (&json["digest"], &true.into()));
    }
    assert!(of("share_of_best").contains(&1.0), "{json}");

    let svg = fs::read_to_string(place.figure()).expect("drawn");
    let elements = elements(&svg);
    assert_eq!(elements[0].0, "svg");
    assert!(elements.iter().all(|(name, _)| name != "script") && !svg.contains("href"), "it stands alone");
    for word in ["y = x", "RAM budget", "images per second", "MiB", "minimum", "knee", "prefers-color-scheme"] {
        assert!(svg.contains(word), "{word}: {svg}");
    }
    for (series, key) in
        [("measured peak", "peak_rss_bytes"), ("planned", "planned_bytes"), ("throughput", "images_per_s")]
    {
        let expected: Vec<(u64, f64)> = of("budget_bytes").iter().map(|budget| *budget as u64).zip(of(key)).collect();
        assert_eq!(marks(&elements, series), expected, "{series}");
    }

    // A bench alone reports the same.
    let data = place.data();
    let bench = "bench --data DIR --size 32 --batch-size 5 --workers 2 --epochs 2 --ram-budget 64M --json";
    let bench = common::run(words(bench, &data)).ok().json();
    assert_eq!((&bench["digest"], &bench["planned_bytes"]), (&json["digest"], &points[1]["planned_bytes"]));
    assert_eq!((&bench["minimum_bytes"], &bench["knee_bytes"]), (&json["minimum_bytes"], &json["knee_bytes"]));

    let text = place.prove("--budgets 64M,32M --workers 2 --epochs 1").ok();
    let rows: Vec<&str> = text.out.lines().map(str::trim_start).collect();
    assert!(rows[0].starts_with("budget   predicted   peak RSS   peak/budget   images/s   of best"), "{text:?}");
    assert!(rows[1].starts_with("32.0 MiB") && rows[2].starts_with("64.0 MiB"), "{text:?}");
    assert!(text.out.contains("in 2 runs, each with the same batches"), "{text:?}");
}

#[test]
fn default_budgets_start_at_the_minimum() {
    let place = Place::new();
    let json = place.prove("--workers 1 --epochs 1 --json").ok().json();
    let points = json["points"].as_array().expect("points");
    assert!(points.len() >= 30, "{json}");
    assert_eq!(points[0]["budget_bytes"], json["minimum_bytes"]);
    assert!(points[points.len() - 1]["budget_bytes"].as_u64() >= Some(1 << 30), "{json}");
}

#[test]
fn invalid_arguments_and_bad_data_are_refused() {
    let place = Place::new();
    for (more, code, expected) in [
        ("--budgets 1M,64M", 3, "is too small"),
        ("--budgets 12Q", 2, "'12Q'"),
        ("--budgets 64M --max-bad 7", 2, "max_bad_fraction is 7"),
        ("--budgets 64M --workers 0", 2, "workers is 0"),
    ] {
        let refused = place.prove(more);
        assert_eq!(refused.code, Some(code), "{more}: {refused:?}");
        assert!(refused.err.contains(expected), "{more}: {refused:?}");
        assert!(!place.figure().exists(), "{more}");
    }
    for name in ["ant/bad.jpg", "ant/worse.jpg", "bee/worst.jpg"] {
        fs::write(place.data().join(name), "no image").expect("written");
    }
    let failed = place.prove("--budgets 64M --json");
    assert_eq!(failed.code, Some(4), "{failed:?}");
    assert!(failed.err.starts_with("error: the run at a budget of 64.0 MiB failed: "), "{failed:?}");
    assert_eq!(failed.json()["kept"], false);
    let kept = place.prove("--budgets 64M --max-bad 1 --json").ok().json();
    assert_eq!(kept["points"][0]["bad_samples"], 3, "{kept}");

    let data = place.data();
    let nowhere = common::run(words("prove --data DIR --budgets 64M --max-bad 1 --out /nonexistent/figure.svg", &data));
    assert_eq!(nowhere.code, Some(5), "{nowhere:?}");
    assert!(nowhere.err.contains("cannot write /nonexistent/figure.svg"), "{nowhere:?}");
}

/// Child processes of a process.
fn children(pid: u32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Waits until a run has started, and returns its process.
fn run_of(prover: &Child) -> Pid {
    let since = Instant::now();
    loop {
        if let Some(pid) = children(prover.id()).first().and_then(|pid| Pid::from_raw(*pid)) {
            return pid;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no run began");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_run_fails_the_proof() {
    let place = Place::new();
    let prover = place.start("--budgets 64M --epochs 4000000000 --json");
    kill_process(run_of(&prover), Signal::KILL).expect("sent");
    let failed = said(finish(prover));
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.err.contains("at a budget of 64.0 MiB the run was killed by signal 9"), "{failed:?}");
    assert_eq!(failed.json()["kept"], false);
}

#[test]
fn ctrl_c_ends_the_run_and_prints_the_report() {
    let place = Place::new();
    let prover = place.start("--budgets 64M --epochs 4000000000");
    let run = run_of(&prover);
    let since = Instant::now();
    kill_process(Pid::from_child(&prover), Signal::INT).expect("sent");
    let ended = said(finish(prover));
    let took = since.elapsed();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    // Well under a second on an idle machine.
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(ended.out.contains("ended early   interrupted") && ended.out.contains("no run has ended"), "{ended:?}");
    assert!(ended.err.contains("interrupted: "), "{ended:?}");
    let gone = format!("/proc/{}", run.as_raw_nonzero());
    assert!(!Path::new(&gone).exists(), "the run goes on");
}
