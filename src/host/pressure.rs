//! Pressure stall information of the machine and of this process's control group.
//!
//! Format: the kernel's accounting/psi.rst.

use super::groups::{Groups, read_value, rooted};
use super::{HostWarning, Pressure, Stalls};
use std::path::Path;
use std::time::Duration;

/// Memory pressure of the machine and of the own group; `None` if neither is measured.
pub(super) fn read(root: &Path, groups: &Groups, warnings: &mut Vec<HostWarning>) -> Option<Pressure> {
    // A kernel built or started without PSI has no such file, or one that refuses to be read; both are ordinary.
    let machine = read_value(&rooted(root, Path::new("/proc/pressure/memory")), warnings, parse);
    let group = groups.own_v2().and_then(|group| read_value(&group.dir.join("memory.pressure"), warnings, parse));
    (machine.is_some() || group.is_some()).then_some(Pressure { machine, group })
}

/// The line `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, the total in microseconds.
fn parse(text: &str) -> Option<Stalls> {
    let fields = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let field = |name: &str| {
        let mut pairs = fields.split_ascii_whitespace().filter_map(|field| field.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    Some(Stalls {
        avg10_percent: field("avg10")?.parse().ok().filter(|share| (0.0..=100.0).contains(share))?,
        total: Duration::from_micros(field("total")?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, V2_MOUNTS};
    use super::*;

    const QUIET: &str =
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    const BUSY: &str =
        "some avg10=12.50 avg60=3.07 avg300=0.40 total=1234567\nfull avg10=1.00 avg60=0.50 avg300=0.10 total=1000\n";

    #[test]
    fn machine_and_group_are_read() {
        let fixture = Fixture::new("0::/a\n", V2_MOUNTS);
        fixture.file("/proc/pressure/memory", QUIET).file("/sys/fs/cgroup/a/memory.pressure", BUSY);
        let (groups, mut warnings) = fixture.groups();
        let pressure = read(fixture.root(), &groups, &mut warnings).unwrap();
        let total = Duration::from_micros(1_234_567);
        assert_eq!(pressure.group, Some(Stalls { avg10_percent: 12.5, total }));
        assert_eq!(pressure.machine.unwrap().total, Duration::ZERO);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn none_is_ordinary_and_garbage_is_noted() {
        let fixture = Fixture::new("0::/\n", V2_MOUNTS);
        let (groups, mut warnings) = fixture.groups();
        warnings.clear();
        assert_eq!(read(fixture.root(), &groups, &mut warnings), None);
        assert!(warnings.is_empty(), "{warnings:?}");
        for text in ["", "some", "some avg10=0.00 avg60=0.00", &QUIET.replace("0.00", "nan"), &QUIET[..40]] {
            assert_eq!(parse(text), None, "{text}");
        }
        fixture.file("/proc/pressure/memory", "garbage");
        assert_eq!(read(fixture.root(), &groups, &mut warnings), None);
        assert_eq!(warnings.len(), 1);
    }
}
