//! The timeline of a run, in the trace event format that Perfetto and chrome://tracing read.
//!
//! The file is one JSON array of events, a line each ("Trace Event Format" of the Chromium project). Threads write into
//! a fixed number of buffers; a full buffer goes to the file. Events that cannot be written are counted, and the run
//! goes on. Viewers accept an array without an end, so a run that is killed leaves a timeline as well.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use feedstock::ByteCount;

use super::super::failure::Failure;
use super::super::lock;

/// Number of buffers that the threads share.
const BUFFERS: usize = 32;
const BUFFER_BYTES: usize = 32 << 10;
/// Upper bound of an event's length: names are the library's own, and fields are numbers.
const EVENT_BYTES_MAX: usize = 1 << 10;
/// Bytes of the RAM budget that a timeline takes.
pub(super) const BYTES: ByteCount = ByteCount((BUFFERS * BUFFER_BYTES) as u64);
/// Maximum length of a timeline: viewers do not open longer ones.
const FILE_BYTES_MAX: u64 = 1 << 30;

thread_local! {
    /// The number of this thread in the timeline, once it has one.
    static THREAD: RefCell<Option<ThreadNumber>> = const { RefCell::new(None) };
}

/// A timeline that is being written. A clone is another handle to it.
#[derive(Clone)]
pub(super) struct Trace(Arc<Sink>);

/// Result of a timeline.
pub(super) struct Written {
    pub(super) bytes: ByteCount,
    /// Number of events after the maximum length, or that could not be written.
    pub(super) lost: u64,
}

struct Sink {
    started: Instant,
    buffers: Vec<Mutex<String>>,
    file: Mutex<Out>,
    /// Names of threads, and whether each is running: the next thread of the same name takes the number of one that
    /// ended.
    threads: Mutex<Vec<(String, bool)>>,
    lost: AtomicU64,
}

/// A thread's number, until the thread ends.
struct ThreadNumber {
    number: u32,
    trace: Trace,
}

impl Drop for ThreadNumber {
    fn drop(&mut self) {
        if let Some((_, running)) = lock(&self.trace.0.threads).get_mut(self.number as usize - 1) {
            *running = false;
        }
    }
}

struct Out {
    file: File,
    bytes: u64,
    failed: Option<io::Error>,
    /// True once the array is closed: nothing may follow.
    ended: bool,
}

impl Trace {
    /// Creates a timeline in this file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn create(path: &Path) -> Result<Trace, Failure> {
        let refused = |error: io::Error| Failure::Io(format!("cannot write {}: {error}", path.display()));
        let mut file = File::create(path).map_err(refused)?;
        file.write_all(b"[\n").map_err(refused)?;
        let trace = Trace(Arc::new(Sink {
            started: Instant::now(),
            buffers: (0..BUFFERS).map(|_| Mutex::new(String::with_capacity(BUFFER_BYTES))).collect(),
            file: Mutex::new(Out { file, bytes: 2, failed: None, ended: false }),
            threads: Mutex::default(),
            lost: AtomicU64::new(0),
        }));
        trace.add(0, |out| write!(out, r#"{{"ph":"M","name":"process_name","pid":1,"args":{{"name":"feedstock"}}}}"#));
        Ok(trace)
    }

    pub(super) fn name_thread(&self, number: u32, name: &str) {
        // As a JSON string, with its quotes.
        let name = Value::from(name);
        let event = r#""ph":"M","pid":1,"name""#;
        self.add(number, |out| write!(out, r#"{{{event}:"thread_name","tid":{number},"args":{{"name":{name}}}}}"#));
        self.add(number, |out| {
            write!(out, r#"{{{event}:"thread_sort_index","tid":{number},"args":{{"sort_index":{number}}}}}"#)
        });
    }

    /// The number of this thread. The first call writes the thread's name.
    pub(super) fn thread(&self) -> u32 {
        THREAD.with_borrow_mut(|thread| {
            thread.get_or_insert_with(|| ThreadNumber { number: self.new_thread(), trace: self.clone() }).number
        })
    }

    fn new_thread(&self) -> u32 {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed thread");
        let mut threads = lock(&self.0.threads);
        if let Some(at) = threads.iter().position(|(known, running)| !running && known == name) {
            threads[at].1 = true;
            return at as u32 + 1;
        }
        threads.push((name.to_owned(), true));
        let number = threads.len() as u32;
        drop(threads);
        self.name_thread(number, name);
        number
    }

    /// Adds an event, which `write` appends as JSON.
    fn add(&self, thread: u32, write: impl FnOnce(&mut String) -> fmt::Result) {
        let mut buffer = lock(&self.0.buffers[thread as usize % BUFFERS]);
        if buffer.len() + EVENT_BYTES_MAX > BUFFER_BYTES {
            self.flush(&mut buffer);
        }
        // Writing to a string cannot fail.
        let _ = write(&mut buffer);
        buffer.push_str(",\n");
    }

    fn flush(&self, buffer: &mut String) {
        let mut out = lock(&self.0.file);
        let fits = out.bytes + buffer.len() as u64 <= FILE_BYTES_MAX;
        let accepts = fits && out.failed.is_none() && !out.ended;
        match accepts.then(|| out.file.write_all(buffer.as_bytes())) {
            Some(Ok(())) => out.bytes += buffer.len() as u64,
            refused => {
                self.0.lost.fetch_add(buffer.lines().count() as u64, Ordering::Relaxed);
                out.failed = out.failed.take().or(refused.and_then(Result::err));
            }
        }
        drop(out);
        buffer.clear();
    }

    /// Adds an interval of a thread or a stream.
    pub(super) fn slice(&self, thread: u32, name: &str, began: Instant, ended: Instant, fields: &[(&str, u64)]) {
        self.add(thread, |out| {
            // Piece by piece: this happens for every sample, and the formatter would take twice as long.
            out.push_str(r#"{"ph":"X","cat":"feedstock","pid":1,"name":""#);
            out.push_str(name);
            out.push_str(r#"","tid":"#);
            push_number(out, u64::from(thread));
            out.push_str(r#","ts":"#);
            push_micros(out, began.saturating_duration_since(self.0.started));
            out.push_str(r#","dur":"#);
            push_micros(out, ended.saturating_duration_since(began));
            for (n, (field, number)) in fields.iter().enumerate() {
                out.push_str(if n == 0 { r#","args":{""# } else { r#",""# });
                out.push_str(field);
                out.push_str(r#"":"#);
                push_number(out, *number);
            }
            out.push_str(if fields.is_empty() { "}" } else { "}}" });
            Ok(())
        });
    }

    /// Adds a point of a batch's arrow: `s` starts it, `t` continues it and `f` ends it. `at` is inside of a slice.
    pub(super) fn arrow(&self, thread: u32, phase: char, epoch: u64, batch: u64, at: Instant) {
        self.add(thread, |out| {
            write!(out, r#"{{"ph":"{phase}","name":"batch","cat":"batch","bp":"e","id":"{epoch}.{batch}","#)?;
            write!(out, r#""pid":1,"tid":{thread},"ts":"#)?;
            push_micros(out, at.saturating_duration_since(self.0.started));
            out.write_char('}')
        });
    }

    /// Adds values of this moment, which a viewer draws as a track.
    pub(super) fn counter<'a>(&self, track: &str, values: impl Iterator<Item = (&'a str, u64)>) {
        let (thread, at, track) = (self.thread(), self.0.started.elapsed(), Value::from(track));
        self.add(thread, |out| {
            write!(out, r#"{{"ph":"C","name":{track},"pid":1,"tid":{thread},"ts":"#)?;
            push_micros(out, at);
            out.push_str(r#","args":{"#);
            for (n, (name, value)) in values.enumerate() {
                write!(out, r#"{}"{name}":{value}"#, if n > 0 { "," } else { "" })?;
            }
            out.write_str("}}")
        });
    }

    /// Writes every buffer and closes the array. Later events are lost.
    ///
    /// # Errors
    /// The first write that failed.
    pub(super) fn finish(&self) -> io::Result<Written> {
        for buffer in &self.0.buffers {
            self.flush(&mut lock(buffer));
        }
        let mut out = lock(&self.0.file);
        if let Some(error) = out.failed.take() {
            return Err(error);
        }
        // JSON allows no comma after the last event; the format allows an empty event.
        out.ended = true;
        out.file.write_all(b"{}]\n")?;
        Ok(Written { bytes: ByteCount(out.bytes), lost: self.0.lost.load(Ordering::Relaxed) })
    }

    #[cfg(test)]
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

fn push_number(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Microseconds with three decimals.
fn push_micros(out: &mut String, time: Duration) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    push_number(out, nanos / 1000);
    // The leading 1 keeps the zeros, and becomes the decimal point.
    let at = out.len();
    push_number(out, 1000 + nanos % 1000);
    out.replace_range(at..=at, ".");
}
