//! Observation of a run: the `--trace` and `--metrics` options, their memory, their start and end. It does not change
//! the batches.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use feedstock::{ByteCount, Loader};

use super::failure::{Failure, say};

mod metrics;
mod sampler;
mod spans;
mod trace;

use metrics::Server;
use sampler::Sampler;
use trace::Trace;

/// The loaders of a run by name: bench, train or validation.
pub(crate) type Loaders = Arc<[(&'static str, Loader)]>;

/// Options of the observation of a run.
#[derive(Args, Clone, Default)]
pub(crate) struct WatchArgs {
    /// Write a timeline for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Serve Prometheus here, such as 127.0.0.1:9090 (port 0: any)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// The observation of a run.
#[derive(Clone, Default)]
pub(crate) struct Watch(Option<Arc<Watching>>);

struct Watching {
    trace: Option<(PathBuf, Trace)>,
    /// Ends when dropped.
    _sampler: Option<Sampler>,
    _server: Option<Server>,
}

impl WatchArgs {
    /// Bytes of the RAM budget that the observation takes.
    pub(crate) fn bytes(&self) -> ByteCount {
        let trace = if self.trace.is_some() { trace::BYTES } else { ByteCount::ZERO };
        let server = if self.metrics.is_some() { metrics::BYTES } else { ByteCount::ZERO };
        trace + server
    }

    /// The reason for these bytes, for the table of a refusal.
    pub(crate) const BECAUSE: &str = "for --trace and --metrics";

    /// Starts the observation.
    ///
    /// # Errors
    /// The file cannot be created, or the address cannot be bound.
    pub(crate) fn begin(&self, loaders: &[(&'static str, &Loader)]) -> Result<Watch, Failure> {
        if self.trace.is_none() && self.metrics.is_none() {
            return Ok(Watch::default());
        }
        let loaders: Loaders = loaders.iter().map(|(name, loader)| (*name, (*loader).clone())).collect();
        let server = self.metrics.map(|address| Server::start(address, loaders.clone())).transpose()?;
        if let Some(server) = &server {
            say("note", format_args!("metrics at http://{}/metrics", server.address()));
        }
        let trace = match &self.trace {
            Some(path) => {
                let trace = Trace::create(path)?;
                spans::record_into(trace.clone())?;
                Some((path.clone(), trace))
            }
            None => None,
        };
        let sampler = trace.as_ref().map(|(_, trace)| Sampler::start(trace.clone(), loaders)).transpose()?;
        Ok(Watch(Some(Arc::new(Watching { trace, _sampler: sampler, _server: server }))))
    }
}

impl Watch {
    /// Writes the timeline at the end of the run, and prints its path.
    pub(crate) fn finish(&self) {
        let Some(Watching { trace: Some((path, trace)), .. }) = self.0.as_deref() else { return };
        let path = path.display();
        match trace.finish() {
            Ok(trace::Written { lost: 0, .. }) => say("note", format_args!("the timeline is in {path}")),
            Ok(trace::Written { lost, bytes }) => say(
                "note",
                format_args!("the timeline in {path} ends at its limit of {bytes}: {lost} later events are missing"),
            ),
            Err(error) => say("warning", format_args!("the timeline in {path} is incomplete: {error}")),
        }
    }
}
