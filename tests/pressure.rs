//! Memory pressure from another process during a run: the loader releases memory, so the kernel does not kill it, and
//! regains its size afterwards. The batches stay the same.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::print_stdout, reason = "a test prints its measurements")]

mod common;
#[path = "common/group.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared")]
mod group;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::skip::{Missing, skip};
use common::{class_folders, feedstock, finish, said, words};
use group::Group;

const MIB: u64 = 1 << 20;

/// Duration of an undisturbed run. Memory is taken within a second or two of the start, and a second without pressure
/// precedes each of the four levels of growth.
const RUN_SECONDS: f64 = 20.0;

/// If set, this test program takes this many MiB, reports it, and releases them at the end of its input.
const HOG: &str = "FEEDSTOCK_TEST_HOG";

/// Starts a program in a group.
fn start_within(group: &Group, program: &mut Command) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.door());
    shell.arg(program.get_program()).args(program.get_args());
    shell.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    line.unwrap_or(0u64) * 1024
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn another_process_in_the_group_takes_memory_and_gives_it_back() {
    if let Ok(mib) = std::env::var(HOG) {
        take(mib.parse().expect("a number"));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    class_folders(folder.path(), &["ant", "bee"], 100, &[(320, 240), (240, 320)]);
    let args = |epochs: u32| {
        let common =
            "bench --data DIR --ram-budget 300M --batch-size 128 --layout nhwc --prefetch 12 --workers 2 --json";
        format!("{common} --epochs {epochs}")
    };
    // Enough epochs to shrink and to grow again, whatever the speed of the machine.
    let tried = said(finish(feedstock(words(&args(20), folder.path())).spawn().expect("started"))).ok();
    let epochs = (20.0 * RUN_SECONDS / tried.json()["seconds"].as_f64().expect("a number")).clamp(20.0, 1e5) as u32;
    // The batches of an undisturbed run.
    let quiet = said(finish(feedstock(words(&args(epochs), folder.path())).spawn().expect("started"))).ok();
    let plan = quiet.json()["planned_bytes"].as_u64().expect("a number");
    assert!(plan > 200 * MIB, "{plan}: there is nothing to give back");

    // Room for the loader and for part of what the other process takes.
    let limit = plan + 100 * MIB;
    let group = match Group::make(limit) {
        Ok(group) => group,
        Err(why) => {
            skip(&Missing::Privilege(&format!("a memory control group: {why}")));
            return;
        }
    };
    let loader = start_within(&group, &mut feedstock(words(&args(epochs), folder.path())));
    let pid = loader.id();
    let ended = thread::spawn(move || finish(loader));
    eventually("the loader has its memory", || resident(pid) > plan * 3 / 4 || ended.is_finished());
    let full = resident(pid);

    let mut hog = Command::new(std::env::current_exe().expect("this program"));
    hog.args(["--exact", "another_process_in_the_group_takes_memory_and_gives_it_back", "--nocapture"]);
    hog.env(HOG, 210.to_string());
    let mut hog = start_within(&group, &mut hog);
    let mut said_by_hog = BufReader::new(hog.stdout.take().expect("piped")).lines();
    assert!(said_by_hog.any(|line| line.is_ok_and(|line| line.contains("taken"))), "the other process was killed");
    let mut least = full;
    eventually("the loader gives memory back", || {
        assert!(!ended.is_finished(), "it ended with {least} of {full} bytes resident");
        least = least.min(resident(pid));
        least < full * 3 / 4
    });
    hog.stdin.take().expect("piped").write_all(b"\n").expect("told");
    assert!(hog.wait().expect("waited for").success());

    let ran = said(ended.join().expect("it ended in time")).ok();
    println!("limit {} MiB: resident {} MiB, {} MiB under pressure", limit / MIB, full / MIB, least / MIB);
    assert_eq!(group.oom_kills(), 0);
    let (report, expected) = (ran.json(), quiet.json());
    assert_eq!(report["digest"], expected["digest"], "the batches are the same");
    let resizes = report["governor"]["latest"].as_array().expect("a list");
    println!("{resizes:#?}");
    assert!(resizes.iter().any(|one| one["level"].as_u64() > Some(0)), "{resizes:?}");
    let reason = resizes[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("available") && reason.contains("control group"), "{reason}");
    // At the end it has its full size again, and with it its throughput.
    assert_eq!(report["governor"]["level"], 0, "{resizes:?}");
}

/// Takes memory gradually and holds it until the end of its input.
fn take(mib: usize) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        held.push(vec![0x5A; MIB as usize]);
        thread::sleep(Duration::from_millis(4));
    }
    println!("taken {} MiB", held.len());
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(std::hint::black_box(held));
}
