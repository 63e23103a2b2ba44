//! Numbers as text for people: times, shares, sizes and rates with three significant digits. And reports as JSON.

use serde::Serialize;

/// A report as one line of JSON.
pub(crate) fn json(report: &impl Serialize) -> String {
    // Reports hold no maps with other keys than text, so this does not fail.
    serde_json::to_string(report).unwrap_or_else(|error| format!(r#"{{"error":"{error}"}}"#))
}

/// Three significant digits without trailing zeros.
fn digits(number: f64) -> String {
    let decimals = match number {
        n if n >= 99.95 => return format!("{n:.0}"),
        n if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.decimals$}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub(crate) fn time(seconds: f64) -> String {
    let (unit, scale) = match seconds {
        0.0 => return "0 s".to_owned(),
        s if s >= 7200.0 => ("h", 3600.0),
        s if s >= 120.0 => ("min", 60.0),
        s if s >= 0.9995 => ("s", 1.0),
        s if s >= 0.9995e-3 => ("ms", 1e-3),
        _ => ("µs", 1e-6),
    };
    format!("{} {unit}", digits(seconds / scale))
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

pub(crate) fn bytes(count: f64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let (unit, power) = units.into_iter().find(|(_, power)| count >= 2f64.powi(*power)).unwrap_or(("B", 0));
    format!("{} {unit}", digits(count / 2f64.powi(power)))
}

/// Items per second.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second >= 100_000.0 { short(per_second) } else { digits(per_second) }
}

/// A number for an axis: 12.5k, 2M.
pub(crate) fn short(number: f64) -> String {
    let units = [("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)];
    match units.into_iter().find(|(_, scale)| number >= 10_000.0 && number >= 0.9995 * scale) {
        Some((unit, scale)) => format!("{}{unit}", digits(number / scale)),
        None => digits(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits_and_a_unit() {
        assert_eq!(
            [0.0, 3.1e-7, 0.000_312_4, 0.001, 0.0125, 0.031_26, 0.999_99, 1.25, 61.0, 180.0, 90_000.0].map(time),
            ["0 s", "0.31 µs", "312 µs", "1 ms", "12.5 ms", "31.3 ms", "1 s", "1.25 s", "61 s", "3 min", "25 h"]
        );
        assert_eq!(
            [0.0, 0.5, 999.0, 2500.0, 12_500.0, 2e6, 1e15].map(short),
            ["0", "0.5", "999", "2500", "12.5k", "2M", "1000T"]
        );
        assert_eq!([0.974, 1.0, 0.0].map(percent), ["97 %", "100 %", "0 %"]);
        let mib = f64::from(1 << 20);
        assert_eq!(
            [64.0 * mib, 196_443_000.0, 1536.0 * mib, 1024.0 * mib, 700.0].map(bytes),
            ["64 MiB", "187 MiB", "1.5 GiB", "1 GiB", "700 B"]
        );
        assert_eq!([12.34, 1234.5, 1_234_567.0].map(rate), ["12.3", "1234", "1.23M"]);
    }
}
