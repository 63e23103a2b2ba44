//! The progress line on standard error, if that is a terminal. A line is formatted only when it is time to draw it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Minimum time between two drawings.
const REDRAW: Duration = Duration::from_millis(100);

const BAR: &str = "[{bar:8}] {wide_msg}";
const SPINNER: &str = "{spinner} {wide_msg}";

/// A line with the progress of the work.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    drawn: Option<Instant>,
}

impl Progress {
    /// A line for this many steps; 0 if the number is unknown.
    pub(crate) fn new(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target((steps > 0).then_some(steps), ProgressDrawTarget::stderr());
            bar.set_style(style(if steps > 0 { BAR } else { SPINNER }));
            bar
        });
        Progress { bar, drawn: None }
    }

    /// A line for an unknown number of steps, unless results go to the same terminal.
    pub(crate) fn beside_output() -> Self {
        if std::io::stdout().is_terminal() { Progress { bar: None, drawn: None } } else { Progress::new(0) }
    }

    /// Returns true if standard error is a terminal.
    pub(crate) fn is_seen(&self) -> bool {
        self.bar.is_some()
    }

    /// Sets the number of steps once it is known.
    pub(crate) fn expect(&self, steps: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_style(style(BAR));
        }
    }

    /// Advances to `done` steps. `line` formats the text, and is called only when it is time to draw.
    pub(crate) fn at(&mut self, done: u64, line: impl FnOnce() -> String) {
        let Some(bar) = &self.bar else { return };
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        bar.set_message(line());
        bar.set_position(done);
    }

    /// Prints something else above the line.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Removes the line.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
