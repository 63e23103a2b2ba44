//! The bottleneck of a run in one sentence: its name, the evidence, and what would help.

use std::time::Duration;

use feedstock::Plan;
use feedstock::plan::WorkersReason;
use feedstock::stats::PipelineStats;

use super::super::format::percent;
use super::super::table::counted;

/// From this share of the time on, a thread counts as busy or as waiting.
const BUSY: f64 = 0.8;
/// From this share of all cores on, another worker would not find a free one.
const ALL_CORES: f64 = 0.9;
/// Up to this share of the time, waiting for input counts as none.
const LITTLE: f64 = 0.05;

/// Observations of a run besides its counters.
#[derive(Clone, Copy)]
pub(super) struct Observed {
    /// The time that the counters cover.
    pub(super) elapsed: Duration,
    /// Share of it in which training waited for input.
    pub(super) input_wait: f64,
    /// Share of it in which the device copied, if the device measures that.
    pub(super) copying: Option<f64>,
    /// Number of cores that the process kept busy, and number that it may use.
    pub(super) cores: (f64, usize),
}

/// Names the bottleneck, with the evidence and what would help.
pub(super) fn describe(plan: &Plan, stats: &PipelineStats, observed: Observed) -> String {
    let Observed { elapsed, input_wait, copying, cores: (cores_busy, cores) } = observed;
    let share = |time: Duration, threads: usize| {
        let all = elapsed.as_secs_f64() * threads.max(1) as f64;
        if all > 0.0 { (time.as_secs_f64() / all).min(1.0) } else { 0.0 }
    };
    let (working, reading) = (share(stats.work.busy, plan.workers), share(stats.read.busy, plan.read_threads));
    let held_back = share(stats.admit.wait_out, 1);
    let transferring = share(stats.transfer.busy, 1).max(copying.unwrap_or(0.0));
    if input_wait <= LITTLE {
        let waited = percent(input_wait);
        return format!("the consumer: it waited for input {waited} of the time, so a faster loader would not help");
    }
    if cores_busy >= ALL_CORES * cores as f64 && stats.work.busy >= stats.read.busy {
        let cores = counted(cores as u64, "core");
        return format!(
            "decoding: {cores_busy:.1} of {cores} were busy; more cores, smaller images or --quality fast would help"
        );
    }
    if working >= BUSY {
        let (busy, workers) = (percent(working), plan.workers);
        let more = if matches!(plan.workers_reason, WorkersReason::Budget { .. }) {
            "a larger budget would hold more of them"
        } else {
            "more workers would help if there are cores for them"
        };
        return format!("decoding: {workers} workers were busy {busy} of the time; {more}");
    }
    if reading >= BUSY {
        let (busy, threads) = (percent(reading), plan.read_threads);
        return format!("reading: {threads} threads were busy {busy} of the time; faster storage would help");
    }
    if transferring >= BUSY {
        let busy = percent(transferring);
        return format!("the transfer: it was busy {busy} of the time; a smaller element type would help");
    }
    if held_back >= 0.5 && plan.total() < plan.knee {
        let (waited, budget, knee) = (percent(held_back), plan.budget, plan.knee);
        return format!(
            "the budget: no slot or read buffer was free {waited} of the time; more than {budget} would help, up to \
             {knee}"
        );
    }
    let [working, reading, transferring, waited] = [working, reading, transferring, input_wait].map(percent);
    format!(
        "no single stage: workers were busy {working}, readers {reading}, the transfer {transferring} of the time, and \
         the consumer waited {waited}"
    )
}

#[cfg(test)]
mod tests {
    use feedstock::source::MemorySource;
    use feedstock::transform::Resize;
    use feedstock::{ByteCount, Loader};

    use super::*;

    fn plan(budget: Option<ByteCount>) -> Plan {
        let white = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\
            \x02\x02D\x01\x00;";
        let source = MemorySource::new(vec!["a".into()], vec![(white.to_vec(), 0); 64]).expect("a source");
        let builder = Loader::builder(source).transform(Resize::exact(8, 8)).batch_size(8).max_workers(3);
        builder.ram_budget(budget.unwrap_or(ByteCount(1 << 30))).plan().expect("it fits")
    }

    #[test]
    fn each_cause_is_named_by_its_evidence() {
        let ample = plan(None);
        let seconds = Duration::from_secs;
        let observed =
            |input_wait, busy| Observed { elapsed: seconds(10), input_wait, copying: None, cores: (busy, 8) };
        let at = |plan: &Plan, set: &dyn Fn(&mut PipelineStats), input_wait| {
            let mut stats = PipelineStats::default();
            set(&mut stats);
            describe(plan, &stats, observed(input_wait, 3.0))
        };
        let describe_ample = |set: &dyn Fn(&mut PipelineStats), input_wait| at(&ample, set, input_wait);
        let busy_workers = |stats: &mut PipelineStats| stats.work.busy = seconds(27);
        assert!(describe_ample(&busy_workers, 0.01).starts_with("the consumer: it waited for input 1 %"));
        assert!(describe_ample(&busy_workers, 0.6).starts_with("decoding: 3 workers were busy 90 %"));
        let mut stats = PipelineStats::default();
        busy_workers(&mut stats);
        let crowded = describe(&ample, &stats, observed(0.6, 7.6));
        assert!(crowded.starts_with("decoding: 7.6 of 8 cores were busy; more cores"), "{crowded}");
        let reads = |stats: &mut PipelineStats| stats.read.busy = seconds(19);
        assert!(
            describe_ample(&reads, 0.6).starts_with("reading: 2 threads were busy 95 %"),
            "{}",
            describe_ample(&reads, 0.6)
        );
        assert!(
            describe_ample(&|stats| stats.transfer.busy = seconds(9), 0.6)
                .starts_with("the transfer: it was busy 90 %")
        );
        let held_back = |stats: &mut PipelineStats| stats.admit.wait_out = seconds(7);
        let starved = at(&plan(Some(ample.minimum)), &held_back, 0.6);
        assert!(starved.starts_with("the budget: no slot or read buffer was free 70 %"), "{starved}");
        assert!(describe_ample(&held_back, 0.6).starts_with("no single stage"), "a larger budget would buy nothing");
        assert!(describe_ample(&|_| {}, 0.6).starts_with("no single stage"));
    }
}
