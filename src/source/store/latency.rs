//! 95th percentile of recent request times, by request size. Hedging compares a request with it.

use std::time::Duration;

use crate::sync::{Mutex, lock};

/// Requests in the window of each size class.
const WINDOW: usize = 256;
/// Minimum number of requests before a percentile is reported.
const SAMPLES_MIN: usize = 50;
/// Requests between two computations of the percentile.
const REFRESH: usize = 8;
/// Upper bounds of the size classes but the last, bytes: small requests wait for the first byte, large ones for the
/// last.
const SIZES: [u64; 3] = [64 << 10, 1 << 20, 4 << 20];

pub(super) struct Latency {
    sizes: [Mutex<Window>; SIZES.len() + 1],
}

#[derive(Default)]
struct Window {
    /// Ring buffer, microseconds.
    micros: Vec<u32>,
    next: usize,
    since_refresh: usize,
    p95_micros: Option<u32>,
}

impl Latency {
    pub(super) fn new() -> Self {
        Latency { sizes: Default::default() }
    }

    fn window(&self, bytes: u64) -> &Mutex<Window> {
        &self.sizes[SIZES.iter().position(|&size| bytes <= size).unwrap_or(SIZES.len())]
    }

    pub(super) fn record(&self, bytes: u64, elapsed: Duration) {
        let micros = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
        let mut window = lock(self.window(bytes));
        if window.micros.len() < WINDOW {
            window.micros.push(micros);
        } else {
            let next = window.next;
            window.micros[next] = micros;
            window.next = (next + 1) % WINDOW;
        }
        window.since_refresh += 1;
        if window.micros.len() >= SAMPLES_MIN && (window.since_refresh >= REFRESH || window.p95_micros.is_none()) {
            window.since_refresh = 0;
            let mut sorted = window.micros.clone();
            let rank = sorted.len() * 95 / 100;
            let (_, p95, _) = sorted.select_nth_unstable(rank);
            window.p95_micros = Some(*p95);
        }
    }

    /// 95th percentile of recent requests of this size; `None` until there are enough.
    pub(super) fn p95(&self, bytes: u64) -> Option<Duration> {
        lock(self.window(bytes)).p95_micros.map(|micros| Duration::from_micros(micros.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_needs_fifty_requests_and_follows_recent_ones() {
        let latency = Latency::new();
        let ms = Duration::from_millis;
        for i in 0..49 {
            latency.record(1000, ms(i + 1));
        }
        assert_eq!(latency.p95(1000), None);
        latency.record(1000, ms(50));
        assert_eq!(latency.p95(1000), Some(ms(48)));
        assert_eq!(latency.p95(2 << 20), None, "another size");
        for _ in 0..WINDOW {
            latency.record(1000, ms(3));
        }
        assert_eq!(latency.p95(1000), Some(ms(3)));
    }
}
