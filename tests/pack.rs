//! Tests of `feedstock pack` and `feedstock verify` as programs: output, exit codes, interruption, kill, continuation.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

use common::skip::{Missing, skip};
use common::{Said, feedstock, finish, jpeg, run, said, small_set};

fn pack(source: &Path, dst: &Path, more: &str) -> Said {
    let mut args = vec!["pack", text(source), text(dst)];
    args.extend(more.split_whitespace());
    run(args)
}

fn verify(dst: &Path, more: &str) -> Said {
    let mut args = vec!["verify", text(dst)];
    args.extend(more.split_whitespace());
    run(args)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a folder with a plain name")
}

fn contents(dst: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in [dst.to_owned(), dst.join(".pack")] {
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                files.insert(text(&path).replace(text(dst), ""), fs::read(path).expect("read"));
            }
        }
    }
    files
}

/// Data set for a long run: one image under many names.
fn large_set(samples: u32, (width, height): (u32, u32)) -> TempDir {
    let set = tempdir().expect("a folder");
    fs::create_dir(set.path().join("ant")).expect("a folder");
    let first = set.path().join("ant/0.jpg");
    fs::write(&first, jpeg(1, width, height)).expect("written");
    for number in 1..samples {
        fs::hard_link(&first, set.path().join(format!("ant/{number}.jpg"))).expect("linked");
    }
    set
}

#[test]
fn a_set_is_packed_and_verified() {
    let (set, out) = (small_set(), tempdir().expect("a folder"));
    let dst = out.path().join("new/folder");
    let packed = pack(set.path(), &dst, "").ok();
    assert!(packed.out.contains("12 samples") && packed.out.contains("1 shard, "), "{packed:?}");
    assert!(packed.out.contains("manifest.json") && packed.err.is_empty(), "{packed:?}");
    let again = pack(set.path(), &dst, "--json").ok().json();
    assert_eq!((&again["shards_found"], &again["samples"]), (&1.into(), &12.into()));
    assert_eq!((&again["ended_early"], &again["skipped_count"]), (&false.into(), &0.into()));
    let sound = verify(&dst, "--image-headers").ok();
    assert!(sound.out.contains("12 samples in 1 shard") && sound.out.contains("no problems"), "{sound:?}");
    assert!(sound.err.is_empty(), "{sound:?}");
    assert_eq!(verify(&dst, "--json").ok().json()["valid"], true);

    let decoded = out.path().join("decoded");
    let packed =
        pack(set.path(), &decoded, "--decoded --size 32 --level 3 --shard-size 8K --in-order --json").ok().json();
    assert!(packed["shards"].as_u64() > Some(2) && packed["ram_peak_bytes"].as_u64() > Some(0), "{packed}");

    let shard = decoded.join("shard-00001.tar");
    let mut bytes = fs::read(&shard).expect("read");
    bytes[1000] ^= 1;
    fs::write(&shard, bytes).expect("written");
    fs::remove_file(decoded.join("shard-00000.tar")).expect("removed");
    let wrong = verify(&decoded, "");
    assert_eq!(wrong.code, Some(4), "{wrong:?}");
    assert!(
        wrong.out.contains("missing     shard-00000.tar") && wrong.out.contains("damaged     shard-00001.tar"),
        "{wrong:?}"
    );
    let wrong = verify(&decoded, "--json");
    assert_eq!((wrong.code, &wrong.json()["valid"]), (Some(4), &false.into()), "{wrong:?}");
    assert!(wrong.json()["problem_count"].as_u64() >= Some(2), "{wrong:?}");
}

#[test]
fn bad_images_are_skipped_and_listed() {
    let (set, out) = (small_set(), tempdir().expect("a folder"));
    fs::write(set.path().join("bee/page.png"), "<html>not found</html>").expect("written");
    let packed = pack(set.path(), &out.path().join("a"), "");
    assert_eq!(packed.code, Some(4), "{packed:?}");
    assert!(
        packed.out.contains("bee/page.png: probe: unknown image format: the file starts with 3c 68")
            && packed.out.contains("12 samples"),
        "{packed:?}"
    );
    assert!(packed.err.contains("1 sample could not be packed"), "{packed:?}");
    assert_eq!(verify(&out.path().join("a"), "").code, Some(0));
    std::os::unix::fs::symlink("nowhere", set.path().join("bee/dangling.jpg")).expect("linked");
    let packed = pack(set.path(), &out.path().join("b"), "--json");
    assert_eq!((packed.code, &packed.json()["unreadable_count"]), (Some(4), &1.into()), "{packed:?}");
}

#[test]
fn refusals_name_the_next_step() {
    let (set, out) = (small_set(), tempdir().expect("a folder"));
    let dst = out.path().join("set");
    for (more, code, expected) in [
        ("--ram-budget 100K", 3, "a RAM budget of 100 KiB is too small: this takes at least"),
        ("--quality 80", 2, "--short-side"),
        ("--size 80", 2, "--decoded"),
        ("--decoded --short-side 80", 2, "cannot be used with"),
        ("--short-side 0", 2, "the short side is 0"),
        ("--decoded --level 20", 2, "the level is 20: expected -50 to -1 or 1 to 19"),
        ("--shard-of 2", 2, "invalid job '2'"),
        ("--shard-of 2/2", 2, "there is no job 2 of 2"),
        ("--shard-size 0", 2, "the shard size is 0"),
        ("--workers 0", 2, "the number of workers is 0"),
    ] {
        let refused = pack(set.path(), &dst, more);
        assert_eq!((refused.code, refused.out.as_str()), (Some(code), ""), "{more}: {refused:?}");
        assert!(refused.err.contains(expected), "{more}: {refused:?}");
        assert!(!dst.exists(), "{more}");
    }
    let file = set.path().join("ant/0000.jpg/set");
    let refused = pack(set.path(), &file, "");
    assert_eq!((refused.code, refused.err.contains(text(&file))), (Some(5), true), "{refused:?}");
    pack(set.path(), &dst, "--seed 3").ok();
    let refused = pack(set.path(), &dst, "--seed 4");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("was packed with another seed: 3 then, 4 now"), "{refused:?}");
    let refused = verify(set.path(), "");
    assert_eq!((refused.code, refused.err.contains("not a packed set")), (Some(4), true), "{refused:?}");
}

/// File system that is unmounted on drop.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this process may not mount.
    fn of(size: &str) -> Option<Self> {
        let disk = SmallDisk(tempdir().expect("a folder"));
        disk.mount(&format!("size={size}")).then_some(disk)
    }

    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0.path());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).stderr(Stdio::null()).status();
    }
}

#[test]
fn full_disks_are_reported_and_packing_continues() {
    let Some(disk) = SmallDisk::of("2M") else {
        skip(&Missing::Privilege("to mount a file system"));
        return;
    };
    let (set, dst) = (large_set(20, (1000, 800)), disk.0.path().join("set"));
    let full = pack(set.path(), &dst, "--shard-size 1M --workers 1");
    assert_eq!(full.code, Some(5), "{full:?}");
    assert!(full.err.contains(".tar.partial") && full.err.contains("make room and pack again"), "{full:?}");
    let partials = contents(&dst).into_keys().filter(|name| name.contains(".partial")).count();
    assert_eq!(partials, 0, "partial shards are deleted");
    assert!(disk.mount("remount,size=64M"));
    let again = pack(set.path(), &dst, "--shard-size 1M --json").ok().json();
    assert!(again["shards_found"].as_u64() >= Some(1) && again["samples"] == 20, "{again}");
}

#[test]
fn interrupted_and_killed_runs_continue_to_the_same_set() {
    // Compression takes the time, whatever the profile of the build.
    const MORE: &str = "--decoded --size 128 --level 19 --shard-size 1M --workers 2";
    let (set, out) = (large_set(300, (300, 250)), tempdir().expect("a folder"));
    let (broken, whole) = (out.path().join("broken"), out.path().join("whole"));
    let begin = || {
        let args = format!("pack {} {} {MORE}", text(set.path()), text(&broken));
        feedstock(args.split_whitespace()).spawn().expect("started")
    };
    // Records of finished shards, without partial files.
    let records = || {
        let names = fs::read_dir(broken.join(".pack")).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names
            .filter(|name| name.to_str().is_some_and(|name| name.starts_with("shard-") && name.ends_with(".json")))
            .count()
    };
    let until = |count| {
        let since = Instant::now();
        while records() < count {
            assert!(since.elapsed() < Duration::from_secs(100), "{} records", records());
            thread::sleep(Duration::from_millis(5));
        }
    };

    let child = begin();
    until(1);
    kill_process(Pid::from_child(&child), Signal::INT).expect("sent");
    let since = Instant::now();
    let ended = said(finish(child));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.err.contains("interrupted: ") && ended.out.contains("shard"), "{ended:?}");
    assert!(!broken.join("manifest.json").exists());

    let mut child = begin();
    until(records() + 2);
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(!broken.join("manifest.json").exists(), "it was done before it could be killed");

    let rest = pack(set.path(), &broken, &format!("{MORE} --json")).ok().json();
    assert!(rest["shards_found"].as_u64() >= Some(3), "{rest}");
    let all = pack(set.path(), &whole, &MORE.replace("--workers 2", "--workers 1")).ok();
    assert!(all.out.contains("300 samples"), "{all:?}");
    assert!(contents(&broken) == contents(&whole));
    assert!(verify(&broken, "").ok().out.contains("300 samples"));
}
