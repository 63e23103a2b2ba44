//! The spans that a `tracing` subscriber receives from a loader: every stage with its fields, and the device's streams.

mod common;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tempfile::tempdir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use feedstock::device::{DeviceSpec, open};
use feedstock::prelude::*;

#[derive(Default)]
struct Received {
    /// Number of spans and the sum of each field, by name.
    spans: BTreeMap<&'static str, (u64, BTreeMap<&'static str, u64>)>,
    streams: BTreeMap<String, u64>,
}

static SPANS: Mutex<Option<Received>> = Mutex::new(None);

struct Listener;

struct Sum<'a>(&'a mut BTreeMap<&'static str, u64>, &'a mut BTreeMap<String, u64>);

impl Visit for Sum<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        *self.0.entry(field.name()).or_default() += value;
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        assert!(["stream", "what"].contains(&field.name()), "{field}");
        *self.1.entry(value.to_owned()).or_default() += 1;
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        panic!("{field} is {value:?}, which is not a number");
    }
}

fn record(with: impl FnOnce(&mut Received)) {
    with(SPANS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("feedstock")
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        record(|Received { spans, streams }| {
            let (count, sums) = spans.entry(span.metadata().name()).or_default();
            *count += 1;
            span.record(&mut Sum(sums, streams));
        });
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        record(|Received { streams, .. }| event.record(&mut Sum(&mut BTreeMap::new(), streams)));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_stage_has_spans_with_its_batch() {
    tracing::subscriber::set_global_default(Listener).expect("the first");
    let folder = tempdir().expect("a folder");
    common::class_folders(folder.path(), &["a", "b"], 9, &[(40, 30)]);
    let device = open(&"sim:step=1ms".parse::<DeviceSpec>().expect("a device")).expect("it opens");
    let loader = Loader::builder(ImageFolder::open(folder.path()).expect("a folder"))
        .batch_size(4)
        .ram_budget("64M")
        .transform(RandomResizedCrop::new(16))
        .device(device)
        .max_workers(2)
        .build()
        .expect("it fits");
    for batch in loader.epoch(3) {
        let batch = batch.expect("a good batch");
        let memory = batch.device_memory().expect("on the device");
        loader.device().step(memory, batch.ready(), None).expect("a step").wait().expect("it ends");
    }
    let received = SPANS.lock().unwrap_or_else(PoisonError::into_inner).take().expect("something");
    let spans =
        |name: &str| received.spans.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", received.spans.keys()));
    let batches = 1 + 2 + 3 + 4;
    for name in ["admit", "transfer", "next"] {
        let (count, sums) = spans(name);
        assert_eq!((*count, sums["epoch"], sums["batch"]), (5, 15, batches), "{name}");
    }
    assert_eq!(spans("admit").1["samples"], 18);
    // Small files are read in chunks within a batch; a chunk counts its samples when it is created.
    for name in ["read", "work"] {
        assert_eq!(spans(name).1["samples"], 18, "{name}");
    }
    let (samples, ids) = spans("sample");
    assert_eq!((*samples, ids["id"]), (18, (0..18).sum::<u64>()));
    // The copy and the conversion run on the copy stream.
    assert_eq!(
        received.streams,
        BTreeMap::from(
            [("compute", 5), ("copy", 15), ("convert", 5), ("step", 5)].map(|(name, count)| (name.to_owned(), count))
        )
    );
    let stats = loader.stats();
    assert_eq!(stats.work_times.count(), 18);
    assert_eq!(stats.wait_times.count(), 5);
    assert!(
        loader.slowest_samples().len() == 16
            && loader.slowest_samples().is_sorted_by_key(|slow| std::cmp::Reverse(slow.read + slow.work))
    );
    let latency = stats.pipeline.latency;
    assert!(latency.read > std::time::Duration::ZERO && latency.work > std::time::Duration::ZERO, "{latency:?}");
    assert_eq!(stats.pipeline.admit.samples, 18);
    let queued = [stats.pipeline.read, stats.pipeline.work, stats.pipeline.transfer, stats.pipeline.consume];
    assert!(queued.iter().all(|stage| stage.queued == 0), "a queue is not empty: {queued:?}");
}
