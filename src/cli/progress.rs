//! Owns the progress line on standard error. It must never be seen where standard error is not a terminal, and never
//! slow the work down: a line is made only when it is time to draw one.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

const BAR: &str = "[{bar:8}] {wide_msg}";
const SPINNER: &str = "{spinner} {wide_msg}";

/// One line that tells how far the work has got.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    drawn: Option<Instant>,
}

impl Progress {
    /// A line for this many steps; zero where nobody knows how many there will be.
    pub(crate) fn new(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target((steps > 0).then_some(steps), ProgressDrawTarget::stderr());
            bar.set_style(style(if steps > 0 { BAR } else { SPINNER }));
            bar
        });
        Progress { bar, drawn: None }
    }

    /// A line for nobody knows how many steps, unless results go to the same terminal and would mix with it.
    pub(crate) fn beside_output() -> Self {
        if std::io::stdout().is_terminal() { Progress { bar: None, drawn: None } } else { Progress::new(0) }
    }

    /// Whether anybody sees it.
    pub(crate) fn is_seen(&self) -> bool {
        self.bar.is_some()
    }

    /// Tells a line for nobody knows how many steps how many they are.
    pub(crate) fn expect(&self, steps: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_style(style(BAR));
        }
    }

    /// Moves on to `done` steps; `line` is asked what to show when it is time to draw.
    pub(crate) fn at(&mut self, done: u64, line: impl FnOnce() -> String) {
        let Some(bar) = &self.bar else { return };
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        bar.set_message(line());
        bar.set_position(done);
    }

    /// Prints something else, above the line.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the line away.
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
