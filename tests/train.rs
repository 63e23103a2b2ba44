//! `feedstock train`, and the predictions of `feedstock plan`: runs that are killed and resumed, several ranks, memory
//! and savings, logs, and refusals.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use common::{Said, class_folders, feedstock, finish, jpeg, run, said, words};

/// Maximum time in which a run ends after a signal, on a busy machine.
const SOON: Duration = Duration::from_secs(4);
const INTERRUPTED: Option<i32> = Some(130);

/// Three classes of this many small images.
fn images(per_class: u32) -> TempDir {
    let folder = tempdir().expect("a folder");
    class_folders(folder.path(), &["ant", "bee", "cat"], per_class, &[(32, 32)]);
    folder
}

/// A training run on these images.
fn train(data: &Path, more: &str) -> Command {
    feedstock(words(&format!("train --data DIR --ram-budget 256M {more}"), data))
}

fn trained(data: &Path, more: &str) -> Said {
    said(finish(train(data, more).spawn().expect("started")))
}

/// JSON object at the end of a run, and those of its epochs.
fn objects(said: &Said) -> (Value, Vec<Value>) {
    let mut lines: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let end = lines.pop().unwrap_or_else(|| panic!("no line: {said:?}"));
    assert_eq!(end["event"], "end", "{said:?}");
    assert!(lines.iter().all(|line| line["event"] == "epoch"), "{said:?}");
    (end, lines)
}

/// Contents of a checkpoint: its first line and its weights.
struct Checkpoint {
    head: String,
    weights: Vec<Vec<f32>>,
    /// True for running statistics, which have no gradient.
    statistics: Vec<bool>,
}

impl Checkpoint {
    fn word(&self, name: &str) -> &str {
        let mut words = self.head.split_whitespace();
        let word = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    fn number(&self, name: &str) -> u64 {
        self.word(name).parse().expect("a number")
    }

    /// Every number of the weights, to the bit.
    fn bits(&self) -> Vec<Vec<u32>> {
        self.weights.iter().map(|tensor| tensor.iter().map(|number| number.to_bits()).collect()).collect()
    }

    /// Largest difference of two models.
    fn distance(&self, other: &Checkpoint) -> f32 {
        let (ours, theirs) = (self.weights.concat(), other.weights.concat());
        assert_eq!(ours.len(), theirs.len());
        ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }
}

/// Reads a checkpoint: a first line of words, then MessagePack, in which the numbers of each tensor are a binary named
/// `bytes`. Ids of parameters, which are random in every process, are ignored.
fn checkpoint(folder: &Path) -> Option<Checkpoint> {
    let file = fs::read(folder.join("last.ckpt")).ok()?;
    let end = file.iter().position(|&byte| byte == b'\n').expect("a first line");
    let head = String::from_utf8(file[..end].to_vec()).expect("words");
    let mut found = Checkpoint { head, weights: Vec::new(), statistics: Vec::new() };
    let rest = &file[end + 1..];
    assert_eq!(rest.len() as u64, found.number("bytes"), "it is complete");
    let rest = &rest[..found.number("weights") as usize];
    let mut at = 0;
    while let Some(name) = rest[at..].windows(6).position(|bytes| bytes == b"\xa5bytes") {
        let names = &rest[at..at + name];
        let is_about = |name: &[u8]| names.windows(name.len()).any(|bytes| bytes == name);
        found.statistics.push(is_about(b"\xa4mean\x82") || is_about(b"\xa8variance\x82"));
        at += name + 6;
        // A binary, of a length that takes one, two or four bytes.
        let wide = 1 << (rest[at].checked_sub(0xc4).expect("a binary"));
        let length = rest[at + 1..at + 1 + wide].iter().fold(0, |length, &byte| (length << 8) | usize::from(byte));
        at += 1 + wide;
        let numbers =
            rest[at..at + length].chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four")));
        found.weights.push(numbers.collect());
        at += length;
    }
    assert!(found.weights.len() > 4, "{}", found.head);
    Some(found)
}

fn the_checkpoint(folder: &Path) -> Checkpoint {
    checkpoint(folder).unwrap_or_else(|| panic!("no checkpoint in {}", folder.display()))
}

/// Waits until `look` returns a value.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        thread::sleep(Duration::from_millis(2));
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a signal");
}

/// Starts a run and waits for its second epoch. Keep the pipe until it has ended.
fn in_mid_run(mut command: Command) -> (Child, impl Sized) {
    let mut child = command.spawn().expect("started");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("read");
    assert!(line.contains("\"event\":\"epoch\""), "{line}");
    (child, out)
}

/// Trains three epochs, with a kill or Ctrl-C in the second one, resumes, and compares with an uninterrupted run.
fn resumes_to_the_same_bits(flags: &str) {
    let set = images(16);
    let place = tempdir().expect("a folder");
    let folder = |name: &str| place.path().join(name);
    let flags = |name: &str, more: &str| {
        format!("{flags} --epochs 3 --seed 7 --json {more} --checkpoint-dir {}", folder(name).display())
    };
    let whole = trained(set.path(), &flags("whole", "")).ok();
    let expected = the_checkpoint(&folder("whole"));
    assert_eq!((expected.number("epochs"), expected.number("steps")), (3, 0), "{}", expected.head);
    let (whole, epochs) = objects(&whole);
    assert!(epochs.iter().all(|epoch| epoch["images"] == 48), "{whole}");

    let (child, pipe) = in_mid_run(train(set.path(), &flags("killed", "--checkpoint-every 2")));
    wait_for("a checkpoint of the second epoch", || {
        checkpoint(&folder("killed")).filter(|found| found.number("epochs") == 1 && found.number("steps") > 0)
    });
    send(&child, Signal::KILL);
    assert_eq!(finish(child).status.code(), None);
    drop(pipe);
    let left = the_checkpoint(&folder("killed"));
    assert!(left.number("epochs") < 3 && left.number("steps").is_multiple_of(2), "{}", left.head);

    let (child, pipe) = in_mid_run(train(set.path(), &flags("stopped", "")));
    thread::sleep(Duration::from_millis(10));
    let asked = Instant::now();
    send(&child, Signal::INT);
    let stopped = said(finish(child));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert_eq!(stopped.code, INTERRUPTED, "{stopped:?}");
    assert_eq!(stopped.err, "interrupted: ended before the work was done\n");
    drop(pipe);
    let left = the_checkpoint(&folder("stopped"));
    // On a busy machine it may have reached its third epoch.
    assert!(left.number("epochs") < 3 && left.number("images") < 48, "{}", left.head);
    let step = left.number("images").checked_div(left.number("steps")).unwrap_or(0);
    assert_eq!(step * left.number("steps"), left.number("images"), "whole steps only: {}", left.head);

    for name in ["killed", "stopped"] {
        let (end, _) = objects(&trained(set.path(), &flags(name, "--resume")).ok());
        let found = the_checkpoint(&folder(name));
        assert_eq!((found.word("hidden"), found.number("epochs")), (expected.word("hidden"), 3), "{name}");
        assert!(found.bits() == expected.bits(), "{name}: weights differ by {}", found.distance(&expected));
        // The report of an epoch includes the part before the resumption.
        assert!(
            end["epochs"].as_array().is_some_and(|epochs| epochs.iter().all(|epoch| epoch["images"] == 48)),
            "{end}"
        );
    }
}

#[test]
fn a_killed_or_stopped_run_resumes_to_the_same_bits() {
    resumes_to_the_same_bits("--model small --batch-size 4");
}

#[test]
fn a_run_with_accumulation_resumes_to_the_same_bits() {
    resumes_to_the_same_bits("--model small --batch-size 12 --micro-batch 2 --optimizer adamw");
}

#[test]
fn a_pruned_run_resumes_to_the_same_bits() {
    resumes_to_the_same_bits("--model small --batch-size 4 --prune 0.3 --prune-after 1");
}

#[test]
fn within_an_epoch_a_run_resumes_with_the_same_batches_only() {
    let set = images(16);
    let place = tempdir().expect("a folder");
    let flags = |more: &str| format!("--epochs 2 --json {more} --checkpoint-dir {}", place.path().display());
    let (child, pipe) = in_mid_run(train(set.path(), &flags("--batch-size 4 --checkpoint-every 1")));
    wait_for("a checkpoint of mid-epoch", || checkpoint(place.path()).filter(|found| found.number("batches") > 1));
    send(&child, Signal::KILL);
    drop((finish(child), pipe));
    for more in [
        "--batch-size 6",
        "--batch-size 4 --micro-batch 2",
        "--batch-size 4 --seed 1",
        "--devices cpu,cpu --batch-size 4",
    ] {
        let refused = trained(set.path(), &flags(&format!("{more} --resume")));
        assert_eq!(refused.code, Some(4), "{more}: {refused:?}");
        assert!(
            refused.err.contains("within an epoch") && refused.err.contains("batches4-ranks1-seed0"),
            "{refused:?}"
        );
    }
    trained(set.path(), &flags("--batch-size 4 --resume")).ok();
    // After a complete epoch the batches may change.
    trained(set.path(), &flags("--batch-size 6 --resume").replace("--epochs 2", "--epochs 3")).ok();
}

/// Starts two processes as a launcher does, with the flags of each.
fn launch(data: &Path, flags: [&str; 2]) -> [Child; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port().to_string();
    drop(listener);
    [0, 1].map(|rank| {
        let mut command = train(data, flags[rank]);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.spawn().expect("started")
    })
}

/// The same flags, with a checkpoint folder for each rank, to see whether the second one writes.
fn launch_into(data: &Path, flags: &str, folders: &[PathBuf; 2]) -> [Child; 2] {
    let flags = [0, 1].map(|rank: usize| format!("{flags} --checkpoint-dir {}", folders[rank].display()));
    launch(data, [&flags[0], &flags[1]])
}

fn both(ranks: [Child; 2]) -> [Said; 2] {
    ranks.map(|rank| said(finish(rank)))
}

fn all_well(ranks: [Said; 2]) {
    ranks.into_iter().for_each(|rank| drop(rank.ok()));
}

#[test]
fn two_ranks_train_as_one_with_batches_twice_as_large() {
    // An odd number: one rank has one image more, and the last step is a small one.
    let set = images(4);
    fs::write(set.path().join("ant/one-more.jpg"), jpeg(99, 32, 32)).expect("written");
    let place = tempdir().expect("a folder");
    let folder = |name: &str| place.path().join(name);
    let flags = "--model vit-tiny --size 16 --optimizer sgd --lr 0.2 --epochs 1 --json";
    let one = |name: &str, more: &str| {
        let more = format!("{flags} {more} --checkpoint-dir {}", folder(name).display());
        (objects(&trained(set.path(), &more).ok()).0, the_checkpoint(&folder(name)))
    };
    let (threads, by_threads) = one("threads", "--batch-size 4 --devices cpu,cpu");
    assert_eq!(threads["epochs"][0]["images"], 7, "{threads}");

    let folders = ["processes", "second"].map(folder);
    let [first, second] = both(launch_into(set.path(), &format!("{flags} --batch-size 4"), &folders));
    let (processes, _) = objects(&first.ok());
    assert_eq!(processes["epochs"][0]["images"], 7, "{processes}");
    assert!(second.out.is_empty() && second.err.is_empty() && second.code == Some(0), "{second:?}");
    assert!(!folder("second").exists(), "only rank 0 writes");
    let by_processes = the_checkpoint(&folder("processes"));
    assert!(by_processes.bits() == by_threads.bits(), "{}", by_processes.distance(&by_threads));

    let (alone, by_one) = one("alone", "--batch-size 8");
    assert_eq!((&alone["epochs"][0]["images"], &alone["epochs"][0]["steps"]), (&13.into(), &2.into()), "{alone}");
    let (_, by_small) = one("small", "--batch-size 4");
    // Other batches make a larger difference than the order of additions.
    let (near, far) = (by_one.distance(&by_threads), by_small.distance(&by_threads));
    assert!(near < 1e-5 && far > 1e-3, "{near} {far}");
}

#[test]
fn ranks_stop_together_and_resume_to_the_same_bits() {
    let set = images(16);
    let place = tempdir().expect("a folder");
    let folders = |name: &str| [0, 1].map(|rank| place.path().join(format!("{name}{rank}")));
    let flags = "--model small --batch-size 2 --epochs 3 --json";
    all_well(both(launch_into(set.path(), flags, &folders("whole"))));

    let [mut first, second] = launch_into(set.path(), flags, &folders("stopped"));
    let mut pipe = BufReader::new(first.stdout.take().expect("a pipe"));
    pipe.read_line(&mut String::new()).expect("read");
    let asked = Instant::now();
    send(&first, Signal::INT);
    send(&second, Signal::INT);
    let stopped = both([first, second]);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert!(stopped.iter().all(|said| said.code == INTERRUPTED), "{stopped:?}");
    assert!(stopped[1].out.is_empty(), "only rank 0 prints: {stopped:?}");
    let [first, second] = folders("stopped");
    let left = the_checkpoint(&first);
    assert!(left.number("epochs") < 3 && !second.exists(), "{}", left.head);
    // Both ranks read it.
    all_well(both(launch_into(set.path(), &format!("{flags} --resume"), &[first.clone(), first.clone()])));
    assert!(the_checkpoint(&first).bits() == the_checkpoint(&folders("whole")[0]).bits());
}

#[test]
fn a_rank_that_ends_stops_the_others() {
    let set = images(8);
    let flags = "--model small --batch-size 2 --epochs 50 --json";
    let limited = format!("{flags} --time-limit 1s");
    for flags in [[&*limited, flags], [flags, &*limited]] {
        let begun = Instant::now();
        let ended = both(launch(set.path(), flags));
        assert!(ended.iter().all(|said| said.code == Some(0) && said.err.is_empty()), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_other_one_at_once() {
    let set = images(16);
    for victim in [0, 1] {
        let flags = "--model small --batch-size 2 --epochs 90 --json";
        let mut ranks = launch(set.path(), [flags; 2]);
        let mut pipe = BufReader::new(ranks[0].stdout.take().expect("a pipe"));
        pipe.read_line(&mut String::new()).expect("read");
        send(&ranks[victim], Signal::KILL);
        let gone = Instant::now();
        let ended = both(ranks);
        assert!(gone.elapsed() < Duration::from_secs(10), "{:?}", gone.elapsed());
        let left = &ended[1 - victim];
        assert_eq!((left.code, left.err.lines().count()), (Some(4), 1), "{left:?}");
        assert!(left.err.contains("has lost") && left.err.contains(&format!("rank {victim}")), "{left:?}");
    }
}

/// Prediction of a plan with these flags, and its exit code.
fn predicted(data: &Path, flags: &str) -> (Value, Option<i32>) {
    let plan = run(words(&format!("plan --data DIR --ram-budget 256M --size 32 --json {flags}"), data));
    (plan.json()["training"].clone(), plan.code)
}

fn bytes(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_else(|| panic!("no {key} in {object}"))
}

#[test]
fn a_plan_predicts_the_memory_that_training_takes() {
    let set = images(4);
    for flags in [
        "--model small --batch-size 6",
        "--model small --batch-size 6 --micro-batch 3 --precision bf16",
        "--model resnet18 --batch-size 4 --checkpoint blocks",
        "--model vit-tiny --batch-size 4",
    ] {
        let (plan, code) = predicted(set.path(), flags);
        assert_eq!(code, Some(0), "{plan}");
        let told = trained(set.path(), &format!("{flags} --size 32 --epochs 1 --json")).ok();
        let (end, _) = objects(&told);
        assert_eq!(end["memory"]["predicted"], plan["predicted"], "{flags}");
        assert_eq!((&end["memory"]["micro_batch"], &end["accumulate"]), (&plan["micro_batch"], &plan["accumulate"]));
        let measured = &end["memory"]["measured"];
        for account in ["peak_bytes", "activations_bytes", "parameters_bytes"] {
            let (told, took) = (bytes(&plan["predicted"], account), bytes(measured, account));
            // Buffers that threads keep for their products count beside small accounts.
            let kept = if account == "peak_bytes" { 0 } else { bytes(measured, "peak_bytes") * 2 / 100 };
            let near = told * 15 / 100 + kept;
            assert!(told.abs_diff(took) < near, "{flags}: {account} is {took}: {plan}");
        }
        assert!(bytes(&end, "training_peak_bytes") >= bytes(measured, "peak_bytes"), "{end}");
    }
}

#[test]
fn a_small_budget_is_refused_with_savings_that_work() {
    let set = images(8);
    for flags in ["--model vit-tiny --batch-size 8", "--model resnet18 --batch-size 24"] {
        let (plan, code) = predicted(set.path(), flags);
        assert_eq!(code, Some(0), "{plan}");
        let peak = bytes(&plan["predicted"], "peak_bytes");
        let savings = plan["savings"].as_array().expect("a list");
        assert!(savings.len() >= 4, "{plan}");
        for saving in savings {
            let flag = saving["flag"].as_str().expect("a flag");
            let (with, code) = predicted(set.path(), &format!("{flags} {flag}"));
            assert_eq!(code, Some(0), "{flag}");
            assert_eq!(with["predicted"]["peak_bytes"], saving["peak_bytes"], "{flags} {flag}");
            assert_eq!(bytes(saving, "saved_bytes"), peak - bytes(saving, "peak_bytes"), "{saving}");
        }
        let fits = format!("{flags} --vram-budget {peak}");
        assert_eq!(predicted(set.path(), &fits).1, Some(0));
        // One byte less, and less than the weights alone.
        for budget in [peak - 1, 1 << 20] {
            let short = format!("{flags} --vram-budget {budget}");
            assert_eq!(predicted(set.path(), &short).1, Some(3));
            let refused = trained(set.path(), &format!("{short} --size 32 --json"));
            assert_eq!((refused.code, &*refused.out), (Some(3), ""), "{refused:?}");
            for expected in
                ["would not fit", "memory by purpose:", "activations", "gradients", "settings that would help:"]
            {
                assert!(refused.err.contains(expected), "{expected}: {refused:?}");
            }
            let mut named: Vec<_> = refused.err.lines().filter(|line| line.starts_with("  --")).collect();
            let smaller = named.pop_if(|line| line.starts_with("  --micro-batch auto finds the largest batch"));
            assert!(smaller.is_some(), "{refused:?}");
            assert_eq!(named.len(), 3, "{refused:?}");
            for (line, saving) in named.iter().zip(savings) {
                let flag = saving["flag"].as_str().expect("a flag");
                assert!(line.starts_with(&format!("  {flag} saves ")), "{line} {saving}");
                assert_eq!(line.ends_with("then it fits"), bytes(saving, "peak_bytes") <= budget, "{line}");
            }
        }
        let (saving, none) = (savings[0]["flag"].as_str().expect("a flag"), "--epochs 1 --size 32 --json");
        let budget = bytes(&savings[0], "peak_bytes") * 115 / 100;
        trained(set.path(), &format!("{flags} {saving} --vram-budget {budget} {none}")).ok();
    }
}

#[test]
fn micro_batches_fit_the_budget() {
    let set = images(8);
    let flags = |batch_size: u64, more: &str| format!("--model small --batch-size {batch_size} {more}");
    let peak = |flags: &str| bytes(&predicted(set.path(), flags).0["predicted"], "peak_bytes");
    // A step of several batches holds the sum of its gradients beside those of a batch: two batches can take more than
    // one that is twice as large.
    let whole = peak(&flags(8, ""));
    assert!(peak(&flags(8, "--micro-batch 4")) > whole);
    let (plan, _) = predicted(set.path(), &flags(8, &format!("--micro-batch auto --vram-budget {whole}")));
    assert_eq!((&plan["micro_batch"], &plan["accumulate"]), (&8.into(), &1.into()), "{plan}");

    let budget = peak(&flags(24, "--micro-batch 6")) * 102 / 100;
    assert!(peak(&flags(24, "--micro-batch 8")) > budget && peak(&flags(24, "")) > budget);
    let more = flags(24, &format!("--micro-batch auto --vram-budget {budget}"));
    let (plan, code) = predicted(set.path(), &more);
    assert_eq!((code, &plan["micro_batch"], &plan["accumulate"]), (Some(0), &6.into(), &4.into()), "{plan}");
    let (end, epochs) = objects(&trained(set.path(), &format!("{more} --size 32 --epochs 2 --json")).ok());
    let micro_batch = bytes(&end["memory"], "micro_batch");
    assert!(micro_batch <= 6 && micro_batch * bytes(&end, "accumulate") == 24, "{end}");
    assert!(bytes(&end, "training_peak_bytes") <= budget, "{end}");
    assert_eq!((&end["training_budget_bytes"], &epochs[1]["steps"]), (&budget.into(), &1.into()), "{end}");
    let none = trained(set.path(), &flags(24, "--micro-batch auto --vram-budget 1M"));
    assert_eq!(none.code, Some(3), "{none:?}");
    assert!(none.err.contains("not even a batch of one image") && none.err.contains("--freeze backbone"), "{none:?}");
}

#[test]
fn precision_and_checkpointing_save_memory() {
    let set = images(8);
    let place = tempdir().expect("a folder");
    let trained_with = |name: &str, more: &str| {
        let folder = place.path().join(name);
        let more =
            format!("--model small --batch-size 24 --epochs 2 --json {more} --checkpoint-dir {}", folder.display());
        (objects(&trained(set.path(), &more).ok()).0, the_checkpoint(&folder))
    };
    let activations = |end: &Value| bytes(&end["memory"]["measured"], "activations_bytes");
    let (plain, expected) = trained_with("plain", "");
    assert_eq!(
        (&plain["precision"], &plain["checkpointing"], &plain["frozen"]),
        (&"f32".into(), &"none".into(), &"nothing".into())
    );
    for precision in ["bf16", "f16"] {
        let (end, found) = trained_with(precision, &format!("--precision {precision}"));
        assert_eq!(end["precision"], precision);
        assert!(activations(&end) * 10 < activations(&plain) * 7, "{end}");
        let distance = found.distance(&expected);
        assert!(0.0 < distance && distance < 0.2, "{precision}: {distance}");
        assert!(end["epochs"][0]["loss"].as_f64().is_some_and(f64::is_finite), "{end}");
    }
    for way in ["blocks", "balanced"] {
        let (end, found) = trained_with(way, &format!("--checkpoint {way}"));
        assert_eq!(end["checkpointing"], way);
        assert!(activations(&end) < activations(&plain), "{way}: {end}");
        assert!(found.distance(&expected) < 1e-4, "{way}: {}", found.distance(&expected));
    }
}

#[test]
fn frozen_parameters_keep_their_bits() {
    let set = images(4);
    let place = tempdir().expect("a folder");
    let folder = |name: &str| place.path().join(name);
    for (model, head) in [("small", 2), ("vit-tiny --size 16", 4)] {
        let name = |part: &str| format!("{part}-{}", &model[..3]);
        let trained_with = |part: &str, more: &str| {
            let folder = folder(&name(part));
            let more = format!(
                "--model {model} --batch-size 4 --epochs 1 --json {more} --checkpoint-dir {}",
                folder.display()
            );
            (objects(&trained(set.path(), &more).ok()).0, the_checkpoint(&folder))
        };
        let (_, first) = trained_with("first", "--seed 3");
        let from = folder(&name("first")).join("last.ckpt");
        let (end, tuned) = trained_with("tuned", &format!("--freeze backbone --init {}", from.display()));
        assert_eq!(end["frozen"], "backbone");
        let (before, after) = (first.bits(), tuned.bits());
        let parameters = (0..before.len()).filter(|&at| !tuned.statistics[at]);
        let changed: Vec<usize> = parameters.filter(|&at| before[at] != after[at]).collect();
        let heads: Vec<usize> = (before.len() - head..before.len()).collect();
        assert_eq!((changed, before.len()), (heads, after.len()), "{model}");
    }
    let other = format!("--model resnet18 --init {}", folder("first-sma").join("last.ckpt").display());
    let refused = trained(set.path(), &other);
    assert_eq!((refused.code, refused.err.lines().count()), (Some(4), 1), "{refused:?}");
    assert!(refused.err.contains("its network is small"), "{refused:?}");
}

#[test]
fn pruning_reduces_parameters_and_memory() {
    let set = images(8);
    let place = tempdir().expect("a folder");
    let more =
        format!("--model small --batch-size 4 --prune 0.3 --epochs 2 --checkpoint-dir {}", place.path().display());
    let (end, epochs) = objects(&trained(set.path(), &format!("--val {} {more} --json", set.path().display())).ok());
    let pruned = &end["pruned"];
    let [before, after] = ["parameters", "peak_bytes"].map(|key| [&pruned[key][0], &pruned[key][1]].map(Value::as_u64));
    assert!(before[1] < before[0] && after[1] < after[0] && before[1] > Some(0), "{pruned}");
    assert_eq!((&pruned["after_epochs"], epochs.len()), (&1.into(), 2), "{pruned}");
    assert!(pruned["val_accuracy"][1].is_f64(), "{pruned}");
    let left = the_checkpoint(place.path());
    assert_ne!(left.word("hidden"), "", "{}", left.head);
    let numbers: usize = left.weights.iter().map(Vec::len).sum();
    // Running statistics are saved too, and are not parameters.
    let parameters = before[1].expect("a number") as usize;
    assert!((parameters..parameters + parameters / 50).contains(&numbers), "{numbers} {pruned}");
    let told = trained(set.path(), "--model small --batch-size 4 --prune 0.3 --epochs 2").ok();
    assert!(told.out.contains("pruned after 1 epoch: ") && told.out.contains("fewer parameters"), "{told:?}");
}

#[test]
fn a_run_is_written_to_a_log_and_to_tensorboard() {
    let set = images(8);
    let place = tempdir().expect("a folder");
    let (log, charts) = (place.path().join("log.jsonl"), place.path().join("charts"));
    let more = format!(
        "--model small --batch-size 4 --epochs 2 --val {} --log {} --tensorboard {} --json --checkpoint-dir {}",
        set.path().display(),
        log.display(),
        charts.display(),
        place.path().join("run").display()
    );
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&log).expect("written");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    let of = |lines: &[Value], event: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["event"] == event).cloned().collect()
    };
    let (end, epochs) = objects(&trained(set.path(), &more).ok());
    let told = lines();
    assert_eq!((of(&told, "start").len(), of(&told, "epoch").len(), of(&told, "end").len()), (1, 2, 1), "{told:?}");
    assert!(of(&told, "step").len() >= 2, "the last one of each epoch at least: {told:?}");
    for (logged, printed) in of(&told, "epoch").iter().zip(&epochs) {
        assert_eq!((&logged["loss"], &logged["val_accuracy"]), (&printed["loss"], &printed["val_accuracy"]));
    }
    assert_eq!((&told[0]["event"], &told[0]["parameters"]), (&"start".into(), &end["parameters"]));
    assert_eq!(of(&told, "end")[0]["images"], end["images"]);
    let files = || -> Vec<PathBuf> {
        fs::read_dir(&charts).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
    };
    let [file] = &files()[..] else { panic!("one file: {:?}", files()) };
    let written = fs::read(file).expect("written");
    for tag in ["brain.Event:2", "loss/train", "loss/val", "accuracy/val"] {
        assert!(written.windows(tag.len()).any(|window| window == tag.as_bytes()), "{tag}");
    }
    trained(set.path(), &format!("{more} --resume").replace("--epochs 2", "--epochs 3")).ok();
    let more = lines();
    assert!(more[..told.len()] == told[..] && of(&more, "epoch").len() == 3, "it continues the same log: {more:?}");
    assert_eq!(files().len(), 2, "each run has a file");

    // Only one of several processes writes.
    let shared = place.path().join("shared");
    let flags =
        format!("--model small --batch-size 4 --epochs 1 --json --log {0}/log --tensorboard {0}", shared.display());
    all_well(both(launch(set.path(), [&flags; 2])));
    assert_eq!(fs::read_dir(&shared).expect("a folder").count(), 2, "a log and a chart");
}

#[test]
fn bad_settings_are_refused_in_one_line() {
    let set = images(2);
    let place = tempdir().expect("a folder");
    let small = format!("--model small --checkpoint-dir {}", place.path().display());
    trained(set.path(), &format!("{small} --epochs 1")).ok();
    let other = small.replace("small", "vit-tiny") + " --resume";
    let lost = place.path().join("none").display().to_string();
    for (flags, code, expected) in [
        ("--freeze nonsense", 2, "no parameter 'nonsense' to freeze: expected one of stem, blocks.0"),
        ("--freeze stem,blocks,head", 2, "leaves no parameter to train"),
        ("--freeze stem,,head", 2, "invalid names of parameters 'stem,,head'"),
        ("--micro-batch 7 --batch-size 64", 2, "--micro-batch 7 does not divide --batch-size 64"),
        ("--micro-batch 0", 2, "invalid batch size '0'"),
        ("--prune 1.5", 2, "pruning a share of 1.5"),
        ("--prune 0.3 --epochs 1", 2, "pruning after 1 of 1 epochs"),
        ("--prune-after 1", 2, "--prune"),
        ("--precision f8", 2, "f8"),
        ("--checkpoint all", 2, "all"),
        ("--optimizer adam", 2, "adam"),
        ("--vram-budget much", 2, "invalid size 'much'"),
        ("--devices cpu,banana", 2, "unknown device 'banana'"),
        ("--devices cpu,cpu --device cpu", 2, "cannot be used with"),
        (&other, 4, "it holds a run of small-width32-classes3-side32-sgd, and this run is vit-tiny"),
        (&format!("--init {lost}"), 5, "No such file"),
        (&format!("--init {lost} --checkpoint-dir {} --resume", place.path().display()), 2, "choose one of them"),
    ] {
        let refused = trained(set.path(), flags);
        assert_eq!(refused.code, Some(code), "{flags}: {refused:?}");
        let told: Vec<_> = refused.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(told.len() == 1 && refused.err.contains(expected), "{flags}: {refused:?}");
        assert!(!refused.out.contains("images/s"), "{flags}: {refused:?}");
    }
    for (variables, expected) in [
        (&[("RANK", "0")][..], "WORLD_SIZE"),
        (&[("WORLD_SIZE", "2")], "RANK"),
        (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK"),
        (&[("RANK", "2"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")], "rank 2 of 2"),
        (&[("RANK", "0"), ("WORLD_SIZE", "2")], "MASTER_ADDR"),
    ] {
        let mut command = train(set.path(), "--epochs 1");
        command.envs(variables.iter().copied()).stdout(Stdio::piped());
        let refused = said(finish(command.spawn().expect("started")));
        assert_eq!((refused.code, refused.err.lines().count()), (Some(2), 1), "{variables:?}: {refused:?}");
        assert!(refused.err.contains(expected) && refused.out.is_empty(), "{variables:?}: {refused:?}");
    }
}
