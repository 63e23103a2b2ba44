//! The program as its users meet it: what it prints, where, and the exit code.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::tempdir;

use common::skip::{Missing, skip};
use common::{
    bench, class_folders, encoded, feedstock, fifo, finish, jpeg, jpeg_header, picture, run, said, small_set, words,
};

#[test]
fn every_help_is_short_and_has_an_example() {
    for verb in ["", "train", "plan", "bench", "prove", "inspect", "pack", "verify", "doctor"] {
        let args = [verb, "--help"];
        let help = run(args.iter().filter(|word| !word.is_empty())).ok();
        assert!(help.out.contains("Usage: feedstock") && help.out.contains("Example"), "{help:?}");
        assert!(help.out.lines().count() < 60 && help.err.is_empty(), "{help:?}");
        assert!(help.out.contains(&format!("feedstock {verb}")), "{help:?}");
    }
    assert!(run(["--version"]).ok().out.starts_with("feedstock "));
    assert_eq!(run([] as [&str; 0]).code, Some(2));
}

#[test]
fn wrong_usage_is_refused_with_words() {
    let set = small_set();
    for (args, expected) in [
        ("bench --data DIR --ram-budget 12Q", "invalid RAM budget '12Q'"),
        ("plan --data DIR --ram-budget 120%", "invalid RAM budget '120%'"),
        ("bench --data DIR --workers 0", "workers is 0"),
        ("bench --data DIR --batch-size 0", "batch size is 0"),
        ("bench --data DIR --prefetch 0", "prefetch is 0"),
        ("bench --data DIR --size 0", "0 is not in 1..="),
        ("bench --data DIR --size 99999", "99999 is not in"),
        ("bench --data DIR --epochs 0", "0 is not in 1..="),
        ("bench --data DIR --dtype f64", "unknown dtype 'f64'"),
        ("bench --data DIR --layout chw", "unknown layout 'chw'"),
        ("bench --data DIR --device tpu", "unknown device 'tpu'"),
        ("bench --data DIR --on-bad-sample skip", "unknown policy for bad samples 'skip'"),
        ("bench --data DIR --quality best", "unknown quality 'best'"),
        ("plan --data DIR --background red", "unknown color 'red'"),
        ("train --data DIR --truncated maybe", "invalid value 'maybe'"),
        ("bench --data DIR --max-bad 2", "max_bad_fraction is 2"),
        ("bench --data DIR --rank 3 --world-size 3", "rank 3 does not exist"),
        ("bench --data DIR --drop-last --batch-size 13", "larger than the 12 samples"),
        ("train --data DIR --model huge", "unknown model 'huge'"),
        ("train --data DIR --time-limit soon", "invalid time 'soon'"),
        ("train --data DIR --resume", "--checkpoint-dir"),
        ("train --data DIR --lr 0", "learning rate 0"),
        ("bench", "--data <DIR>"),
        ("inspect", "<PATH>"),
        ("weigh", "unrecognized subcommand"),
    ] {
        let refused = run(words(args, set.path()));
        assert_eq!(refused.code, Some(2), "{args}: {refused:?}");
        // A note may come first: how much `auto` is.
        let told = refused.err.lines().any(|line| line.starts_with("error: "));
        assert!(told && refused.err.contains(expected), "{args}: {refused:?}");
        // A verb may have described its data before it was refused; results are not to be expected.
        assert!(!refused.out.contains("images/s"), "{args}: {refused:?}");
    }
    let refused = run(words("bench --data DIR --device cuda:0", set.path()));
    assert_eq!(refused.code, Some(6), "{refused:?}");
}

#[test]
fn folders_that_hold_no_data_are_refused_with_their_path() {
    let place = tempdir().expect("a folder");
    let path = |name: &str| place.path().join(name);
    for folder in ["empty", "loose", "classes/ant", "classes/bee"] {
        fs::create_dir_all(path(folder)).expect("a folder");
    }
    fs::write(path("loose/1.jpg"), jpeg(1, 20, 20)).expect("written");
    fs::write(path("classes/ant/notes.txt"), "ants").expect("written");
    fs::write(path("file"), "").expect("written");
    for (name, code, expected) in [
        ("missing", 5, "cannot open"),
        ("empty", 4, "no class folders"),
        ("loose", 4, "no class folders, but 1 image directly in it"),
        ("classes", 4, "with no images in them"),
        ("file", 4, "there are no samples in it"),
    ] {
        for verb in ["plan", "bench", "train"] {
            let refused = run([verb.as_ref(), "--data".as_ref(), path(name).as_os_str()]);
            assert_eq!(refused.code, Some(code), "{verb} {name}: {refused:?}");
            assert!(refused.err.contains(expected) && refused.err.contains(name), "{verb} {name}: {refused:?}");
            assert!(refused.out.is_empty(), "{verb} {name}: {refused:?}");
        }
    }
}

#[test]
fn shards_stand_where_a_folder_may() {
    let (set, place) = (small_set(), tempdir().expect("a folder"));
    for name in ["train-0.tar", "train-1.tar", "val-0.tar"] {
        let mut tar = tar::Builder::new(fs::File::create(place.path().join(name)).expect("made"));
        tar.append_dir_all(".", set.path()).expect("written");
        tar.finish().expect("written");
    }
    for (data, samples) in [("train-0.tar", 12), ("train-{0..1}.tar", 24), ("", 36)] {
        let plan =
            run(words("plan --data DIR --ram-budget 256M --size 32 --json", &place.path().join(data))).ok().json();
        assert_eq!(plan["data"]["samples"], samples, "{data}: {plan}");
        assert_eq!(plan["data"]["classes"], 3, "{data}");
    }
    let train = run(words("train --data DIR --epochs 1 --size 32 --ram-budget 256M --json", place.path())).ok();
    let said = train.out;
    assert!(said.contains("val") && !said.contains("\"validation\":null"), "{said}");
    let missing = run(words("plan --data DIR", &place.path().join("train-{0..2}.tar")));
    assert!(missing.err.contains("train-2.tar") && missing.code == Some(5), "{missing:?}");
}

#[test]
fn a_plan_explains_itself_and_refuses_with_the_table() {
    let set = small_set();
    let plan = run(words("plan --data DIR --ram-budget 256M --size 64", set.path())).ok();
    for expected in ["12 samples in 3 classes", "headroom", "scratch", "sum", "minimum", "knee", "available"] {
        assert!(plan.out.contains(expected), "{expected}: {plan:?}");
    }
    assert!(plan.err.is_empty(), "{plan:?}");

    let json = run(words("plan --data DIR --ram-budget 256M --size 64 --workers 2 --json", set.path())).ok().json();
    let sizes = &json["plan"];
    let rows = sizes["rows"].as_array().expect("rows");
    let sum: u64 = rows.iter().map(|row| row["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(Some(sum), sizes["total_bytes"].as_u64());
    assert_eq!((&json["ram_budget_bytes"], &sizes["workers"]), (&Value::from(256 << 20), &Value::from(2)));
    let minimum = json["minimum_bytes"].as_u64().expect("a minimum");
    assert!(minimum <= sum && Some(sum) <= sizes["knee_bytes"].as_u64(), "{json}");

    // The minimum is exact: it works, and a byte less does not.
    let at = |bytes: u64, json: &str| {
        run(words(&format!("plan --data DIR --size 64 --ram-budget {bytes} {json}"), set.path()))
    };
    assert!(at(minimum, "").ok().out.contains("one worker"));
    for verb in ["plan", "bench"] {
        let refused = run(words(&format!("{verb} --data DIR --size 64 --ram-budget {}", minimum - 1), set.path()));
        assert_eq!(refused.code, Some(3), "{refused:?}");
        assert!(refused.err.contains("is too small") && refused.err.contains("\nscratch "), "{refused:?}");
    }
    let refused = at(minimum - 1, "--json");
    assert_eq!((refused.code, &refused.json()["minimum_bytes"]), (Some(3), &Value::from(minimum)));
    assert_eq!(refused.json()["fits"], Value::from(false));
}

#[test]
fn a_bench_measures_and_its_digest_depends_on_neither_workers_nor_budget() {
    let set = small_set();
    let minimum =
        run(words("plan --data DIR --size 32 --batch-size 5 --json", set.path())).ok().json()["minimum_bytes"]
            .as_u64()
            .expect("a minimum");
    let mut digests = Vec::new();
    for workers in [1, 2, 7] {
        for budget in [minimum, 1 << 30] {
            let ran = bench(set.path(), &format!("--epochs 3 --workers {workers} --ram-budget {budget} --json")).ok();
            assert!(ran.err.is_empty(), "progress is for terminals only: {ran:?}");
            let json = ran.json();
            for key in ["images", "seconds", "images_per_s", "first_batch_s", "peak_rss_bytes", "ram_budget_bytes"] {
                assert!(json[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {json}");
            }
            assert_eq!((&json["images"], &json["batches"]), (&Value::from(36), &Value::from(9)));
            assert_eq!(json["ram_budget_bytes"], Value::from(budget));
            assert!(json["workers"].as_u64().is_some_and(|n| (1..=workers).contains(&n)), "{json}");
            assert!(json["prefetch_depth"].as_u64().is_some_and(|n| n >= 1), "{json}");
            assert_eq!((&json["bad_samples"], &json["error"]), (&Value::Array(Vec::new()), &Value::Null));
            digests.push(json["digest"].as_str().expect("a digest").to_owned());
        }
    }
    assert!(digests.iter().all(|digest| digest == &digests[0] && digest.len() == 16), "{digests:?}");
    for other in ["--seed 1", "--no-shuffle", "--transform center", "--layout nhwc", "--dtype f32", "--epochs 2"] {
        let epochs = if other.contains("epochs") { "" } else { "--epochs 3" };
        let json = bench(set.path(), &format!("{epochs} {other} --ram-budget 1G --json")).ok().json();
        assert_ne!(json["digest"], digests[0].as_str(), "{other}");
    }
    let warm = bench(set.path(), "--epochs 3 --warmup-epochs 2 --ram-budget 1G --json").ok().json();
    assert_eq!((&warm["digest"], &warm["images"]), (&Value::from(&*digests[0]), &Value::from(36)));

    let sim = bench(set.path(), "--epochs 3 --device sim:step=2ms --ram-budget 1G --json").ok().json();
    assert_eq!(sim["digest"], digests[0].as_str());
    assert!(sim["compute_share"].as_f64().is_some_and(|share| share > 0.0), "{sim}");
    assert_eq!(sim["violations"], Value::Array(Vec::new()));

    let text = bench(set.path(), "--epochs 3 --ram-budget 1G").ok();
    for expected in ["36 images in 9 batches, 3 epochs", "images/s", "first batch", "workers", digests[0].as_str()] {
        assert!(text.out.contains(expected), "{expected}: {text:?}");
    }
    let short = bench(set.path(), "--batch-size 100 --ram-budget 1G --json");
    assert!(short.err.contains("cannot be used multiple times"), "{short:?}");
    let short =
        run(words("bench --data DIR --size 32 --batch-size 100 --ram-budget 1G --json", set.path())).ok().json();
    assert_eq!((&short["images"], &short["batches"]), (&Value::from(12), &Value::from(1)));
}

/// Adds one of each kind of bad file, and returns their names and the stages they fail in.
fn spoil(class: &Path) -> Vec<(&'static str, &'static str)> {
    let whole = jpeg(7, 120, 90);
    let write = |name: &str, bytes: &[u8]| fs::write(class.join(name), bytes).expect("written");
    write("empty.jpg", b"");
    write("text.png", b"<html>not found</html>");
    write("cut.jpg", &whole[..whole.len() / 2]);
    write("header.jpg", &whole[..20]);
    write("huge.jpg", &jpeg_header(65_500, 65_500));
    fifo(&class.join("pipe.jpg"));
    std::os::unix::fs::symlink("nowhere", class.join("dangling.jpg")).expect("a link");
    vec![
        ("empty.jpg", "probe"),
        ("text.png", "probe"),
        ("cut.jpg", "decode"),
        ("header.jpg", "probe"),
        ("huge.jpg", "probe"),
        ("pipe.jpg", "index"),
        ("dangling.jpg", "index"),
    ]
}

#[test]
fn every_bad_file_is_listed_with_path_stage_and_cause() {
    let set = small_set();
    let mut bad = spoil(&set.path().join("bee"));
    let locked = set.path().join("bee/locked.jpg");
    fs::write(&locked, jpeg(1, 30, 30)).expect("written");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).expect("locked");
    if fs::read(&locked).is_ok() {
        skip(&Missing::Privilege("a user from whom a file can be locked (this one may read everything)"));
    } else {
        bad.push(("locked.jpg", "read"));
    }
    let check = |json: &Value| {
        let listed = json["bad_samples"].as_array().expect("a list");
        assert_eq!(listed.len(), bad.len(), "{json}");
        for (name, stage) in &bad {
            let entry = listed.iter().find(|entry| entry["path"].as_str().is_some_and(|path| path.ends_with(name)));
            let entry = entry.unwrap_or_else(|| panic!("{name} is not in {json}"));
            assert_eq!(entry["stage"], *stage, "{entry}");
            assert!(entry["cause"].as_str().is_some_and(|cause| cause.len() > 8), "{entry}");
            assert_eq!(entry["id"].is_null(), *stage == "index", "{entry}");
        }
    };
    let mut digests = Vec::new();
    for workers in [1, 7] {
        for policy in ["substitute", "mask"] {
            let more = format!("--on-bad-sample {policy} --max-bad 1 --workers {workers} --ram-budget 1G --json");
            let json = bench(set.path(), &more).ok().json();
            check(&json);
            digests.push(json["digest"].clone());
        }
    }
    assert_eq!(digests[..2], digests[2..]);
    assert_ne!(digests[0], digests[1]);

    let text = bench(set.path(), "--max-bad 1 --ram-budget 1G").ok();
    assert!(bad.iter().all(|(name, stage)| text.out.contains(&format!("{name} ({stage}): "))), "{text:?}");

    let failed = bench(set.path(), "--on-bad-sample fail --ram-budget 1G --json");
    assert_eq!(failed.code, Some(4), "{failed:?}");
    assert!(failed.err.contains("cannot be used (") && failed.err.contains("/bee/"), "{failed:?}");
    assert!(!failed.json()["error"].is_null());
    let failed = bench(set.path(), "--ram-budget 1G");
    assert_eq!(failed.code, Some(4), "{failed:?}");
    assert!(failed.err.contains("1 are allowed"), "{failed:?}");
}

#[test]
fn a_damaged_file_that_is_accepted_is_named() {
    let set = tempdir().expect("a folder");
    class_folders(set.path(), &["a", "b"], 4, &[(60, 50)]);
    let cut = set.path().join("a/0002.jpg");
    let file = fs::read(&cut).expect("a file");
    fs::write(&cut, &file[..file.len() / 2]).expect("written");
    let accept = "--transform resize --truncated accept --quality fast --no-orient --background #ffffff";
    let report = bench(set.path(), &format!("{accept} --json")).ok().json();
    assert_eq!((&report["damage_accepted"], &report["images"]), (&1.into(), &8.into()), "{report}");
    let damaged = report["damaged_samples"].as_array().expect("a list");
    assert_eq!(damaged.len(), 1, "{report}");
    assert!(damaged[0]["path"].as_str().is_some_and(|path| path.ends_with("0002.jpg")), "{report}");
    assert!(damaged[0]["warnings"].as_u64().is_some_and(|warnings| warnings > 0), "{report}");
    assert_eq!(report["bad_samples"].as_array().map(Vec::len), Some(0), "{report}");
    let text = bench(set.path(), accept).ok();
    assert!(text.out.contains("1 file damaged, and used as far as it goes:"), "{text:?}");
    let refused = bench(set.path(), "--max-bad 1 --json").ok().json();
    assert_eq!(refused["bad_samples"].as_array().map(Vec::len), Some(1), "{refused}");
    assert_eq!(refused["damaged_samples"].as_array().map(Vec::len), Some(0), "{refused}");
}

#[test]
fn inspect_tells_of_every_kind_of_file() {
    let place = tempdir().expect("a folder");
    let root = place.path();
    fs::create_dir(root.join("deep")).expect("a folder");
    let flat = DynamicImage::ImageRgb8(image::RgbImage::from_fn(40, 24, |x, y| match x < 10 && y < 6 {
        true => image::Rgb([200, 100, 50]),
        false => image::Rgb([10, 20, 30]),
    }));
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("b.bmp", ImageFormat::Bmp),
        ("c.TIFF", ImageFormat::Tiff),
        ("d.webp", ImageFormat::WebP),
        ("deep/e.png", ImageFormat::Png),
    ] {
        fs::write(root.join(name), encoded(&flat, format)).expect("written");
    }
    fs::write(root.join("f.jpg"), jpeg(3, 50, 30)).expect("written");
    fs::write(root.join("g.gif"), encoded(&DynamicImage::ImageRgba8(picture(1, 20, 10).to_rgba8()), ImageFormat::Gif))
        .expect("written");
    fs::write(root.join("h16.png"), encoded(&DynamicImage::ImageRgb16(flat.to_rgb16()), ImageFormat::Png))
        .expect("written");
    fs::write(root.join("i_gray.png"), encoded(&DynamicImage::ImageLuma8(flat.to_luma8()), ImageFormat::Png))
        .expect("written");
    fs::write(root.join("notes.txt"), "no image").expect("written");
    let good = run(words("inspect DIR --json", root)).ok();
    assert!(good.err.is_empty(), "{good:?}");
    let lines: Vec<Value> = good.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let names: Vec<&str> =
        lines.iter().filter_map(|line| line["path"].as_str()?.strip_prefix(root.to_str()?)).collect();
    let expected =
        ["/a.png", "/b.bmp", "/c.TIFF", "/d.webp", "/deep/e.png", "/f.jpg", "/g.gif", "/h16.png", "/i_gray.png"];
    assert_eq!(names, expected);
    for line in &lines {
        assert_eq!(
            (&line["status"], &line["error"], &line["orientation"]),
            (&"ok".into(), &Value::Null, &1.into()),
            "{line}"
        );
    }
    for (line, format) in lines.iter().zip(["png", "bmp", "tiff", "webp", "png"]) {
        assert_eq!(
            (&line["format"], &line["width"], &line["height"]),
            (&format.into(), &40.into(), &24.into()),
            "{line}"
        );
        // The bright corner is a quarter by a quarter: a sixteenth of the picture.
        assert_eq!(line["corner_mean_rgb"], serde_json::json!([200.0, 100.0, 50.0]), "{line}");
        let mean: Vec<f64> = line["mean_rgb"].as_array().expect("means").iter().filter_map(Value::as_f64).collect();
        let close = |(at, of): (&f64, f64)| (at - of).abs() < 1e-9;
        assert!(mean.iter().zip([21.875, 25.0, 31.25]).all(close), "{line}");
    }

    let bad = spoil(&root.join("deep"));
    let mixed = run(words("inspect DIR --json", root));
    assert_eq!(mixed.code, Some(4), "{mixed:?}");
    for (name, stage) in bad {
        let line = mixed.out.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {mixed:?}"));
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["status"], "error", "{line}");
        assert_eq!(line["stage"], if stage == "index" { "read" } else { stage }, "{line}");
        assert!(line["mean_rgb"].is_null() && line["error"].as_str().is_some_and(|error| error.len() > 8), "{line}");
    }
    let text = run(words("inspect DIR", root));
    assert!(text.out.contains("16 files: 9 ok, 2 not read, 4 no usable header, 1 not decoded"), "{text:?}");
    assert!(text.out.contains("65500x65500"), "{text:?}");

    let named = run([Path::new("inspect"), &root.join("notes.txt"), &root.join("missing"), &root.join("a.png")]);
    assert_eq!(named.code, Some(4), "{named:?}");
    assert!(named.out.contains("3 files: 1 ok") && named.out.contains("unknown image format"), "{named:?}");
    let nothing = tempdir().expect("a folder");
    assert_eq!(run(words("inspect DIR", nothing.path())).code, Some(4));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let set = small_set();
    for args in ["inspect DIR --json", "plan --data DIR", "bench --data DIR --size 32 --json"] {
        let mut child = feedstock(words(args, set.path())).spawn().expect("started");
        drop(child.stdout.take());
        let ended = said(finish(child));
        assert_eq!(ended.code, Some(0), "{args}: {ended:?}");
    }
}

#[test]
fn ctrl_c_ends_a_bench_with_a_summary() {
    let set = small_set();
    // With `auto`, it says how much that is, once it listens and is about to begin.
    let args = words("bench --data DIR --size 32 --epochs 4000000000", set.path());
    let mut child = feedstock(args).spawn().expect("started");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut note = String::new();
    stderr.read_line(&mut note).expect("read");
    let since = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("sent");
    let ended = said(finish(child));
    // Asked only now: a test that fails must not leave a program behind that runs for ever.
    assert!(note.starts_with("note: RAM budget auto"), "{note}");
    let took = since.elapsed();
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(ended.out.contains("images/s") && ended.out.contains("ended early   interrupted"), "{ended:?}");
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("read");
    assert!(rest.contains("interrupted: "), "{rest}");
}

#[test]
fn training_learns_validates_and_goes_on_from_its_checkpoint() {
    let place = tempdir().expect("a folder");
    for split in ["train", "val"] {
        class_folders(&place.path().join(split), &["ant", "bee"], 8, &[(24, 24)]);
    }
    let run1 = place.path().join("run1");
    let train = |more: &str| {
        let args = format!("train --data DIR --size 16 --batch-size 4 --ram-budget 512M {more} --checkpoint-dir");
        run(words(&args, place.path()).into_iter().map(Into::into).chain([run1.clone().into_os_string()]))
    };
    let first = train("--epochs 2").ok();
    for expected in
        ["16 images in 2 classes", "epoch 1 of 2: loss", "epoch 2 of 2", "val accuracy", "best", "last.ckpt"]
    {
        assert!(first.out.contains(expected), "{expected}: {first:?}");
    }
    assert!(first.err.is_empty(), "{first:?}");
    let again = train("--epochs 2");
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.err.contains("--resume"), "{again:?}");

    let more = train("--epochs 3 --resume --json").ok();
    let lines: Vec<Value> = more.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{more:?}");
    assert_eq!((&lines[0]["event"], &lines[0]["epoch"]), (&"epoch".into(), &2.into()));
    assert_eq!((&lines[1]["event"], &lines[1]["images"]), (&"end".into(), &16.into()));
    assert!(lines[1]["best_val_accuracy"].is_f64() && lines[1]["ended_early"].is_null(), "{more:?}");

    fs::rename(place.path().join("val/bee"), place.path().join("val/wasp")).expect("renamed");
    let refused = train("--resume");
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("'wasp'"), "{refused:?}");
}

#[test]
fn with_no_data_it_draws_some_and_keeps_it() {
    let cache = tempdir().expect("a folder");
    let train = || {
        let mut command = feedstock(["train", "--epochs", "1", "--time-limit", "0s", "--ram-budget", "1G"]);
        said(finish(command.env("XDG_CACHE_HOME", cache.path()).stdout(Stdio::piped()).spawn().expect("started"))).ok()
    };
    let first = train();
    assert!(first.err.contains("no data given: made 2400 drawn images in "), "{first:?}");
    assert!(first.out.contains("the time limit was reached"), "{first:?}");
    let again = train();
    assert!(again.err.contains("no data given: using 2400 drawn images in "), "{again:?}");
    assert_eq!(fs::read_dir(cache.path().join("feedstock")).expect("listed").count(), 1);
}
