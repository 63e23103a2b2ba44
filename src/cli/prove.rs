//! Owns `feedstock prove`: the same work at one budget after another, each in a process of its own that is watched from
//! outside, and what is said of it. It must never measure itself, and never pass over a budget that was not kept.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use clap::Args;
use serde_json::json;

use feedstock::device::DeviceSpec;
use feedstock::tensor::SIDE_MAX;
use feedstock::{ByteCount, CpuBudget, DType, Layout, RamBudget, Source};

use super::child::Watched;
use super::data::{self, DecodeArgs, LoaderArgs, SourceArgs};
use super::failure::{Failure, print};
use super::progress::Progress;
use super::stop::Stop;
use super::{Context, lock};

mod figure;
mod ladder;
mod proof;

use proof::{Point, Proof};

const MORE: &str = "\
Runs `feedstock bench` at each budget, one after the other, and watches the peak resident memory of that process from \
outside. Draws it against the budget, beside what the plan predicted and the throughput, into one SVG that stands alone \
(anew after every run), and prints the numbers. A process over its budget, or batches that differ between budgets, end it \
with exit code 1. Without --budgets: 32 of them, at even ratios from the least that works to four times the knee, or 1G.

Example:
  feedstock prove --data photos/train --out budget.svg --budgets 48M,64M,128M,1G --workers 2";

/// Watch many budgets being kept, and draw it
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct ProveArgs {
    /// Folder of class folders, or shards
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The SVG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The budgets to run at, such as 48M,64M,1G
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    budgets: Vec<ByteCount>,
    /// Samples in a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,
    /// Height and width of a sample
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=i64::from(SIDE_MAX)))]
    size: u32,
    /// The most threads that decode [default: as many as the machine keeps busy]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Element type of a batch: u8, f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value_t = DType::U8)]
    output: DType,
    /// Order of a batch's axes: nchw or nhwc
    #[arg(long, value_name = "AXES", default_value_t = Layout::Nchw)]
    layout: Layout,
    /// Epochs of each run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    epochs: u64,
    /// The share of samples that may be bad before a run fails, 0 to 1
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
            if json { proof.json(&out, error).to_string() } else { proof.text(&out, error) }
        }
    };
    {
        let render = render.clone();
        context.stop.last_words(move || drop(print(render(Some("interrupted")))));
    }
    let done = args.run_all(&program, &budgets, &proof, &context.stop);
    if context.stop.is_asked() && !context.stop.sum_up() {
        // The watchdog sums up, and ends the process.
        std::thread::park();
    }
    let breaches = lock(&proof).breaches();
    let ended = match done {
        Err(_) if context.stop.is_asked() => Err(Failure::Interrupted),
        Ok(()) if !breaches.is_empty() => Err(Failure::Broken(breaches.join("\n"))),
        ended => ended,
    };
    let error = match &ended {
        Ok(()) => None,
        Err(Failure::Interrupted) => Some("interrupted".to_owned()),
        Err(Failure::Broken(what) | Failure::Run { what, .. } | Failure::Io(what)) => Some(what.clone()),
        Err(_) => Some("failed".to_owned()),
    };
    print(render(error.as_deref()))?;
    ended
}

impl ProveArgs {
    fn loader(&self, ram_budget: RamBudget) -> LoaderArgs {
        LoaderArgs {
            data: self.data.clone(),
            ram_budget: vec![ram_budget],
            batch_size: self.batch_size,
            size: self.size,
            workers: self.workers.into_iter().collect(),
            // As `bench` runs: nobody trains beside it.
            cpu_budget: Some(CpuBudget::Fraction(1.0)),
            no_governor: false,
            prefetch: None,
            output: self.output,
            layout: self.layout,
            device: DeviceSpec::Cpu,
            source: SourceArgs::default(),
            decode: DecodeArgs::default(),
        }
    }

    /// The budgets to run at, upward, and a proof that has no points yet.
    fn prepare(&self, folder: &Arc<dyn Source>) -> Result<(Vec<ByteCount>, Proof), Failure> {
        let plan_at = |bytes: ByteCount| -> Result<_, Failure> {
            Ok(self.loader(RamBudget::Bytes(bytes)).builder(folder)?.0.plan()?)
        };
        let ample = plan_at(ladder::AMPLE)?;
        let budgets = ladder::budgets(&self.budgets, ample.minimum, ample.knee);
        if budgets[0] < ample.minimum {
            // It refuses, with the table.
            plan_at(budgets[0])?;
        }
        let about = json!({
            "data": folder.title(),
            "samples": feedstock::Source::len(&**folder),
            "batch_size": self.batch_size,
            "size": self.size,
            "output": self.output.to_string(),
            "layout": self.layout.to_string(),
            "workers_asked": self.workers,
            "epochs": self.epochs,
        });
        Ok((budgets, Proof::new(ample.minimum, ample.knee, about)))
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
            // Files that no run has read yet come from the disk: that is not the first budget's doing.
            let command = self.command(program, budget, u64::from(at == 0));
            let runs = budgets.len();
            let ended = watched.run(command, stop, |seen| {
                progress.at(at as u64, || format!("run {} of {runs}: budget {budget}, peak {seen} so far", at + 1));
            });
            let point = Point::of(budget, ended)?;
            let drawn = {
                let mut proof = lock(proof);
                proof.points.push(point);
                figure::draw(&proof)
            };
            fs::write(&self.out, drawn)
                .map_err(|error| Failure::Io(format!("cannot write {}: {error}", self.out.display())))?;
        }
        Ok(())
    }

    fn command(&self, program: &std::path::Path, budget: ByteCount, warmup_epochs: u64) -> Command {
        let mut command = Command::new(program);
        command.args(["bench", "--json", "--device", "cpu", "--data"]).arg(&self.data);
        let mut set = |name: &str, value: &dyn std::fmt::Display| {
            command.arg(name).arg(value.to_string());
        };
        set("--ram-budget", &budget.0);
        set("--batch-size", &self.batch_size);
        set("--size", &self.size);
        set("--output", &self.output);
        set("--layout", &self.layout);
        set("--epochs", &self.epochs);
        set("--warmup-epochs", &warmup_epochs);
        set("--max-bad", &self.max_bad);
        if let Some(workers) = self.workers {
            set("--workers", &workers);
        }
        command
    }
}
