//! Owns the reading of pressure stall information. It must never judge how much pressure is too much.
//!
//! Format: the kernel's accounting/psi.rst.

use super::groups::{Groups, read_text, rooted};
use super::{Pressure, Stall, Stalls};
use std::io;
use std::path::Path;
use std::time::Duration;

/// The machine's and the own group's memory pressure; none where neither is to be had.
pub(super) fn read(root: &Path, groups: &Groups, notes: &mut Vec<String>) -> Option<Pressure> {
    let machine = file(&rooted(root, Path::new("/proc/pressure/memory")), notes);
    let group = groups.own_v2().and_then(|group| file(&group.dir.join("memory.pressure"), notes));
    (machine.is_some() || group.is_some()).then_some(Pressure { machine, group })
}

/// A kernel built or started without PSI has no such file, or one that refuses to be read; both are ordinary.
fn file(path: &Path, notes: &mut Vec<String>) -> Option<Stalls> {
    match read_text(path) {
        Ok(text) => {
            let stalls = parse(&text);
            if stalls.is_none() {
                notes.push(format!("{} is not understood and ignored", path.display()));
            }
            stalls
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => None,
        Err(error) => {
            notes.push(format!("{} is ignored: {error}", path.display()));
            None
        }
    }
}

fn parse(text: &str) -> Option<Stalls> {
    let stall = |kind: &str| text.lines().find_map(|line| parse_stall(line.strip_prefix(kind)?.strip_prefix(' ')?));
    Some(Stalls { some: stall("some")?, full: stall("full")? })
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`, the total in microseconds.
fn parse_stall(fields: &str) -> Option<Stall> {
    let field = |name: &str| {
        let pair = fields.split_ascii_whitespace().filter_map(|field| field.split_once('='));
        pair.into_iter().find_map(|(key, value)| (key == name).then_some(value))
    };
    let percent = |name| field(name)?.parse().ok().filter(|share| (0.0..=100.0).contains(share));
    Some(Stall {
        avg10_percent: percent("avg10")?,
        avg60_percent: percent("avg60")?,
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
        let (groups, mut notes) = fixture.groups();
        let pressure = read(fixture.root(), &groups, &mut notes).unwrap();
        let Stalls { some, full } = pressure.group.unwrap();
        assert_eq!(
            (some.avg10_percent, some.avg60_percent, some.total),
            (12.5, 3.07, Duration::from_micros(1_234_567))
        );
        assert_eq!((full.avg10_percent, full.avg60_percent, full.total), (1.0, 0.5, Duration::from_millis(1)));
        assert_eq!(pressure.machine.unwrap().some.total, Duration::ZERO);
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn none_is_ordinary_and_garbage_is_noted() {
        let fixture = Fixture::new("0::/\n", V2_MOUNTS);
        let (groups, mut notes) = fixture.groups();
        notes.clear();
        assert_eq!(read(fixture.root(), &groups, &mut notes), None);
        assert!(notes.is_empty(), "{notes:?}");
        for text in ["", "some", "some avg10=0.00 avg60=0.00 total=0", &QUIET.replace("0.00", "nan"), &QUIET[..60]] {
            assert_eq!(parse(text), None, "{text}");
        }
        fixture.file("/proc/pressure/memory", "none of your business");
        assert_eq!(read(fixture.root(), &groups, &mut notes), None);
        assert_eq!(notes.len(), 1);
    }
}
