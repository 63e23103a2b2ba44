//! Live view of a training run at the bottom of a terminal; other output scrolls by above it.
//!
//! It is shown only if standard error is a capable terminal, and redrawn at most ten times a second.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Stderr, Write};
use std::time::{Duration, Instant};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

use super::snapshot::Snapshot;

mod figures;
mod frame;
mod history;
mod screen;

use frame::Frame;
use history::History;
use screen::Screen;

/// Redraw interval.
const REDRAW: Duration = Duration::from_millis(100);

/// Returns the terminal's width and height.
type Size = Box<dyn Fn() -> Option<(u16, u16)> + Send>;

/// A view of a run, removed on drop.
pub(super) struct View<W: Write = Stderr> {
    screen: Screen<W>,
    size: Size,
    loss: History,
    rate: History,
    drawn: Option<Instant>,
    /// True once the view was removed for good or the terminal is gone.
    ended: bool,
}

impl View {
    /// Creates a view on standard error if it is a capable terminal: `TERM` is neither unset, `dumb` nor `linux`, and
    /// `NO_COLOR` is not set.
    pub(super) fn here() -> Option<View> {
        let shown = io::stderr().is_terminal() && allowed(env::var_os("TERM"), env::var_os("NO_COLOR"));
        (shown && terminal_size().is_some()).then(|| View::on(io::stderr(), Box::new(terminal_size)))
    }
}

fn allowed(term: Option<impl AsRef<OsStr>>, no_color: Option<impl AsRef<OsStr>>) -> bool {
    let capable = term.is_some_and(|term| !["", "dumb", "linux"].map(OsStr::new).contains(&term.as_ref()));
    capable && no_color.is_none_or(|set| set.as_ref().is_empty())
}

/// Width and height of the terminal at standard error, if known.
fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

impl<W: Write> View<W> {
    fn on(out: W, size: Size) -> Self {
        View { screen: Screen::new(out), size, loss: History::new(), rate: History::new(), drawn: None, ended: false }
    }

    /// Records a snapshot and redraws when due.
    pub(super) fn step(&mut self, snapshot: &Snapshot) {
        self.loss.add(snapshot.loss);
        self.rate.add(snapshot.images_per_s);
        if self.ended || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        let Some(size) = (self.size)() else { return };
        let view = Frame { snapshot, loss: &self.loss, rate: &self.rate };
        let mut buffer = Buffer::empty(area(size));
        view.render(buffer.area, &mut buffer);
        self.ended = self.screen.draw(buffer, size).is_err();
    }

    /// Prints above the view.
    pub(super) fn aside(&mut self, print: impl FnOnce()) {
        let Some(size) = (self.size)() else { return print() };
        let kept = self.screen.take(size.0);
        print();
        // A buffer of another size does not fit any more; the next snapshot makes a new one.
        let fits = |buffer: &Buffer| buffer.area == area(size);
        if let (Some(buffer), false) = (kept.ok().flatten().filter(fits), self.ended) {
            self.ended = self.screen.draw(buffer, size).is_err();
        }
    }

    /// Removes the view for good and leaves the cursor at its first line.
    pub(super) fn clear(&mut self) {
        self.ended = true;
        // If the terminal is gone, so is the view.
        let _ = self.screen.take((self.size)().map_or(u16::MAX, |(width, _)| width));
    }
}

/// Area of a view on a terminal of this width and height. The last column stays empty: terminals differ in when they
/// wrap a full line.
fn area(size: (u16, u16)) -> Rect {
    Rect::new(0, 0, size.0.saturating_sub(1), frame::lines(size))
}

impl<W: Write> Drop for View<W> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
#[path = "view/tests.rs"]
mod tests;
