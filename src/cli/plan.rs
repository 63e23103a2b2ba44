//! Owns `feedstock plan`: what a budget buys on this machine with this data. It must never build a loader.

use clap::Args;
use serde_json::{Value, json};

use feedstock::host::HostFacts;
use feedstock::plan::Profile;
use feedstock::{Error, ImageFolder, Plan, ram_budget_here};

use super::data::{self, LoaderArgs};
use super::failure::{Failure, print};
use super::table::facts;

const MORE: &str = "\
Looks at the machine and at the headers of the data, decides the sizes that a loader would run with, and explains them. \
Nothing is decoded. A budget that is too small is refused with the least that works (exit code 3).

Example:
  feedstock plan --data photos/train --ram-budget 2G --batch-size 256";

/// Show what a budget buys: the byte table, the workers, the least budget
#[derive(Args)]
#[command(after_help = MORE)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    loader: LoaderArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let folder = args.loader.open()?;
    let (builder, device) = args.loader.builder(&folder)?;
    let about_device = device.notes();
    let profile = builder.profile()?;
    let host = HostFacts::read();
    if !args.json {
        data::tell_notes(host.notes.iter().chain(folder.notes()).chain(&about_device));
        print(about(&host, &folder, &profile))?;
    }
    let planned = builder.plan();
    if args.json {
        print(json!({
            "fits": planned.is_ok(),
            "ram_budget_bytes": ram_budget_here(args.loader.one()?.0).0.0,
            "batch_size": args.loader.batch_size,
            "size": args.loader.size,
            "output": args.loader.output.to_string(),
            "layout": args.loader.layout.to_string(),
            "device": args.loader.device.to_string(),
            "host": host_json(&host),
            "data": data::profile_json(&folder, &profile),
            "minimum_bytes": minimum_bytes(&planned),
            "plan": planned.as_ref().ok().map(plan_json),
            "notes": host.notes.iter().chain(folder.notes()).chain(&about_device).collect::<Vec<_>>(),
        }))?;
    }
    let plan = planned?;
    if !args.json {
        print(format_args!("\n{}", plan.explain().trim_end()))?;
    }
    Ok(())
}

fn about(host: &HostFacts, folder: &ImageFolder, profile: &Profile) -> String {
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
                "takes {} for half of the pictures, {} for 99 %, {} for the largest",
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
        Err(Error::OverBudget { needed, .. }) => Some(needed.0),
        Err(_) => None,
    }
}

fn host_json(host: &HostFacts) -> Value {
    json!({
        "available_bytes": host.memory.available.0,
        "limit_bytes": host.memory.limit.0,
        "memory_limited_by": host.memory.limited_by,
        "cores": host.cpus.workers_max_of(host.local_ranks.count),
        "local_ranks": host.local_ranks.count,
        "cores_limited_by": host.cpus.limited_by,
    })
}

fn plan_json(plan: &Plan) -> Value {
    let row =
        |row: &feedstock::plan::Row| json!({ "account": row.account, "bytes": row.bytes.0, "because": row.because });
    json!({
        "total_bytes": plan.total().0,
        "minimum_bytes": plan.minimum.0,
        "knee_bytes": plan.knee.0,
        "per_worker_bytes": plan.per_worker.0,
        "workers": plan.workers,
        "workers_because": plan.workers_because,
        "slots": plan.slots,
        "slots_because": plan.slots_because,
        "slot_bytes": plan.slot_bytes,
        "outputs": plan.outputs,
        "output_bytes": plan.output_bytes,
        "prefetch_depth": data::prefetch_depth(plan),
        "read_buffers": plan.chunks,
        "read_buffer_bytes": plan.chunk_bytes,
        "read_threads": plan.read_threads,
        "scratch_bytes": plan.scratch_bytes,
        "giant_files_bytes": plan.giant_encoded_bytes,
        "jumbo_bytes": plan.jumbo_bytes,
        "rows": plan.rows.iter().map(row).collect::<Value>(),
    })
}
