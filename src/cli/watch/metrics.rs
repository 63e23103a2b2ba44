//! Metrics of a run in the text format of Prometheus, and the small HTTP server for them.
//!
//! The server listens on the address that the user names and on no other, and never delays a run. `docs/METRICS.md`
//! lists every metric; a test compares the list with the server's answer.

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
use feedstock::stats::{Histogram, StageStats};
use feedstock::{ByteCount, Loader, Stats};

use super::super::failure::Failure;
use super::super::gpu;
use super::Loaders;

/// Maximum number of connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 8;
/// Maximum duration of a connection.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Bytes of the RAM budget that the server takes: a stack, and buffers and a response for every connection.
pub(super) const BYTES: ByteCount = ByteCount(1 << 20);
/// Exponents of the upper bounds of a histogram's buckets: powers of four in nanoseconds, from 16 microseconds to 17
/// seconds. Buckets of the library end there as well.
const BUCKET_ENDS: std::ops::Range<u32> = 7..18;

/// An HTTP server that runs until it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// # Errors
    /// The address cannot be bound.
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
            // Ends when the sender is dropped; nothing is ever sent.
            let _ = runtime.block_on(stopped);
            // Closes open connections.
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
            // A panic of the thread has been printed, and does not affect the run.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, loaders: Loaders) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let Ok((connection, _)) = listener.accept().await else {
            // The process may be out of file descriptors for a while.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let loaders = loaders.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = respond(&request, &loaders);
                async { Ok::<_, Infallible>(response) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX).max_buf_size(16 << 10).keep_alive(false);
            // A client that disconnects or stays silent is not an error.
            let _ =
                tokio::time::timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(connection), service)).await;
            drop(permit);
        });
    }
}

fn respond(request: &Request<Incoming>, loaders: &Loaders) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, render(loaders)),
        (&Method::GET, "/") => (StatusCode::OK, "feedstock: see /metrics\n".to_owned()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "not found: the only path is /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed: use GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Name, type and help of a metric, and its value.
struct Metric<F>(&'static str, &'static str, &'static str, F);

/// A value of a stage.
type StageValue = fn(&StageStats) -> f64;

/// Metrics of each stage.
const STAGE_METRICS: [Metric<StageValue>; 5] = [
    Metric("samples_total", "counter", "Samples processed by a stage.", |stage| stage.samples as f64),
    Metric(
        "busy_seconds_total",
        "counter",
        "Time that a stage's threads worked; consume: the consumer's own.",
        |stage| stage.busy.as_secs_f64(),
    ),
    Metric(
        "wait_in_seconds_total",
        "counter",
        "Time that a stage waited for input; consume: the input wait.",
        |stage| stage.wait_in.as_secs_f64(),
    ),
    Metric("wait_out_seconds_total", "counter", "Time that a stage waited for a slot, a buffer or bytes.", |stage| {
        stage.wait_out.as_secs_f64()
    }),
    Metric("queue_depth", "gauge", "Items queued for a stage: chunks, slots (transfer), batches (consume).", |stage| {
        stage.queued as f64
    }),
];

type OfLoader = fn(&Loader, &Stats) -> Option<f64>;

/// Metrics of each loader. A loader without a value has no sample.
const LOADER_METRICS: [Metric<OfLoader>; 14] = [
    Metric("encoded_bytes_total", "counter", "Encoded bytes read.", |_, stats| {
        Some(stats.pipeline.encoded_bytes as f64)
    }),
    Metric("oversized_samples_total", "counter", "Samples too large for a worker's scratch memory.", |_, stats| {
        Some(stats.pipeline.oversized_samples as f64)
    }),
    Metric("bad_samples_total", "counter", "Encounters of bad samples.", |_, stats| Some(stats.bad_samples as f64)),
    Metric("damage_accepted_total", "counter", "Damaged samples used as far as they go.", |_, stats| {
        Some(stats.pipeline.damage_accepted as f64)
    }),
    Metric("memory_held_bytes", "gauge", "Bytes reserved in all accounts of the ledger.", |_, stats| {
        Some(stats.memory.held.0 as f64)
    }),
    Metric("memory_peak_bytes", "gauge", "Peak of the reserved bytes.", |_, stats| Some(stats.memory.peak.0 as f64)),
    Metric("memory_limit_bytes", "gauge", "RAM budget of the loader.", |_, stats| Some(stats.memory.limit.0 as f64)),
    Metric("workers", "gauge", "Active workers.", |loader, _| Some(loader.governor_log().now.workers as f64)),
    Metric("slots", "gauge", "Active slots.", |loader, _| Some(loader.governor_log().now.slots as f64)),
    Metric("governor_resizes_total", "counter", "Resizes by the governor.", |loader, _| {
        Some(loader.governor_log().made as f64)
    }),
    Metric("governor_level", "gauge", "0 is the plan; each further level halves it.", |loader, _| {
        Some(f64::from(loader.governor_log().level))
    }),
    Metric("device_compute_seconds_total", "counter", "Time that the compute stream was busy.", |_, stats| {
        Some(stats.device?.compute_busy.as_secs_f64())
    }),
    Metric("device_copy_seconds_total", "counter", "Time that the copy stream was busy.", |_, stats| {
        Some(stats.device?.copy_busy.as_secs_f64())
    }),
    Metric("device_memory_bytes", "gauge", "Device memory held by loaders.", |loader, _| {
        gpu::held(&**loader.device()).map(|held| held.0 as f64)
    }),
];

/// A histogram of a loader.
type HistogramOf = fn(&Stats) -> &Histogram;

/// Histograms of each loader.
const HISTOGRAMS: [Metric<HistogramOf>; 3] = [
    Metric("batch_wait_seconds", "histogram", "Time that the consumer waited for a batch.", |stats| &stats.wait_times),
    Metric("sample_read_seconds", "histogram", "Time to read a sample.", |stats| &stats.read_times),
    Metric("sample_work_seconds", "histogram", "Time to decode and transform a sample.", |stats| &stats.work_times),
];

/// Text in the format of Prometheus, version 0.0.4.
struct Exposition(String);

impl Exposition {
    /// Begins a metric; its samples follow.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP feedstock_{name} {help}\n# TYPE feedstock_{name} {kind}");
    }

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

/// All metrics of these loaders now.
fn render(loaders: &Loaders) -> String {
    let mut out = Exposition(String::new());
    let all: Vec<_> = loaders.iter().map(|(name, loader)| (*name, loader, loader.stats())).collect();
    for Metric(name, kind, help, value) in STAGE_METRICS {
        out.metric(name, kind, help);
        for (loader, _, stats) in &all {
            let of = &stats.pipeline;
            let stages = [of.admit, of.read, of.work, of.transfer, of.consume];
            for (stage, of) in ["admit", "read", "work", "transfer", "consume"].into_iter().zip(stages) {
                out.sample(name, &[("loader", loader), ("stage", stage)], value(&of));
            }
        }
    }
    for Metric(name, kind, help, value) in LOADER_METRICS {
        out.metric(name, kind, help);
        for (loader, handle, stats) in &all {
            if let Some(value) = value(handle, stats) {
                out.sample(name, &[("loader", loader)], value);
            }
        }
    }
    for Metric(name, kind, help, of) in HISTOGRAMS {
        out.metric(name, kind, help);
        all.iter().for_each(|(loader, _, stats)| out.histogram(name, loader, of(stats)));
    }
    out.metric("account_held_bytes", "gauge", "Bytes reserved in one account of the ledger.");
    for (loader, _, stats) in &all {
        for account in &stats.memory.accounts {
            out.sample(
                "account_held_bytes",
                &[("loader", loader), ("account", account.kind.name())],
                account.held.0 as f64,
            );
        }
    }
    out.metric("process_resident_bytes", "gauge", "Resident memory of the process.");
    out.sample("process_resident_bytes", &[], process_memory().rss.0 as f64);
    out.metric("process_cpu_seconds_total", "counter", "CPU time of the process.");
    out.sample("process_cpu_seconds_total", &[], process_cpu_time().as_secs_f64());
    out.metric("info", "gauge", "Version and device; always 1.");
    for (loader, handle, _) in &all {
        let device = handle.device().name();
        out.sample("info", &[("loader", loader), ("version", env!("CARGO_PKG_VERSION")), ("device", &device)], 1.0);
    }
    out.0
}
