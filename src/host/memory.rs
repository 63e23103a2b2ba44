//! Memory that this process may use: the machine's, reduced by every control group around it. Memory that others
//! already use below a limit does not count as available.
//!
//! Files: the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.

use std::time::Duration;

use super::groups::{Group, Groups, Version, read_value};
use super::{HostWarning, MemoryFacts, MemoryLimit, MemorySnapshot};
use crate::units::ByteCount;

/// A v1 group without a limit shows the largest signed 64-bit number rounded down to its page size (of which there are
/// several). Anything from here on, 4 EiB, does not limit.
const UNLIMITED: u64 = 1 << 62;

/// Memory left below one limit.
struct Headroom {
    limit: ByteCount,
    available: ByteCount,
    limited_by: MemoryLimit,
}

impl Headroom {
    /// Total and available memory of the machine.
    fn machine((limit, available): (ByteCount, ByteCount)) -> Self {
        Headroom { limit, available, limited_by: MemoryLimit::Machine }
    }
}

/// `machine` is the total and the available memory of the machine, where known.
pub(super) fn facts(
    machine: Option<(ByteCount, ByteCount)>,
    groups: &Groups,
    warnings: &mut Vec<HostWarning>,
) -> MemoryFacts {
    if machine.is_none() {
        warnings.push(HostWarning::MemoryUnknown);
    }
    let groups = groups.of("memory").iter().filter_map(|group| headroom(group, Cache::Cold, warnings));
    // Of equals the first counts, and the machine comes first: a group is only named if it takes something away.
    let all: Vec<Headroom> = machine.map(Headroom::machine).into_iter().chain(groups).collect();
    let limit = all.iter().map(|headroom| headroom.limit).min().unwrap_or_default();
    let tightest = all.into_iter().min_by_key(|headroom| headroom.available);
    let (available, limited_by) =
        tightest.map_or((ByteCount::ZERO, MemoryLimit::Unknown), |headroom| (headroom.available, headroom.limited_by));
    MemoryFacts { total: machine.unwrap_or_default().0, limit, available: available.min(limit), limited_by }
}

/// Page cache of a group's files that counts as available.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// Pages that were not used of late.
    Cold,
    /// All pages: a kernel short of memory takes them back first.
    All,
}

/// Memory left at this moment below the limit that leaves the smallest share.
pub(super) fn now(
    machine: Option<(ByteCount, ByteCount)>,
    groups: &Groups,
    warnings: &mut Vec<HostWarning>,
) -> MemorySnapshot {
    let groups = groups.of("memory").iter().filter_map(|group| headroom(group, Cache::All, warnings));
    // A group's limit above the machine's memory does not bind.
    let most = machine.map_or(ByteCount(u64::MAX), |(total, _)| total);
    let all = machine.map(Headroom::machine).into_iter().chain(groups).filter(|headroom| headroom.limit <= most);
    let share = |headroom: &Headroom| headroom.available.0 as f64 / (headroom.limit.0 as f64).max(1.0);
    let tightest = all.min_by(|a, b| share(a).total_cmp(&share(b)));
    let unknown = ByteCount(u64::MAX);
    let Headroom { limit, available, limited_by } =
        tightest.unwrap_or(Headroom { limit: unknown, available: unknown, limited_by: MemoryLimit::Unknown });
    MemorySnapshot { limit, available, limited_by, stalled: Duration::ZERO }
}

/// Memory left in `group`; `None` if it sets no limit.
fn headroom(group: &Group, cache: Cache, warnings: &mut Vec<HostWarning>) -> Option<Headroom> {
    // Beyond `memory.high` a v2 group is not killed but slowed to a crawl: for a loader that is a limit too.
    let (limit_names, usage_name, [cold, warm]): (&[&str], _, _) = match group.version {
        Version::V1 => {
            (&["memory.limit_in_bytes"], "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
        }
        Version::V2 => (&["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"]),
    };
    let (limit, file) = limit_names
        .iter()
        .filter_map(|name| Some((read_value(&group.dir.join(name), warnings, parse_limit)??, *name)))
        .min_by_key(|(limit, _)| *limit)?;
    let used: u64 = read_value(&group.dir.join(usage_name), warnings, |text| text.parse().ok()).unwrap_or_else(|| {
        warnings.push(HostWarning::GroupUsageUnknown { group: group.dir.clone() });
        0
    });
    // Page cache counts as use, but a clean page not used of late is given back before any allocation is refused.
    let cached = read_value(&group.dir.join("memory.stat"), warnings, |text| {
        let warm = if cache == Cache::All { parse_stat(text, warm)? } else { 0 };
        Some(parse_stat(text, cold)?.saturating_add(warm))
    });
    let in_use = ByteCount(used.saturating_sub(cached.unwrap_or(0)));
    let limit = ByteCount(limit);
    let limited_by = MemoryLimit::Group { file, group: group.dir.clone(), limit, in_use };
    Some(Headroom { limit, available: limit.saturating_sub(in_use), limited_by })
}

/// The outer option is `None` for invalid text, the inner for a limit that does not bind.
fn parse_limit(text: &str) -> Option<Option<u64>> {
    if text == "max" {
        return Some(None);
    }
    text.parse().ok().map(|limit| (limit < UNLIMITED).then_some(limit))
}

/// The number after `key` in a `memory.stat`; zero without the key.
fn parse_stat(text: &str, key: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name == key);
    values.next().map_or(Some(0), |(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, V1_MOUNTS, V2_MOUNTS};
    use super::*;
    use proptest::prelude::*;

    const SENTINEL: u64 = 9_223_372_036_854_771_712;
    const MACHINE: Option<(ByteCount, ByteCount)> = Some((ByteCount(1000 << 20), ByteCount(600 << 20)));

    fn facts_of(fixture: &Fixture) -> (MemoryFacts, Vec<HostWarning>) {
        let (groups, mut warnings) = fixture.groups();
        (facts(MACHINE, &groups, &mut warnings), warnings)
    }

    fn mib(count: u64) -> ByteCount {
        ByteCount(count << 20)
    }

    #[test]
    fn without_limits_the_machine_decides() {
        let v1 = Fixture::new("4:memory:/a\n", V1_MOUNTS);
        v1.memory_v1("", SENTINEL, 5 << 20, 0).memory_v1("/a", SENTINEL - (60 << 10), 5 << 20, 0);
        let v2 = Fixture::new("0::/a\n", V2_MOUNTS);
        v2.memory_v2("/a", "max", "max", 5 << 20, 0);
        for fixture in [v1, v2, Fixture::new("", "")] {
            let (memory, warnings) = facts_of(&fixture);
            assert_eq!((memory.total, memory.limit, memory.available), (mib(1000), mib(1000), mib(600)));
            assert_eq!(memory.limited_by, MemoryLimit::Machine);
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn inactive_page_cache_of_a_group_counts_as_available() {
        let v1 = Fixture::new("4:memory:/a\n", V1_MOUNTS);
        v1.memory_v1("", SENTINEL, 0, 0).memory_v1("/a", 200 << 20, 150 << 20, 100 << 20);
        let v2 = Fixture::new("0::/a\n", V2_MOUNTS);
        v2.memory_v2("/a", &(200 << 20).to_string(), "max", 150 << 20, 100 << 20);
        for (fixture, file) in [(v1, "memory.limit_in_bytes"), (v2, "memory.max")] {
            let (memory, warnings) = facts_of(&fixture);
            assert_eq!((memory.limit, memory.available), (mib(200), mib(150)));
            let limit = memory.limited_by.to_string();
            assert!(limit.starts_with(&format!("{file} of control group")), "{limit}");
            assert!(limit.ends_with("/a (200 MiB, 50.0 MiB of it in use)"), "{limit}");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn a_crowded_outer_group_beats_a_small_inner_one() {
        let fixture = Fixture::new("4:memory:/a/b\n", V1_MOUNTS);
        fixture.memory_v1("/a/b", 100 << 20, 10 << 20, 0);
        fixture.memory_v1("/a", 500 << 20, 480 << 20, 0).memory_v1("", SENTINEL, 0, 0);
        let (memory, _) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(100), mib(20)));
        assert!(memory.limited_by.to_string().contains("cgroup/memory/a ("), "{}", memory.limited_by);
    }

    #[test]
    fn at_a_moment_of_a_run_all_page_cache_counts_as_left_and_the_tightest_ceiling_is_named() {
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(200 << 20).to_string(), "max", 160 << 20, 40 << 20);
        let stat = format!("anon 1\ninactive_file {}\nactive_file {}\n", 40 << 20, 30 << 20);
        fixture.file("/sys/fs/cgroup/a/memory.stat", &stat);
        let (groups, mut warnings) = fixture.groups();
        let seen = now(MACHINE, &groups, &mut warnings);
        assert_eq!((seen.limit, seen.available), (mib(200), mib(110)));
        // A machine with little left is tighter than a group with more than half.
        let seen = now(Some((mib(1000), mib(130))), &groups, &mut warnings);
        assert_eq!((seen.limit, seen.available), (mib(1000), mib(130)));
        assert_eq!(seen.limited_by, MemoryLimit::Machine);
        assert_eq!(now(None, &Groups::default(), &mut warnings).available, ByteCount(u64::MAX));
    }

    #[test]
    fn the_soft_limit_of_v2_is_a_limit() {
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(400 << 20).to_string(), &(300 << 20).to_string(), 0, 0);
        let (memory, _) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(300), mib(300)));
        assert!(matches!(memory.limited_by, MemoryLimit::Group { file: "memory.high", .. }), "{}", memory.limited_by);
    }

    #[test]
    fn a_limit_above_the_machine_or_below_the_use_stays_in_range() {
        let above = Fixture::new("0::/a\n", V2_MOUNTS);
        above.memory_v2("/a", &(9000u64 << 20).to_string(), "max", 0, 0);
        let (memory, _) = facts_of(&above);
        assert_eq!((memory.limit, memory.available), (mib(1000), mib(600)));
        let below = Fixture::new("0::/a\n", V2_MOUNTS);
        below.memory_v2("/a", "4096", "max", 1 << 20, 0);
        let (memory, _) = facts_of(&below);
        assert_eq!((memory.limit, memory.available), (ByteCount(4096), ByteCount::ZERO));
    }

    #[test]
    fn garbage_is_noted_and_ignored() {
        let fixture = Fixture::new("4:memory:/a\n", V1_MOUNTS);
        fixture.memory_v1("/a", 100 << 20, 10 << 20, 0).memory_v1("", SENTINEL, 0, 0);
        fixture.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "lots\n");
        fixture.file("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "-3");
        fixture.file("/sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file many\n\n\0");
        let (memory, warnings) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(100), mib(100)));
        for expected in ["'lots'", "'-3'", "memory.stat is ignored", "counts as none"] {
            assert!(warnings.iter().any(|warning| warning.to_string().contains(expected)), "{expected}: {warnings:?}");
        }
    }

    #[test]
    fn an_unknown_machine_leaves_the_groups_or_nothing() {
        let mut warnings = Vec::new();
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(100 << 20).to_string(), "max", 0, 0);
        let memory = facts(None, &fixture.groups().0, &mut warnings);
        assert_eq!((memory.total, memory.limit, memory.available), (ByteCount::ZERO, mib(100), mib(100)));
        let memory = facts(None, &Groups::default(), &mut warnings);
        assert_eq!((memory.limit, memory.available), (ByteCount::ZERO, ByteCount::ZERO));
        assert_eq!(warnings.len(), 2);
    }

    proptest! {
        // Every case writes a tree of files.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn available_never_exceeds_the_limit(
            groups in prop::collection::vec((0u64..u64::MAX, 0u64..2000 << 20, 0u64..2000 << 20), 1..4),
        ) {
            let own: String = (1..groups.len()).map(|depth| format!("/{depth}")).collect();
            let fixture = Fixture::new(&format!("4:memory:{}\n", if own.is_empty() { "/" } else { &own }), V1_MOUNTS);
            let mut path = String::new();
            for (depth, (limit, used, inactive)) in groups.iter().enumerate() {
                if depth > 0 {
                    path = format!("{path}/{depth}");
                }
                // Half of the limits in the machine's range, half anywhere.
                let limit = if limit % 2 == 0 { limit % (2000 << 20) } else { *limit };
                fixture.memory_v1(&path, limit, *used, *inactive);
            }
            let (memory, warnings) = facts_of(&fixture);
            prop_assert!(memory.available <= memory.limit && memory.limit <= memory.total, "{memory:?}");
            prop_assert!(warnings.is_empty(), "{warnings:?}");
        }
    }
}
