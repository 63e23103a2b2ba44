//! Ctrl-C and SIGTERM: the first one ends the work cleanly within a second, the second one ends the program at once.
//!
//! A watchdog prints the summary and exits if the verb does not end in time. Only one thread prints the summary.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Time that a verb has to end by itself.
const GRACE_PERIOD: Duration = Duration::from_millis(600);
/// Time that a verb has to finish its summary once it has begun.
const SUMMARY_MAX: Duration = Duration::from_secs(5);
const INTERRUPTED: i32 = 130;

use super::failure::{Failure, print};
use super::lock;

type Call = Box<dyn Fn() + Send>;

/// The user's request to end the program, and the actions that follow.
#[derive(Clone)]
pub(crate) struct Stop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    summed_up: AtomicBool,
    ends: Mutex<Vec<Call>>,
    on_timeout: Mutex<Option<Call>>,
}

impl Stop {
    /// Installs the signal handler.
    pub(crate) fn watch() -> Stop {
        let stop = Stop(Arc::default());
        let handler = stop.clone();
        // Without a handler, Ctrl-C ends the process as usual.
        let _ = ctrlc::set_handler(move || handler.handle());
        stop
    }

    /// Returns true if the work should end.
    pub(crate) fn is_requested(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Registers an action that ends the work wherever it waits. It runs on another thread, or at once if the request
    /// was made.
    pub(crate) fn on_stop(&self, end: impl Fn() + Send + 'static) {
        let mut ends = lock(&self.0.ends);
        if self.is_requested() {
            end();
        }
        ends.push(Box::new(end));
    }

    /// Registers the summary to print if the verb does not end in time.
    pub(crate) fn on_timeout(&self, words: impl Fn() + Send + 'static) {
        *lock(&self.0.on_timeout) = Some(Box::new(words));
    }

    /// Drops the registered actions and all that they hold. Called when the verb is done.
    pub(crate) fn forget(&self) {
        let ends = std::mem::take(&mut *lock(&self.0.ends));
        let words = lock(&self.0.on_timeout).take();
        drop((ends, words));
    }

    /// Does `work` and prints its report at the end. If the user interrupts and the work does not end in time, the
    /// watchdog prints the report so far. `render` gets the reason why the work ended early.
    pub(crate) fn report(
        &self,
        render: impl Fn(Option<&str>) -> String + Clone + Send + 'static,
        work: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let words = render.clone();
        self.on_timeout(move || drop(print(words(Some("interrupted")))));
        let done = work();
        if self.is_requested() && !self.claim_summary() {
            // The watchdog prints the report and ends the process.
            thread::park();
        }
        let ended = if self.is_requested() { Err(Failure::Interrupted) } else { done };
        print(render(ended.as_ref().err().map(Failure::words).as_deref()))?;
        ended
    }

    /// Returns true for the first caller only: it prints the summary.
    pub(crate) fn claim_summary(&self) -> bool {
        !self.0.summed_up.swap(true, Ordering::SeqCst)
    }

    fn handle(&self) {
        if self.0.asked.swap(true, Ordering::SeqCst) {
            process::exit(INTERRUPTED);
        }
        let watchdog = self.clone();
        let started = thread::Builder::new().name("feedstock-stop".to_owned()).spawn(move || watchdog.watchdog());
        for end in lock(&self.0.ends).iter() {
            end();
        }
        if started.is_err() {
            process::exit(INTERRUPTED);
        }
    }

    fn watchdog(&self) {
        thread::sleep(GRACE_PERIOD);
        if self.claim_summary() {
            if let Some(words) = &*lock(&self.0.on_timeout) {
                words();
            }
            Failure::Interrupted.tell();
        } else {
            thread::sleep(SUMMARY_MAX);
        }
        process::exit(INTERRUPTED);
    }
}
