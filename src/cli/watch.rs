//! Owns how a run is looked at while it goes on: the options, what they take of the budget, and their beginning and end. It
//! must never change what a run does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use feedstock::{ByteCount, Loader};

use super::failure::{Failure, say};

mod metrics;
mod sampler;
mod trace;

use metrics::Server;
use sampler::Sampler;
use trace::Trace;

/// The loaders of a run, by what they are for.
pub(crate) type Loaders = Arc<[(&'static str, Loader)]>;

/// How a run is looked at.
#[derive(Args, Clone, Default)]
pub(crate) struct WatchArgs {
    /// Write a timeline for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Serve Prometheus here, such as 127.0.0.1:9090 (port 0: any)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// A run that is being looked at.
#[derive(Clone, Default)]
pub(crate) struct Watch(Option<Arc<Watching>>);

struct Watching {
    trace: Option<(PathBuf, Trace)>,
    /// Ends with this.
    _sampler: Option<Sampler>,
    _server: Option<Server>,
}

impl WatchArgs {
    /// What it takes of the RAM budget.
    pub(crate) fn bytes(&self) -> ByteCount {
        let trace = if self.trace.is_some() { trace::BYTES } else { ByteCount::ZERO };
        let server = if self.metrics.is_some() { metrics::BYTES } else { ByteCount::ZERO };
        trace + server
    }

    /// Why it takes something, for a refusal.
    pub(crate) const BECAUSE: &str = "for --trace and --metrics";

    /// Begins to look.
    ///
    /// # Errors
    /// The file cannot be made, or the address cannot be had.
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
            Some(path) => Some((path.clone(), Trace::start(path)?)),
            None => None,
        };
        let sampler = trace.as_ref().map(|(_, trace)| Sampler::start(trace.clone(), loaders)).transpose()?;
        Ok(Watch(Some(Arc::new(Watching { trace, _sampler: sampler, _server: server }))))
    }
}

impl Watch {
    /// Writes out what there is so far, and says where it is. The run is over, or about to be.
    pub(crate) fn finish(&self) {
        let Some(Watching { trace: Some((path, trace)), .. }) = self.0.as_deref() else { return };
        let path = path.display();
        match trace.finish() {
            Ok(trace::Written { lost: 0, .. }) => say("note", format_args!("the timeline is in {path}")),
            Ok(trace::Written { lost, bytes }) => say(
                "note",
                format_args!("the timeline in {path} ends at its limit of {bytes}; {lost} later events are not in it"),
            ),
            Err(error) => say("warning", format_args!("the timeline in {path} is not whole: {error}")),
        }
    }
}
