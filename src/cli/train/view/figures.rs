//! Number formats of the view: short, and of constant width.

use feedstock::ByteCount;

/// Share of a budget that is held.
pub(super) fn share_of(held: ByteCount, budget: ByteCount) -> f64 {
    held.0 as f64 / budget.0.max(1) as f64
}

/// Held bytes of a budget. If both have the same unit, only the second shows it.
pub(super) fn of(held: ByteCount, budget: ByteCount) -> String {
    let (held, budget) = (held.to_string(), budget.to_string());
    match (held.split_once(' '), budget.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number} of {budget}"),
        _ => format!("{held} of {budget}"),
    }
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A number with four digits, or as many as its whole part has.
pub(super) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        size if size < 10.0 => 3,
        size if size < 100.0 => 2,
        size if size < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// A learning rate.
pub(super) fn rate(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

/// A duration in its two largest units.
pub(super) fn time(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { return "-".to_owned() };
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s:02} s"),
        (0, h, m, _) => format!("{h} h {m:02} min"),
        (d, h, ..) => format!("{d} d {h:02} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_one_cares() {
        for (seconds, text) in [
            (0.4, "0 s"),
            (59.0, "59 s"),
            (61.0, "1 min 01 s"),
            (4350.0, "1 h 12 min"),
            (90_000.0, "1 d 01 h"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn figures_are_short() {
        let numbers = [0.0, 1.23456, -12.3456, 123.456, 12345.6].map(short);
        assert_eq!(numbers, ["0.000", "1.235", "-12.35", "123.5", "12346"]);
        assert_eq!([0.0, 0.0123, 1.5e-5].map(rate), ["0.0000", "0.0123", "1.50e-5"]);
        assert_eq!(percent(0.1234), "12.3 %");
        let (mib, gib) = (ByteCount(200 << 20), ByteCount(2 << 30));
        assert_eq!((of(mib, mib), of(mib, gib)), ("200 of 200 MiB".to_owned(), "200 MiB of 2.00 GiB".to_owned()));
        assert_eq!((share_of(mib, ByteCount(400 << 20)), share_of(mib, ByteCount::ZERO) > 1.0), (0.5, true));
    }
}
