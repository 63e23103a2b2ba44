//! Owns the metrics of a run, as Prometheus reads them: their names, units and values, and the small server that gives them
//! out. It must never be reachable from elsewhere unless the user says so, and never hold a run up.
//!
//! `docs/METRICS.md` lists every name.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;

use feedstock::host::{process_cpu_time, process_memory};
use feedstock::{ByteCount, Histogram, StageStats};

use super::super::failure::Failure;
use super::super::gpu;
use super::Loaders;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 8;
/// The longest that a connection lasts.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// What it takes of the RAM budget: a stack, and buffers and an answer for every connection.
pub(super) const BYTES: ByteCount = ByteCount(1 << 20);
/// The ends of a histogram's buckets, in nanoseconds: powers of four from 16 microseconds to 17 seconds, where buckets of the
/// library's end as well.
const BUCKET_ENDS: std::ops::Range<u32> = 7..18;

/// Gives the metrics out until it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// # Errors
    /// The address cannot be had.
    pub(super) fn start(address: SocketAddr, loaders: Loaders) -> Result<Server, Failure> {
        let refused = |error: std::io::Error| {
            Failure::Io(format!("cannot serve metrics at {address}: {error}; choose another --metrics, or port 0"))
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.spawn(accept(listener, loaders));
            // It ends when the other side is dropped; nothing is ever sent.
            let _ = runtime.block_on(stopped);
            // Connections under way are cut.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("feedstock-metrics".to_owned()).spawn(serve).map_err(refused)?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed, and costs the run nothing.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, loaders: Loaders) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((connection, _)) = listener.accept().await else {
            // Out of file descriptors, say: it may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let loaders = loaders.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &loaders);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX).max_buf_size(16 << 10).keep_alive(false);
            // A peer that goes away, or says nothing, is nobody's failure.
            let _ =
                tokio::time::timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(connection), service)).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, loaders: &Loaders) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, render(loaders)),
        (&Method::GET, "/") => (StatusCode::OK, "feedstock: see /metrics\n".to_owned()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "there is only /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "there is only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Metrics in the text format of Prometheus, version 0.0.4.
struct Exposition(String);

impl Exposition {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // A string takes everything.
        let _ = writeln!(self.0, "# HELP feedstock_{name} {help}\n# TYPE feedstock_{name} {kind}");
    }

    /// One sample. Labels are ours and of the library's making, but for values that hold text from elsewhere.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "feedstock_{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, loader: &str, histogram: &Histogram) {
        for power in BUCKET_ENDS {
            let end = Duration::from_nanos(4u64.pow(power));
            let below: u64 = histogram.buckets().take_while(|(bucket, _)| *bucket <= end).map(|(_, count)| count).sum();
            let end = end.as_secs_f64().to_string();
            self.sample(&format!("{name}_bucket"), &[("loader", loader), ("le", &end)], below as f64);
        }
        let count = histogram.count() as f64;
        self.sample(&format!("{name}_bucket"), &[("loader", loader), ("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[("loader", loader)], histogram.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), &[("loader", loader)], count);
    }
}

/// All metrics of these loaders at this moment.
fn render(loaders: &Loaders) -> String {
    let mut out = Exposition(String::new());
    let all: Vec<_> = loaders.iter().map(|(name, loader)| (*name, loader, loader.stats())).collect();
    let stages = |stats: &feedstock::Stats| {
        let of = &stats.pipeline;
        [("admit", of.admit), ("read", of.read), ("work", of.work), ("transfer", of.transfer), ("consume", of.consume)]
    };
    type OfStage = fn(&StageStats) -> f64;
    let of_stages: [(&str, &str, &str, OfStage); 5] = [
        ("samples_total", "counter", "Samples that went through a stage.", |stage| stage.samples as f64),
        (
            "busy_seconds_total",
            "counter",
            "Time that a stage's threads were at work; consume: the consumer's own.",
            |stage| stage.busy.as_secs_f64(),
        ),
        (
            "wait_in_seconds_total",
            "counter",
            "Time that a stage's threads had nothing to do; consume: the input wait.",
            |stage| stage.wait_in.as_secs_f64(),
        ),
        (
            "wait_out_seconds_total",
            "counter",
            "Time that a stage was held back: no slot, no buffer, no bytes.",
            |stage| stage.wait_out.as_secs_f64(),
        ),
        (
            "queue_depth",
            "gauge",
            "What waits in front of a stage: chunks, slots (transfer), batches (consume).",
            |stage| stage.queued as f64,
        ),
    ];
    for (name, kind, help, value) in of_stages {
        out.metric(name, kind, help);
        for (loader, _, stats) in &all {
            for (stage, of) in stages(stats) {
                out.sample(name, &[("loader", loader), ("stage", stage)], value(&of));
            }
        }
    }
    type OfLoader = fn(&feedstock::Loader, &feedstock::Stats) -> Option<f64>;
    let of_loaders: [(&str, &str, &str, OfLoader); 14] = [
        ("encoded_bytes_total", "counter", "Bytes read, as stored.", |_, stats| {
            Some(stats.pipeline.encoded_bytes as f64)
        }),
        ("oversized_samples_total", "counter", "Samples too large for a worker's scratch.", |_, stats| {
            Some(stats.pipeline.oversized_samples as f64)
        }),
        ("bad_samples_total", "counter", "How often a bad sample was met.", |_, stats| Some(stats.bad_samples as f64)),
        ("damage_accepted_total", "counter", "Damaged samples used as far as they go.", |_, stats| {
            Some(stats.pipeline.damage_accepted as f64)
        }),
        ("memory_held_bytes", "gauge", "Bytes that the ledger's accounts hold.", |_, stats| {
            Some(stats.memory.held.0 as f64)
        }),
        ("memory_peak_bytes", "gauge", "The most that they have held.", |_, stats| Some(stats.memory.peak.0 as f64)),
        ("memory_limit_bytes", "gauge", "The RAM budget of the loader.", |_, stats| Some(stats.memory.limit.0 as f64)),
        ("workers", "gauge", "Workers that may work at the moment.", |loader, _| {
            Some(loader.moves().now.workers as f64)
        }),
        ("slots", "gauge", "Slots that circulate at the moment.", |loader, _| Some(loader.moves().now.slots as f64)),
        ("governor_moves_total", "counter", "Changes of size under way.", |loader, _| Some(loader.moves().made as f64)),
        ("governor_level", "gauge", "0 is the plan; each further level halves it.", |loader, _| {
            Some(f64::from(loader.moves().level))
        }),
        ("device_compute_seconds_total", "counter", "Time that the compute stream was busy.", |_, stats| {
            Some(stats.device?.compute_busy.as_secs_f64())
        }),
        ("device_copy_seconds_total", "counter", "Time that the copy stream was busy.", |_, stats| {
            Some(stats.device?.copy_busy.as_secs_f64())
        }),
        ("device_memory_bytes", "gauge", "Device memory that loaders hold.", |loader, _| {
            gpu::held(&**loader.device()).map(|held| held.0 as f64)
        }),
    ];
    for (name, kind, help, value) in of_loaders {
        out.metric(name, kind, help);
        for (loader, handle, stats) in &all {
            if let Some(value) = value(handle, stats) {
                out.sample(name, &[("loader", loader)], value);
            }
        }
    }
    out.metric("account_held_bytes", "gauge", "Bytes that one account of the ledger holds.");
    for (loader, _, stats) in &all {
        for account in &stats.memory.accounts {
            out.sample(
                "account_held_bytes",
                &[("loader", loader), ("account", account.kind.name())],
                account.held.0 as f64,
            );
        }
    }
    type Times = fn(&feedstock::Stats) -> &Histogram;
    let times: [(&str, &str, Times); 3] = [
        ("batch_wait_seconds", "How long the consumer waited for a batch.", |stats| &stats.wait_times),
        ("sample_read_seconds", "How long reading a sample took.", |stats| &stats.read_times),
        ("sample_work_seconds", "How long decoding and transforming a sample took.", |stats| &stats.work_times),
    ];
    for (name, help, of) in times {
        out.metric(name, "histogram", help);
        for (loader, _, stats) in &all {
            out.histogram(name, loader, of(stats));
        }
    }
    out.metric("process_resident_bytes", "gauge", "Resident memory of the process.");
    out.sample("process_resident_bytes", &[], process_memory().rss.0 as f64);
    out.metric("process_cpu_seconds_total", "counter", "Processor time of the process.");
    out.sample("process_cpu_seconds_total", &[], process_cpu_time().as_secs_f64());
    out.metric("info", "gauge", "Version and device; always 1.");
    for (loader, handle, _) in &all {
        let device = handle.device().name();
        out.sample("info", &[("loader", loader), ("version", env!("CARGO_PKG_VERSION")), ("device", &device)], 1.0);
    }
    out.0
}
