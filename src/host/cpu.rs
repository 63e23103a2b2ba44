//! Owns the answer to "how many cores may this process keep busy": its affinity, cut by every quota around it.
//! It must never look for the groups itself.
//!
//! Files: the kernel's scheduler/sched-bwc.rst (v1) and admin-guide/cgroup-v2.rst (`cpu.max`).

use super::CpuFacts;
use super::groups::{Group, Groups, Version, read_value};

/// `affinity` is the number of CPUs that the scheduler may choose from.
pub(super) fn facts(affinity: usize, groups: &Groups, notes: &mut Vec<String>) -> CpuFacts {
    let affinity = affinity.max(1);
    let mut facts = CpuFacts {
        affinity,
        online: online().max(affinity),
        usable: affinity as f64,
        limited_by: match affinity {
            1 => "the one CPU that this process may run on".to_owned(),
            many => format!("the {many} CPUs that this process may run on"),
        },
        model: super::groups::read_text(std::path::Path::new("/proc/cpuinfo")).ok().and_then(|text| model(&text)),
    };
    for group in groups.of("cpu") {
        let Some((cores, name)) = quota(group, notes) else { continue };
        if cores < facts.usable {
            facts.usable = cores;
            facts.limited_by = format!("{name} of control group {} ({cores:.2} CPUs)", group.dir.display());
        }
    }
    facts
}

/// The name in a `/proc/cpuinfo`; not every architecture has one there.
fn model(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// CPUs of the machine, whoever may run on them; 0 where that is not told.
fn online() -> usize {
    let text = super::groups::read_text(std::path::Path::new("/sys/devices/system/cpu/online"));
    text.ok().and_then(|text| count_cpus(text.trim())).unwrap_or(0)
}

/// How many there are in a list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(range).sum()
}

/// CPUs that the calling thread may run on; cpusets of control groups show in it too.
#[cfg(target_os = "linux")]
pub(super) fn affinity(notes: &mut Vec<String>) -> usize {
    // The set has room for 1024 CPUs; on a larger machine the call fails, and the standard library's way remains.
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => set.count() as usize,
        Err(error) => {
            let known = std::thread::available_parallelism().map_or(1, usize::from);
            notes.push(format!("the CPU affinity cannot be read ({error}); {known} CPUs are assumed"));
            known
        }
    }
}

/// Cores' worth of time that `group` allows, and the file that says so; none where it sets no quota.
fn quota(group: &Group, notes: &mut Vec<String>) -> Option<(f64, &'static str)> {
    match group.version {
        Version::V1 => {
            let name = "cpu.cfs_quota_us";
            let quota = read_value(&group.dir.join(name), notes, |text| text.parse::<i64>().ok())?;
            if quota < 0 {
                return None;
            }
            let cores = |period: &str| cores(&quota.to_string(), period);
            Some((read_value(&group.dir.join("cpu.cfs_period_us"), notes, cores)?, name))
        }
        Version::V2 => {
            let name = "cpu.max";
            Some((read_value(&group.dir.join(name), notes, parse_cpu_max)??, name))
        }
    }
}

/// The outer option is none for a text that is no quota, the inner for a quota that does not bind.
fn parse_cpu_max(text: &str) -> Option<Option<f64>> {
    match text.split_once(' ')? {
        ("max", _) => Some(None),
        (quota, period) => cores(quota, period).map(Some),
    }
}

/// `quota` microseconds of every `period`.
fn cores(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.trim().parse().ok()?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, V1_MOUNTS, V2_MOUNTS};
    use super::*;

    fn facts_of(affinity: usize, fixture: &Fixture) -> (CpuFacts, Vec<String>) {
        let (groups, mut notes) = fixture.groups();
        (facts(affinity, &groups, &mut notes), notes)
    }

    fn v1(group: &str, quota: &str, period: &str, fixture: &Fixture) {
        fixture.file(&format!("/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_quota_us"), quota);
        fixture.file(&format!("/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_period_us"), period);
    }

    #[test]
    fn without_a_quota_the_affinity_decides() {
        let fixture = Fixture::new("2:cpu,cpuacct:/\n", V1_MOUNTS);
        v1("", "-1\n", "100000\n", &fixture);
        let (cpus, notes) = facts_of(6, &fixture);
        assert_eq!((cpus.usable, cpus.workers_max()), (6.0, 6));
        assert_eq!(cpus.limited_by, "the 6 CPUs that this process may run on");
        assert!(notes.is_empty(), "{notes:?}");
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.file("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
        assert_eq!(facts_of(0, &fixture).0.usable, 1.0);
    }

    #[test]
    fn the_tightest_quota_of_nested_groups_counts() {
        let fixture = Fixture::new("2:cpu,cpuacct:/a/b\n", V1_MOUNTS);
        v1("/a/b", "400000\n", "100000\n", &fixture);
        v1("/a", "75000\n", "50000\n", &fixture);
        v1("", "-1\n", "100000\n", &fixture);
        let (cpus, _) = facts_of(6, &fixture);
        assert_eq!((cpus.usable, cpus.workers_max()), (1.5, 1));
        assert!(cpus.limited_by.starts_with("cpu.cfs_quota_us of control group"), "{}", cpus.limited_by);
        assert!(cpus.limited_by.ends_with("/a (1.50 CPUs)"), "{}", cpus.limited_by);

        let fixture = Fixture::new("0::/a/b\n", V2_MOUNTS);
        fixture.file("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n").file("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
        let (cpus, notes) = facts_of(6, &fixture);
        assert_eq!((cpus.usable, cpus.workers_max()), (0.5, 1));
        assert!(cpus.limited_by.starts_with("cpu.max of"), "{}", cpus.limited_by);
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(["0", "0-1", "0-3,8", "0-3,8-9,12"].map(count_cpus), [Some(1), Some(2), Some(5), Some(7)]);
        assert_eq!(["", "a", "3-1", "1-"].map(count_cpus), [None; 4]);
    }

    #[test]
    fn garbage_is_noted_and_ignored() {
        for text in ["", "fast", "100000", "0 100000", "100000 0", "-5 100000", "1.5 1"] {
            let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
            fixture.file("/sys/fs/cgroup/a/cpu.max", text);
            let (cpus, notes) = facts_of(4, &fixture);
            assert_eq!(cpus.usable, 4.0, "{text}");
            assert!(notes.len() == 1 && notes[0].contains("cpu.max is ignored"), "{text}: {notes:?}");
        }
    }
}
