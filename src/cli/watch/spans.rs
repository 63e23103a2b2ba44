//! A `tracing` subscriber that records the spans of the library's stages, and the work of the device's streams, in a
//! timeline.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use super::super::failure::Failure;
use super::super::lock;
use super::trace::Trace;

/// Maximum number of a span's fields that are recorded.
const FIELDS_MAX: usize = 4;
/// Streams of the device, which are drawn as threads with these numbers.
const STREAMS: [(&str, u32); 3] = [("copy", 9001), ("convert", 9002), ("compute", 9003)];
/// Kinds of work on a stream.
const STREAM_WORK: [&str; 3] = ["copy", "convert", "step"];

thread_local! {
    /// Spans that this thread has created and not left.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
    static SPANS: Cell<u64> = const { Cell::new(0) };
}

struct Open {
    id: u64,
    name: &'static str,
    fields: Fields,
    entered: Option<Instant>,
}

/// The numbers of a span or an event, and the stream and kind of work of a stream's event.
#[derive(Clone, Copy, Default)]
struct Fields {
    numbers: [(&'static str, u64); FIELDS_MAX],
    count: usize,
    stream: Option<usize>,
    work: Option<usize>,
}

impl Fields {
    fn numbers(&self) -> &[(&'static str, u64)] {
        &self.numbers[..self.count]
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.numbers().iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if self.count < FIELDS_MAX {
            self.numbers[self.count] = (field.name(), value);
            self.count += 1;
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "stream" => self.stream = STREAMS.iter().position(|(name, _)| *name == value),
            _ => self.work = STREAM_WORK.iter().position(|name| *name == value),
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// The subscriber.
struct Tracer {
    trace: Trace,
    /// End of the last slice of each stream.
    streams: Mutex<[Instant; STREAMS.len()]>,
}

/// Records every span of the library in this timeline from now on.
///
/// # Errors
/// The process has another subscriber already.
pub(super) fn record_into(trace: Trace) -> Result<(), Failure> {
    let refused = |_| Failure::Usage("there is a timeline already: a process writes one at a time".to_owned());
    tracing::subscriber::set_global_default(Tracer::new(trace)).map_err(refused)
}

impl Tracer {
    fn new(trace: Trace) -> Self {
        for (stream, number) in STREAMS {
            trace.name_thread(number, &format!("device: {stream} stream"));
        }
        Tracer { trace, streams: Mutex::new([Instant::now(); STREAMS.len()]) }
    }
}

impl Subscriber for Tracer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("feedstock")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        // The library enters and leaves every span on the thread that creates it, so each thread counts for itself.
        let id = SPANS.get() + 1;
        SPANS.set(id);
        let mut fields = Fields::default();
        span.record(&mut fields);
        OPEN.with_borrow_mut(|open| open.push(Open { id, name: span.metadata().name(), fields, entered: None }));
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let now = Instant::now();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let ago = |name| now.checked_sub(Duration::from_nanos(fields.get(name)?));
        if let (Some(stream), Some(began), Some(ended)) = (fields.stream, ago("began_ago_ns"), ago("ended_ago_ns")) {
            let (name, thread) = STREAMS[stream];
            // A stream does one thing after another. Times are relative to this moment, which is a little later than
            // the one that the device meant, so slices could overlap by that.
            let mut ends = lock(&self.streams);
            let began = began.max(ends[stream]);
            ends[stream] = ended.max(began);
            drop(ends);
            let work = fields.work.map_or(name, |work| STREAM_WORK[work]);
            self.trace.slice(thread, work, began, ended, &[]);
        }
    }

    fn enter(&self, id: &Id) {
        let id = id.into_u64();
        OPEN.with_borrow_mut(|open| {
            if let Some(span) = open.iter_mut().rev().find(|span| span.id == id) {
                span.entered = Some(Instant::now());
            }
        });
    }

    fn exit(&self, id: &Id) {
        let (ended, id) = (Instant::now(), id.into_u64());
        let left = OPEN.with_borrow_mut(|open| {
            let at = open.iter().rposition(|span| span.id == id)?;
            Some(open.remove(at))
        });
        let Some(Open { name, fields, entered: Some(began), .. }) = left else { return };
        let thread = self.trace.thread();
        self.trace.slice(thread, name, began, ended, fields.numbers());
        // An arrow for each batch, from admission through the transfer to the consumer.
        if let (Some(epoch), Some(batch)) = (fields.get("epoch"), fields.get("batch")) {
            let just_before = ended.checked_sub(Duration::from_nanos(1)).unwrap_or(ended);
            match name {
                "admit" => self.trace.arrow(thread, 's', epoch, batch, began),
                "transfer" => self.trace.arrow(thread, 't', epoch, batch, began),
                "next" => self.trace.arrow(thread, 'f', epoch, batch, just_before),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    #[test]
    fn spans_streams_and_counters_become_trace_events() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let trace = Trace::create(path.path()).ok().expect("it can be written");
        tracing::subscriber::with_default(Tracer::new(trace.clone()), || {
            for (name, epoch) in [("admit", 3u64), ("transfer", 3), ("next", 3)] {
                let span = match name {
                    "admit" => tracing::debug_span!(target: "feedstock::test", "admit", epoch, batch = 7u64),
                    "transfer" => tracing::debug_span!(target: "feedstock::test", "transfer", epoch, batch = 7u64),
                    _ => tracing::debug_span!(target: "feedstock::test", "next", epoch, batch = 7u64),
                };
                let _span = span.entered();
                let _inner = tracing::trace_span!(target: "feedstock::test", "sample", id = u64::MAX).entered();
            }
            let _foreign = tracing::debug_span!(target: "other", "else").entered();
            tracing::debug!(target: "feedstock::stream", stream = "copy", what = "convert",
                began_ago_ns = 2500u64, ended_ago_ns = 500u64);
        });
        trace.counter("RAM \"by\" account", [("slots", 5), ("scratch", 6)].into_iter());
        assert_eq!(trace.finish().expect("it is written").lost, 0);
        // Later events change nothing.
        (0..2000).for_each(|_| trace.counter("too late", [("a", 1)].into_iter()));
        let text = std::fs::read_to_string(path.path()).expect("it is there");
        let events: Vec<Value> = serde_json::from_str(&text).expect("it is JSON");
        let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
        let names: Vec<_> = of("X").iter().map(|event| event["name"].as_str().unwrap_or("?").to_owned()).collect();
        assert_eq!(names, ["sample", "admit", "sample", "transfer", "sample", "next", "convert"]);
        for phase in ["s", "t", "f"] {
            let [arrow] = of(phase)[..] else { panic!("one arrow, three parts: {text}") };
            assert_eq!((&arrow["id"], &arrow["bp"]), (&"3.7".into(), &"e".into()));
            let within = of("X").into_iter().any(|slice| {
                let (ts, dur) = (slice["ts"].as_f64(), slice["dur"].as_f64());
                let at = arrow["ts"].as_f64();
                slice["args"]["batch"] == 7 && at >= ts && at <= ts.zip(dur).map(|(ts, dur)| ts + dur)
            });
            assert!(within, "the arrow meets a slice: {text}");
        }
        let copy = of("X").into_iter().next_back().expect("there is one");
        assert_eq!((copy["dur"].as_f64(), &copy["tid"]), (Some(2.0), &9001.into()));
        assert_eq!(of("C")[0]["args"], serde_json::json!({ "slots": 5, "scratch": 6 }));
        assert_eq!(of("X")[0]["args"]["id"].as_u64(), Some(u64::MAX));
    }

    #[test]
    fn events_that_cannot_be_written_are_counted() {
        let Ok(trace) = Trace::create(Path::new("/dev/full")) else { return };
        for _ in 0..2000 {
            trace.counter("a track", [("a", 1)].into_iter());
        }
        assert!(trace.finish().is_err());
        assert!(trace.lost() > 1000);
    }
}
