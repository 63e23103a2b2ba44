//! Owns the live view of a training run at the bottom of a terminal: whether there is one, how often it is drawn, and that
//! what is printed meanwhile scrolls by above it. It must never be seen where standard error is no terminal that can show it,
//! and never slow training down: it draws ten times a second at most.

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

/// How often it is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Asks for the terminal's width and height.
type Size = Box<dyn Fn() -> Option<(u16, u16)> + Send>;

/// A view of a run. Dropped, it takes itself away.
pub(super) struct View<W: Write = Stderr> {
    screen: Screen<W>,
    size: Size,
    loss: History,
    rate: History,
    drawn: Option<Instant>,
    /// Nothing is drawn any more: it was taken away for good, or the terminal is gone.
    ended: bool,
}

impl View {
    /// A view on standard error, where that is a terminal which can show one and whose user has not asked for less: `TERM` is
    /// neither unset, `dumb` nor the bare console's, and `NO_COLOR` is not set.
    pub(super) fn here() -> Option<View> {
        let shown = io::stderr().is_terminal() && allowed(env::var_os("TERM"), env::var_os("NO_COLOR"));
        (shown && terminal_size().is_some()).then(|| View::on(io::stderr(), Box::new(terminal_size)))
    }
}

fn allowed(term: Option<impl AsRef<OsStr>>, no_color: Option<impl AsRef<OsStr>>) -> bool {
    let capable = term.is_some_and(|term| !["", "dumb", "linux"].map(OsStr::new).contains(&term.as_ref()));
    capable && no_color.is_none_or(|set| set.as_ref().is_empty())
}

/// Width and height of the terminal at standard error; `None` where it does not tell.
fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

impl<W: Write> View<W> {
    fn on(out: W, size: Size) -> Self {
        View { screen: Screen::new(out), size, loss: History::new(), rate: History::new(), drawn: None, ended: false }
    }

    /// Takes note of a moment, and draws it when it is time to.
    pub(super) fn step(&mut self, snapshot: &Snapshot) {
        self.loss.add(snapshot.loss);
        self.rate.add(snapshot.images_per_s);
        if self.ended || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        let Some(size) = (self.size)() else { return };
        let picture = Frame { snapshot, loss: &self.loss, rate: &self.rate };
        let mut buffer = Buffer::empty(area(size));
        picture.render(buffer.area, &mut buffer);
        self.ended = self.screen.draw(buffer, size).is_err();
    }

    /// Lets something else be printed, above the view.
    pub(super) fn aside(&mut self, print: impl FnOnce()) {
        let Some(size) = (self.size)() else { return print() };
        let kept = self.screen.take(size.0);
        print();
        // One of another size is not what fits by now; the next moment makes a new one.
        let fits = |buffer: &Buffer| buffer.area == area(size);
        if let (Some(buffer), false) = (kept.ok().flatten().filter(fits), self.ended) {
            self.ended = self.screen.draw(buffer, size).is_err();
        }
    }

    /// Takes the view away for good. The cursor is where its first line was.
    pub(super) fn clear(&mut self) {
        self.ended = true;
        // Where the terminal is gone, so is the view.
        let _ = self.screen.take((self.size)().map_or(u16::MAX, |(width, _)| width));
    }
}

/// The lines of a view on a terminal of this width and height. The last column stays empty: some terminals break the line
/// behind it, others when more comes.
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
