//! Owns what a store can be told: how much at once, how long, how often again, and what it may keep on a disk.
//! It must never show a value of a setting, for some of them are keys.

use std::fmt;
use std::time::Duration;

use super::DiskCache;
use crate::units::Seed;

/// Requests that are under way at once, unless somebody says otherwise.
pub const IN_FLIGHT: usize = 32;
/// As many as there can be: a loader has a thread for each that waits.
pub const IN_FLIGHT_MAX: usize = 1024;

/// How a [`Store`](super::Store) reads.
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
    /// Requests that may be under way at once, over all objects of the store: 1 to [`IN_FLIGHT_MAX`]. 32.
    pub in_flight: usize,
    /// How long one request may take, from asking to its last byte. 20 s.
    pub attempt_timeout: Duration,
    /// How long a read may take with all its attempts and waits. 60 s.
    pub deadline: Duration,
    /// How often a request is tried in all, where what went wrong may pass; at least 1. 8.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles with each, up to 5 s, less up to a half by chance. 100 ms.
    pub backoff: Duration,
    /// A request that takes this many times as long as 95 of 100 recent ones of its size is sent a second time. One
    /// place in eight of those that may be under way, four at most, is kept for these. `None`: never. 3.
    pub hedge_after: Option<f64>,
    /// Ranges with no more than so many bytes between them are read by one request. 64 KiB.
    pub join_gap_bytes: u64,
    /// What one request asks for at most, bytes; larger reads are cut, and their parts asked for at once; at least 1. 2 MiB:
    /// each request that is sent a second time may take so much memory.
    pub request_bytes_max: u64,
    /// What the waits between attempts are drawn from.
    pub seed: Seed,
    /// Where blocks of objects are kept between epochs and runs. `None`: nowhere.
    pub cache: Option<DiskCache>,
    /// Settings by the names of environment variables (`AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`), which go before
    /// those of the environment.
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
            join_gap_bytes: 64 << 10,
            request_bytes_max: 2 << 20,
            seed: Seed::default(),
            cache: None,
            settings: Vec::new(),
        }
    }
}

impl StoreOptions {
    /// The same with nothing that cannot be: zeros become ones.
    pub(super) fn sane(mut self) -> Self {
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
            .field("attempt_timeout", &self.attempt_timeout)
            .field("deadline", &self.deadline)
            .field("attempts", &self.attempts)
            .field("backoff", &self.backoff)
            .field("hedge_after", &self.hedge_after)
            .field("join_gap_bytes", &self.join_gap_bytes)
            .field("request_bytes_max", &self.request_bytes_max)
            .field("seed", &self.seed)
            .field("cache", &self.cache)
            .field("settings", &settings)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_a_setting_is_shown() {
        let settings = vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())];
        let shown = format!("{:?}", StoreOptions { settings, ..StoreOptions::default() });
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
    }
}
