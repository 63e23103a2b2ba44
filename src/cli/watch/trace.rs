//! Owns the timeline: a `tracing` subscriber that writes the spans of the library's stages, in the trace event format that
//! Perfetto and chrome://tracing read. It must never hold more than its buffers, and never stop a run: what cannot be written
//! is counted.
//!
//! The format: one JSON array of events, a line each ("Trace Event Format" of the Chromium project). It may end anywhere, so
//! a run that is killed leaves a timeline as well.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use feedstock::ByteCount;

use super::super::failure::Failure;
use super::super::lock;

/// Threads share so many buffers, each by its number.
const BUFFERS: usize = 32;
const BUFFER_BYTES: usize = 32 << 10;
/// No event is as long: names are ours, and fields are numbers.
const EVENT_BYTES_MAX: usize = 1 << 10;
/// What a timeline takes of the RAM budget.
pub(super) const BYTES: ByteCount = ByteCount((BUFFERS * BUFFER_BYTES) as u64);
/// A timeline ends at this length: viewers do not open longer ones.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Fields of a span that are kept.
const FIELDS_MAX: usize = 4;
/// Streams of the device are drawn as threads with these numbers.
const STREAMS: [(&str, u32); 3] = [("copy", 9001), ("convert", 9002), ("compute", 9003)];
/// What goes on there.
const STREAM_WORK: [&str; 3] = ["copy", "convert", "step"];

thread_local! {
    /// The place of this thread in the timeline, once it has one.
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
    /// Spans that this thread is in, or about to enter.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
    static SPANS: Cell<u64> = const { Cell::new(0) };
}

/// A timeline that is being written. A clone is another handle to it.
#[derive(Clone)]
pub(super) struct Trace(Arc<Sink>);

/// What a timeline came to.
pub(super) struct Written {
    pub(super) bytes: ByteCount,
    /// Events that came after its limit, or that could not be written.
    pub(super) lost: u64,
}

struct Sink {
    started: Instant,
    buffers: Vec<Mutex<String>>,
    file: Mutex<Out>,
    /// Threads by name, and whether there is one at the moment: one that has ended leaves its place to the next of its name.
    places: Mutex<Vec<(String, bool)>>,
    /// Where the last slice of each stream ended.
    streams: Mutex<[Instant; STREAMS.len()]>,
    lost: AtomicU64,
}

/// A thread's place, for as long as the thread lives.
struct Place {
    number: u32,
    trace: Trace,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((_, taken)) = lock(&self.trace.0.places).get_mut(self.number as usize - 1) {
            *taken = false;
        }
    }
}

struct Out {
    file: File,
    bytes: u64,
    failed: Option<io::Error>,
    /// The list has its end: nothing may come behind it.
    ended: bool,
}

struct Open {
    id: u64,
    name: &'static str,
    fields: Fields,
    entered: Option<Instant>,
}

/// The numbers in a span or an event, and the two words that an event of a stream has.
#[derive(Clone, Copy, Default)]
struct Fields {
    numbers: [(&'static str, u64); FIELDS_MAX],
    count: usize,
    stream: Option<usize>,
    what: Option<usize>,
}

impl Fields {
    fn get(&self, name: &str) -> Option<u64> {
        self.numbers[..self.count].iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
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
            _ => self.what = STREAM_WORK.iter().position(|name| *name == value),
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl Trace {
    /// Begins a timeline in this file, with every span of the library from now on in it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn start(path: &Path) -> Result<Trace, Failure> {
        let trace = Trace::into_file(path)?;
        if tracing::subscriber::set_global_default(Tracer(trace.clone())).is_err() {
            return Err(Failure::Usage("one timeline at a time".to_owned()));
        }
        Ok(trace)
    }

    fn into_file(path: &Path) -> Result<Trace, Failure> {
        let refused = |error: io::Error| Failure::Io(format!("cannot write {}: {error}", path.display()));
        let mut file = File::create(path).map_err(refused)?;
        file.write_all(b"[\n").map_err(refused)?;
        let buffers = (0..BUFFERS).map(|_| Mutex::new(String::with_capacity(BUFFER_BYTES))).collect();
        let file = Mutex::new(Out { file, bytes: 2, failed: None, ended: false });
        let started = Instant::now();
        let streams = Mutex::new([started; STREAMS.len()]);
        let sink = Sink { started, streams, buffers, file, places: Mutex::default(), lost: AtomicU64::new(0) };
        let trace = Trace(Arc::new(sink));
        trace.name_process();
        Ok(trace)
    }

    fn name_process(&self) {
        self.add(0, |out| write!(out, r#"{{"ph":"M","name":"process_name","pid":1,"args":{{"name":"feedstock"}}}}"#));
        for (stream, number) in STREAMS {
            self.name_thread(number, &format!("device: {stream} stream"));
        }
    }

    fn name_thread(&self, number: u32, name: &str) {
        // As a JSON string, with its quotes.
        let name = Value::from(name);
        let event = r#""ph":"M","name":"thread_name","pid":1"#;
        self.add(number, |out| write!(out, r#"{{{event},"tid":{number},"args":{{"name":{name}}}}}"#));
        let event = r#""ph":"M","name":"thread_sort_index","pid":1"#;
        self.add(number, |out| write!(out, r#"{{{event},"tid":{number},"args":{{"sort_index":{number}}}}}"#));
    }

    /// The number of this thread, which is told with its name when it is first asked for.
    fn thread(&self) -> u32 {
        PLACE.with_borrow_mut(|place| {
            let place = place.get_or_insert_with(|| Place { number: self.take_place(), trace: self.clone() });
            place.number
        })
    }

    fn take_place(&self) -> u32 {
        let thread = thread::current();
        let name = thread.name().unwrap_or("a thread without a name");
        let mut places = lock(&self.0.places);
        if let Some(place) = places.iter().position(|(known, taken)| !taken && known == name) {
            places[place].1 = true;
            return place as u32 + 1;
        }
        places.push((name.to_owned(), true));
        let number = places.len() as u32;
        drop(places);
        self.name_thread(number, name);
        number
    }

    /// Adds an event, which `write` puts down as JSON.
    fn add(&self, thread: u32, write: impl FnOnce(&mut String) -> fmt::Result) {
        let mut buffer = lock(&self.0.buffers[thread as usize % BUFFERS]);
        if buffer.len() + EVENT_BYTES_MAX > BUFFER_BYTES {
            self.write_out(&mut buffer);
        }
        // A string takes everything.
        let _ = write(&mut buffer);
        buffer.push_str(",\n");
    }

    fn write_out(&self, buffer: &mut String) {
        let mut out = lock(&self.0.file);
        let fits = out.bytes + buffer.len() as u64 <= FILE_BYTES_MAX;
        let takes = fits && out.failed.is_none() && !out.ended;
        match takes.then(|| out.file.write_all(buffer.as_bytes())) {
            Some(Ok(())) => out.bytes += buffer.len() as u64,
            refused => {
                self.0.lost.fetch_add(buffer.lines().count() as u64, Ordering::Relaxed);
                out.failed = out.failed.take().or(refused.and_then(Result::err));
            }
        }
        drop(out);
        buffer.clear();
    }

    /// Microseconds of the timeline, with three digits behind the point.
    fn micros(&self, at: Instant) -> Micros {
        Micros(at.saturating_duration_since(self.0.started))
    }

    /// Something that took time, on a thread or a stream.
    fn slice(&self, thread: u32, name: &str, began: Instant, ended: Instant, fields: &Fields) {
        let (ts, dur) = (self.micros(began), Micros(ended.saturating_duration_since(began)));
        self.add(thread, |out| {
            // Piece by piece: this is done for every sample, and the formatter would take twice as long.
            out.push_str(r#"{"ph":"X","cat":"feedstock","pid":1,"name":""#);
            out.push_str(name);
            out.push_str(r#"","tid":"#);
            push_number(out, u64::from(thread));
            out.push_str(r#","ts":"#);
            ts.push_to(out);
            out.push_str(r#","dur":"#);
            dur.push_to(out);
            for (place, (field, number)) in fields.numbers[..fields.count].iter().enumerate() {
                out.push_str(if place == 0 { r#","args":{""# } else { r#",""# });
                out.push_str(field);
                out.push_str(r#"":"#);
                push_number(out, *number);
            }
            out.push_str(if fields.count > 0 { "}}" } else { "}" });
            Ok(())
        });
        let (Some(batch), Some(epoch)) = (fields.get("batch"), fields.get("epoch")) else { return };
        // An arrow for each batch, from where it is let in, by way of the transfer, to the consumer. It meets a slice at a
        // moment within it.
        let (step, at) = match name {
            "admit" => ("s", began),
            "transfer" => ("t", began),
            "next" => ("f", ended.checked_sub(Duration::from_nanos(1)).unwrap_or(ended)),
            _ => return,
        };
        let (id, ts) = (format_args!("{epoch}.{batch}"), self.micros(at));
        self.add(thread, |out| {
            write!(out, r#"{{"ph":"{step}","name":"batch","cat":"batch","bp":"e","id":"{id}","pid":1,"tid":{thread},"ts":{ts}}}"#)
        });
    }

    /// Values at this moment, drawn as a track.
    pub(super) fn counter<'a>(&self, track: &str, values: impl Iterator<Item = (&'a str, u64)>) {
        let (thread, ts, track) = (self.thread(), self.micros(Instant::now()), Value::from(track));
        self.add(thread, |out| {
            write!(out, r#"{{"ph":"C","name":{track},"pid":1,"tid":{thread},"ts":{ts},"args":{{"#)?;
            for (place, (name, value)) in values.enumerate() {
                write!(out, r#"{}"{name}":{value}"#, if place > 0 { "," } else { "" })?;
            }
            out.push_str("}}");
            Ok(())
        });
    }

    /// Writes out every buffer and ends the list. What comes later is lost.
    ///
    /// # Errors
    /// The first failure to write.
    pub(super) fn finish(&self) -> io::Result<Written> {
        for buffer in &self.0.buffers {
            self.write_out(&mut lock(buffer));
        }
        let mut out = lock(&self.0.file);
        if let Some(error) = out.failed.take() {
            return Err(error);
        }
        // The format wants no comma behind the last event, but it allows an event that says nothing.
        out.ended = true;
        out.file.write_all(b"{}]\n")?;
        Ok(Written { bytes: ByteCount(out.bytes), lost: self.0.lost.load(Ordering::Relaxed) })
    }
}

/// A time of the timeline.
struct Micros(Duration);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        write!(f, "{}.{:03}", nanos / 1000, nanos % 1000)
    }
}

impl Micros {
    fn push_to(&self, out: &mut String) {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        push_number(out, nanos / 1000);
        let rest = nanos % 1000;
        out.push_str(if rest < 10 {
            ".00"
        } else if rest < 100 {
            ".0"
        } else {
            "."
        });
        push_number(out, rest);
    }
}

fn push_number(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// The subscriber.
struct Tracer(Trace);

impl Subscriber for Tracer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("feedstock")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        // Every span of ours is entered and left on the thread that makes it, so threads may count for themselves.
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
            // A stream does one thing after another. Times are counted back from this moment, which is a little later each
            // time than the one that the device meant.
            let mut ends = lock(&self.0.0.streams);
            let began = began.max(ends[stream]);
            ends[stream] = ended.max(began);
            drop(ends);
            let work = fields.what.map_or(name, |what| STREAM_WORK[what]);
            self.0.slice(thread, work, began, ended, &Fields::default());
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
            let place = open.iter().rposition(|span| span.id == id)?;
            Some(open.remove(place))
        });
        if let Some(Open { name, fields, entered: Some(began), .. }) = left {
            self.0.slice(self.0.thread(), name, began, ended, &fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_streams_and_counters_become_events_that_a_viewer_reads() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let trace = Trace::into_file(path.path()).ok().expect("it can be written");
        tracing::subscriber::with_default(Tracer(trace.clone()), || {
            for (name, epoch) in [("admit", 3u64), ("transfer", 3), ("next", 3)] {
                let span = match name {
                    "admit" => tracing::debug_span!(target: "feedstock::test", "admit", epoch, batch = 7u64),
                    "transfer" => tracing::debug_span!(target: "feedstock::test", "transfer", epoch, batch = 7u64),
                    _ => tracing::debug_span!(target: "feedstock::test", "next", epoch, batch = 7u64),
                };
                let _span = span.entered();
                let _inner = tracing::trace_span!(target: "feedstock::test", "sample", id = u64::MAX).entered();
            }
            let _foreign = tracing::debug_span!(target: "somebody", "else").entered();
            tracing::debug!(target: "feedstock::stream", stream = "copy", what = "convert", began_ago_ns = 2500u64, ended_ago_ns = 500u64);
        });
        trace.counter("RAM \"by\" account", [("slots", 5), ("scratch", 6)].into_iter());
        assert_eq!(trace.finish().expect("it is written").lost, 0);
        // Threads that are still at work change nothing any more.
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
    fn what_cannot_be_written_is_counted_and_nothing_waits() {
        let Ok(trace) = Trace::into_file(Path::new("/dev/full")) else { return };
        for _ in 0..2000 {
            trace.counter("a track", [("a", 1)].into_iter());
        }
        assert!(trace.finish().is_err());
        assert!(trace.0.lost.load(Ordering::Relaxed) > 1000);
    }
}
