//! Processor time that this process may use: its affinity, reduced by the quota of every control group around it.
//!
//! Files: the kernel's scheduler/sched-bwc.rst (v1) and admin-guide/cgroup-v2.rst (`cpu.max`).

use super::groups::{Group, Groups, Version, read_value};
use super::{CpuFacts, CpuLimit, HostWarning};

/// `affinity` is the number of CPUs that the scheduler may choose from.
pub(super) fn facts(affinity: usize, groups: &Groups, warnings: &mut Vec<HostWarning>) -> CpuFacts {
    let affinity = affinity.max(1);
    let mut facts = CpuFacts {
        affinity,
        online: online().max(affinity),
        usable: affinity as f64,
        limited_by: CpuLimit::Affinity { cpus: affinity },
        model: super::groups::read_text(std::path::Path::new("/proc/cpuinfo")).ok().and_then(|text| model(&text)),
    };
    for group in groups.of("cpu") {
        let Some((cpus, file)) = quota(group, warnings) else { continue };
        if cpus < facts.usable {
            facts.usable = cpus;
            facts.limited_by = CpuLimit::Quota { file, group: group.dir.clone(), cpus };
        }
    }
    facts
}

/// The name in a `/proc/cpuinfo`; not every architecture has one there.
fn model(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// CPUs of the machine that are online; 0 if the system does not tell.
fn online() -> usize {
    let text = super::groups::read_text(std::path::Path::new("/sys/devices/system/cpu/online"));
    text.ok().and_then(|text| count_cpus(text.trim())).unwrap_or(0)
}

/// Number of CPUs in a list such as `0-3,8`.
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
pub(super) fn affinity(warnings: &mut Vec<HostWarning>) -> usize {
    // The set has room for 1024 CPUs; on a larger machine the call fails, and the standard library's count is used.
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => set.count() as usize,
        Err(error) => {
            let known = std::thread::available_parallelism().map_or(1, usize::from);
            warnings.push(HostWarning::AffinityUnknown { assumed: known, error: error.kind() });
            known
        }
    }
}

/// CPUs' worth of time that `group` allows, and the file that says so; `None` without a quota.
fn quota(group: &Group, warnings: &mut Vec<HostWarning>) -> Option<(f64, &'static str)> {
    match group.version {
        Version::V1 => {
            let name = "cpu.cfs_quota_us";
            let quota = read_value(&group.dir.join(name), warnings, |text| text.parse::<i64>().ok())?;
            if quota < 0 {
                return None;
            }
            let cores = |period: &str| cores(&quota.to_string(), period);
            Some((read_value(&group.dir.join("cpu.cfs_period_us"), warnings, cores)?, name))
        }
        Version::V2 => {
            let name = "cpu.max";
            Some((read_value(&group.dir.join(name), warnings, parse_cpu_max)??, name))
        }
    }
}

/// The outer option is `None` for invalid text, the inner for a quota that does not bind.
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

    fn facts_of(affinity: usize, fixture: &Fixture) -> (CpuFacts, Vec<HostWarning>) {
        let (groups, mut warnings) = fixture.groups();
        (facts(affinity, &groups, &mut warnings), warnings)
    }

    fn v1(group: &str, quota: &str, period: &str, fixture: &Fixture) {
        fixture.file(&format!("/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_quota_us"), quota);
        fixture.file(&format!("/sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_period_us"), period);
    }

    #[test]
    fn without_a_quota_the_affinity_decides() {
        let fixture = Fixture::new("2:cpu,cpuacct:/\n", V1_MOUNTS);
        v1("", "-1\n", "100000\n", &fixture);
        let (cpus, warnings) = facts_of(6, &fixture);
        assert_eq!((cpus.usable, cpus.workers_max()), (6.0, 6));
        assert_eq!(cpus.limited_by.to_string(), "the 6 CPUs that this process may run on");
        assert!(warnings.is_empty(), "{warnings:?}");
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
        let limit = cpus.limited_by.to_string();
        assert!(limit.starts_with("cpu.cfs_quota_us of control group") && limit.ends_with("/a (1.50 CPUs)"), "{limit}");

        let fixture = Fixture::new("0::/a/b\n", V2_MOUNTS);
        fixture.file("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n").file("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
        let (cpus, warnings) = facts_of(6, &fixture);
        assert_eq!((cpus.usable, cpus.workers_max()), (0.5, 1));
        assert!(matches!(cpus.limited_by, CpuLimit::Quota { file: "cpu.max", .. }), "{}", cpus.limited_by);
        assert!(warnings.is_empty(), "{warnings:?}");
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
            let (cpus, warnings) = facts_of(4, &fixture);
            assert_eq!(cpus.usable, 4.0, "{text}");
            assert!(
                warnings.len() == 1 && warnings[0].to_string().contains("cpu.max is ignored"),
                "{text}: {warnings:?}"
            );
        }
    }
}
