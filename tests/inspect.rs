//! `feedstock inspect` as its users meet it: the summary of a made data set in numbers, headers against pictures, the
//! contact sheet against the loader, budgets that are too small, and an early end.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use common::{class_folders, encoded, feedstock, finish, jpeg, picture, run, said, words};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ImageFolder, Layout, Loader};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode").join(name)).expect("a fixture")
}

fn png(picture: &DynamicImage) -> Vec<u8> {
    encoded(picture, ImageFormat::Png)
}

/// Two parts, three classes, one of each kind of file; three of them bad.
fn mixed_set() -> TempDir {
    let set = tempdir().expect("a folder");
    for class in ["train/ant", "train/bee", "val/ant"] {
        fs::create_dir_all(set.path().join(class)).expect("a folder");
    }
    let write = |name: &str, bytes: &[u8]| fs::write(set.path().join(name), bytes).expect("written");
    let base = jpeg(1, 80, 60);
    let gray = encoded(&DynamicImage::ImageLuma8(picture(2, 64, 64).to_luma8()), ImageFormat::Jpeg);
    write("train/ant/base.jpg", &base);
    write("train/ant/gray.jpg", &gray);
    write("train/ant/alpha.png", &png(&DynamicImage::ImageRgba8(picture(3, 40, 30).to_rgba8())));
    write("train/ant/dot.png", &png(&picture(4, 1, 1)));
    write("train/bee/progressive.jpg", &fixture("progressive.jpg"));
    write("train/bee/turned.jpg", &fixture("orientation6.jpg"));
    write("train/bee/wide.png", &png(&picture(5, 2000, 8)));
    write("train/bee/base_again.jpg", &base);
    write("val/ant/gray_again.jpg", &gray);
    let cut = jpeg(6, 120, 90);
    write("train/bee/cut.jpg", &cut[..cut.len() / 2]);
    write("train/bee/empty.jpg", b"");
    write("train/bee/page.png", b"<html>not found</html>");
    set
}

fn summary(folder: &Path, more: &str) -> Value {
    let said = run(words(&format!("inspect DIR --json --summary {more}"), folder));
    assert!(said.code == Some(0) || said.code == Some(4), "{said:?}");
    said.json()
}

#[test]
fn a_summary_counts_every_kind_and_names_what_sticks_out() {
    let set = mixed_set();
    let told = summary(set.path(), "");
    assert_eq!((&told["files"], &told["ok"], &told["bad"]), (&12.into(), &9.into(), &3.into()), "{told}");
    let bytes: u64 = ["train/ant", "train/bee", "val/ant"]
        .iter()
        .flat_map(|class| fs::read_dir(set.path().join(class)).expect("listed"))
        .map(|entry| entry.expect("an entry").metadata().expect("known").len())
        .sum();
    assert_eq!((&told["bytes"], &told["quick"]), (&bytes.into(), &false.into()));
    assert_eq!(told["formats"], json!({ "jpeg": 7, "png": 3 }));
    assert_eq!(told["colors"], json!({ "rgb": 7, "gray": 2, "rgb+alpha": 1 }));
    assert_eq!((&told["progressive"], &told["orientations"]["6"]), (&1.into(), &1.into()));
    let classes = &told["classes"];
    assert_eq!((&classes[0]["part"], &classes[1]["part"]), (&"train".into(), &"val".into()));
    assert_eq!(
        (&classes[0]["classes"], &classes[0]["smallest"]["class"], &classes[0]["largest"]),
        (&2.into(), &"ant".into(), &json!({ "class": "bee", "files": 7 }))
    );
    assert_eq!(classes[0]["imbalance"], 7.0 / 4.0);

    let spread = &told["spread"];
    assert_eq!((&spread["width"]["least"], &spread["width"]["greatest"]), (&1.0.into(), &2000.0.into()));
    assert_eq!(spread["aspect_ratio"]["greatest"], 250.0);
    for (key, counted) in [("encoded_bytes", 12), ("width", 10), ("short_side", 10), ("aspect_ratio", 10)] {
        let buckets = spread[key]["buckets"].as_array().expect("buckets");
        assert_eq!(buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum::<u64>(), counted, "{key}");
    }
    let outliers = &told["outliers"];
    for (key, name) in [("most_pixels", "wide.png"), ("fewest_pixels", "dot.png"), ("most_drawn_out", "wide.png")] {
        assert!(outliers[key][0]["path"].as_str().is_some_and(|path| path.ends_with(name)), "{key}: {outliers}");
    }
    let duplicates = &told["duplicates"];
    assert_eq!((&duplicates["files_hashed"], &duplicates["groups"]), (&9.into(), &2.into()), "{duplicates}");
    assert_eq!((&duplicates["groups_across_parts"], &duplicates["groups_across_classes"]), (&1.into(), &1.into()));
    let named = |at: usize| duplicates["named"][at]["paths"].as_array().expect("paths").clone();
    let ends = |path: &Value, end: &str| path.as_str().is_some_and(|path| path.ends_with(end));
    assert!(ends(&named(0)[0], "train/ant/gray.jpg") && ends(&named(0)[1], "val/ant/gray_again.jpg"), "{duplicates}");
    assert!(ends(&named(1)[0], "train/ant/base.jpg") && ends(&named(1)[1], "train/bee/base_again.jpg"), "{duplicates}");
    assert_eq!(
        told["bad_reasons"],
        json!([
            { "stage": "decode", "code": "truncated", "files": 1 },
            { "stage": "probe", "code": "empty", "files": 1 },
            { "stage": "probe", "code": "unknown_format", "files": 1 },
        ])
    );
    assert!(ends(&told["bad_files"][0]["path"], "train/bee/cut.jpg"), "{told}");
}

#[test]
fn people_get_the_bad_files_and_a_summary_or_every_file() {
    let set = mixed_set();
    let text = run(words("inspect DIR", set.path()));
    assert_eq!(text.code, Some(4), "{text:?}");
    assert!(text.err.contains("3 files cannot be used") && !text.err.contains("files/s"), "{text:?}");
    for expected in [
        "cut.jpg (decode): jpeg: truncated file: it ends after",
        "empty.jpg (probe): the file is empty",
        "12 files: 9 ok, 2 no usable header, 1 not decoded\n",
        "jpeg 7 (70.0 %), png 3 (30.0 %)",
        "rgb 7 (70.0 %), gray 2 (20.0 %), rgb+alpha 1 (10.0 %)",
        "1 (14.3 %) of the JPEG files",
        "1 (10.0 %): 1 with 6",
        "2 classes, from 4 files (ant) to 7 (bee): 1 to 1.8\n",
        "2 files too many, in 2 groups of equal content; 1 group across parts of the data, which leaks",
        "  2 files, across classes\n",
        "bad files\n  1 truncated (decode)\n",
        "short side\n",
        "most drawn out\n",
        "█",
    ] {
        assert!(text.out.contains(expected), "{expected}: {text:?}");
    }
    assert_eq!(text.out.lines().filter(|line| line.starts_with("error ") || line.starts_with("ok ")).count(), 3);
    let every = run(words("inspect DIR --files", set.path()));
    assert_eq!(every.out.lines().filter(|line| line.starts_with("error ") || line.starts_with("ok ")).count(), 12);
    let json = run(words("inspect DIR --json", set.path()));
    let lines: Vec<Value> = json.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 12, "{json:?}");
    let hash = |name: &str| lines.iter().find(|line| line["path"].as_str().is_some_and(|path| path.ends_with(name)));
    let (one, other) = (hash("ant/base.jpg").expect("a line"), hash("base_again.jpg").expect("a line"));
    assert!(one["xxh3_128"].as_str().is_some_and(|hash| hash.len() == 32) && one["xxh3_128"] == other["xxh3_128"]);
    for refused in ["inspect DIR --summary", "inspect DIR --json --files", "inspect DIR --seed 3"] {
        assert_eq!(run(words(refused, set.path())).code, Some(2), "{refused}");
    }
}

#[test]
fn a_quick_look_tells_of_headers_as_a_full_one_does_and_of_nothing_behind_them() {
    let set = mixed_set();
    // A header that is not within the first part of the file, and an orientation that stands behind the picture.
    let mut late = vec![0xFF, 0xD8];
    for _ in 0..3 {
        late.extend([0xFF, 0xE2, 0xFF, 0xFF]);
        late.extend(vec![0; 0xFFFF - 2]);
    }
    late.extend(&jpeg(9, 50, 70)[2..]);
    fs::write(set.path().join("val/ant/late.jpg"), late).expect("written");
    fs::write(set.path().join("val/ant/turned.webp"), fixture("orientation3.webp")).expect("written");
    fs::write(set.path().join("val/ant/large.png"), png(&picture(11, 300, 300))).expect("written");
    let (full, quick) = (summary(set.path(), ""), summary(set.path(), "--quick"));
    for key in ["files", "bytes", "formats", "colors", "progressive", "orientations", "classes", "spread", "outliers"] {
        assert_eq!(full[key], quick[key], "{key}");
    }
    assert_eq!((&full["bad"], &quick["bad"]), (&3.into(), &2.into()));
    assert_eq!((&quick["quick"], &quick["duplicates"]), (&true.into(), &Value::Null));
    let text = run(words("inspect DIR --quick", set.path()));
    assert_eq!(text.code, Some(4), "{text:?}");
    assert!(!text.out.contains("cut.jpg (") && text.out.contains("empty.jpg (probe)"), "{text:?}");
    assert!(text.out.contains("headers only: neither damage in the image data nor duplicates"), "{text:?}");

    let facts = |more: &str| -> BTreeMap<String, Value> {
        let said = run(words(&format!("inspect DIR --json {more}"), set.path()));
        let lines = said.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let keys = ["bytes", "format", "width", "height", "orientation", "color", "progressive"];
        lines.map(|line| (line["path"].to_string(), keys.map(|key| line[key].clone()).into_iter().collect())).collect()
    };
    assert_eq!(facts(""), facts("--quick"));
}

#[test]
fn colour_and_passes_are_what_the_header_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let said = run(words("inspect DIR --quick --json", &folder)).ok();
    let mut checked = 0;
    for line in said.out.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let path = line["path"].as_str().expect("a path");
        let name = path.rsplit('/').next().expect("a name");
        let expected = match name {
            "bilevel.bmp" => "palette",
            _ if name.starts_with("gray_alpha") => "gray+alpha",
            _ if ["gray", "bilevel", "progressive_gray"].iter().any(|kind| name.starts_with(kind)) => "gray",
            _ if name.ends_with("gif") || name.starts_with("palette") => "palette",
            _ if ["rgba", "rgb_transparent", "lossy_alpha", "lossless_alpha"]
                .iter()
                .any(|kind| name.starts_with(kind)) =>
            {
                "rgb+alpha"
            }
            "plain.pbm" | "plain.pgm" => "gray",
            _ if name.starts_with("rgb") || ["420.jpg", "lossy.webp", "plain.ppm"].contains(&name) => "rgb",
            "cmyk.jpg" | "ycck.jpg" | "cmyk.tif" => "cmyk",
            _ => continue,
        };
        assert_eq!(line["color"], expected, "{line}");
        assert_eq!(line["progressive"], name.starts_with("progressive"), "{line}");
        checked += 1;
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn the_sheet_is_the_loaders_batch() {
    let set = tempdir().expect("a folder");
    class_folders(set.path(), &["ant", "bee", "cat"], 4, &[(80, 60), (64, 64), (40, 90)]);
    fs::write(set.path().join("bee/empty.jpg"), b"").expect("written");
    let out = tempdir().expect("a folder");
    let sheet = out.path().join("sheet.png");
    let draw = |more: &str| {
        let args = format!("inspect DIR {more} --sheet {}", sheet.display());
        run(words(&args, set.path()))
    };
    for (count, columns, rows, seed) in [(7, 3, 3, 5), (64, 4, 4, 0)] {
        let said = draw(&format!("--size 24 --sheet-count {count} --seed {seed} --ram-budget 256M"));
        assert_eq!(said.code, Some(4), "{said:?}");
        assert!(said.out.contains("sheet of ") && said.out.contains("sheet.png"), "{said:?}");
        let drawn = image::open(&sheet).expect("a picture").to_rgb8();
        let loader = Loader::builder(ImageFolder::open(set.path()).expect("opened"))
            .batch_size(count)
            .transform(RandomResizedCrop::new(24).flip(0.5))
            .layout(Layout::Nhwc)
            .seed(seed)
            .max_bad_fraction(1.0)
            .ram_budget(1 << 30)
            .build()
            .expect("built");
        let batch = loader.epoch(0).next().expect("a batch").expect("good");
        assert_eq!(batch.len(), count.min(13));
        assert_eq!(drawn.dimensions(), (columns * 28 + 4, rows * 28 + 4));
        for (at, tile) in batch.bytes().expect("in memory").chunks_exact(24 * 24 * 3).enumerate() {
            let (x, y) = (at as u32 % columns * 28 + 4, at as u32 / columns * 28 + 4);
            let shown = image::imageops::crop_imm(&drawn, x, y, 24, 24).to_image();
            assert!(shown.as_raw() == tile, "picture {at} of {count}");
        }
    }
    assert_eq!(fs::read_dir(out.path()).expect("listed").count(), 1, "nothing is left beside it");
    let json = draw("--size 24 --json --ram-budget 256M");
    assert_eq!(json.out.lines().count(), 13, "{json:?}");

    // Too small a budget is told with a table in which the sheet has its row, and before anything was written.
    fs::remove_file(&sheet).expect("removed");
    let refused = draw("--ram-budget 8M");
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.err.contains("is too small") && refused.err.contains("\nsheet "), "{refused:?}");
    assert!(refused.out.is_empty() && !sheet.exists(), "{refused:?}");
    let two = run(words("inspect DIR DIR --sheet x.png", set.path()));
    assert_eq!((two.code, two.err.contains("2 paths were given")), (Some(2), true), "{two:?}");
    let flat = run(words("inspect DIR --sheet x.png", &set.path().join("ant")));
    assert_eq!((flat.code, flat.err.contains("no class folders")), (Some(4), true), "{flat:?}");
    let nowhere = run(words("inspect DIR --size 24 --sheet /nowhere/x.png", set.path()));
    assert_eq!((nowhere.code, nowhere.err.contains("cannot write /nowhere/x.png")), (Some(5), true), "{nowhere:?}");
}

#[test]
fn budgets_that_are_too_small_are_refused_or_told_of() {
    let set = tempdir().expect("a folder");
    // Decoded whole, unlike JPEG and PNG.
    let plain = encoded(&DynamicImage::new_rgb8(1200, 1000), ImageFormat::WebP);
    fs::write(set.path().join("large.webp"), plain).expect("written");
    let refused = run(words("inspect DIR --ram-budget 1M", set.path()));
    assert_eq!((refused.code, refused.out.as_str()), (Some(3), ""), "{refused:?}");
    assert!(
        refused.err.contains("the minimum is 4.00 MiB") && refused.err.contains("raise --ram-budget"),
        "{refused:?}"
    );
    let told = run(words("inspect DIR --ram-budget 4M", set.path()));
    assert_eq!(told.code, Some(4), "{told:?}");
    assert!(told.out.contains("(decode): 'images' needs") && told.out.contains("1 over_budget"), "{told:?}");
    assert_eq!(run(words("inspect DIR --ram-budget 4M --quick", set.path())).code, Some(0));
    run(words("inspect DIR --ram-budget 64M", set.path())).ok();
}

#[test]
fn ctrl_c_ends_it_with_the_summary_so_far() {
    let set = tempdir().expect("a folder");
    class_folders(set.path(), &["ant", "bee"], 4, &[(300, 200)]);
    // The same folder over and over is a set without end.
    let args = std::iter::repeat_n(set.path().as_os_str(), 20_000);
    let mut child =
        feedstock(["inspect", "--files"].map(AsRef::as_ref).into_iter().chain(args)).spawn().expect("started");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut first = String::new();
    stdout.read_line(&mut first).expect("read");
    kill_process(Pid::from_child(&child), Signal::INT).expect("sent");
    let since = Instant::now();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("read");
    let ended = said(finish(child));
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert!(first.starts_with("ok "), "{first}");
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.err.contains("interrupted: "), "{ended:?}");
    assert!(rest.contains(" ok\n\nsize ") && rest.contains("ended early") && rest.contains("duplicates"), "{rest}");
}
