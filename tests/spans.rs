//! What a `tracing` subscriber of a user's own hears of a loader: each stage's spans, with their fields, and the device's
//! streams.

mod common;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tempfile::tempdir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use feedstock::device::{DeviceSpec, open};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, ImageFolder, Loader};

#[derive(Default)]
struct Heard {
    /// How often each span was made, and the sum of its fields.
    spans: BTreeMap<&'static str, (u64, BTreeMap<&'static str, u64>)>,
    streams: BTreeMap<String, u64>,
}

static HEARD: Mutex<Option<Heard>> = Mutex::new(None);

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
        panic!("{field} is {value:?}, which is no number");
    }
}

fn hear(with: impl FnOnce(&mut Heard)) {
    with(HEARD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("feedstock")
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        hear(|Heard { spans, streams }| {
            let (count, sums) = spans.entry(span.metadata().name()).or_default();
            *count += 1;
            span.record(&mut Sum(sums, streams));
        });
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        hear(|Heard { streams, .. }| event.record(&mut Sum(&mut BTreeMap::new(), streams)));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_stage_is_heard_with_its_batch() {
    tracing::subscriber::set_global_default(Listener).expect("the first");
    let folder = tempdir().expect("a folder");
    common::class_folders(folder.path(), &["a", "b"], 9, &[(40, 30)]);
    let device = open(&"sim:step=1ms".parse::<DeviceSpec>().expect("a device")).expect("it opens");
    let loader = Loader::builder(ImageFolder::open(folder.path()).expect("a folder"))
        .batch_size(4)
        .ram_budget(ByteCount(64 << 20))
        .transform(RandomResizedCrop::new(16))
        .device(device)
        .workers(2)
        .build()
        .expect("it fits");
    for batch in loader.epoch(3) {
        let batch = batch.expect("a good batch");
        let memory = batch.device_memory().expect("on the device");
        loader.device().step(memory, batch.ready(), None).expect("a step").wait().expect("it ends");
    }
    let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner).take().expect("something");
    let told = |name: &str| heard.spans.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", heard.spans.keys()));
    let batches = 1 + 2 + 3 + 4;
    for name in ["admit", "transfer", "next"] {
        let (count, sums) = told(name);
        assert_eq!((*count, sums["epoch"], sums["batch"]), (5, 15, batches), "{name}");
    }
    assert_eq!(told("admit").1["samples"], 18);
    // Small files go together, in chunks within a batch; each of a chunk's samples was counted when the chunk was made.
    for name in ["read", "work"] {
        assert_eq!(told(name).1["samples"], 18, "{name}");
    }
    let (samples, ids) = told("sample");
    assert_eq!((*samples, ids["id"]), (18, (0..18).sum::<u64>()));
    // A copy is a copy on the copy stream, and the finish is on the copy stream as well.
    assert_eq!(
        heard.streams,
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
    let way = stats.pipeline.journey;
    assert!(way.read > std::time::Duration::ZERO && way.work > std::time::Duration::ZERO, "{way:?}");
    assert_eq!(stats.pipeline.admit.samples, 18);
    let queued = [stats.pipeline.read, stats.pipeline.work, stats.pipeline.transfer, stats.pipeline.consume];
    assert!(queued.iter().all(|stage| stage.queued == 0), "nothing is left behind: {queued:?}");
}
