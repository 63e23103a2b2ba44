//! Peak resident memory of the whole program, measured from outside: at most `--ram-budget`, over every container.
#![cfg(all(feature = "cli", target_os = "linux"))]
#![allow(clippy::print_stdout, reason = "a test prints its measurements")]

mod common;
#[cfg(feature = "store")]
#[path = "common/nginx.rs"]
mod nginx;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::skip::{self, Missing};
use common::{class_folders, feedstock, finish, imagenet_sample, said, words};

const MIB: u64 = 1 << 20;

/// Peak resident bytes of a process; `None` once it has ended.
fn peak_rss(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Runs the loader alone and returns its peak (the higher of the one measured from outside and the one reported) and
/// the sum of its plan.
fn measure(folder: &Path, budget_mib: u64, more: &str) -> (u64, u64) {
    measure_program(feedstock([""; 0]), folder, budget_mib, more)
}

fn measure_program(mut program: Command, folder: &Path, budget_mib: u64, more: &str) -> (u64, u64) {
    let args = format!("bench --data DIR --ram-budget {budget_mib}M --batch-size 64 --size 224 {more} --json");
    let child = program.args(words(&args, folder)).spawn().expect("started");
    let pid = child.id();
    let watch = thread::spawn(move || {
        let mut peak = 0;
        while let Some(now) = peak_rss(pid) {
            peak = peak.max(now);
            thread::sleep(Duration::from_millis(2));
        }
        peak
    });
    let ran = said(finish(child)).ok();
    let seen = watch.join().expect("watched");
    let [told, planned] = ["peak_rss_bytes", "planned_bytes"].map(|key| ran.json()[key].as_u64().expect("a number"));
    assert!(seen > 0 && told >= seen.saturating_sub(MIB), "seen {seen}, told {told}");
    let [peak, plan] = [seen.max(told), planned].map(|bytes| bytes as f64 / MIB as f64);
    println!("budget {budget_mib} MiB, {more}: peak {peak:.1} MiB, planned {plan:.1} MiB");
    (seen.max(told), planned)
}

fn check(folder: &Path, more: &str) {
    // Several epochs, and a budget near the minimum: only then does an allocator show that keeps memory of large
    // images.
    for budget_mib in [48, 64, 256, 1024] {
        for layout in ["nchw", "nhwc"] {
            let (peak, planned) = measure(folder, budget_mib, &format!("--layout {layout} {more}"));
            assert!(peak <= budget_mib * MIB, "{peak} bytes were resident, the budget was {budget_mib} MiB");
            // The byte table is complete: at an ample budget only this would show an omission.
            assert!(peak <= planned, "{peak} bytes were resident, the plan expected {planned}");
        }
    }
}

#[test]
fn generated_images_fit_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    // A few are larger, so that the plan has to provide for them.
    class_folders(folder.path(), &["ant", "bee", "cat", "dog"], 40, &[(500, 375), (375, 500), (500, 375), (1000, 750)]);
    check(folder.path(), "--epochs 6 --workers 2");
    let (peak, _) = measure(folder.path(), 256, "--dtype f32 --workers 4");
    assert!(peak <= 256 * MIB, "{peak}");
    let (peak, _) = measure(folder.path(), 256, "--device sim:step=1ms --workers 4");
    assert!(peak <= 256 * MIB, "{peak}");
}

#[test]
fn imagenet_images_fit_the_budget() {
    match imagenet_sample() {
        Some(folder) => check(&folder, "--epochs 3"),
        None => skip::skip(&Missing::Data("the sample of ImageNet beside the repository")),
    }
}

/// The page cache holds a copied program in larger folios than a linked one, so more of it is resident.
#[test]
fn a_copy_of_the_program_fits_the_budget() {
    let place = tempfile::tempdir().expect("a folder");
    class_folders(place.path(), &["ant", "bee"], 80, &[(500, 375), (1000, 750)]);
    let copy = place.path().join("copy");
    fs::copy(env!("CARGO_BIN_EXE_feedstock"), &copy).expect("copied");
    let mut program = Command::new(&copy);
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (peak, planned) = measure_program(program, place.path(), 64, "--epochs 4 --workers 2");
    assert!(peak <= planned, "{peak} bytes were resident, the plan expected {planned}");
}

/// A tar of a folder of class folders.
fn tar_of(folder: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", folder).expect("a tar");
    builder.into_inner().expect("a tar")
}

/// The same images in every container.
#[test]
fn every_container_fits_the_budget() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("files");
    class_folders(&folder, &["ant", "bee", "cat", "dog"], 40, &[(500, 375), (375, 500), (500, 375), (1000, 750)]);
    let tar = tar_of(&folder);
    let in_frames: Vec<u8> =
        tar.chunks(1 << 20).flat_map(|part| zstd::bulk::compress(part, 1).expect("compressed")).collect();
    let in_one_piece = zstd::stream::encode_all(&tar[..], 1).expect("compressed");
    for (name, bytes) in [("plain.tar", tar), ("frames.tar.zst", in_frames), ("piece.tar.zst", in_one_piece)] {
        let path = place.path().join(name);
        fs::write(&path, bytes).expect("written");
        check_container(&path, &[64, 256], "");
    }
}

fn check_container(path: &Path, budgets_mib: &[u64], more: &str) {
    for &budget_mib in budgets_mib {
        let (peak, planned) = measure(path, budget_mib, &format!("--epochs 4 --workers 2 --shuffle-buffer 4M {more}"));
        let name = path.display();
        assert!(peak <= budget_mib * MIB, "{name}: {peak} bytes were resident, the budget was {budget_mib} MiB");
        assert!(peak <= planned, "{name}: {peak} bytes were resident, the plan expected {planned}");
    }
}

/// Row groups of 50 images with one page each, as the hub has them.
#[test]
#[cfg(feature = "parquet")]
fn parquet_fits_the_budget() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};

    let place = tempfile::tempdir().expect("a folder");
    class_folders(place.path(), &["ant"], 200, &[(500, 375), (375, 500), (500, 375), (1000, 750)]);
    let path = place.path().join("train.parquet");
    let schema = "message m { optional group image { optional binary bytes; } required int64 label; }";
    let schema = parquet::schema::parser::parse_message_type(schema).expect("a schema");
    let file = fs::File::create(&path).expect("created");
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(file, schema.into(), Default::default()).expect("begun");
    for first in (0..200).step_by(50) {
        let image = |number: i64| fs::read(place.path().join(format!("ant/{number:04}.jpg"))).expect("read");
        let images: Vec<ByteArray> = (first..first + 50).map(|number| image(number).into()).collect();
        let labels: Vec<i64> = (first..first + 50).map(|number| number % 3).collect();
        let mut group = writer.next_row_group().expect("begun");
        let mut column = group.next_column().expect("there").expect("there");
        column.typed::<ByteArrayType>().write_batch(&images, Some(&[2; 50]), None).expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("there").expect("there");
        column.typed::<Int64Type>().write_batch(&labels, None, None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
    }
    writer.close().expect("closed");
    check_container(&path, &[64, 256], "");
}

/// Requests are planned for the worst case; a web server on the same machine is far from it.
#[test]
#[cfg(feature = "store")]
fn a_store_fits_the_budget() {
    let (place, scratch) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let folder = place.path().join("files");
    class_folders(&folder, &["ant", "bee", "cat", "dog"], 40, &[(500, 375), (375, 500), (500, 375), (1000, 750)]);
    let tar = tar_of(&folder);
    fs::write(place.path().join("piece.tar.zst"), zstd::stream::encode_all(&tar[..], 1).expect("compressed"))
        .expect("written");
    fs::write(place.path().join("plain.tar"), tar).expect("written");
    let Some(server) = nginx::Nginx::start(place.path(), scratch.path()) else { return };
    for name in ["plain.tar", "piece.tar.zst"] {
        let url = format!("http://{}/{name}", server.address);
        check_container(Path::new(&url), &[128, 256], "");
        let cache = scratch.path().join(format!("cache-{name}"));
        check_container(Path::new(&url), &[256], &format!("--store-cache {}", cache.display()));
    }
}
