//! Polls memory while a run is under way: memory left, and time that tasks were stalled. A poll reads a few small
//! files.

use std::time::Duration;

use super::MemorySnapshot;

/// Polls the machine's memory. The control groups are found once.
#[derive(Debug)]
pub struct MemoryWatch {
    #[cfg(target_os = "linux")]
    groups: super::groups::Groups,
    stalled: Option<Duration>,
}

impl MemoryWatch {
    /// Finds the control groups of this process.
    #[must_use]
    pub fn new() -> Self {
        MemoryWatch {
            #[cfg(target_os = "linux")]
            groups: super::groups::Groups::read(std::path::Path::new("/"), &mut Vec::new()),
            stalled: None,
        }
    }

    /// Memory left now, and stalls since the last poll.
    pub fn poll(&mut self) -> MemorySnapshot {
        let (mut now, stalled) = self.read();
        if let (Some(before), Some(total)) = (self.stalled, stalled) {
            now.stalled = total.saturating_sub(before);
        }
        self.stalled = stalled;
        now
    }

    #[cfg(target_os = "linux")]
    fn read(&self) -> (MemorySnapshot, Option<Duration>) {
        // Warnings were given at the start.
        let warnings = &mut Vec::new();
        let now = super::memory::now(super::machine_memory(), &self.groups, warnings);
        let pressure = super::pressure::read(std::path::Path::new("/"), &self.groups, warnings);
        // The own group's stalls if the kernel measures them, else those of the machine.
        let stalls = pressure.and_then(|pressure| pressure.group.or(pressure.machine));
        (now, stalls.map(|stalls| stalls.total))
    }

    #[cfg(not(target_os = "linux"))]
    fn read(&self) -> (MemorySnapshot, Option<Duration>) {
        let (limit, available) = super::machine_memory().unwrap_or_default();
        let limited_by = super::MemoryLimit::Machine;
        (MemorySnapshot { limit, available, limited_by, stalled: Duration::ZERO }, None)
    }
}

impl Default for MemoryWatch {
    fn default() -> Self {
        MemoryWatch::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteCount;

    #[test]
    fn polls_agree_with_the_machine() {
        let mut watch = MemoryWatch::new();
        let (first, second) = (watch.poll(), watch.poll());
        assert_eq!(first.stalled, Duration::ZERO, "nothing precedes the first poll");
        for now in [first, second] {
            assert!(now.available > ByteCount::ZERO && now.available <= now.limit, "{now:?}");
            assert_ne!(now.limited_by, super::super::MemoryLimit::Unknown);
        }
    }
}
