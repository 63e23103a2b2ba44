//! The program on a GPU, played by the stand-in for the driver (`tests/standin`): it runs streams late and out of
//! order, and reports violations and leaks at the end.
#![cfg(all(feature = "cli", feature = "cuda"))]

mod common;
mod standin;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use common::skip::{Missing, skip};
use common::{Said, class_folders, feedstock, finish, said, words};
use standin::Report;

/// Four classes of nine JPEG files.
fn small_set() -> TempDir {
    let folder = tempdir().expect("a folder");
    class_folders(folder.path(), &["ant", "bee", "cat", "dog"], 9, &[(80, 60), (64, 64), (40, 90)]);
    folder
}

/// The program with the stand-in for a driver.
fn with_standin(command: &mut Command, settings: &str, report: &Path) {
    command.env("LD_LIBRARY_PATH", standin::folder()).env("FEEDSTOCK_STANDIN", settings);
    command.env("FEEDSTOCK_STANDIN_REPORT", report);
}

/// Runs it, and reads the stand-in's report of the only device that it used.
fn run(line: &str, set: &Path, settings: &str) -> (Said, Report) {
    let folder = tempdir().expect("a folder");
    let report = folder.path().join("report");
    let mut command = feedstock(words(line, set));
    with_standin(&mut command, settings, &report);
    let said = said(finish(command.spawn().expect("started")));
    let report = fs::read_to_string(&report).unwrap_or_default();
    let report = report.lines().filter(|line| !line.starts_with("device=")).collect::<Vec<_>>().join("\n");
    (said, Report::parse(&report))
}

fn digest(said: &Said) -> String {
    said.json()["digest"].as_str().expect("a digest").to_owned()
}

#[track_caller]
fn assert_clean(report: &Report) {
    assert_eq!((&report.violations, &report.alive), (&Vec::new(), &Vec::new()));
}

#[test]
fn batches_do_not_depend_on_the_order_of_streams() {
    let set = small_set();
    for (index, output) in ["u8", "f32", "bf16", "f16"].into_iter().enumerate() {
        for layout in ["nchw", "nhwc"] {
            let line = |device: &str| {
                format!(
                    "bench --data DIR --size 48 --batch-size 5 --epochs 3 --dtype {output} --layout {layout} --json --device {device}"
                )
            };
            let (cpu, _) = run(&line("cpu"), set.path(), "");
            let settings = format!("seed={index};lazy_us={};copy_ns_per_kib={}", 100 * index, 40 * index);
            let (gpu, report) = run(&line("cuda:0"), set.path(), &settings);
            assert_eq!(digest(&gpu), digest(&cpu), "{output} {layout}");
            assert_clean(&report);
            assert_eq!(gpu.json()["device"], "cuda:0");
        }
    }
}

#[test]
fn a_run_allocates_once_and_never_waits_for_the_device() {
    let set = small_set();
    let line = "bench --data DIR --size 48 --batch-size 4 --epochs 40 --dtype f32 --no-digest --json --device cuda:0";
    let (said, report) = run(line, set.path(), "seed=2");
    let said = said.json();
    assert_clean(&report);
    assert_eq!(said["batches"], 40 * 9);
    // One more of each kind, and one of the other, decided at the start which kind of page-locked memory is copied
    // faster.
    let outputs = said["outputs"].as_u64().expect("a number");
    assert_eq!(report.number("device_allocs_ever"), outputs + 1);
    assert_eq!(said["device_allocations"], outputs + 1);
    assert_eq!(report.number("pinned_allocs_ever"), said["slots"].as_u64().expect("a number") + 2);
    assert_eq!((report.number("host_syncs"), report.number("pageable_copies_blocking")), (0, 0));
    assert_eq!(said["compute_share"].as_f64().map(|share| (0.0..=1.0).contains(&share)), Some(true));
    assert!(said["nvml_share"].is_null(), "the stand-in is no NVML");
}

#[test]
fn a_training_step_keeps_the_device_busy() {
    let set = small_set();
    let line = "bench --data DIR --size 32 --batch-size 6 --epochs 4 --step-ms 20 --no-digest --json --device cuda:0";
    let (said, report) = run(line, set.path(), "lazy_us=0");
    assert_clean(&report);
    let share = said.json()["compute_share"].as_f64().expect("a share");
    assert!(share > 0.5, "24 steps of 20 ms are most of the time: {share}");
}

#[test]
fn gpu_check_passes_on_the_stand_in() {
    let program = Path::new(env!("CARGO_BIN_EXE_feedstock")).with_file_name("examples").join("gpu_check");
    if !program.exists() {
        skip(&Missing::Program(&format!("{} (cargo test without --test builds it)", program.display())));
        return;
    }
    let folder = tempdir().expect("a folder");
    let (report, json) = (folder.path().join("report"), folder.path().join("json"));
    let mut command = Command::new(program);
    command.args(["--quick", "--json"]).arg(&json).stdout(Stdio::piped()).stderr(Stdio::piped());
    with_standin(&mut command, "lazy_us=20", &report);
    let said = said(finish(command.spawn().expect("started"))).ok();
    assert!(said.out.contains("| card | Stand-in GPU 0 |") && said.out.contains("flat"), "{said:?}");
    let json: Value = serde_json::from_str(&fs::read_to_string(json).expect("written")).expect("JSON");
    assert!(json["right"].as_u64().is_some_and(|batches| batches > 100) && json["device_memory"].is_u64(), "{json}");
    let report = fs::read_to_string(report).expect("a report");
    assert!(!report.contains("violation=") && !report.contains("alive="), "{report}");
}

#[test]
fn ctrl_c_ends_a_run_on_a_busy_gpu_within_a_second() {
    let set = small_set();
    let folder = tempdir().expect("a folder");
    let line =
        "bench --data DIR --size 32 --batch-size 6 --epochs 100 --step-ms 60000 --no-digest --json --device cuda:0";
    let mut command = feedstock(words(line, set.path()));
    with_standin(&mut command, "", &folder.path().join("report"));
    let child = command.spawn().expect("started");
    std::thread::sleep(Duration::from_millis(1500));
    let asked = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let said = said(finish(child));
    let took = asked.elapsed();
    assert_eq!(said.code, Some(130), "{said:?}");
    assert_eq!(said.json()["error"], "interrupted");
    // A second, and what a busy machine adds to it.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn doctor_reports_the_gpu() {
    let set = small_set();
    let (said, report) = run("doctor --json", set.path(), "devices=2;memory=2147483648;others=1000000");
    assert_clean(&report);
    let said = said.json();
    let devices = said["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 2, "{said}");
    assert_eq!(devices[0]["memory"]["total_bytes"], 2_147_483_648_u64);
    assert!(
        devices.iter().all(|device| device["bytes_per_s"]["pinned"].as_f64().is_some_and(|rate| rate > 0.0)),
        "{said}"
    );
    assert!(devices[1]["nvrtc"].is_boolean(), "{said}");
    for key in ["memory", "cores", "lock_limit_bytes", "memory_stalled_percent_10s", "local_ranks"] {
        assert!(said.get(key).is_some(), "{key}: {said}");
    }
    let (plain, _) = run("doctor --device cuda:1", set.path(), "devices=2");
    for words in ["cuda:1", "ulimit -l", "copies", "GB/s page-locked", "pageable", "NVRTC", "pressure"] {
        assert!(plain.out.contains(words), "{words}: {}", plain.out);
    }
}

#[test]
fn a_missing_gpu_is_an_error_of_one_line() {
    let set = small_set();
    for (device, settings, expected) in [
        ("cuda:0", "driver=11040", "the NVIDIA driver is too old: it supports CUDA 11.4, and 12.8 is needed"),
        ("cuda:0", "devices=0", "the NVIDIA driver finds no GPU"),
        ("cuda:7", "devices=2", "there is no cuda:7: the NVIDIA driver finds 2 devices, from cuda:0 on"),
    ] {
        for verb in ["bench --data DIR --size 32", "plan --data DIR --size 32", "doctor"] {
            let (said, _) = run(&format!("{verb} --device {device}"), set.path(), settings);
            assert_eq!(said.code, Some(6), "{said:?}");
            assert!(said.err.contains(expected) && said.err.lines().count() == 1, "{said:?}");
        }
        // Who leaves the choice to the program gets what there is, and the reason.
        if device == "cuda:0" {
            let (said, _) = run("bench --data DIR --size 32 --batch-size 6 --json", set.path(), settings);
            let said = said.json();
            assert_eq!(said["device"], "cpu");
        }
    }
}

#[test]
fn a_device_without_memory_is_refused_at_the_start() {
    let set = small_set();
    let line = "bench --data DIR --size 64 --batch-size 6 --dtype f32 --device cuda:0";
    let (said, report) = run(line, set.path(), "memory=40000000;others=39900000");
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(said.err.contains("out of device memory: 4.00 MiB asked for"), "{said:?}");
    assert_clean(&report);
    let line = "bench --data DIR --size 64 --batch-size 36 --dtype f32 --device cuda:0";
    let (said, report) = run(line, set.path(), "memory=40000000;others=35700000");
    assert_eq!(said.code, Some(6), "{said:?}");
    for words in
        ["out of device memory", "asked for", "free of 38.1 MiB", "the loader's batches hold", "others", "at the start"]
    {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    assert_clean(&report);
}

#[test]
fn memory_that_cannot_be_locked_is_noted() {
    let set = small_set();
    let line = |more: &str| format!("bench --data DIR --size 48 --batch-size 5 --dtype f32 --json --device {more}");
    let (cpu, _) = run(&line("cpu"), set.path(), "");
    let (gpu, report) = run(&line("cuda:0"), set.path(), "fail_pin=1");
    assert_eq!(digest(&gpu), digest(&cpu));
    let notes = gpu.json()["notes"].to_string();
    assert!(notes.contains("could not be page-locked") && notes.contains("ulimit -l"), "{notes}");
    assert_clean(&report);
}

#[test]
fn a_lost_device_ends_the_run_with_the_resume_point() {
    let set = small_set();
    for settings in ["lose_after=400", "sticky=40", "lose_after=400;lazy_us=0", "sticky=75;sticky_code=719"] {
        let line =
            "bench --data DIR --size 48 --batch-size 5 --epochs 200 --dtype f32 --no-digest --json --device cuda:0";
        let (said, report) = run(line, set.path(), settings);
        assert_eq!(said.code, Some(6), "{settings}: {said:?}");
        assert!(said.err.contains("device 'cuda:0' is lost"), "{settings}: {said:?}");
        let json: Value = said.json();
        assert!(json["error"].as_str().is_some_and(|error| error.contains("cuda:0")), "{json}");
        let (epoch, batch) = (json["state"]["epoch"].as_u64(), json["state"]["batch"].as_u64());
        assert!(epoch.is_some_and(|epoch| epoch < 200) && batch.is_some(), "{json}");
        assert_eq!(report.violations, Vec::<String>::new(), "{settings}");
    }
}
