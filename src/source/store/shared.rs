//! Client of a store together with the runtime that drives its connections.

use std::fmt;

use tokio::runtime::{Builder, Handle, Runtime};

use super::client::StoreClient;
use crate::source::error::SourceError;
use crate::sync::{Arc, STACK_BYTES};

/// Threads that drive the connections: one of them decrypts about 2 GB/s.
const THREADS: usize = 2;
/// Threads for DNS lookups.
const DNS_THREADS: usize = 2;

/// Client and runtime, shared by a store, its objects and their readers. The last clone stops the threads.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) client: Arc<StoreClient>,
    threads: Arc<Threads>,
}

struct Threads {
    handle: Handle,
    /// `None` only during drop.
    runtime: Option<Runtime>,
}

impl Shared {
    pub(super) fn new(client: StoreClient) -> Result<Self, SourceError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(DNS_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("feed-store")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| SourceError::io("start threads for", &client.root, error))?;
        let threads = Threads { handle: runtime.handle().clone(), runtime: Some(runtime) };
        Ok(Shared { client: Arc::new(client), threads: Arc::new(threads) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.threads.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // In the background: a DNS lookup may hang for minutes, and the caller may be asynchronous code.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoreClient { root, options, .. } = &*self.client;
        f.debug_struct("Store").field("root", root).field("options", options).finish_non_exhaustive()
    }
}
