//! `feedstock prove`: the same work at one budget after another, each in a process of its own whose memory is watched
//! from outside. A budget that was not kept fails the command.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use clap::Args;

use feedstock::device::DeviceSpec;
use feedstock::{ByteCount, CpuBudget, RamBudget, Source};

use super::child::Watched;
use super::data::{self, BatchArgs, DecodeArgs, LoaderArgs, SourceArgs};
use super::failure::Failure;
use super::progress::Progress;
use super::stop::Stop;
use super::{Context, format, lock};

mod budgets;
mod figure;
mod proof;

use proof::{Point, Proof, Request};

const MORE: &str = "\
Runs `feedstock bench` at each budget, one after the other, and watches the peak resident memory of that process from \
outside. Draws peak, plan and throughput against the budget in one SVG file (after every run) and prints the numbers. \
Exits with code 1 if a process exceeds its budget or if batches differ between budgets. Without --budgets: 32 budgets \
at equal ratios, from the minimum to four times the knee or 1G, whichever is larger.

Example:
  feedstock prove --data images/train --out budget.svg --budgets 48M,64M,128M,1G --workers 2";

/// Measure the peak memory at many budgets and draw it
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct ProveArgs {
    #[command(flatten)]
    batch: BatchArgs,
    /// SVG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Budgets to run at, such as 48M,64M,1G
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    budgets: Vec<ByteCount>,
    /// Maximum number of decoding threads [default: by cores]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Number of epochs of each run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    epochs: u64,
    /// Maximum share of bad samples, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    max_bad: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ProveArgs, context: &Context) -> Result<(), Failure> {
    let folder = args.loader(RamBudget::Auto).open()?;
    let (budgets, proof) = args.prepare(&folder)?;
    if !args.json {
        data::tell_notes(folder.notes());
    }
    let program = env::current_exe().map_err(|error| Failure::Io(format!("cannot find this program: {error}")))?;
    let proof = Arc::new(Mutex::new(proof));
    let render = {
        let (proof, json, out) = (proof.clone(), args.json, args.out.to_string_lossy().into_owned());
        move |error: Option<&str>| {
            let proof = lock(&proof);
            if json { format::json(&proof.report(&out, error)) } else { proof.text(&out, error) }
        }
    };
    context.stop.report(render, || {
        args.run_all(&program, &budgets, &proof, &context.stop)?;
        let breaches = lock(&proof).breaches();
        if breaches.is_empty() { Ok(()) } else { Err(Failure::Broken(breaches.join("\n"))) }
    })
}

impl ProveArgs {
    fn loader(&self, ram_budget: RamBudget) -> LoaderArgs {
        LoaderArgs {
            batch: self.batch.clone(),
            ram_budget: vec![ram_budget],
            workers: self.workers.into_iter().collect(),
            // As `bench` runs: no training needs cores.
            cpu_budget: Some(CpuBudget::Fraction(1.0)),
            no_governor: false,
            prefetch: None,
            device: DeviceSpec::Cpu,
            source: SourceArgs::default(),
            decode: DecodeArgs::default(),
        }
    }

    /// The budgets to run at in ascending order, and a proof without points.
    fn prepare(&self, folder: &Arc<dyn Source>) -> Result<(Vec<ByteCount>, Proof), Failure> {
        let plan_at = |bytes: ByteCount| -> Result<_, Failure> {
            Ok(self.loader(RamBudget::Bytes(bytes)).builder(folder)?.0.plan()?)
        };
        let ample = plan_at(budgets::AMPLE)?;
        let budgets = budgets::select(&self.budgets, ample.minimum, ample.knee);
        if budgets[0] < ample.minimum {
            // Fails with the table of bytes.
            plan_at(budgets[0])?;
        }
        let BatchArgs { batch_size, size, dtype, layout, .. } = &self.batch;
        let request = Request {
            data: folder.title(),
            samples: folder.len(),
            batch_size: *batch_size,
            size: *size,
            dtype: dtype.to_string(),
            layout: layout.to_string(),
            workers_asked: self.workers,
            epochs: self.epochs,
        };
        Ok((budgets, Proof { minimum_bytes: ample.minimum.0, knee_bytes: ample.knee.0, request, points: Vec::new() }))
    }

    fn run_all(
        &self,
        program: &std::path::Path,
        budgets: &[ByteCount],
        proof: &Mutex<Proof>,
        stop: &Stop,
    ) -> Result<(), Failure> {
        let mut progress = Progress::new(budgets.len() as u64);
        let watched = Watched::default();
        let killer = watched.clone();
        stop.on_stop(move || killer.kill());
        for (at, &budget) in budgets.iter().enumerate() {
            // The first run warms the page cache, so that the first budget is not slower than the others.
            let command = self.command(program, budget, u64::from(at == 0));
            let runs = budgets.len();
            let ended = watched.run(command, stop, |seen| {
                progress.at(at as u64, || format!("run {} of {runs}: budget {budget}, peak {seen} so far", at + 1));
            });
            let point = Point::of(budget, ended)?;
            let drawn = {
                let mut proof = lock(proof);
                proof.push(point);
                figure::draw(&proof)
            };
            fs::write(&self.out, drawn)
                .map_err(|error| Failure::Io(format!("cannot write {}: {error}", self.out.display())))?;
        }
        Ok(())
    }

    fn command(&self, program: &std::path::Path, budget: ByteCount, warmup_epochs: u64) -> Command {
        let mut command = Command::new(program);
        command.args(["bench", "--json", "--device", "cpu", "--data"]).arg(&self.batch.data);
        let mut set = |name: &str, value: &dyn std::fmt::Display| {
            command.arg(name).arg(value.to_string());
        };
        set("--ram-budget", &budget.0);
        set("--batch-size", &self.batch.batch_size);
        set("--size", &self.batch.size);
        set("--dtype", &self.batch.dtype);
        set("--layout", &self.batch.layout);
        set("--epochs", &self.epochs);
        set("--warmup-epochs", &warmup_epochs);
        set("--max-bad", &self.max_bad);
        if let Some(workers) = self.workers {
            set("--workers", &workers);
        }
        command
    }
}
