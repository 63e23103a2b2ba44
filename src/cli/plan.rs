//! `feedstock plan`: prints the plan for a budget on this machine with this data, and the predicted memory of training.

use clap::Args;
use serde_json::{Value, json};

use feedstock::host::HostFacts;
use feedstock::plan::Profile;
use feedstock::train::{Forecast, MemorySaving, TrainConfig, memory_savings, micro_batch_within};
use feedstock::{Error, Plan, Source};

use super::data::{self, BatchArgs, LoaderArgs};
use super::failure::{Failure, print};
use super::model::{
    MicroBatch, Model, ModelArgs, account_json, account_text, not_even_one, savings_json, savings_text,
};
use super::table::facts;

const MORE: &str = "\
Looks at the machine and at the headers of the data, decides the sizes that a loader would run with, and explains \
them. Nothing is decoded. A budget that is too small is refused with the least that works (exit code 3).

Examples:
  feedstock plan --data photos/train --ram-budget 2G --batch-size 256
  feedstock plan --data photos/train --model resnet18 --batch-size 256 --vram-budget 8G";

/// Maximum number of listed savings.
const SAVINGS_MAX: usize = 6;

/// Print the plan for a budget: byte table, workers, minimum budget
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    loader: LoaderArgs,
    /// Also predict training memory of: auto, small, large, resnet18 or vit-tiny
    #[arg(long, value_name = "MODEL")]
    model: Option<Model>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model_args: ModelArgs,
}

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let folder = args.loader.open()?;
    let training = args.model.map(|model| Training::predict(args, model, folder.classes().len())).transpose()?;
    let mut loader = args.loader.clone();
    if let Some(training) = &training {
        loader.batch.batch_size = training.forecast.micro_batch;
    }
    let (builder, device) = loader.builder(&folder)?;
    let about_device = device.notes();
    let profile = builder.profile()?;
    let host = HostFacts::read();
    let warnings: Vec<String> = host.warnings.iter().map(ToString::to_string).collect();
    if !args.json {
        data::tell_notes(warnings.iter().chain(folder.notes()).chain(&about_device));
        print(about(&host, &folder, &profile))?;
    }
    let planned = builder.plan();
    if args.json {
        print(json!({
            "fits": planned.is_ok(),
            "ram_budget_bytes": args.loader.one()?.0.resolve_here().bytes.0,
            "batch_size": args.loader.batch.batch_size,
            "size": args.loader.batch.size,
            "dtype": args.loader.batch.dtype.to_string(),
            "layout": args.loader.batch.layout.to_string(),
            "device": args.loader.device.to_string(),
            "host": host_json(&host),
            "data": data::profile_json(&folder, &profile),
            "minimum_bytes": minimum_bytes(&planned),
            "plan": planned.as_ref().ok().map(plan_json),
            "training": training.as_ref().map(Training::json),
            "notes": warnings.iter().chain(folder.notes()).chain(&about_device).collect::<Vec<_>>(),
        }))?;
    }
    let plan = planned?;
    if !args.json {
        print(format_args!("\n{}", plan.explain().trim_end()))?;
    }
    let Some(training) = training else { return Ok(()) };
    if !args.json {
        print(format_args!("\n{}", training.text()))?;
    }
    training.within()
}

/// Predicted memory of training.
struct Training {
    config: TrainConfig,
    forecast: Forecast,
    savings: Vec<MemorySaving>,
}

impl Training {
    fn predict(args: &PlanArgs, model: Model, classes: usize) -> Result<Self, Failure> {
        let BatchArgs { batch_size, size, .. } = args.loader.batch;
        let mut config = args.model_args.config(model.kind(size), classes, size);
        let (accumulate, micro_batch) = args.model_args.batches(batch_size)?;
        config.accumulate = accumulate;
        let forecast = match (args.model_args.micro_batch, config.device_budget) {
            (Some(MicroBatch::Auto), Some(budget)) => micro_batch_within(&config, batch_size, budget)?,
            (Some(MicroBatch::Auto), None) => {
                return Err(Failure::Usage("--micro-batch auto fits a --vram-budget: say how much".to_owned()));
            }
            _ => None,
        };
        let forecast = match (forecast, config.device_budget, args.model_args.micro_batch) {
            (Some(found), ..) => found,
            (None, Some(budget), Some(MicroBatch::Auto)) => {
                return Err(not_even_one(&config, batch_size, budget));
            }
            _ => feedstock::train::forecast(&config, micro_batch)?,
        };
        config.accumulate = (batch_size / forecast.micro_batch) as u64;
        let savings = memory_savings(&config, forecast.micro_batch, SAVINGS_MAX)?;
        Ok(Training { config, forecast, savings })
    }

    fn text(&self) -> String {
        let Training { config, forecast, savings } = self;
        let mut what =
            format!("training {} in {}, batches of {}", config.model.kind, config.precision, forecast.micro_batch);
        if config.accumulate > 1 {
            what += &format!(", {} to a step", config.accumulate);
        }
        if let Some(budget) = config.device_budget {
            what += &format!(", within {budget}");
        }
        format!("{what}:\n{}\n\n{}", account_text(&forecast.account, None), savings_text(savings))
    }

    fn json(&self) -> Value {
        let Training { config, forecast, savings } = self;
        json!({
            "model": config.model.kind.to_string(),
            "precision": config.precision.to_string(),
            "checkpointing": config.checkpointing.to_string(),
            "frozen": config.freeze.to_string(),
            "optimizer": config.optimizer.to_string(),
            "micro_batch": forecast.micro_batch,
            "accumulate": config.accumulate,
            "budget_bytes": config.device_budget.map(|budget| budget.0),
            "predicted": account_json(&forecast.account),
            "savings": savings_json(savings),
        })
    }

    /// Returns an error if the prediction exceeds the budget.
    fn within(&self) -> Result<(), Failure> {
        let peak = self.forecast.account.peak;
        match self.config.device_budget {
            Some(budget) if peak > budget => Err(Failure::Budget(format!(
                "training takes {peak} at most, {} more than its budget of {budget}: see the savings above",
                peak.saturating_sub(budget)
            ))),
            _ => Ok(()),
        }
    }
}

fn about(host: &HostFacts, folder: &dyn Source, profile: &Profile) -> String {
    let mut headers = format!("{} read", profile.headers + profile.headers_bad);
    if profile.headers_bad > 0 {
        headers += &format!(", {} of them bad: those samples will be too", profile.headers_bad);
    }
    let mut lines = vec![
        (
            "machine",
            format!(
                "{} available ({}), {} ({})",
                host.memory.available,
                host.memory.limited_by,
                super::table::counted(host.cpus.workers_max_of(host.local_ranks.count) as u64, "core"),
                host.cpus.limited_by
            ),
        ),
        ("data", data::describe(folder, profile)),
        (
            "decoding",
            format!(
                "takes {} for half of the images, {} for 99 %, {} for the largest",
                profile.working_p50, profile.working_p99, profile.working_max
            ),
        ),
        ("headers", headers),
    ];
    if folder.unreadable_count() > 0 {
        lines.push(("not read", format!("{} that could not be indexed", folder.unreadable_count())));
    }
    facts(&lines)
}

fn minimum_bytes(planned: &Result<Plan, Error>) -> Option<u64> {
    match planned {
        Ok(plan) => Some(plan.minimum.0),
        Err(Error::OverBudget(refused)) => Some(refused.needed.0),
        Err(_) => None,
    }
}

fn host_json(host: &HostFacts) -> Value {
    json!({
        "available_bytes": host.memory.available.0,
        "limit_bytes": host.memory.limit.0,
        "memory_limited_by": host.memory.limited_by.to_string(),
        "cores": host.cpus.workers_max_of(host.local_ranks.count),
        "local_ranks": host.local_ranks.count,
        "cores_limited_by": host.cpus.limited_by.to_string(),
    })
}

fn plan_json(plan: &Plan) -> Value {
    json!({
        "total_bytes": plan.total().0,
        "minimum_bytes": plan.minimum.0,
        "knee_bytes": plan.knee.0,
        "per_worker_bytes": plan.per_worker.0,
        "workers": plan.workers,
        "workers_because": plan.workers_reason.to_string(),
        "slots": plan.slots,
        "slots_because": plan.slots_reason.to_string(),
        "slot_bytes": plan.slot_bytes,
        "outputs": plan.outputs,
        "output_bytes": plan.output_bytes,
        "prefetch_depth": data::prefetch_depth(plan),
        "read_buffers": plan.chunks,
        "read_buffer_bytes": plan.chunk_bytes,
        "read_threads": plan.read_threads,
        "scratch_bytes": plan.scratch_bytes,
        "oversized_file_bytes": plan.oversized_file_bytes,
        "oversized_image_bytes": plan.oversized_image_bytes,
        "rows": plan.rows,
    })
}
