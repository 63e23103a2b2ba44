//! The whole program in a memory control group whose limit is its budget and 4 MiB, without swap, over a folder of
//! tiny, huge and broken files. The kernel kills a process that takes more.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::print_stdout, reason = "a test prints its measurements")]

mod common;
#[path = "common/group.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared")]
mod group;
#[path = "common/hostile.rs"]
#[allow(unreachable_pub, reason = "shared")]
mod hostile;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use common::skip::{Missing, skip};
use common::{Said, feedstock, finish, run, said, words};
use group::{Charged, Group};

const MIB: u64 = 1 << 20;

/// The group's limit beyond the budget. A group is also charged for memory that is not resident in the process: page
/// tables, kernel stacks and the kernel's records of open files (0.3 to 1.4 MiB were measured), and page cache, of
/// which pages being read cannot be reclaimed.
const BESIDE: u64 = 4 * MIB;

/// One run, measured from outside.
struct Ran {
    said: Said,
    /// Peak resident memory (VmHWM).
    peak: u64,
    charged: Charged,
    oom_kills: u64,
    /// Peak charge, page cache included.
    group_peak: u64,
    /// The reason that no group could be created.
    alone: Option<String>,
}

/// Runs the program in a group of its own, with a cold page cache.
fn run_within(limit: u64, folder: &Path, args: &str) -> Ran {
    hostile::drop_page_cache(folder);
    let program = feedstock(words(args, folder));
    let group = Group::make(limit);
    let child = match &group {
        Ok(group) => {
            // The shell enters the group before it executes the program, so the program is charged from its first page.
            let mut shell = Command::new("sh");
            shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.door());
            shell.arg(program.get_program()).args(program.get_args());
            shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        }
        Err(_) => { program }.spawn(),
    };
    let child = child.expect("started");
    let status = format!("/proc/{}/status", child.id());
    let ended = thread::spawn(move || finish(child));
    let (mut peak, mut charged) = (0, Charged::default());
    while !ended.is_finished() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(resident.unwrap_or(0u64) * 1024);
        if let Ok(group) = &group {
            let now = group.charged();
            charged = Charged { firm: charged.firm.max(now.firm), kernel: charged.kernel.max(now.kernel) };
        }
        thread::sleep(Duration::from_millis(3));
    }
    let said = said(ended.join().expect("it ended in time"));
    let (oom_kills, group_peak, alone) = match &group {
        Ok(group) => (group.oom_kills(), group.peak(), None),
        Err(why) => (0, 0, Some(why.clone())),
    };
    Ran { said, peak, charged, oom_kills, group_peak, alone }
}

/// Results that all runs with one policy share.
#[derive(Debug, PartialEq)]
struct Outcome {
    digest: String,
    /// Path, stage and cause of each bad sample.
    bad: Vec<[String; 3]>,
}

fn outcome(json: &Value) -> Outcome {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let bad = json["bad_samples"].as_array().expect("a list").iter();
    let mut bad: Vec<_> = bad.map(|entry| ["path", "stage", "cause"].map(|key| text(&entry[key]))).collect();
    bad.sort();
    Outcome { digest: text(&json["digest"]), bad }
}

/// Runs at the minimum budget and above it, with one worker and three, and checks peak memory and batches of every run.
fn check(folder: &Path, settings: &str, bad: usize, policies: &[&str]) {
    let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
    for workers in [1, 3] {
        let plan =
            run(words(&format!("plan --data DIR {settings} --workers {workers} --ram-budget 64G --json"), folder)).ok();
        let minimum = plan.json()["minimum_bytes"].as_u64().expect("a minimum");
        for (times, of) in [(1, 1), (11, 10), (3, 2), (2, 1), (4, 1)] {
            let budget = minimum * times / of;
            for policy in policies {
                let ran = run_within(
                    budget + BESIDE,
                    folder,
                    &format!(
                        "bench --data DIR {settings} --workers {workers} --ram-budget {budget} --max-bad 1 \
                         --on-bad-sample {policy} --epochs 2 --json"
                    ),
                );
                let what = format!("budget {budget} ({times}/{of} of the minimum), {workers} workers, {policy}");
                let mib = |bytes: u64| bytes as f64 / MIB as f64;
                println!(
                    "{what}: peak {:.1} of {:.1} MiB ({:.1} %); the group's {:.1} MiB without page cache (kernel \
                     {:.1}), {:.1} with it{}",
                    mib(ran.peak),
                    mib(budget),
                    100.0 * ran.peak as f64 / budget as f64,
                    mib(ran.charged.firm),
                    mib(ran.charged.kernel),
                    mib(ran.group_peak),
                    ran.alone.as_ref().map_or(String::new(), |why| format!(" (skipped: no group: {why})"))
                );
                assert_eq!(ran.oom_kills, 0, "{what}: {:?}", ran.said);
                let json = ran.said.ok().json();
                let told = json["peak_rss_bytes"].as_u64().expect("a number");
                assert!(ran.peak.max(told) <= budget, "{what}: {} bytes were resident, it reports {told}", ran.peak);
                // Only two oversized files at once may take more than was planned for one, if the budget has room.
                let [planned, ledger] =
                    ["planned_bytes", "ledger_peak_bytes"].map(|key| json[key].as_u64().expect("a number"));
                let expected = planned.max(ledger);
                assert!(ran.peak.max(told) <= expected, "{what}: {} resident, {expected} planned", ran.peak.max(told));
                // The budget also holds for the group's charge, except for the kernel's own share.
                let own = ran.charged.firm - ran.charged.kernel;
                assert!(own <= budget, "{what}: the group was charged {own} besides page cache");
                let outcome = outcome(&json);
                assert_eq!(outcome.bad.len(), bad, "{what}: {json}");
                match outcomes.iter().find(|(of, _)| of == policy) {
                    Some((_, first)) => assert_eq!(&outcome, first, "{what}"),
                    None => outcomes.push((policy, outcome)),
                }
            }
        }
    }
    if let [(_, first), (_, second)] = &outcomes[..] {
        assert_eq!(first.bad, second.bad, "the same files are bad under every policy");
        assert_ne!(first.digest, second.digest);
    }
}

#[test]
fn tiny_and_broken_files_fit_the_minimum_budget() {
    let folder = tempdir().expect("a folder");
    hostile::small(folder.path());
    let bad = hostile::broken(folder.path());
    check(folder.path(), "--size 48 --batch-size 16", bad, &["substitute", "mask"]);
    check(folder.path(), "--size 64 --batch-size 7 --dtype f32", bad, &["mask"]);
}

#[test]
fn huge_images_of_every_format_fit_the_minimum_budget() {
    let folder = tempdir().expect("a folder");
    hostile::small(folder.path());
    let bad = hostile::broken(folder.path()) + hostile::large(folder.path());
    check(folder.path(), "--size 96 --batch-size 8", bad, &["substitute"]);
    // Memory kept by the allocator depends on earlier samples: without these it kept the most, 15 MiB over the budget.
    for name in ["8mp.png", "2mp-deep.png"] {
        fs::remove_file(folder.path().join("large").join(name)).expect("removed");
    }
    check(folder.path(), "--size 96 --batch-size 8", bad, &["mask"]);
}

/// Checks that these tests detect a limit that is too low.
#[test]
fn a_limit_far_below_the_budget_is_noticed() {
    let folder = tempdir().expect("a folder");
    hostile::small(folder.path());
    let args = "bench --data DIR --size 224 --batch-size 64 --workers 2 --ram-budget 512M --max-bad 1 --json";
    let ample = run_within(520 * MIB, folder.path(), args);
    if let Some(why) = ample.alone {
        skip(&Missing::Privilege(&format!("a control group: {why}")));
        return;
    }
    let taken = ample.charged.firm;
    assert_eq!(ample.said.ok().json()["error"], Value::Null);
    let short = run_within(taken / 2, folder.path(), args);
    println!(
        "it took {taken} bytes; with half of that: {} OOM kills, exit code {:?}",
        short.oom_kills, short.said.code
    );
    assert!(short.oom_kills > 0 && short.said.code.is_none(), "{:?}", short.said);
}
