//! Owns the end that the user asks for with Ctrl-C or a SIGTERM: the first one ends the work cleanly within a second, the
//! second one ends the program at once. It must never let the program hang on in a long step, nor two threads sum up at once.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long a verb has to end by itself.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long it has to finish its last words, once it has begun to say them.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
const INTERRUPTED: i32 = 130;

use super::failure::{Failure, print};
use super::lock;

type Call = Box<dyn Fn() + Send>;

/// Whether the user wants the program to end, and what is done about it.
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
    /// Listens for Ctrl-C from now on.
    pub(crate) fn watch() -> Stop {
        let stop = Stop(Arc::default());
        let heard = stop.clone();
        // Where no handler can be set, Ctrl-C does what it always does.
        let _ = ctrlc::set_handler(move || heard.heard());
        stop
    }

    /// Whether the work should end.
    pub(crate) fn is_requested(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Ends the work, wherever it waits; called from another thread, or at once if that is wanted already.
    pub(crate) fn on_stop(&self, end: impl Fn() + Send + 'static) {
        let mut ends = lock(&self.0.ends);
        if self.is_requested() {
            end();
        }
        ends.push(Box::new(end));
    }

    /// Sums up what was done so far, should the verb itself not get there in time.
    pub(crate) fn on_timeout(&self, words: impl Fn() + Send + 'static) {
        *lock(&self.0.on_timeout) = Some(Box::new(words));
    }

    /// Lets go of what it was given: the verb is done, and what it held is to be given back before the program ends.
    pub(crate) fn forget(&self) {
        let ends = std::mem::take(&mut *lock(&self.0.ends));
        let words = lock(&self.0.on_timeout).take();
        drop((ends, words));
    }

    /// Does `work` and prints its report at the end. If the user interrupts and the work does not end in time, the watchdog
    /// prints the report so far. `render` gets the reason why the work ended early.
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

    /// Whether the caller is to sum up: the first one only.
    pub(crate) fn claim_summary(&self) -> bool {
        !self.0.summed_up.swap(true, Ordering::SeqCst)
    }

    fn heard(&self) {
        if self.0.asked.swap(true, Ordering::SeqCst) {
            process::exit(INTERRUPTED);
        }
        let watchdog = self.clone();
        let started = thread::Builder::new().name("feedstock-stop".to_owned()).spawn(move || watchdog.bark());
        for end in lock(&self.0.ends).iter() {
            end();
        }
        if started.is_err() {
            process::exit(INTERRUPTED);
        }
    }

    fn bark(&self) {
        thread::sleep(PATIENCE);
        if self.claim_summary() {
            if let Some(words) = &*lock(&self.0.on_timeout) {
                words();
            }
            Failure::Interrupted.tell();
        } else {
            thread::sleep(LAST_WORDS_MAX);
        }
        process::exit(INTERRUPTED);
    }
}
