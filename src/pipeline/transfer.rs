//! Transfer: slots in plan order, as each becomes complete, are copied to the device and delivered to the
//! consumer. One thread for each device. A slot returns to its pool only after the event of its copy.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use tracing::{debug_span, trace_span};

use super::admit::Admitted;
use super::cancel::Cancelled;
use super::context::RunContext;
use crate::batch::{Batch, Head};
use crate::device::{DeviceError, Event, Transfer};
use crate::error::Error;
use crate::metrics::Counters;
use crate::pool::{Filled, Output, Pooled};

struct TransferThread<'a> {
    context: &'a RunContext,
    pending: &'a Receiver<Result<Admitted, DeviceError>>,
    delivered: &'a Sender<Result<Batch, Error>>,
    /// Slots whose copies are in flight, in order.
    copies: VecDeque<(Filled, Event)>,
    /// Bad samples of this epoch so far, in the order of the batches.
    bad_samples: u64,
    /// Time that the current batch has waited for an output.
    held_back: Duration,
}

/// Delivers every admitted batch, and then the error that ends the run, if any.
pub(super) fn run(
    context: &RunContext,
    pending: &Receiver<Result<Admitted, DeviceError>>,
    delivered: &Sender<Result<Batch, Error>>,
) {
    let mut transfer = TransferThread {
        context,
        pending,
        delivered,
        copies: VecDeque::new(),
        bad_samples: 0,
        held_back: Duration::ZERO,
    };
    while transfer.next().is_ok() {}
    while transfer.finish_oldest_copy() {}
}

impl TransferThread<'_> {
    fn next(&mut self) -> Result<(), Cancelled> {
        let Counters { transfer: counters, latency, consume, .. } = &self.context.engine.counters;
        let since = Instant::now();
        let Admitted { batch, pending } = match self.admitted()? {
            Ok(admitted) => admitted,
            Err(error) => return self.fail(error.into()),
        };
        // Admit may be waiting for a slot whose copy is in flight, so nothing here blocks while one could be given
        // back.
        while !pending.is_complete() && self.finish_oldest_copy() {}
        let filled = pending.wait();
        counters.waited_in(since);
        counters.queue_out();
        let _span = debug_span!("transfer", epoch = self.context.epoch, batch).entered();
        let since = Instant::now();
        let samples = filled.samples() as u64;
        latency.batch_queue.add(since - filled.begun(), samples);
        latency.batch_queue.take_back(filled.meta.done_after);
        let result = self.check_bad_samples(&filled).and_then(|()| self.transfer(batch, filled));
        match result {
            Ok(Some(mut batch)) => {
                let held_back = std::mem::take(&mut self.held_back);
                let busy = since.elapsed().saturating_sub(held_back);
                counters.was_busy(busy);
                counters.handed_over(samples);
                latency.batch_queue.add(held_back, samples);
                latency.transfer.add(busy, samples);
                batch.set_delivered();
                consume.queue_in();
                self.delivered.send(Ok(batch)).map_err(|_| Cancelled)
            }
            Ok(None) => Err(Cancelled),
            Err(error) => self.fail(error),
        }
    }

    /// Delivers the error that ends the run.
    fn fail(&self, error: Error) -> Result<(), Cancelled> {
        let _ = self.delivered.send(Err(error));
        self.context.cancel.cancel();
        Err(Cancelled)
    }

    fn admitted(&mut self) -> Result<Result<Admitted, DeviceError>, Cancelled> {
        loop {
            match self.pending.try_recv() {
                Ok(admitted) => return Ok(admitted),
                Err(TryRecvError::Empty) if self.finish_oldest_copy() => {}
                _ => return self.pending.recv().map_err(|_| Cancelled),
            }
        }
    }

    /// Waits for the oldest copy and gives its slot back. Returns false if there is none.
    fn finish_oldest_copy(&mut self) -> bool {
        let Some((slot, copied)) = self.copies.pop_front() else { return false };
        // An error is sticky: the next transfer returns it. The slot is as free as it will ever be.
        let _ = copied.wait();
        drop(slot);
        true
    }

    /// Applies the policy for bad samples to a batch.
    fn check_bad_samples(&mut self, filled: &Filled) -> Result<(), Error> {
        let engine = &self.context.engine;
        let meta = &filled.meta;
        if meta.abandoned > 0 {
            let cancelled = self.context.cancel.is_cancelled();
            return Err(if cancelled { Error::Cancelled } else { Error::WorkerDied });
        }
        engine.bad_samples.add(meta.bad.iter().map(|(_, bad)| bad));
        if let Some((_, bad)) = &meta.fatal {
            return Err(bad.clone().into());
        }
        // A place whose substitutes were bad as well is still one sample that could not be used.
        self.bad_samples += meta.bad.chunk_by(|a, b| a.0 == b.0).count() as u64;
        let (bad, samples) = (self.bad_samples, engine.samples());
        let allowed = (samples as f64 * engine.config.max_bad_fraction).ceil() as u64;
        match meta.bad.last() {
            Some((_, latest)) if bad > allowed => {
                Err(Error::TooManyBadSamples { bad, allowed, samples, latest: Box::new(latest.clone()) })
            }
            _ => Ok(()),
        }
    }

    /// Makes a batch of a complete slot: as it is, or in its output format on the device. `None` if the run was
    /// cancelled meanwhile.
    fn transfer(&mut self, batch: u64, mut filled: Filled) -> Result<Option<Batch>, Error> {
        let engine = &self.context.engine;
        let config = &engine.config;
        let meta = std::mem::take(&mut filled.meta);
        let head = Head {
            epoch: self.context.epoch,
            index: batch,
            samples: filled.samples(),
            spec: config.spec,
            format: config.format,
            meta,
            delivered: Instant::now(),
        };
        if engine.hands_over_slots() {
            return Ok(Some(Batch::from_slot(head, filled)));
        }
        let Some(mut output) = self.output() else { return Ok(None) };
        let after = std::mem::take(&mut output.released);
        let transfer = Transfer {
            from: filled.memory(),
            samples: filled.samples(),
            spec: config.spec,
            format: config.format,
            to: &mut output.memory,
            after,
        };
        let events = config.device.enqueue_batch(transfer)?;
        self.copies.push_back((filled, events.slot_free));
        Ok(Some(Batch::from_output(head, output, events.ready, config.device.clone())))
    }

    /// An output for the next batch, as soon as the consumer gives one back.
    fn output(&mut self) -> Option<Pooled<Output>> {
        let engine = &self.context.engine;
        if let Ok(output) = engine.outputs.free().try_recv() {
            return Some(engine.outputs.checkout(output));
        }
        let _span = trace_span!("wait for the consumer").entered();
        let since = Instant::now();
        while self.finish_oldest_copy() {}
        let output = select! {
            recv(engine.outputs.free()) -> output => output.ok(),
            recv(self.context.cancel.closed()) -> _ => None,
        };
        engine.counters.transfer.waited_out(since);
        self.held_back += since.elapsed();
        output.map(|output| engine.outputs.checkout(output))
    }
}
