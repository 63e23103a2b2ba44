//! Facts about the machine that a run finds itself on: the memory and the cores that it may use, memory pressure, the
//! memory of this process and of its allocator, and the place of this process in a distributed run.
//!
//! A container or a batch job sees the whole machine in `/proc/meminfo` and `nproc`, yet is killed or throttled at the
//! limits of its control groups. `sysinfo` reports the machine's own numbers; the groups' files (v1, v2 and hybrids of
//! the two, nested groups included) are read here.
//!
//! Nothing here keeps state between calls, apart from the counting allocator. Facts that cannot be read become a
//! [`HostWarning`]; only a contradictory launcher is an error ([`DistributedEnv::from_env`]). The parsers are functions
//! of a text or of a root directory, so that tests run them on trees of fixture files.

mod allocator;
#[cfg(any(target_os = "linux", test))]
mod cpu;
mod distributed_env;
#[cfg(test)]
mod fixture;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(any(target_os = "linux", test))]
mod groups;
mod heap;
mod limit;
mod malloc_info;
#[cfg(any(target_os = "linux", test))]
mod memory;
#[cfg(any(target_os = "linux", test))]
mod pressure;
mod process;
mod ranks;
mod warning;
mod watch;

pub use allocator::return_large_blocks;
pub use distributed_env::{Coordinator, DistributedEnv, DistributedEnvError, Launcher};
#[cfg(feature = "cuda")]
pub use gpu::{GpuError, GpuFacts, GpuWatch};
pub use heap::{CountingAllocator, Heap, heap, reset_heap_peak};
pub use limit::{CpuLimit, MemoryLimit};
pub use malloc_info::{MallocInfo, malloc_info};
pub use process::{ProcessMemory, process_cpu_time, process_memory, reset_peak_rss};
pub use warning::HostWarning;
pub use watch::MemoryWatch;

use crate::units::ByteCount;
use std::time::Duration;
use sysinfo::{MemoryRefreshKind, System};

/// Resources that this machine gives to this process, at the moment of reading.
///
/// ```
/// let host = feedstock::host::HostFacts::read();
/// println!("{} available ({})", host.memory.available, host.memory.limited_by);
/// println!("{} workers at most ({})", host.cpus.workers_max(), host.cpus.limited_by);
/// assert!(host.memory.available <= host.memory.limit);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HostFacts {
    /// Memory that may be used.
    pub memory: MemoryFacts,
    /// Cores that may be used.
    pub cpus: CpuFacts,
    /// Time that tasks were stalled for want of memory; `None` if the kernel does not measure it.
    pub pressure: Option<Pressure>,
    /// Memory that this process may lock (`ulimit -l`); `None` without a limit.
    pub lock_limit: Option<ByteCount>,
    /// Ranks that share this machine.
    pub local_ranks: LocalRanks,
    /// Facts that could not be read; empty on an ordinary machine.
    pub warnings: Vec<HostWarning>,
}

/// Memory that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct MemoryFacts {
    /// Physical memory of the machine; zero if it could not be read.
    pub total: ByteCount,
    /// Lowest limit: `total`, or the limit of a control group around this process.
    pub limit: ByteCount,
    /// Memory that can still be allocated beyond what is in use now, this process's own memory included in that use:
    /// the least of the machine's available memory and, for every control group, its limit less what it uses and cannot
    /// give back. Never above `limit`; zero if nothing could be read.
    pub available: ByteCount,
    /// Limit that decides `available`.
    pub limited_by: MemoryLimit,
}

/// Processor time that this process may use.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CpuFacts {
    /// CPUs that the calling thread, and so every thread it starts, may run on. At least 1.
    pub affinity: usize,
    /// CPUs of the machine.
    pub online: usize,
    /// CPUs' worth of time: the affinity, or the quota of a control group if that is lower. Above zero.
    pub usable: f64,
    /// Limit that decides `usable`.
    pub limited_by: CpuLimit,
    /// Model name of the CPUs, if the system tells it.
    pub model: Option<String>,
}

/// Memory left at one moment of a run, below the limit that leaves the smallest share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemorySnapshot {
    /// The limit: the machine's memory, or that of a control group.
    pub limit: ByteCount,
    /// Memory left below it. Page cache of files counts as left: the kernel takes it back before it refuses memory.
    pub available: ByteCount,
    /// The limit's source.
    pub limited_by: MemoryLimit,
    /// Time since the last poll in which some task of the control group (or the machine) was stalled for want of
    /// memory.
    pub stalled: Duration,
}

/// Processes of one distributed run on this machine, as its launcher tells each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalRanks {
    /// Number of ranks, this one included; 1 without a launcher.
    pub count: usize,
    /// Environment variable that says so; `None` without a launcher.
    pub variable: Option<&'static str>,
}

impl CpuFacts {
    /// Threads that can be kept busy at once: `usable` rounded down, but at least one.
    #[must_use]
    pub fn workers_max(&self) -> usize {
        // A float-to-integer cast saturates, so that no quota, however odd, can wrap.
        (self.usable as usize).max(1)
    }

    /// [`workers_max`](Self::workers_max) of one of `ranks` processes that share the cores. Cores are not divided if a
    /// launcher has bound each rank to CPUs of its own: affinities of that size fit side by side on the machine.
    #[must_use]
    pub fn workers_max_of(&self, ranks: usize) -> usize {
        let bound = self.affinity.saturating_mul(ranks) <= self.online;
        if bound { self.workers_max() } else { (self.workers_max() / ranks.max(1)).max(1) }
    }
}

/// Memory pressure, from the kernel's pressure stall information (PSI): time in which at least one task was stalled for
/// want of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// Of the whole machine, from `/proc/pressure/memory`.
    pub machine: Option<Stalls>,
    /// Of this process's own control group, from its `memory.pressure`; `None` without cgroup v2.
    pub group: Option<Stalls>,
}

/// Time lost waiting for memory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stalls {
    /// Share of the last 10 seconds, `0.0..=100.0`.
    pub avg10_percent: f64,
    /// Total since the machine (or the group) was started.
    pub total: Duration,
}

impl HostFacts {
    /// Reads everything anew. It takes well under a millisecond and never fails; see [`HostFacts::warnings`].
    #[must_use]
    pub fn read() -> HostFacts {
        read()
    }
}

/// Total and available memory of the machine, if the system tells them.
fn machine_memory() -> Option<(ByteCount, ByteCount)> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (total, available) = (system.total_memory(), system.available_memory());
    (total > 0).then_some((ByteCount(total), ByteCount(available.min(total))))
}

fn local_ranks(warnings: &mut Vec<HostWarning>) -> LocalRanks {
    ranks::read(|name| std::env::var(name).ok(), warnings)
}

#[cfg(target_os = "linux")]
fn read() -> HostFacts {
    let root = std::path::Path::new("/");
    let mut warnings = Vec::new();
    let groups = groups::Groups::read(root, &mut warnings);
    HostFacts {
        memory: memory::facts(machine_memory(), &groups, &mut warnings),
        cpus: cpu::facts(cpu::affinity(&mut warnings), &groups, &mut warnings),
        pressure: pressure::read(root, &groups, &mut warnings),
        lock_limit: rustix::process::getrlimit(rustix::process::Resource::Memlock).current.map(ByteCount),
        local_ranks: local_ranks(&mut warnings),
        warnings,
    }
}

#[cfg(not(target_os = "linux"))]
fn read() -> HostFacts {
    let mut warnings = Vec::new();
    let (total, available) = machine_memory().unwrap_or_else(|| {
        warnings.push(HostWarning::MemoryUnknown);
        (ByteCount::ZERO, ByteCount::ZERO)
    });
    let affinity = std::thread::available_parallelism().map_or_else(
        |error| {
            warnings.push(HostWarning::AffinityUnknown { assumed: 1, error: error.kind() });
            1
        },
        usize::from,
    );
    HostFacts {
        memory: MemoryFacts { total, limit: total, available, limited_by: MemoryLimit::Machine },
        cpus: CpuFacts {
            affinity,
            online: affinity,
            usable: affinity as f64,
            limited_by: CpuLimit::Affinity { cpus: affinity },
            model: None,
        },
        pressure: None,
        lock_limit: None,
        local_ranks: local_ranks(&mut warnings),
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip::{Missing, skip};

    #[test]
    fn the_real_machine_is_consistent() {
        let host = HostFacts::read();
        assert!(host.memory.total > ByteCount::ZERO);
        assert!(host.memory.available > ByteCount::ZERO);
        assert!(host.memory.available <= host.memory.limit, "{:?}", host.memory);
        assert!(host.memory.limit <= host.memory.total, "{:?}", host.memory);
        assert_ne!(host.memory.limited_by, MemoryLimit::Unknown);
        assert!(host.cpus.usable > 0.0 && host.cpus.usable <= host.cpus.affinity as f64, "{:?}", host.cpus);
        assert!((1..=host.cpus.affinity).contains(&host.cpus.workers_max()));
        println!("{host:#?}");
    }

    #[test]
    fn workers_are_whole_and_at_least_one() {
        let limited_by = CpuLimit::Affinity { cpus: 8 };
        let facts = CpuFacts { affinity: 8, online: 8, usable: 8.0, limited_by, model: None };
        let with = |usable| CpuFacts { usable, ..facts.clone() }.workers_max();
        assert_eq!([0.01, 0.99, 1.0, 1.99, 2.0, 7.5].map(with), [1, 1, 1, 1, 2, 7]);
        assert_eq!(with(f64::NAN), 1);
    }

    #[test]
    fn ranks_share_the_cores_unless_each_is_bound_to_its_own() {
        let of = |affinity, usable, ranks| {
            let limited_by = CpuLimit::Affinity { cpus: affinity };
            CpuFacts { affinity, online: 64, usable, limited_by, model: None }.workers_max_of(ranks)
        };
        assert_eq!(of(64, 64.0, 1), 64);
        assert_eq!(of(64, 64.0, 4), 16);
        assert_eq!(of(16, 16.0, 4), 16, "bound by the launcher");
        assert_eq!(of(64, 8.0, 4), 2, "a quota is shared");
        assert_eq!(of(64, 2.0, 8), 1);
    }

    /// A control group that is removed when the test is over.
    #[cfg(target_os = "linux")]
    struct TestGroup(std::path::PathBuf);

    #[cfg(target_os = "linux")]
    impl Drop for TestGroup {
        fn drop(&mut self) {
            if let Err(error) = std::fs::remove_dir(&self.0) {
                println!("{} was left behind: {error}", self.0.display());
            }
        }
    }

    /// Makes a group below the own one, with a limit; none where this process may not or the kernel cannot.
    #[cfg(target_os = "linux")]
    fn make_group(controller: &str, settings: [(&str, &str); 2]) -> Option<TestGroup> {
        let groups = groups::Groups::read(std::path::Path::new("/"), &mut Vec::new());
        let own = groups.of(controller).first()?;
        let dir = own.dir.join(format!("feedstock-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let group = TestGroup(dir);
        let (file, value) = settings[usize::from(own.version == groups::Version::V2)];
        let open = std::fs::OpenOptions::new().write(true).open(group.0.join(file));
        std::io::Write::write_all(&mut open.ok()?, value.as_bytes()).ok()?;
        Some(group)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_limits_of_a_real_group_are_seen() {
        if let Some(dirs) = fixture::alone() {
            for dir in dirs.lines() {
                if let Err(error) = std::fs::write(format!("{dir}/cgroup.procs"), std::process::id().to_string()) {
                    println!("skipped: {dir} cannot be entered: {error}");
                    return;
                }
            }
            println!("{:#?}", HostFacts::read());
            return;
        }
        let memory = make_group("memory", [("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")]);
        let cpu = make_group("cpu", [("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000")]);
        let dirs: Vec<&str> = [&memory, &cpu].into_iter().flatten().filter_map(|group| group.0.to_str()).collect();
        if dirs.is_empty() {
            skip(&Missing::Privilege("a control group with limits"));
            return;
        }
        let seen = fixture::run_alone("host::tests::the_limits_of_a_real_group_are_seen", &dirs.join("\n"));
        print!("{seen}");
        if seen.contains("skipped: ") {
            return;
        }
        if memory.is_some() {
            assert!(seen.contains("file: \"memory.") && seen.contains("67108864"), "{seen}");
        }
        if cpu.is_some() {
            assert!(seen.contains("file: \"cpu.") && seen.contains("usable: 0.5"), "{seen}");
        }
    }
}
