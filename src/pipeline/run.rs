//! One epoch in progress: its threads, and the receiving end of its batches.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::cancel::Cancel;
use super::context::RunContext;
use super::engine::Engine;
use super::{admit, read, transfer, work};
use crate::batch::Batch;
use crate::error::Error;
use crate::sync::{Arc, Ordering, lock, spawn};

/// Interval of the governor.
const GOVERNOR_TICK: Duration = Duration::from_millis(50);

/// One epoch in progress.
pub(crate) struct Run {
    pub(crate) deliveries: Receiver<Result<Batch, Error>>,
    cancel: Cancel,
    threads: Vec<JoinHandle<()>>,
    engine: Arc<Engine>,
}

impl Run {
    /// Starts an epoch at one of its batches.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after [`Engine::stop`], [`Error::Busy`] while another run is in progress,
    /// [`Error::Thread`] if a thread cannot be started.
    pub(crate) fn start(engine: &Arc<Engine>, epoch: u64, first_batch: u64) -> Result<Run, Error> {
        if engine.is_stopped() {
            return Err(Error::Cancelled);
        }
        if engine.running.swap(true, Ordering::SeqCst) {
            return Err(Error::Busy);
        }
        engine.counters.run_begins();
        let cancel = Cancel::new(engine.ledger.clone());
        *lock(&engine.current) = Some(cancel.clone());
        // Room for every batch that exists and for the error that ends the run: delivery never blocks.
        let (delivered, deliveries) = bounded(engine.plan.slots + engine.plan.outputs + 1);
        // From here on dropping `run` undoes everything that has been started.
        let mut run = Run { deliveries, cancel: cancel.clone(), threads: Vec::new(), engine: engine.clone() };

        let (admitted, pending) = bounded(engine.plan.slots);
        let (to_read, to_be_read) = bounded(engine.plan.chunks);
        let (to_work, work) = bounded(engine.plan.chunks);
        let context = RunContext { engine: engine.clone(), cancel: cancel.clone(), epoch };
        for worker in 0..engine.plan.workers {
            let (context, work) = (context.clone(), work.clone());
            run.spawn(&format!("feedstock-work-{worker}"), move || work::run(&context, worker, &work))?;
        }
        if engine.config.adapt_to_pressure {
            let context = context.clone();
            run.spawn("feedstock-govern", move || govern(&context))?;
        }
        {
            let context = context.clone();
            run.spawn("feedstock-transfer", move || transfer::run(&context, &pending, &delivered))?;
        }
        read::start(&context, &to_be_read, &to_work);
        run.spawn("feedstock-admit", move || admit::run(context, first_batch, &admitted, to_read, to_work))?;
        if engine.is_stopped() {
            cancel.cancel();
        }
        Ok(run)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.threads.push(spawn(name, body).map_err(Error::Thread)?);
        Ok(())
    }
}

/// Runs the governor until the run ends.
fn govern(context: &RunContext) {
    while !context.cancel.is_cancelled() {
        context.engine.govern();
        // The channel carries nothing: this is a sleep that the end of the run cuts short.
        if context.cancel.closed().recv_timeout(GOVERNOR_TICK) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.cancel.cancel();
        // Batches that were not taken return to their pools, which frees the threads that wait for them.
        self.deliveries = crossbeam_channel::never();
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened, and its batch was delivered as an error.
            let _ = thread.join();
        }
        lock(&self.engine.current).take();
        self.engine.running.store(false, Ordering::SeqCst);
    }
}
