//! Tests of the frame's contents at each size.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use feedstock::ByteCount;

use super::*;

fn snapshot() -> Snapshot {
    Snapshot {
        epoch: 2,
        epochs: 30,
        step: 391,
        steps: 782,
        loss: 1.2345,
        accuracy: 0.631,
        val_accuracy: Some(0.582),
        learning_rate: 0.0123,
        images_per_s: 5120.4,
        busy_share: 0.934,
        input_wait_share: 0.021,
        ram_held: ByteCount(212 << 20),
        ram_budget: ByteCount(512 << 20),
        accounts: vec![("slots", ByteCount(96 << 20)), ("scratch", ByteCount(33 << 20))],
        memory_in_use: Some(ByteCount(3 << 30)),
        memory_budget: Some(ByteCount(8 << 30)),
        seconds_left: Some(4350.0),
    }
}

fn courses() -> (History, History) {
    let (mut loss, mut rate) = (History::new(), History::new());
    for step in 0..200u32 {
        loss.add(4.0 / f64::from(step + 1));
        rate.add(f64::from(step.min(50)));
    }
    (loss, rate)
}

/// Text of a frame, line by line.
fn seen(snapshot: &Snapshot, width: u16, height: u16) -> Vec<String> {
    let (loss, rate) = courses();
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it takes any size");
    let view = Frame { snapshot, loss: &loss, rate: &rate };
    terminal.draw(|frame| frame.render_widget(&view, frame.area())).expect("it is drawn");
    let buffer = terminal.backend().buffer();
    let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..height).map(|row| line(row).trim_end().to_owned()).collect()
}

fn has(lines: &[String], texts: &[&str]) {
    for text in texts {
        assert!(lines.iter().any(|line| line.contains(text)), "{text} is missing:\n{}", lines.join("\n"));
    }
}

const ALL: [&str; 12] = [
    "epoch 3/30",
    "step 391/782",
    "8.3 %",
    "loss 1.234",
    "images/s 5120",
    "accuracy 63.1 %",
    "58.2 %",
    "0.0123",
    "93.4 %",
    "2.1 %",
    "212 of 512 MiB",
    "3.00 of 8.00 GiB",
];

/// A part of a line.
fn braille(c: char) -> bool {
    ('\u{2801}'..='\u{28FF}').contains(&c)
}

#[test]
fn wide_view_has_two_columns() {
    for width in [76, 79, 119, 300] {
        let lines = seen(&snapshot(), width, 10);
        has(&lines, &ALL);
        has(&lines, &["1 h 12 min left", "slots 96.0 MiB   scratch 33.0 MiB", "0.020 .. 4.000", "device busy"]);
        // The loss falls from the upper left; the rate stays high at the right.
        let (left, right) = (lines[3].chars().take(5).any(braille), lines[3].chars().next_back().is_some_and(braille));
        assert!(left && right, "{}", lines.join("\n"));
        assert!(lines[1].contains('━') && lines[1].contains('─'), "{}", lines[1]);
    }
}

#[test]
fn narrow_view_has_one_column() {
    let lines = seen(&snapshot(), 39, 9);
    has(&lines, &ALL);
    has(&lines, &["val 58.2 %", "lr 0.0123", "busy", "wait"]);
    assert!(lines.iter().all(|line| line.chars().count() <= 39), "{}", lines.join("\n"));
    assert!(lines.iter().find(|line| line.starts_with("images/s")).is_some_and(|line| line.ends_with('█')));
}

#[test]
fn with_fewer_lines_the_least_telling_go_first() {
    for (width, must) in [(79, &["step", "loss", "images/s", "accuracy", "RAM"][..]), (39, &["step", "loss", "RAM"])] {
        for height in 5..=10 {
            let lines = seen(&snapshot(), width, height);
            has(&lines, must);
            let blank = lines.iter().filter(|line| line.is_empty()).count();
            assert!(blank == 0 || height == 10 && width == 39, "{width}x{height}:\n{}", lines.join("\n"));
        }
    }
    let lines = seen(&snapshot(), 79, 1);
    assert!(lines[0].starts_with("8.3 %  epoch 3/30 391/782  5120 images/s  loss 1.23"), "{lines:?}");
}

#[test]
fn no_size_and_no_number_is_too_odd() {
    let odd = Snapshot {
        epoch: u64::MAX - 1,
        epochs: 0,
        step: u64::MAX,
        loss: f64::NAN,
        accuracy: f64::INFINITY,
        learning_rate: 1e-300,
        images_per_s: 1e300,
        busy_share: -1.0,
        input_wait_share: f64::NAN,
        ram_held: ByteCount(u64::MAX),
        accounts: vec![(
            "a name that is longer than many a terminal is wide, so that it cannot be shown",
            ByteCount(1),
        )],
        memory_in_use: Some(ByteCount(1)),
        seconds_left: Some(f64::INFINITY),
        ..Snapshot::default()
    };
    for snapshot in [&odd, &Snapshot::default(), &snapshot()] {
        for (width, height) in (0..100).flat_map(|width| (0..13).map(move |height| (width, height))) {
            seen(snapshot, width, height);
        }
    }
    has(&seen(&Snapshot::default(), 79, 10), &["validation -", "training", "0 of 0 B"]);
}

#[test]
fn a_terminal_keeps_a_third_of_its_lines_for_what_is_printed() {
    for (size, expected) in [
        ((80, 24), 10),
        ((120, 40), 10),
        ((40, 24), 9),
        ((80, 12), 7),
        ((40, 10), 6),
        ((80, 7), 4),
        ((80, 6), 1),
        ((30, 40), 1),
    ] {
        assert_eq!(lines(size), expected, "{size:?}");
    }
    assert!((0..50).all(|height| (0..200).all(|width| (1..=10).contains(&lines((width, height))))));
}
