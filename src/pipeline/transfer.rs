//! Owns the way out: slots in plan order, as each becomes whole, are handed to the device and to the consumer. One
//! thread a device.
//! It must never hand over out of order, and a slot goes back only after the event of its copy.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};
use tracing::{debug_span, trace_span};

use super::admit::Admitted;
use super::{Epoch, RunError};
use crate::batch::Batch;
use crate::device::{Event, Transfer};
use crate::metrics::Counters;
use crate::pool::{Filled, Lent, Output};

/// The run is over, for a reason that the consumer knows already.
struct Over;

struct TransferThread<'a> {
    run: &'a Epoch,
    pending: &'a Receiver<Admitted>,
    delivered: &'a Sender<Result<Batch, RunError>>,
    /// Slots whose copy is under way, in order.
    copies: VecDeque<(Filled, Event)>,
    /// Bad samples of this epoch so far, in the order of the batches.
    bad_samples: u64,
    /// How long the batch under way has waited for a place on the device.
    held_back: Duration,
}

pub(super) fn run(run: &Epoch, pending: &Receiver<Admitted>, delivered: &Sender<Result<Batch, RunError>>) {
    let mut transfer =
        TransferThread { run, pending, delivered, copies: VecDeque::new(), bad_samples: 0, held_back: Duration::ZERO };
    while transfer.next().is_ok() {}
    while transfer.settle() {}
}

impl TransferThread<'_> {
    fn next(&mut self) -> Result<(), Over> {
        let Counters { transfer: counters, journey, consume, .. } = &self.run.engine.counters;
        let since = Instant::now();
        let Admitted { batch, pending } = self.admitted()?;
        // Slots under way are what admit may be waiting for, so nothing here blocks while one could be given back.
        while !pending.is_whole() && self.settle() {}
        let filled = pending.wait();
        counters.waited_in(since);
        counters.queue_out();
        let _span = debug_span!("transfer", epoch = self.run.epoch, batch).entered();
        let since = Instant::now();
        let samples = filled.samples() as u64;
        journey.batch_queue.add(since - filled.begun(), samples);
        journey.batch_queue.take_back(filled.marks.done_after);
        let result = self.judge(&filled).and_then(|()| self.hand_over(batch, filled));
        match result {
            Ok(Some(mut batch)) => {
                let held_back = std::mem::take(&mut self.held_back);
                let busy = since.elapsed().saturating_sub(held_back);
                counters.was_busy(busy);
                counters.handed_over(samples);
                journey.batch_queue.add(held_back, samples);
                journey.transfer.add(busy, samples);
                batch.is_ready_for_the_consumer();
                consume.queue_in();
                self.delivered.send(Ok(batch)).map_err(|_| Over)
            }
            Ok(None) => Err(Over),
            Err(error) => {
                let _ = self.delivered.send(Err(error));
                self.run.cancel.cancel();
                Err(Over)
            }
        }
    }

    fn admitted(&mut self) -> Result<Admitted, Over> {
        loop {
            match self.pending.try_recv() {
                Ok(admitted) => return Ok(admitted),
                Err(TryRecvError::Empty) if self.settle() => {}
                _ => return self.pending.recv().map_err(|_| Over),
            }
        }
    }

    /// Waits for the oldest copy and gives its slot back. False if there is none.
    fn settle(&mut self) -> bool {
        let Some((slot, copied)) = self.copies.pop_front() else { return false };
        // An error sticks to the device: the next feed returns it. The slot is as free as it will ever be.
        let _ = copied.wait();
        drop(slot);
        true
    }

    /// Whether a batch may be handed over, by the policy for bad samples.
    fn judge(&mut self, filled: &Filled) -> Result<(), RunError> {
        let engine = &self.run.engine;
        let marks = &filled.marks;
        if marks.abandoned > 0 {
            let cancelled = self.run.cancel.is_cancelled();
            return Err(if cancelled { RunError::Cancelled } else { RunError::WorkerDied });
        }
        let bad: Vec<_> = marks.bad.iter().map(|(_, bad)| bad.clone()).collect();
        engine.quarantine.add(&bad);
        if let Some((_, bad)) = &marks.fatal {
            return Err(RunError::Sample(bad.clone()));
        }
        // A place whose substitutes were bad as well is still one sample that could not be used.
        let places = marks.bad.chunk_by(|a, b| a.0 == b.0).count();
        self.bad_samples += places as u64;
        let samples = engine.samples();
        let allowed = engine.bad_samples_allowed(samples);
        match bad.last() {
            Some(latest) if self.bad_samples > allowed => {
                let latest = Box::new(latest.clone());
                Err(RunError::TooManyBad { bad: self.bad_samples, allowed, samples, latest })
            }
            _ => Ok(()),
        }
    }

    /// Makes a batch of a whole slot: as it is, or finished by the device. `None` if the run was called off meanwhile.
    fn hand_over(&mut self, batch: u64, mut filled: Filled) -> Result<Option<Batch>, RunError> {
        let engine = &self.run.engine;
        let recipe = &engine.recipe;
        let marks = std::mem::take(&mut filled.marks);
        let head = crate::batch::Head {
            epoch: self.run.epoch,
            index: batch,
            samples: filled.samples(),
            spec: recipe.spec,
            format: recipe.format,
            marks,
            made: Instant::now(),
        };
        if engine.hands_over_slots() {
            return Ok(Some(Batch::from_slot(head, filled)));
        }
        let Some(mut output) = self.output() else { return Ok(None) };
        let after = std::mem::take(&mut output.released);
        let feed = Transfer {
            from: filled.memory(),
            samples: filled.samples(),
            spec: recipe.spec,
            format: recipe.format,
            windows: None,
            to: &mut output.memory,
            after,
        };
        let fed = recipe.device.enqueue_batch(feed).map_err(RunError::Device)?;
        self.copies.push_back((filled, fed.slot_free));
        Ok(Some(Batch::from_output(head, output, fed.ready, recipe.device.clone())))
    }

    /// A place on the device for the next batch, as soon as the consumer gives one back.
    fn output(&mut self) -> Option<Lent<Output>> {
        let engine = &self.run.engine;
        if let Ok(output) = engine.outputs.free().try_recv() {
            return Some(engine.outputs.lend(output));
        }
        let _span = trace_span!("wait for the consumer").entered();
        let since = Instant::now();
        while self.settle() {}
        let output = select! {
            recv(engine.outputs.free()) -> output => output.ok(),
            recv(self.run.cancel.closed()) -> _ => None,
        };
        engine.counters.transfer.waited_out(since);
        self.held_back += since.elapsed();
        output.map(|output| engine.outputs.lend(output))
    }
}
