//! Options of a store: concurrency, timeouts, retries, caching. `Debug` output contains no values of settings, because
//! some are keys.

use std::fmt;
use std::time::Duration;

use super::cache::DiskCache;
use crate::rng::Seed;

/// Default number of concurrent requests.
pub const IN_FLIGHT: usize = 32;
/// Maximum number of concurrent requests: a loader has a thread for each.
pub const IN_FLIGHT_MAX: usize = 1024;

/// Options of a [`Store`](super::Store).
///
/// ```
/// use std::time::Duration;
/// use feedstock::source::store::StoreOptions;
///
/// let options = StoreOptions { in_flight: 64, deadline: Duration::from_secs(20), ..StoreOptions::default() };
/// assert_eq!(options.attempts, 8);
/// ```
#[derive(Clone)]
pub struct StoreOptions {
    /// Maximum number of concurrent requests over all objects of the store: 1 to [`IN_FLIGHT_MAX`]. Default: 32.
    pub in_flight: usize,
    /// Timeout of one request, to its last byte. Default: 20 s.
    pub attempt_timeout: Duration,
    /// Timeout of a read with all its attempts and waits. Default: 60 s.
    pub deadline: Duration,
    /// Maximum number of attempts after transient failures; at least 1. Default: 8.
    pub attempts: u32,
    /// Wait before the second attempt. It doubles with each attempt, up to 5 s, less a random share of up to one half.
    /// Default: 100 ms.
    pub backoff: Duration,
    /// A request is sent a second time once it has taken this multiple of the 95th percentile of recent requests of its
    /// size. One request in eight of those that may run concurrently, at most four, is reserved for these. `None`
    /// disables hedging. Default: 3.
    pub hedge_after: Option<f64>,
    /// Maximum gap between two ranges that share a request, bytes. Default: 64 KiB.
    pub coalesce_gap_bytes: u64,
    /// Maximum size of one request, bytes; at least 1. Larger reads are split, and their parts requested concurrently.
    /// A hedged request may take this much memory. Default: 2 MiB.
    pub request_bytes_max: u64,
    /// Seed of the random part of the backoff.
    pub seed: Seed,
    /// Disk cache for blocks of objects, kept between epochs and runs. Default: none.
    pub cache: Option<DiskCache>,
    /// Settings by the names of environment variables (`AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`). They take
    /// precedence over the environment.
    pub settings: Vec<(String, String)>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            in_flight: IN_FLIGHT,
            attempt_timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
            attempts: 8,
            backoff: Duration::from_millis(100),
            hedge_after: Some(3.0),
            coalesce_gap_bytes: 64 << 10,
            request_bytes_max: 2 << 20,
            seed: Seed::default(),
            cache: None,
            settings: Vec::new(),
        }
    }
}

impl StoreOptions {
    /// The same options with each value moved into its range.
    pub(super) fn clamped(mut self) -> Self {
        self.in_flight = self.in_flight.clamp(1, IN_FLIGHT_MAX);
        self.attempts = self.attempts.max(1);
        self.request_bytes_max = self.request_bytes_max.max(1);
        self
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<&str> = self.settings.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("StoreOptions")
            .field("in_flight", &self.in_flight)
            .field("deadline", &self.deadline)
            .field("attempts", &self.attempts)
            .field("cache", &self.cache)
            .field("settings", &settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_no_values_of_settings() {
        let settings = vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())];
        let shown = format!("{:?}", StoreOptions { settings, ..StoreOptions::default() });
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
    }
}
