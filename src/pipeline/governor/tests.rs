//! Tests of the governor's rule and of the levels, without a pipeline (`loader/tests.rs` runs one).

use super::*;
use crate::plan::{CoresReason, Facts, Profile, Request};
use crate::tensor::{DType, Layout, OutputFormat, SampleSpec};

const MIB: u64 = 1 << 20;

fn plan() -> Plan {
    let request = Request {
        batch_size: 64,
        spec: SampleSpec { height: 224, width: 224 },
        format: OutputFormat { dtype: DType::U8, layout: Layout::Nhwc, normalize: None },
        workers_max: Some(8),
        prefetch_max: None,
        batches_held: 1,
        budget: ByteCount(1 << 30),
    };
    let facts = Facts {
        cores: 8,
        cores_reason: CoresReason::Auto,
        process_overhead: ByteCount(15 << 20),
        index: ByteCount(0),
        source_in_memory: false,
        read_threads: 2,
        reading: ByteCount::ZERO,
        sampling: ByteCount::ZERO,
        output_in_ram: true,
        reads_slots: true,
        device_overhead: ByteCount::ZERO,
    };
    let sizes = ByteCount(MIB);
    let profile = Profile {
        samples: 10_000,
        encoded_total: ByteCount(10_000 * 100_000),
        encoded_p50: ByteCount(100_000),
        encoded_p99: ByteCount(300_000),
        encoded_max: ByteCount(400_000),
        encoded_histogram: vec![(ByteCount(100_000), 10_000)],
        headers: 1,
        headers_bad: 0,
        working_p50: sizes,
        working_p99: sizes * 2,
        working_max: sizes * 4,
    };
    Plan::new(&request, facts, &profile).expect("an ample budget")
}

fn reading(at_ms: u64, available: u64, waiting_share: f64, stalled_share: f64) -> Reading {
    let memory = MemorySnapshot {
        limit: ByteCount(1024 * MIB),
        available: ByteCount(available * MIB),
        limited_by: crate::host::MemoryLimit::Machine,
        stalled: Duration::ZERO,
    };
    Reading { at: Duration::from_millis(at_ms), memory, waiting_share, stalled_share }
}

#[test]
fn levels_halve_down_to_the_least() {
    let plan = plan();
    assert_eq!(plan.levels(), 4, "{plan:?}");
    let workers: Vec<_> = (0..4).map(|level| plan.at_level(level).workers).collect();
    assert_eq!(workers, [8, 4, 2, 1]);
    assert_eq!(plan.at_level(3), plan.least);
    assert_eq!(plan.at_level(63), plan.least);
    assert!(plan.level_bytes(3) < plan.level_bytes(2));
}

#[test]
fn short_memory_adds_a_level_and_very_short_memory_all_of_them() {
    let plan = plan();
    // 1 GiB: 64 MiB are short, 32 very short.
    let down = |level, available| {
        let decision = decide(&plan, level, Duration::ZERO, &reading(5000, available, 0.0, 0.0));
        (decision.level(level), decision.pressed)
    };
    assert_eq!(down(0, 65), (0, false));
    assert_eq!(down(0, 63), (1, true));
    assert_eq!(down(1, 40), (2, true));
    assert_eq!(down(0, 31), (3, true));
    assert_eq!(down(3, 0), (3, true), "there is nothing left to give up");
    let (_, reason) = decide(&plan, 0, Duration::ZERO, &reading(5000, 63, 0.0, 0.0)).change.expect("one level");
    assert_eq!(reason.to_string(), "63.0 MiB available, less than 64.0 MiB (the machine's available memory)");
}

#[test]
fn stalls_count_where_little_is_left() {
    let plan = plan();
    let down = |available, stalled| decide(&plan, 0, Duration::ZERO, &reading(5000, available, 0.0, stalled)).level(0);
    assert_eq!(down(200, 0.3), 1);
    assert_eq!(down(200, 0.1), 0);
    assert_eq!(down(600, 0.9), 0, "another process is short");
}

#[test]
fn sizes_grow_back_after_a_calm_second_if_the_consumer_waits() {
    let plan = plan();
    let up = |calm_since_ms, at: Reading| decide(&plan, 2, Duration::from_millis(calm_since_ms), &at).level(2);
    assert_eq!(up(1000, reading(1999, 900, 0.5, 0.0)), 2, "too soon");
    assert_eq!(up(1000, reading(2000, 900, 0.5, 0.0)), 1);
    assert_eq!(up(1000, reading(2000, 900, 0.01, 0.0)), 2, "the consumer has enough");
    let more = (plan.level_bytes(1).0 - plan.level_bytes(2).0).div_ceil(MIB);
    assert_eq!(up(1000, reading(2000, 128 + more, 0.5, 0.0)), 1);
    assert_eq!(up(1000, reading(2000, 127 + more - 1, 0.5, 0.0)), 2, "it would be short again at once");
    assert_eq!(decide(&plan, 0, Duration::ZERO, &reading(9000, 900, 1.0, 0.0)).level(0), 0, "never beyond the plan");
}

impl Decision {
    fn level(&self, before: u32) -> u32 {
        self.change.as_ref().map_or(before, |&(level, _)| level)
    }
}
