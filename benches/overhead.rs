//! Cost of observation: `feedstock bench` compared with the bare loop over an equal loader, and with itself with a
//! timeline. Each run is a process of its own; the three take turns, and the ratios within a turn count.
//!
//! `cargo bench --bench overhead` with FEEDSTOCK_IMAGENET and FEEDSTOCK_CIFAR as for `--bench loader`. It prints the
//! rows of the table in `docs/BENCHMARKS.md`.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, ImageFolder, Layout, Loader};

const ROUNDS: usize = 15;
const WORKERS: usize = 2;
const EPOCHS: u64 = 4;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    if let (Some("bare"), Some(folder), Some(size)) = (args.next().as_deref(), args.next(), args.next()) {
        println!("{}", bare(Path::new(&folder), size.parse()?)?);
        return Ok(());
    }
    println!("| data | bare loop, images/s | `bench` of that | `bench --trace` of `bench` |\n|---|---|---|---|");
    let folder = |variable: &str, below: &str| env::var_os(variable).map(|root| PathBuf::from(root).join(below));
    let cases = [
        ("ImageNet sample, 224", folder("FEEDSTOCK_IMAGENET", ""), "224"),
        ("CIFAR-10, 32", folder("FEEDSTOCK_CIFAR", "train"), "32"),
    ];
    for (name, folder, size) in cases {
        let Some(folder) = folder else {
            println!("| {name} | skipped: no data | | |");
            continue;
        };
        let (mut rates, mut benched, mut traced) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let mut turn = [0.0; 3];
            for n in 0..3 {
                let which = (n + round) % 3;
                turn[which] = match which {
                    0 => run(Command::new(env::current_exe()?).arg("bare").arg(&folder).arg(size))?.trim().parse()?,
                    _ => program(&folder, size, which == 2)?,
                };
            }
            // The first round warms the page cache.
            if round > 0 {
                rates.push(turn[0]);
                benched.push(turn[1] / turn[0]);
                traced.push(turn[2] / turn[1]);
            }
        }
        println!("| {name} | {:.0} | {} | {} |", median(&mut rates), spread(&mut benched), spread(&mut traced));
    }
    Ok(())
}

/// The bare loop of a trainer. Returns images per second.
fn bare(folder: &Path, size: u32) -> Result<f64> {
    let loader = Loader::builder(ImageFolder::open(folder)?)
        .batch_size(64)
        .ram_budget(ByteCount(512 << 20))
        .transform(RandomResizedCrop::new(size).flip(0.5))
        .layout(Layout::Nhwc)
        .max_workers(WORKERS)
        .build()?;
    let (mut images, mut began) = (0, Instant::now());
    // The same epochs as the program's: the warm-up epoch has the number after the others.
    for epoch in [EPOCHS].into_iter().chain(0..EPOCHS) {
        if epoch == 0 {
            (images, began) = (0, Instant::now());
        }
        for batch in loader.epoch(epoch) {
            images += batch?.len();
        }
    }
    Ok(images as f64 / began.elapsed().as_secs_f64())
}

fn program(folder: &Path, size: &str, trace: bool) -> Result<f64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedstock"));
    command.args(["bench", "--json", "--no-digest", "--warmup-epochs", "1", "--layout", "nhwc", "--device", "cpu"]);
    command.args(["--ram-budget", "512MiB", "--size", size, "--data"]).arg(folder);
    command.args(["--workers", &WORKERS.to_string(), "--epochs", &EPOCHS.to_string()]);
    let timeline = env::temp_dir().join(format!("feedstock-overhead-{}.json", std::process::id()));
    if trace {
        command.arg("--trace").arg(&timeline);
    }
    let report: serde_json::Value = serde_json::from_str(&run(&mut command)?)?;
    if trace {
        std::fs::remove_file(timeline)?;
    }
    report["images_per_s"].as_f64().ok_or_else(|| "the report has no images_per_s".into())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of ratios and their middle half.
fn spread(ratios: &mut [f64]) -> String {
    let middle = median(ratios);
    let quarter = ratios.len() / 4;
    format!("{middle:.3} ({:.3} to {:.3})", ratios[quarter], ratios[ratios.len() - 1 - quarter])
}
