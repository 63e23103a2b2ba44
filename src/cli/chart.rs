//! Owns how numbers become places: scales, round ticks, the text of a size, and text that is safe within XML. It must
//! never know what is drawn.

/// A line of values and where it lies on the sheet.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// Equal ratios are equally long. `low` and `high` are above zero.
    pub(crate) fn logarithmic((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        Scale { low, high, from, to, logarithmic: true }
    }

    /// From zero to `high`.
    pub(crate) fn linear(high: f64, (from, to): (f64, f64)) -> Self {
        Scale { low: 0.0, high, from, to, logarithmic: false }
    }

    pub(crate) fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Where a value lies; values beyond the ends lie beyond them.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.low).log2() / (self.high / self.low).log2()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values on a line of bytes: powers of two, and as many simple fractions between them as there is room for.
    pub(crate) fn byte_ticks(&self) -> Vec<u64> {
        let octaves = (self.high / self.low).log2();
        let parts: u64 = match octaves {
            o if o < 0.8 => 16,
            o if o < 1.6 => 8,
            o if o < 3.2 => 4,
            o if o < 6.0 => 2,
            _ => 1,
        };
        let fractions =
            move |power: u32| (0..parts).map(move |part| (1u64 << power) + ((1u64 << power) / parts) * part);
        let inside = |&value: &u64| (self.low..=self.high).contains(&(value as f64));
        (10..60).flat_map(fractions).filter(inside).collect()
    }

    /// The roundest of them, no more than some.
    pub(crate) fn few_byte_ticks(&self, most: usize) -> Vec<u64> {
        let mut ticks = self.byte_ticks();
        for parts in [8, 4, 2, 1] {
            if ticks.len() > most {
                ticks.retain(|tick| tick % ((1u64 << tick.ilog2()) / parts) == 0);
            }
        }
        let every = ticks.len().div_ceil(most.max(1)).max(1);
        ticks.into_iter().step_by(every).collect()
    }

    /// Some five round values from zero on.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..20).map(|n| f64::from(n) * step).take_while(|value| *value <= self.high).collect()
    }

    /// Powers of ten, and simple parts of them where there are few.
    pub(crate) fn decade_ticks(&self) -> Vec<f64> {
        let parts = if self.high / self.low < 50.0 { &[1.0, 2.0, 5.0][..] } else { &[1.0] };
        let decade = |power: i32| parts.iter().map(move |part| format!("{part}e{power}").parse().unwrap_or(0.0));
        // By way of text, so that a tenth is a tenth.
        (-12..19).flat_map(decade).filter(|value| (self.low..=self.high).contains(value)).collect()
    }
}

/// How wide a text is at most, in the size of labels and with any usual font.
pub(crate) fn width(text: &str) -> f64 {
    8.0 * text.chars().count() as f64
}

/// Of texts around their places, from left to right, those that touch none before them.
pub(crate) fn apart(texts: impl IntoIterator<Item = (f64, String)>) -> Vec<(f64, String)> {
    let mut free_from = f64::NEG_INFINITY;
    let fits = |(x, text): &(f64, String)| {
        let half = width(text) / 2.0;
        let free = x - half >= free_from;
        if free {
            free_from = x + half + 8.0;
        }
        free
    };
    texts.into_iter().filter(fits).collect()
}

/// A size without decimals that say nothing: `64 MiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let (unit, scale) = match bytes {
        b if b >= 1 << 40 => ("TiB", 1u64 << 40),
        b if b >= 1 << 30 => ("GiB", 1 << 30),
        b if b >= 1 << 20 => ("MiB", 1 << 20),
        b if b >= 1 << 10 => ("KiB", 1 << 10),
        _ => ("B", 1),
    };
    let digits = format!("{:.2}", bytes as f64 / scale as f64);
    format!("{} {unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// Text that may stand between tags and within quotes.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // XML has no place for them, not even escaped.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => safe.push('\u{FFFD}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_are_equally_long() {
        let scale = Scale::logarithmic((32.0, 512.0), (100.0, 500.0));
        assert_eq!(
            [32.0, 64.0, 128.0, 512.0, 1024.0].map(|value| scale.at(value)),
            [100.0, 200.0, 300.0, 500.0, 600.0]
        );
        let down = Scale::linear(10.0, (200.0, 100.0));
        assert_eq!([0.0, 5.0, 10.0].map(|value| down.at(value)), [200.0, 150.0, 100.0]);
    }

    #[test]
    fn ticks_are_round_few_and_inside() {
        for (low, high) in [(38.0, 44.0), (38.0, 70.0), (38.0, 200.0), (38.0, 1100.0), (1.0, 90_000.0)] {
            let [low, high] = [low, high].map(|mib| mib * f64::from(1 << 20));
            let ticks = Scale::logarithmic((low, high), (0.0, 1.0)).byte_ticks();
            assert!((2..=18).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.is_sorted() && ticks.iter().all(|tick| (low..=high).contains(&(*tick as f64))), "{ticks:?}");
            let few = Scale::logarithmic((low, high), (0.0, 1.0)).few_byte_ticks(6);
            assert!((1..=6).contains(&few.len()) && few.iter().all(|tick| ticks.contains(tick)), "{ticks:?}: {few:?}");
        }
        assert_eq!(Scale::linear(1100.0, (0.0, 1.0)).ticks(), [0.0, 250.0, 500.0, 750.0, 1000.0]);
        assert_eq!(Scale::linear(0.5, (0.0, 1.0)).ticks().len(), 6);
    }

    #[test]
    fn decades_have_parts_where_there_are_few() {
        let ticks = |low, high| Scale::logarithmic((low, high), (0.0, 1.0)).decade_ticks();
        assert_eq!(ticks(0.0009, 0.011), [0.001, 0.002, 0.005, 0.01]);
        assert_eq!(ticks(1e-6, 1.0), [1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0]);
    }

    #[test]
    fn texts_that_would_touch_are_left_out() {
        let texts =
            [(0.0, "one"), (20.0, "two"), (40.0, "three"), (41.0, "four")].map(|(x, text)| (x, text.to_owned()));
        assert_eq!(apart(texts), [(0.0, "one".to_owned()), (40.0, "three".to_owned())]);
    }

    #[test]
    fn sizes_are_short() {
        let mib = 1 << 20;
        assert_eq!(
            [64 * mib, 96 * mib, 1536 * mib, 1024 * mib, 700].map(size),
            ["64 MiB", "96 MiB", "1.5 GiB", "1 GiB", "700 B"]
        );
    }

    #[test]
    fn text_is_safe_within_xml() {
        assert_eq!(escaped("a<b>&\"c\"\u{1}"), "a&lt;b&gt;&amp;&quot;c&quot;\u{FFFD}");
    }
}
