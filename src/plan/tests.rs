//! Tests of plans: sizes, refusals, the byte table.

use super::*;
use crate::budget::AccountKind;
use crate::tensor::{DType, Layout, OutputFormat, SampleSpec};
use crate::units::ByteCount;
use proptest::prelude::*;

fn images() -> Profile {
    Profile {
        samples: 1_281_167,
        encoded_total: ByteCount(1_281_167 * 110_000),
        encoded_p50: ByteCount(104 << 10),
        encoded_p99: ByteCount(350 << 10),
        encoded_max: ByteCount(15 << 20),
        encoded_histogram: vec![(ByteCount(110_000), 1_281_167)],
        headers: 320,
        headers_bad: 0,
        working_p50: ByteCount(1 << 20),
        working_p99: ByteCount(4 << 20),
        working_max: ByteCount(30 << 20),
    }
}

fn request(budget: u64) -> Request {
    Request {
        batch_size: 64,
        spec: SampleSpec { height: 224, width: 224 },
        format: OutputFormat { dtype: DType::U8, layout: Layout::Nhwc, normalize: None },
        workers_max: None,
        prefetch_max: None,
        batches_held: 1,
        budget: ByteCount(budget),
    }
}

const FACTS: Facts = Facts {
    cores: 8,
    cores_reason: CoresReason::Auto,
    process_overhead: LIBRARY_OVERHEAD,
    index: ByteCount(13 << 20),
    source_in_memory: false,
    read_threads: 2,
    reading: ByteCount::ZERO,
    sampling: ByteCount::ZERO,
    output_in_ram: true,
    reads_slots: true,
    device_overhead: ByteCount::ZERO,
};

#[test]
fn more_than_the_knee_is_not_taken() {
    let ample = Plan::new(&request(64 << 30), FACTS, &images()).unwrap();
    assert_eq!((ample.workers, ample.outputs), (8, 0));
    assert_eq!(ample.total(), ample.knee);
    let knee = Plan::new(&request(ample.knee.0), FACTS, &images()).unwrap();
    assert_eq!((knee.workers, knee.slots, knee.total()), (ample.workers, ample.slots, ample.total()));
    // The rest is there for oversized images only.
    assert!(ample.oversized_image_bytes > 40 << 30);
}

#[test]
fn workers_have_scratch_for_common_images_and_share_the_oversized() {
    let plan = Plan::new(&request(1 << 30), FACTS, &images()).unwrap();
    assert_eq!(plan.scratch_bytes, 4 << 20);
    assert!(plan.oversized_image_bytes >= 30 << 20);
    let least = Plan::new(&request(plan.minimum.0), FACTS, &images()).unwrap();
    assert_eq!((least.workers, least.slots, least.scratch_bytes), (1, 2, 30 << 20));
    assert_eq!(least.total(), least.minimum);
}

#[test]
fn a_source_with_many_concurrent_reads_has_buffers_for_them() {
    let one = |budget| Request { workers_max: Some(1), ..request(budget) };
    for (read_threads, chunks) in [(2, 4), (28, 30)] {
        let facts = Facts { read_threads, ..FACTS };
        let ample = Plan::new(&one(64 << 30), facts, &images()).unwrap();
        assert_eq!((ample.workers, ample.chunks), (1, chunks));
        let least = Plan::new(&one(ample.minimum.0), facts, &images()).unwrap();
        assert_eq!((least.chunks, least.total()), (2, least.minimum));
        // As many as there is room for: whole buffers of the common file.
        let some = Plan::new(&one(ample.minimum.0 + (3 << 20)), facts, &images()).unwrap();
        assert!((4..=10).contains(&some.chunks) && some.total() <= ample.minimum + ByteCount(3 << 20), "{some:?}");
    }
}

#[test]
fn small_files_are_cached_as_far_as_the_budget_goes() {
    let small = Profile { encoded_total: ByteCount(50_000 * 900), samples: 50_000, ..images() };
    let cache =
        |budget: u64, facts: Facts, profile: &Profile| Plan::new(&request(budget), facts, profile).unwrap().cache_bytes;
    let all = cache(1 << 30, FACTS, &small);
    assert!((50_000 * 900..50_000 * 1200).contains(&all), "{all}");
    let knee = Plan::new(&request(1 << 30), FACTS, &small).unwrap().knee;
    let without = knee.0 - all;
    assert_eq!(cache(without + all, FACTS, &small), all / 2, "half of the rest stays free for oversized samples");
    assert_eq!(cache(without + (1 << 20), FACTS, &small), 0, "a table with next to nothing in it");
    assert_eq!(cache(1 << 30, Facts { source_in_memory: true, ..FACTS }, &small), 0);
    assert_eq!(cache(64 << 30, FACTS, &images()), 0);
}

#[test]
fn a_budget_one_byte_short_is_refused_with_the_table() {
    let minimum = Plan::new(&request(1 << 30), FACTS, &images()).unwrap().minimum;
    match Plan::new(&request(minimum.0 - 1), FACTS, &images()) {
        Err(refused) => {
            assert_eq!(refused.needed, minimum);
            let table = refused.to_string();
            assert!(table.contains("slots") && table.contains("2 x 9.19 MiB"), "{table}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_output_of_another_type_is_made_beside_the_slots() {
    let format = OutputFormat { dtype: DType::F32, layout: Layout::Nchw, normalize: None };
    let plan = Plan::new(&Request { format, ..request(1 << 30) }, FACTS, &images()).unwrap();
    assert_eq!((plan.outputs, plan.output_bytes), (2, 4 * plan.slot_bytes));
    // On a device with memory of its own the outputs are not the ledger's.
    let there = Facts { output_in_ram: false, reads_slots: false, ..FACTS };
    let plan = Plan::new(&Request { format, ..request(1 << 30) }, there, &images()).unwrap();
    assert_eq!(plan.outputs, 2);
    assert_eq!(plan.row(AccountKind::Outputs), None);
}

#[test]
fn the_explanation_names_every_account_and_its_reason() {
    let plan = Plan::new(&request(1 << 30), FACTS, &images()).unwrap();
    let (text, minimum) = (plan.explain(), plan.minimum.to_string());
    for words in
        ["headroom", "scratch", "encoded", "oversized files", "workers", "slots", "knee", "one more worker", &minimum]
    {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

fn profile() -> impl Strategy<Value = Profile> {
    let sizes = || (0u64..1 << 20, 0u64..1 << 20, 0u64..1 << 26);
    (1u64..1 << 40, sizes(), sizes()).prop_map(|(samples, (e, f, g), (w, x, y))| Profile {
        samples,
        encoded_total: ByteCount(samples.saturating_mul(e)),
        encoded_p50: ByteCount(e),
        encoded_p99: ByteCount(e + f),
        encoded_max: ByteCount(e + f + g),
        encoded_histogram: vec![
            (ByteCount(e), samples / 2),
            (ByteCount(e + f), samples / 3),
            (ByteCount(e + f + g), 1),
        ],
        headers: 1,
        headers_bad: 0,
        working_p50: ByteCount(w),
        working_p99: ByteCount(w + x),
        working_max: ByteCount(w + x + y),
    })
}

prop_compose! {
    fn any_request()(
        batch_size in 1usize..600, height in 1u32..300, width in 1u32..300,
        dtype in prop_oneof![Just(DType::U8), Just(DType::F32), Just(DType::Bf16), Just(DType::F16)],
        layout in prop_oneof![Just(Layout::Nhwc), Just(Layout::Nchw)],
        workers_max in prop::option::of(1usize..40), prefetch_max in prop::option::of(1usize..9),
        batches_held in 1usize..4, budget in 0u64..1 << 31,
    ) -> Request {
        let format = OutputFormat { dtype, layout, normalize: None };
        let spec = SampleSpec { height, width };
        Request { batch_size, spec, format, workers_max, prefetch_max, batches_held, budget: ByteCount(budget) }
    }
}

proptest! {
    #[test]
    fn a_plan_is_refused_or_adds_up(
        request in any_request(), profile in profile(), cores in 1usize..20,
        output_in_ram: bool, reads_slots: bool, source_in_memory: bool,
    ) {
        let reads_slots = reads_slots && output_in_ram;
        let facts = Facts {
            cores,
            cores_reason: CoresReason::CpuBudget,
            process_overhead: LIBRARY_OVERHEAD,
            index: ByteCount(1 << 20),
            read_threads: 2,
            reading: ByteCount(3 << 10),
            sampling: ByteCount(5 << 10),
            source_in_memory,
            output_in_ram,
            reads_slots,
            device_overhead: ByteCount::ZERO,
        };
        match Plan::new(&request, facts, &profile) {
            Ok(plan) => {
                prop_assert!(plan.total() <= request.budget);
                prop_assert!(plan.minimum <= plan.total() || plan.minimum <= request.budget);
                prop_assert!(plan.workers >= 1 && plan.workers <= request.workers_max.unwrap_or(cores));
                // Every account can be used to its cap whatever the others do.
                let oversized = |account| plan.row(account).map_or(0, |row| row.bytes().0);
                let lane = oversized(AccountKind::OversizedFiles) + oversized(AccountKind::OversizedImages);
                let fixed = plan.total().0 - lane;
                prop_assert!(fixed + plan.oversized_file_bytes + plan.oversized_image_bytes <= request.budget.0);
                prop_assert!(plan.cache_bytes == 0 || !source_in_memory);
                // The largest file and the largest image that are known can be let in.
                let fits = |largest: ByteCount, common: u64, oversized: u64| largest.0 <= common.max(oversized);
                prop_assert!(fits(profile.encoded_max, plan.chunk_bytes, plan.oversized_file_bytes));
                prop_assert!(fits(profile.working_max, plan.scratch_bytes, plan.oversized_image_bytes));
                // Every level is smaller than the one before, and the last is the least.
                for level in 1..plan.levels() {
                    prop_assert!(plan.level_bytes(level) <= plan.level_bytes(level - 1), "{level} {plan:?}");
                }
                let last = plan.at_level(plan.levels() - 1);
                prop_assert_eq!(last.workers, 1);
                prop_assert!(last.slots >= plan.least.slots.min(plan.slots) && last.slots >= 1);
                // The consumer's batches and one more.
                let handed = if plan.outputs == 0 { plan.slots - 1 } else { plan.outputs };
                prop_assert!(handed >= request.batches_held && plan.slots >= 1);
                // More budget never buys less.
                let more = Request { budget: ByteCount(request.budget.0 * 2), ..request.clone() };
                let more = Plan::new(&more, facts, &profile).expect("what fits in less fits in more");
                prop_assert!(more.workers >= plan.workers && more.minimum == plan.minimum);
            }
            Err(refused) => {
                prop_assert!(refused.needed > refused.budget);
                let enough = Request { budget: refused.needed, ..request.clone() };
                prop_assert!(Plan::new(&enough, facts, &profile).is_ok(), "the minimum is enough");
            }
        }
    }
}
