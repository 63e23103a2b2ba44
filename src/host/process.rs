//! Memory and processor time of this process.
//!
//! Format: proc_pid_status(5), proc_pid_clear_refs(5).

use std::time::Duration;

use crate::units::ByteCount;

/// Memory that is resident for this process, and its threads. A number that the system does not tell is zero.
///
/// The kernel counts pages in batches per thread, so that the numbers may lag by a few hundred KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProcessMemory {
    /// Resident memory (VmRSS), pages of mapped files included.
    pub rss: ByteCount,
    /// Highest `rss` since the start, or since [`reset_peak_rss`] (VmHWM).
    pub peak_rss: ByteCount,
    /// Threads alive now.
    pub threads: usize,
}

/// Reads the memory of this process.
///
/// ```
/// let memory = feedstock::host::process_memory();
/// println!("{} resident, {} at most", memory.rss, memory.peak_rss);
/// ```
#[cfg(target_os = "linux")]
#[must_use]
pub fn process_memory() -> ProcessMemory {
    std::fs::read_to_string("/proc/self/status").map_or_else(|_| ProcessMemory::default(), |text| parse_status(&text))
}

/// Reads the memory of this process; only `rss` is known on this system.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn process_memory() -> ProcessMemory {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let Ok(pid) = sysinfo::get_current_pid() else { return ProcessMemory::default() };
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
    let rss = system.process(pid).map_or(0, sysinfo::Process::memory);
    ProcessMemory { rss: ByteCount(rss), ..ProcessMemory::default() }
}

/// Processor time that this process, all its threads together, has used since it started.
#[must_use]
pub fn process_cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// Resets [`ProcessMemory::peak_rss`] to the present `rss`. Returns false if the system cannot.
pub fn reset_peak_rss() -> bool {
    // Opened without creating it on a system that has no such file.
    let file = std::fs::OpenOptions::new().write(true).open("/proc/self/clear_refs");
    file.is_ok_and(|mut file| std::io::Write::write_all(&mut file, b"5").is_ok())
}

#[cfg(any(target_os = "linux", test))]
fn parse_status(text: &str) -> ProcessMemory {
    let mut memory = ProcessMemory::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let number: Option<u64> = value.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
        let Some(number) = number else { continue };
        let kilobytes = ByteCount(1024) * number;
        match key {
            "VmRSS" => memory.rss = kilobytes,
            "VmHWM" => memory.peak_rss = kilobytes,
            "Threads" => memory.threads = usize::try_from(number).unwrap_or(usize::MAX),
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{alone, run_alone};
    use super::*;
    use crate::skip::{Missing, skip};

    #[test]
    fn a_status_is_parsed_and_garbage_is_zero() {
        let text = "Name:\tfeed: stock\nVmHWM:\t  2048 kB\nVmRSS:\t  1708 kB\nThreads:\t3\n";
        let memory = parse_status(text);
        assert_eq!((memory.rss, memory.peak_rss), (ByteCount(1708 << 10), ByteCount(2048 << 10)));
        assert_eq!(memory.threads, 3);
        for text in ["", "VmRSS", "VmRSS:", "VmRSS: kB", "VmRSS:\t-4 kB", "Threads: 99999999999999999999"] {
            assert_eq!(parse_status(text), ProcessMemory::default(), "{text}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_shows_and_the_peak_can_be_reset() {
        const BYTES: u64 = 64 << 20;
        // Tests that run beside this one would take and give back memory of the same process.
        if alone().is_none() {
            print!("{}", run_alone("host::process::tests::memory_that_is_touched_shows_and_the_peak_can_be_reset", ""));
            return;
        }
        let before = process_memory();
        assert!(before.rss > ByteCount::ZERO && before.threads >= 1, "{before:?}");
        let block = vec![1u8; BYTES as usize];
        let during = process_memory();
        drop(std::hint::black_box(block));
        assert!(during.rss.0 >= before.rss.0 + BYTES * 9 / 10, "{before:?} {during:?}");
        assert!(during.peak_rss >= during.rss, "{during:?}");
        if !reset_peak_rss() {
            skip(&Missing::Privilege("to reset the peak of resident memory"));
            return;
        }
        let after = process_memory();
        assert!(after.peak_rss.0 < during.peak_rss.0 - BYTES / 2, "{during:?} {after:?}");
    }
}
