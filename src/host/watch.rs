//! Owns the look at memory that is repeated while a run is under way: what is left, and how long tasks were stalled.
//! It must never decide what is too little, and never cost more than a few small files a look.

use std::time::Duration;

use super::MemoryNow;

/// Looks at the machine's memory again and again. The control groups are found once.
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

    /// What is left now, and what has happened since the last look.
    pub fn look(&mut self) -> MemoryNow {
        let (mut now, stalled) = self.read();
        if let (Some(before), Some(total)) = (self.stalled, stalled) {
            now.stalled = total.saturating_sub(before);
        }
        self.stalled = stalled;
        now
    }

    #[cfg(target_os = "linux")]
    fn read(&self) -> (MemoryNow, Option<Duration>) {
        // What cannot be read now was noted at start.
        let notes = &mut Vec::new();
        let now = super::memory::now(super::machine_memory(), &self.groups, notes);
        let pressure = super::pressure::read(std::path::Path::new("/"), &self.groups, notes);
        // The own group's stalls where the kernel tells them apart; else those of the machine.
        let stalls = pressure.and_then(|pressure| pressure.group.or(pressure.machine));
        (now, stalls.map(|stalls| stalls.some.total))
    }

    #[cfg(not(target_os = "linux"))]
    fn read(&self) -> (MemoryNow, Option<Duration>) {
        let (limit, available) = super::machine_memory().unwrap_or_default();
        let limited_by = "the machine's available memory".to_owned();
        (MemoryNow { limit, available, limited_by, stalled: Duration::ZERO }, None)
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
    fn looks_agree_with_the_machine() {
        let mut watch = MemoryWatch::new();
        let (first, second) = (watch.look(), watch.look());
        assert_eq!(first.stalled, Duration::ZERO, "there is nothing before the first look");
        for now in [first, second] {
            assert!(now.available > ByteCount::ZERO && now.available <= now.limit, "{now:?}");
            assert!(!now.limited_by.is_empty());
        }
    }
}
