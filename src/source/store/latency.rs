//! Owns the memory of how long requests took, by size: what a request is held against to call it late.
//! It must never say anything on fewer requests than make a percentile.

use std::time::Duration;

use crate::sync::{Mutex, lock};

/// Requests that are remembered of each size.
const REMEMBERED: usize = 256;
/// Requests that must have been seen before one is called late.
const SEEN_MIN: usize = 50;
/// The percentile is taken anew after so many requests.
const REFRESH: usize = 8;
/// The largest request of each size but the last, bytes: small ones wait for the first byte, large ones for the last.
const SIZES: [u64; 3] = [64 << 10, 1 << 20, 4 << 20];

pub(super) struct Latency {
    sizes: [Mutex<Recent>; SIZES.len() + 1],
}

#[derive(Default)]
struct Recent {
    /// A ring, in microseconds.
    micros: Vec<u32>,
    next: usize,
    since_refresh: usize,
    p95_micros: Option<u32>,
}

impl Latency {
    pub(super) fn new() -> Self {
        Latency { sizes: Default::default() }
    }

    fn of(&self, bytes: u64) -> &Mutex<Recent> {
        &self.sizes[SIZES.iter().position(|&size| bytes <= size).unwrap_or(SIZES.len())]
    }

    pub(super) fn add(&self, bytes: u64, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut recent = lock(self.of(bytes));
        if recent.micros.len() < REMEMBERED {
            recent.micros.push(micros);
        } else {
            let next = recent.next;
            recent.micros[next] = micros;
            recent.next = (next + 1) % REMEMBERED;
        }
        recent.since_refresh += 1;
        if recent.micros.len() >= SEEN_MIN && (recent.since_refresh >= REFRESH || recent.p95_micros.is_none()) {
            recent.since_refresh = 0;
            let mut sorted = recent.micros.clone();
            let place = sorted.len() * 95 / 100;
            let (_, p95, _) = sorted.select_nth_unstable(place);
            recent.p95_micros = Some(*p95);
        }
    }

    /// How long 95 of 100 recent requests of this size took at most, where enough were seen.
    pub(super) fn p95(&self, bytes: u64) -> Option<Duration> {
        lock(self.of(bytes)).p95_micros.map(|micros| Duration::from_micros(micros.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_needs_fifty_and_follows_the_recent() {
        let latency = Latency::new();
        let ms = Duration::from_millis;
        for i in 0..49 {
            latency.add(1000, ms(i + 1));
        }
        assert_eq!(latency.p95(1000), None);
        latency.add(1000, ms(50));
        assert_eq!(latency.p95(1000), Some(ms(48)));
        assert_eq!(latency.p95(2 << 20), None, "another size");
        for _ in 0..REMEMBERED {
            latency.add(1000, ms(3));
        }
        assert_eq!(latency.p95(1000), Some(ms(3)));
    }
}
