//! Owns the one sentence about what a run was held up by, and what would move it. It must never name anything without its
//! evidence.

use std::time::Duration;

use feedstock::plan::WorkersReason;
use feedstock::{PipelineStats, Plan};

use super::super::table::counted;

/// From this share of the time on, somebody counts as busy, or as waiting.
const MUCH: f64 = 0.8;
/// From this share of all cores on, no other worker would find one.
const ALL: f64 = 0.9;
/// Up to this share of the time, waiting for input counts as none.
const LITTLE: f64 = 0.05;

/// What was seen of a run besides its counters.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The time that the counters are of.
    pub(super) elapsed: Duration,
    /// The share of it in which training waited for input.
    pub(super) input_wait: f64,
    /// The share of it in which the device copied, where it can tell.
    pub(super) copying: Option<f64>,
    /// How many cores the process kept busy, of how many that it may use.
    pub(super) cores: (f64, usize),
}

/// What a run was held up by, with the evidence, and what would move it.
pub(super) fn sentence(plan: &Plan, stats: &PipelineStats, seen: Seen) -> String {
    let Seen { elapsed, input_wait, copying, cores } = seen;
    let share = |time: Duration, threads: usize| {
        let all = elapsed.as_secs_f64() * threads.max(1) as f64;
        if all > 0.0 { (time.as_secs_f64() / all).min(1.0) } else { 0.0 }
    };
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let (working, reading) = (share(stats.work.busy, plan.workers), share(stats.read.busy, plan.read_threads));
    let held_back = share(stats.admit.wait_out, 1);
    let transferring = share(stats.transfer.busy, 1).max(copying.unwrap_or(0.0));
    if input_wait <= LITTLE {
        let waited = percent(input_wait);
        return format!("the consumer: it waited for input {waited} of the time, so a faster loader would buy nothing");
    }
    if cores.0 >= ALL * cores.1 as f64 && stats.work.busy >= stats.read.busy {
        let (busy, cores) = (cores.0, counted(cores.1 as u64, "core"));
        return format!(
            "decoding: {busy:.1} of {cores} were busy; more cores would move it, and so would smaller pictures \
             (or --quality fast)"
        );
    }
    if working >= MUCH {
        let (busy, workers) = (percent(working), plan.workers);
        let more = if matches!(plan.workers_reason, WorkersReason::Budget { .. }) {
            "a larger budget would hold more of them"
        } else {
            "more workers would move it, where there are cores for them"
        };
        return format!("decoding: {workers} workers were busy {busy} of the time; {more}");
    }
    if reading >= MUCH {
        let (busy, threads) = (percent(reading), plan.read_threads);
        return format!("reading: {threads} threads were busy {busy} of the time; faster storage would move it");
    }
    if transferring >= MUCH {
        return format!(
            "the transfer: it was busy {} of the time; a smaller element type would move it",
            percent(transferring)
        );
    }
    if held_back >= 0.5 && plan.total() < plan.knee {
        let (waited, budget, knee) = (percent(held_back), plan.budget, plan.knee);
        return format!(
            "the budget: no slot or read buffer was free {waited} of the time; more than {budget} would move it, up to {knee}"
        );
    }
    format!(
        "nothing alone: workers were busy {}, readers {}, the transfer {} of the time, and the consumer waited {}",
        percent(working),
        percent(reading),
        percent(transferring),
        percent(input_wait)
    )
}

#[cfg(test)]
mod tests {
    use feedstock::source::MemorySource;
    use feedstock::transform::Resize;
    use feedstock::{ByteCount, Loader};

    use super::*;

    fn plan(budget: Option<ByteCount>) -> Plan {
        let white = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";
        let source = MemorySource::new(vec!["a".into()], vec![(white.to_vec(), 0); 64]).expect("a source");
        let builder = Loader::builder(source).transform(Resize::exact(8, 8)).batch_size(8).workers(3);
        builder.ram_budget(budget.unwrap_or(ByteCount(1 << 30))).plan().expect("it fits")
    }

    #[test]
    fn each_cause_is_named_by_its_evidence() {
        let ample = plan(None);
        let seconds = Duration::from_secs;
        let seen = |input_wait, busy| Seen { elapsed: seconds(10), input_wait, copying: None, cores: (busy, 8) };
        let at = |plan: &Plan, set: &dyn Fn(&mut PipelineStats), input_wait| {
            let mut stats = PipelineStats::default();
            set(&mut stats);
            sentence(plan, &stats, seen(input_wait, 3.0))
        };
        let told = |set: &dyn Fn(&mut PipelineStats), input_wait| at(&ample, set, input_wait);
        let busy_workers = |stats: &mut PipelineStats| stats.work.busy = seconds(27);
        assert!(told(&busy_workers, 0.01).starts_with("the consumer: it waited for input 1 %"));
        assert!(told(&busy_workers, 0.6).starts_with("decoding: 3 workers were busy 90 %"));
        let mut stats = PipelineStats::default();
        busy_workers(&mut stats);
        let crowded = sentence(&ample, &stats, seen(0.6, 7.6));
        assert!(crowded.starts_with("decoding: 7.6 of 8 cores were busy; more cores"), "{crowded}");
        let reads = |stats: &mut PipelineStats| stats.read.busy = seconds(19);
        assert!(told(&reads, 0.6).starts_with("reading: 2 threads were busy 95 %"), "{}", told(&reads, 0.6));
        assert!(told(&|stats| stats.transfer.busy = seconds(9), 0.6).starts_with("the transfer: it was busy 90 %"));
        let held_back = |stats: &mut PipelineStats| stats.admit.wait_out = seconds(7);
        let starved = at(&plan(Some(ample.minimum)), &held_back, 0.6);
        assert!(starved.starts_with("the budget: no slot or read buffer was free 70 %"), "{starved}");
        assert!(told(&held_back, 0.6).starts_with("nothing alone"), "a larger budget would buy nothing");
        assert!(told(&|_| {}, 0.6).starts_with("nothing alone"));
    }
}
