//! Owns the answer to "how much memory may this process use": the machine's, cut by every control group around it.
//! It must never look for the groups itself, nor take a limit as usable where others already use part of it.
//!
//! Files: the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.

use std::time::Duration;

use super::groups::{Group, Groups, Version, read_value};
use super::{MemoryFacts, MemoryNow};
use crate::units::ByteCount;

/// A v1 group without a limit shows the largest signed 64-bit number rounded down to its page size (of which there are
/// several); anything from here on, 4 EiB, is no limit.
const UNLIMITED: u64 = 1 << 62;

/// What one group leaves.
#[derive(Clone)]
struct Room {
    limit: ByteCount,
    available: ByteCount,
    words: String,
}

/// `machine` is the total and the available memory of the machine, where known.
pub(super) fn facts(machine: Option<(ByteCount, ByteCount)>, groups: &Groups, notes: &mut Vec<String>) -> MemoryFacts {
    let rooms: Vec<Room> = groups.of("memory").iter().filter_map(|group| room(group, Cache::Cold, notes)).collect();
    let machine_limit = machine.map(|(total, _)| total);
    let limit = rooms.iter().map(|room| room.limit).chain(machine_limit).min();
    let machine_room = machine.map(|(_, available)| (available, "the machine's available memory"));
    // Of equals the first counts, and the machine comes first: a group is only named where it takes something away.
    let tightest = machine_room
        .into_iter()
        .chain(rooms.iter().map(|room| (room.available, room.words.as_str())))
        .min_by_key(|(available, _)| *available);
    if machine.is_none() {
        notes.push("the machine's memory could not be read; only control group limits are known".to_owned());
    }
    let (available, words) = tightest.unwrap_or((ByteCount::ZERO, "nothing: no memory limit could be read"));
    let limit = limit.unwrap_or_default();
    MemoryFacts {
        total: machine_limit.unwrap_or_default(),
        limit,
        available: available.min(limit),
        limited_by: words.to_owned(),
    }
}

/// Which page cache of a group's files counts as available.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// What was not touched of late.
    Cold,
    /// All of it: what a kernel short of memory takes back first.
    All,
}

/// What is left at this moment, where it is tightest: where the room is smallest beside the limit.
pub(super) fn now(machine: Option<(ByteCount, ByteCount)>, groups: &Groups, notes: &mut Vec<String>) -> MemoryNow {
    let machine = machine.map(|(total, available)| Room {
        limit: total,
        available,
        words: "the machine's available memory".to_owned(),
    });
    let groups = groups.of("memory").iter().filter_map(|group| room(group, Cache::All, notes));
    // A group's limit above the machine's memory is none.
    let most = machine.as_ref().map_or(ByteCount(u64::MAX), |room| room.limit);
    let rooms = machine.iter().cloned().chain(groups).filter(|room| room.limit <= most);
    let tightest = rooms.min_by(|a, b| {
        let share = |room: &Room| room.available.0 as f64 / (room.limit.0 as f64).max(1.0);
        share(a).total_cmp(&share(b))
    });
    let tightest = tightest.unwrap_or_else(|| Room {
        limit: ByteCount(u64::MAX),
        available: ByteCount(u64::MAX),
        words: "nothing: no memory limit could be read".to_owned(),
    });
    MemoryNow {
        limit: tightest.limit,
        available: tightest.available,
        limited_by: tightest.words,
        stalled: Duration::ZERO,
    }
}

/// What `group` leaves; none where it sets no limit.
fn room(group: &Group, cache: Cache, notes: &mut Vec<String>) -> Option<Room> {
    // Beyond `memory.high` a v2 group is not killed but slowed to a crawl: for a loader that is a limit too.
    let (limit_names, usage_name, [cold, warm]): (&[&str], _, _) = match group.version {
        Version::V1 => {
            (&["memory.limit_in_bytes"], "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
        }
        Version::V2 => (&["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"]),
    };
    let (limit, limit_name) = limit_names
        .iter()
        .filter_map(|name| Some((read_value(&group.dir.join(name), notes, parse_limit)??, *name)))
        .min_by_key(|(limit, _)| *limit)?;
    let used: u64 = read_value(&group.dir.join(usage_name), notes, |text| text.parse().ok()).unwrap_or_else(|| {
        notes.push(format!("the memory use of control group {} is unknown and counts as none", group.dir.display()));
        0
    });
    // Page cache counts as use, but a clean page not touched of late is given back before anyone is refused.
    let cached = read_value(&group.dir.join("memory.stat"), notes, |text| {
        let warm = if cache == Cache::All { parse_stat(text, warm)? } else { 0 };
        Some(parse_stat(text, cold)?.saturating_add(warm))
    });
    let cache = cached.unwrap_or(0);
    let held = used.saturating_sub(cache);
    Some(Room {
        limit: ByteCount(limit),
        available: ByteCount(limit.saturating_sub(held)),
        words: format!(
            "{limit_name} of control group {} ({}, {} of it in use)",
            group.dir.display(),
            ByteCount(limit),
            ByteCount(held)
        ),
    })
}

/// The outer option is none for a text that is no limit, the inner for a limit that does not bind.
fn parse_limit(text: &str) -> Option<Option<u64>> {
    if text == "max" {
        return Some(None);
    }
    text.parse().ok().map(|limit| (limit < UNLIMITED).then_some(limit))
}

/// The number behind `key` in a `memory.stat`; zero where the key is not there.
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

    fn facts_of(fixture: &Fixture) -> (MemoryFacts, Vec<String>) {
        let (groups, mut notes) = fixture.groups();
        (facts(MACHINE, &groups, &mut notes), notes)
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
            let (memory, notes) = facts_of(&fixture);
            assert_eq!((memory.total, memory.limit, memory.available), (mib(1000), mib(1000), mib(600)));
            assert_eq!(memory.limited_by, "the machine's available memory");
            assert!(notes.is_empty(), "{notes:?}");
        }
    }

    #[test]
    fn inactive_page_cache_of_a_group_counts_as_available() {
        let v1 = Fixture::new("4:memory:/a\n", V1_MOUNTS);
        v1.memory_v1("", SENTINEL, 0, 0).memory_v1("/a", 200 << 20, 150 << 20, 100 << 20);
        let v2 = Fixture::new("0::/a\n", V2_MOUNTS);
        v2.memory_v2("/a", &(200 << 20).to_string(), "max", 150 << 20, 100 << 20);
        for (fixture, file) in [(v1, "memory.limit_in_bytes"), (v2, "memory.max")] {
            let (memory, notes) = facts_of(&fixture);
            assert_eq!((memory.limit, memory.available), (mib(200), mib(150)));
            assert!(memory.limited_by.starts_with(&format!("{file} of control group")), "{}", memory.limited_by);
            assert!(memory.limited_by.ends_with("/a (200 MiB, 50.0 MiB of it in use)"), "{}", memory.limited_by);
            assert!(notes.is_empty(), "{notes:?}");
        }
    }

    #[test]
    fn a_crowded_outer_group_beats_a_small_inner_one() {
        let fixture = Fixture::new("4:memory:/a/b\n", V1_MOUNTS);
        fixture.memory_v1("/a/b", 100 << 20, 10 << 20, 0);
        fixture.memory_v1("/a", 500 << 20, 480 << 20, 0).memory_v1("", SENTINEL, 0, 0);
        let (memory, _) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(100), mib(20)));
        assert!(memory.limited_by.contains("cgroup/memory/a ("), "{}", memory.limited_by);
    }

    #[test]
    fn at_a_moment_of_a_run_all_page_cache_counts_as_left_and_the_tightest_ceiling_is_named() {
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(200 << 20).to_string(), "max", 160 << 20, 40 << 20);
        let stat = format!("anon 1\ninactive_file {}\nactive_file {}\n", 40 << 20, 30 << 20);
        fixture.file("/sys/fs/cgroup/a/memory.stat", &stat);
        let (groups, mut notes) = fixture.groups();
        let seen = now(MACHINE, &groups, &mut notes);
        assert_eq!((seen.limit, seen.available), (mib(200), mib(110)));
        // A machine with little left is tighter than a group with more than half.
        let seen = now(Some((mib(1000), mib(130))), &groups, &mut notes);
        assert_eq!((seen.limit, seen.available), (mib(1000), mib(130)));
        assert_eq!(seen.limited_by, "the machine's available memory");
        assert_eq!(now(None, &Groups::default(), &mut notes).available, ByteCount(u64::MAX));
    }

    #[test]
    fn the_soft_limit_of_v2_is_a_limit() {
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(400 << 20).to_string(), &(300 << 20).to_string(), 0, 0);
        let (memory, _) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(300), mib(300)));
        assert!(memory.limited_by.starts_with("memory.high of"), "{}", memory.limited_by);
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
        let (memory, notes) = facts_of(&fixture);
        assert_eq!((memory.limit, memory.available), (mib(100), mib(100)));
        for expected in ["'lots'", "'-3'", "memory.stat is ignored", "counts as none"] {
            assert!(notes.iter().any(|note| note.contains(expected)), "{expected}: {notes:?}");
        }
    }

    #[test]
    fn an_unknown_machine_leaves_the_groups_or_nothing() {
        let mut notes = Vec::new();
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.memory_v2("/a", &(100 << 20).to_string(), "max", 0, 0);
        let memory = facts(None, &fixture.groups().0, &mut notes);
        assert_eq!((memory.total, memory.limit, memory.available), (ByteCount::ZERO, mib(100), mib(100)));
        let memory = facts(None, &Groups::default(), &mut notes);
        assert_eq!((memory.limit, memory.available), (ByteCount::ZERO, ByteCount::ZERO));
        assert_eq!(notes.len(), 2);
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
            let (memory, notes) = facts_of(&fixture);
            prop_assert!(memory.available <= memory.limit && memory.limit <= memory.total, "{memory:?}");
            prop_assert!(notes.is_empty(), "{notes:?}");
        }
    }
}
