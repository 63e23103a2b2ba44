//! Tests of the view on an emulated terminal, by what is visible on it.

use std::io;
use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::thread;

use feedstock::ByteCount;

use super::super::super::lock;
use super::*;

/// A terminal shared by the view and other output.
#[derive(Clone)]
struct Emulated(Arc<Mutex<vt100::Parser>>);

impl Emulated {
    fn new(width: u16, height: u16) -> Self {
        Emulated(Arc::new(Mutex::new(vt100::Parser::new(some(height), some(width), 100))))
    }

    fn print(&self, line: &str) {
        lock(&self.0).process(format!("{line}\r\n").as_bytes());
    }

    fn resize(&self, width: u16, height: u16) {
        lock(&self.0).screen_mut().set_size(some(height), some(width));
    }

    fn lines(&self) -> Vec<String> {
        let parser = lock(&self.0);
        let width = parser.screen().size().1;
        let lines: Vec<String> = parser.screen().rows(0, width.get()).map(|line| line.trim_end().to_owned()).collect();
        let last = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
        lines[..last].to_vec()
    }

    fn cursor(&self) -> (u16, u16) {
        lock(&self.0).screen().cursor_position()
    }
}

fn some(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).expect("no terminal is empty")
}

impl Write for Emulated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).process(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn snapshot(step: u64) -> Snapshot {
    Snapshot {
        epochs: 3,
        step,
        steps: 1000,
        loss: 10.0 / step as f64,
        images_per_s: 100.0 + step as f64,
        ram_held: ByteCount(step << 20),
        ram_budget: ByteCount(1 << 30),
        accounts: vec![("slots", ByteCount(step << 10))],
        memory_in_use: Some(ByteCount(1 << 20)),
        ..Snapshot::default()
    }
}

/// A view that redraws at every step, and the terminal size that it sees.
fn view(terminal: &Emulated, width: u16, height: u16) -> (View<Emulated>, Arc<Mutex<(u16, u16)>>) {
    let size = Arc::new(Mutex::new((width, height)));
    let asked = size.clone();
    (View::on(terminal.clone(), Box::new(move || Some(*lock(&asked)))), size)
}

fn step(view: &mut View<Emulated>, step: u64) {
    view.drawn = None;
    view.step(&snapshot(step));
}

#[test]
fn what_is_printed_stays_above_and_nothing_is_left_at_the_end() {
    for (width, height) in [(120, 40), (80, 24), (40, 10), (80, 6), (30, 24), (10, 3), (2, 1)] {
        let terminal = Emulated::new(width, height);
        terminal.print("begin");
        let (mut view, _) = view(&terminal, width, height);
        for epoch in 0..20 {
            for number in 1..=5 {
                step(&mut view, epoch * 5 + number);
            }
            view.aside(|| terminal.print(&format!("e{epoch}")));
        }
        let all: Vec<String> =
            ["begin".to_owned()].into_iter().chain((0..20).map(|epoch| format!("e{epoch}"))).collect();
        let shown = usize::from(frame::lines((width, height)));
        let lines = terminal.lines();
        let above = lines.len().saturating_sub(shown);
        assert!(width < 3 || all.ends_with(&lines[..above]), "{width}x{height}:\n{}", lines.join("\n"));
        assert!(height < 3 || above > 0, "{width}x{height}: there is room for what was printed");
        view.clear();
        let lines = terminal.lines();
        assert!(all.ends_with(&lines), "{width}x{height}:\n{}", lines.join("\n"));
        assert_eq!(terminal.cursor(), (lines.len() as u16, 0));
        let parser = lock(&terminal.0);
        assert!(!parser.screen().hide_cursor() && !parser.screen().alternate_screen());
    }
}

#[test]
fn drawing_what_changed_shows_what_drawing_all_would() {
    let (terminal, fresh) = (Emulated::new(80, 24), Emulated::new(80, 24));
    let (mut changing, _) = view(&terminal, 80, 24);
    (1..=100).for_each(|number| step(&mut changing, number));
    let (mut whole, _) = view(&fresh, 80, 24);
    whole.drawn = Some(Instant::now());
    (1..100).for_each(|number| whole.step(&snapshot(number)));
    assert!(fresh.lines().is_empty(), "it was not time to draw yet");
    step(&mut whole, 100);
    assert_eq!(terminal.lines(), fresh.lines());
    let (a, b) = (lock(&terminal.0), lock(&fresh.0));
    for (row, column) in (0..24).flat_map(|row| (0..80).map(move |column| (row, column))) {
        let seen = |parser: &vt100::Parser| {
            let cell = parser.screen().cell(row, column).expect("it is on the screen");
            let style = (cell.fgcolor(), cell.bgcolor(), cell.bold(), cell.dim());
            (cell.contents().trim().to_owned(), (!cell.contents().trim().is_empty()).then_some(style))
        };
        assert_eq!(seen(&a), seen(&b), "row {row}, column {column}");
        let blank = |column| a.screen().cell(row, column).is_some_and(|cell| cell.contents().trim().is_empty());
        let written = a.screen().cell(row, column).is_some_and(vt100::Cell::has_contents);
        assert!(!written || (column..80).any(|column| !blank(column)), "row {row}, column {column}: blanks at an end");
    }
}

#[test]
fn it_follows_the_terminal_to_another_size() {
    let terminal = Emulated::new(100, 30);
    let (mut view, size) = view(&terminal, 100, 30);
    terminal.print("begin");
    for (number, (width, height)) in [(100, 30), (120, 30), (120, 40), (80, 40), (60, 40)].into_iter().enumerate() {
        terminal.resize(width, height);
        *lock(&size) = (width, height);
        step(&mut view, number as u64 + 1);
        step(&mut view, number as u64 + 2);
        let lines = terminal.lines();
        let shown = usize::from(frame::lines((width, height)));
        let text = lines.join("\n");
        assert!(
            lines.len() >= shown && lines.iter().filter(|line| line.starts_with("epoch 1/3")).count() == 1,
            "{text}"
        );
        assert!(lines.iter().all(|line| line.chars().count() < usize::from(width)), "{text}");
    }
    view.aside(|| terminal.print("between"));
    view.clear();
    assert_eq!(terminal.lines().last().map(String::as_str), Some("between"));
}

#[test]
fn what_others_write_over_it_is_drawn_over() {
    let (terminal, fresh) = (Emulated::new(80, 24), Emulated::new(80, 24));
    let ((mut spoiled, _), (mut whole, _)) = (view(&terminal, 80, 24), view(&fresh, 80, 24));
    for number in 1..=40 {
        step(&mut spoiled, number);
        step(&mut whole, number);
        if number == 10 {
            ["^Z", "stopped", "$ fg"].into_iter().for_each(|line| terminal.print(line));
        }
    }
    let (lines, expected) = (terminal.lines(), fresh.lines());
    assert!(lines.ends_with(&expected), "{}", lines.join("\n"));
    assert_eq!(terminal.cursor().0, fresh.cursor().0 + 3);
}

#[test]
fn what_was_taken_away_does_not_come_back() {
    let terminal = Emulated::new(80, 24);
    let (mut view, _) = view(&terminal, 80, 24);
    step(&mut view, 1);
    view.clear();
    step(&mut view, 2);
    view.aside(|| terminal.print("the table"));
    step(&mut view, 3);
    drop(view);
    assert_eq!(terminal.lines(), ["the table"]);
}

#[test]
fn it_is_drawn_ten_times_a_second_at_most() {
    let terminal = Emulated::new(80, 24);
    let (mut view, _) = view(&terminal, 80, 24);
    view.step(&snapshot(1));
    let first = terminal.lines();
    (2..1000).for_each(|number| view.step(&snapshot(number)));
    // A thousand steps take under a tenth of a second; on a stalled machine they may take longer, and a redraw is
    // allowed.
    assert!(terminal.lines() == first || view.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW));
    thread::sleep(REDRAW);
    view.step(&snapshot(1000));
    assert_ne!(terminal.lines(), first);
}

#[test]
fn drawing_takes_a_fraction_of_a_millisecond() {
    let mut view = View::on(io::sink(), Box::new(|| Some((200, 50))));
    (1..2000).for_each(|number| view.step(&snapshot(number)));
    // The fastest of several: the machine may be busy.
    let times = (2000..2030).map(|number| {
        view.drawn = None;
        let began = Instant::now();
        view.step(&snapshot(number));
        began.elapsed()
    });
    let fastest = times.min().expect("there are some");
    assert!(fastest < Duration::from_millis(1), "{fastest:?}");
}

#[test]
fn a_terminal_that_is_gone_ends_the_view_and_nothing_else() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut view = View::on(Gone, Box::new(|| Some((80, 24))));
    view.step(&snapshot(1));
    let mut printed = false;
    view.aside(|| printed = true);
    assert!(printed && view.ended);
}

#[test]
fn who_asks_for_less_gets_less() {
    let none = None::<&str>;
    assert!(allowed(Some("xterm-256color"), none) && allowed(Some("tmux"), Some("")));
    for (term, no_color) in
        [(Some("dumb"), none), (Some(""), none), (Some("linux"), none), (none, none), (Some("xterm"), Some("1"))]
    {
        assert!(!allowed(term, no_color), "TERM {term:?}, NO_COLOR {no_color:?}");
    }
}
