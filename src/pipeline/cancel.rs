//! Cancellation of a run: a flag for threads at work, a channel that closes for threads that wait on channels, and a
//! wake-up for those that wait for the ledger.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::budget::Ledger;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// The run was cancelled, or the thread at the other end of a channel is gone.
pub(super) struct Cancelled;

/// A handle that cancels a run, and by which its threads notice.
#[derive(Clone)]
pub(super) struct Cancel {
    shared: Arc<Shared>,
}

struct Shared {
    flag: AtomicBool,
    open: Mutex<Option<Sender<()>>>,
    closed: Receiver<()>,
    ledger: Ledger,
}

impl Cancel {
    pub(super) fn new(ledger: Ledger) -> Self {
        // A capacity of one, though nothing is ever sent: waiting on a channel without capacity allocates.
        let (open, closed) = bounded(1);
        let shared = Shared { flag: AtomicBool::new(false), open: Mutex::new(Some(open)), closed, ledger };
        Cancel { shared: Arc::new(shared) }
    }

    pub(super) fn cancel(&self) {
        self.shared.flag.store(true, Ordering::SeqCst);
        lock(&self.shared.open).take();
        self.shared.ledger.wake();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.shared.flag.load(Ordering::Relaxed)
    }

    /// A channel that carries nothing and closes when the run is cancelled.
    pub(super) fn closed(&self) -> &Receiver<()> {
        &self.shared.closed
    }
}
