//! Directories of this process's control groups, and reading of their files.
//!
//! `/proc/self/cgroup` names the groups by their path in the hierarchy; `/proc/self/mountinfo` lists the part of each
//! hierarchy that is mounted, and its mount point. In a container the two need not meet: the mount may begin at the
//! container's own group, or the path may lead out of the container's view. Formats: proc_pid_mountinfo(5), cgroups(7).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::HostWarning;

/// Most bytes read of a file. No file of the kernel comes near this; an endless one must not fill the memory.
const TEXT_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One control group that can be seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) version: Version,
    /// Its directory.
    pub(super) dir: PathBuf,
}

/// This process's group in one hierarchy, and the groups around it.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    /// Controllers of a v1 hierarchy; empty for v2, where each group's files tell.
    controllers: Vec<String>,
    /// From the own group up to the outermost that is visible.
    chain: Vec<Group>,
}

/// All groups that may limit this process's memory or processor time.
#[derive(Debug, Default)]
pub(super) struct Groups {
    hierarchies: Vec<Hierarchy>,
}

impl Groups {
    /// Finds the groups of this process in the file system that begins at `root`.
    pub(super) fn read(root: &Path, warnings: &mut Vec<HostWarning>) -> Groups {
        let mut text = |path: &'static str| match read_text(&rooted(root, Path::new(path))) {
            Ok(text) => Some(text),
            Err(error) => {
                warnings.push(HostWarning::GroupsUnknown { path, error: error.kind() });
                None
            }
        };
        let (Some(own), Some(mounts)) = (text("/proc/self/cgroup"), text("/proc/self/mountinfo")) else {
            return Groups::default();
        };
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for (controllers, path) in own.lines().filter_map(parse_own_group) {
            let version = if controllers.is_empty() { Version::V2 } else { Version::V1 };
            let relevant = |name: &String| name == "memory" || name == "cpu";
            if version == Version::V1 && !controllers.iter().any(relevant) {
                continue;
            }
            let carries = |mount: &&Mount| {
                mount.version == version && (version == Version::V2 || controllers.iter().any(|c| mount.carries(c)))
            };
            let candidates: Vec<&Mount> = mounts.iter().filter(carries).collect();
            let chain = chain(root, version, &candidates, Path::new(path), warnings);
            hierarchies.push(Hierarchy { version, controllers, chain });
        }
        let groups = Groups { hierarchies };
        for controller in ["memory", "cpu"] {
            if groups.carrier(controller).is_some_and(|hierarchy| hierarchy.chain.is_empty()) {
                warnings.push(HostWarning::ControllerNotMounted { controller });
            }
        }
        groups
    }

    /// A controller lives in one hierarchy: in a v1 one that names it, else in the v2 one.
    fn carrier(&self, controller: &str) -> Option<&Hierarchy> {
        let named = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        named.or_else(|| self.hierarchies.iter().find(|h| h.version == Version::V2))
    }

    /// Visible groups that may carry limits of `controller`, the own group first, then those around it.
    pub(super) fn of(&self, controller: &str) -> &[Group] {
        self.carrier(controller).map_or(&[], |hierarchy| &hierarchy.chain)
    }

    /// The process's own group in the v2 hierarchy.
    pub(super) fn own_v2(&self) -> Option<&Group> {
        self.hierarchies.iter().find(|h| h.version == Version::V2)?.chain.first()
    }
}

/// One line of `/proc/self/mountinfo` that mounts control groups.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The path in the hierarchy that is mounted.
    source: PathBuf,
    /// Mount point.
    point: PathBuf,
    /// Of a v1 hierarchy: its controllers, among other mount options.
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (source, point) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let version = match filesystem.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = filesystem.nth(1).unwrap_or_default().to_owned();
        Some(Mount { version, source: unescape(source).into(), point: unescape(point).into(), options })
    }

    fn carries(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }

    /// The group at `path` of the hierarchy, relative to the mount point; `None` if it lies outside of the mount.
    fn relative<'p>(&self, path: &'p Path) -> Option<&'p Path> {
        let relative = path.strip_prefix(&self.source).ok()?;
        relative.components().all(|part| matches!(part, Component::Normal(_))).then_some(relative)
    }
}

/// One line of `/proc/self/cgroup`: the controllers (none for v2, which has id 0) and the path.
fn parse_own_group(line: &str) -> Option<(Vec<String>, &str)> {
    let mut parts = line.splitn(3, ':');
    let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    if !path.starts_with('/') || (controllers.is_empty() && id != "0") {
        return None;
    }
    let controllers: Vec<String> = controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    Some((controllers, path))
}

/// Directories of the group at `path` and of those around it, through the mount that shows most of them.
fn chain(root: &Path, version: Version, mounts: &[&Mount], path: &Path, warnings: &mut Vec<HostWarning>) -> Vec<Group> {
    let visible = mounts
        .iter()
        .filter_map(|mount| mount.relative(path).map(|relative| (*mount, relative)))
        .filter(|(mount, relative)| rooted(root, &mount.point).join(relative).is_dir())
        .max_by_key(|(_, relative)| relative.components().count());
    let (mount, relative) = match (visible, mounts.first()) {
        (Some(found), _) => found,
        (None, Some(first)) => {
            warnings.push(HostWarning::GroupNotMounted { group: path.to_owned(), mount: first.point.clone() });
            (*first, Path::new(""))
        }
        (None, None) => return Vec::new(),
    };
    let point = rooted(root, &mount.point);
    relative.ancestors().map(|group| Group { version, dir: joined(&point, group) }).collect()
}

/// `base/relative`, without the trailing slash that an empty `relative` would leave.
fn joined(base: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { base.to_owned() } else { base.join(relative) }
}

/// The absolute `path` in the file system that begins at `root`.
pub(super) fn rooted(root: &Path, path: &Path) -> PathBuf {
    joined(root, path.strip_prefix("/").unwrap_or(path))
}

/// A small text file of the kernel, invalid UTF-8 replaced.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The value that `parse` finds in a kernel file. A missing file is ordinary: the files of a group depend on its
/// version, its controllers and its depth. A file that cannot be read or understood becomes a warning.
pub(super) fn read_value<T>(
    path: &Path,
    warnings: &mut Vec<HostWarning>,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    match read_text(path) {
        Ok(text) => {
            let value = parse(text.trim());
            if value.is_none() {
                let text = text.trim().chars().take(40).collect();
                warnings.push(HostWarning::FileInvalid { path: path.to_owned(), text });
            }
            value
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => None,
        Err(error) => {
            warnings.push(HostWarning::FileUnreadable { path: path.to_owned(), error: error.kind() });
            None
        }
    }
}

/// Replaces mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, V1_MOUNTS, V2_MOUNTS};
    use super::*;
    use proptest::prelude::*;

    /// The chain's directories as paths in the fixture.
    fn chain_of(fixture: &Fixture, controller: &str) -> (Vec<String>, Vec<HostWarning>) {
        let (groups, warnings) = fixture.groups();
        let shown = |group: &Group| format!("/{}", group.dir.strip_prefix(fixture.root()).unwrap().display());
        (groups.of(controller).iter().map(shown).collect(), warnings)
    }

    fn with_dirs(own: &str, mounts: &str, dirs: &[&str]) -> Fixture {
        let fixture = Fixture::new(own, mounts);
        for dir in dirs {
            std::fs::create_dir_all(fixture.path(dir)).unwrap();
        }
        fixture
    }

    #[test]
    fn v1_walks_from_the_own_group_to_the_mount() {
        let own = "9:name=systemd:/\n4:memory:/batch/job:7\n2:cpu,cpuacct:/\n0::/\n";
        let fixture = with_dirs(own, V1_MOUNTS, &["/sys/fs/cgroup/memory/batch/job:7", "/sys/fs/cgroup/cpu,cpuacct"]);
        let base = "/sys/fs/cgroup/memory";
        let (chain, warnings) = chain_of(&fixture, "memory");
        assert_eq!(chain, [format!("{base}/batch/job:7"), format!("{base}/batch"), base.to_owned()]);
        assert_eq!(chain_of(&fixture, "cpu").0, ["/sys/fs/cgroup/cpu,cpuacct"]);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn v2_serves_every_controller() {
        let fixture = with_dirs("0::/user.slice/a.scope\n", V2_MOUNTS, &["/sys/fs/cgroup/user.slice/a.scope"]);
        let (chain, warnings) = chain_of(&fixture, "memory");
        assert_eq!(chain, ["/sys/fs/cgroup/user.slice/a.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]);
        assert_eq!(chain_of(&fixture, "cpu").0, chain);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn in_a_hybrid_each_controller_comes_from_its_own_hierarchy() {
        let unified = V2_MOUNTS.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ");
        let dirs = ["/sys/fs/cgroup/memory/m", "/sys/fs/cgroup/unified/u"];
        let fixture = with_dirs("4:memory:/m\n0::/u\n", &format!("{V1_MOUNTS}{unified}"), &dirs);
        assert_eq!(chain_of(&fixture, "memory").0, ["/sys/fs/cgroup/memory/m", "/sys/fs/cgroup/memory"]);
        assert_eq!(chain_of(&fixture, "cpu").0, ["/sys/fs/cgroup/unified/u", "/sys/fs/cgroup/unified"]);
        let (groups, warnings) = fixture.groups();
        assert_eq!(groups.own_v2().unwrap().dir, fixture.path("/sys/fs/cgroup/unified/u"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn a_mount_that_begins_inside_the_hierarchy_is_translated() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let fixture = with_dirs("4:memory:/docker/abc/x\n", mounts, &["/sys/fs/cgroup/memory/x"]);
        let (chain, warnings) = chain_of(&fixture, "memory");
        assert_eq!(chain, ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"]);
        assert!(warnings.is_empty(), "{warnings:?}");
        let own = with_dirs("4:memory:/docker/abc\n", mounts, &["/sys/fs/cgroup/memory"]);
        assert_eq!(chain_of(&own, "memory").0, ["/sys/fs/cgroup/memory"]);
    }

    #[test]
    fn a_mount_from_above_the_namespace_is_translated() {
        let mounts = "29 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let fixture = with_dirs("0::/../sibling\n", mounts, &["/sys/fs/cgroup/sibling"]);
        assert_eq!(chain_of(&fixture, "memory").0, ["/sys/fs/cgroup/sibling", "/sys/fs/cgroup"]);
    }

    #[test]
    fn a_group_outside_of_the_view_falls_back_to_the_mount() {
        for own in ["0::/../../elsewhere\n", "0::/kubepods/gone\n", "0::/a/../../../etc\n"] {
            let fixture = with_dirs(own, V2_MOUNTS, &["/sys/fs/cgroup", "/etc"]);
            let (chain, warnings) = chain_of(&fixture, "memory");
            assert_eq!(chain, ["/sys/fs/cgroup"], "{own}");
            assert!(warnings.len() == 1 && matches!(warnings[0], HostWarning::GroupNotMounted { .. }), "{warnings:?}");
        }
    }

    #[test]
    fn of_two_mounts_the_one_that_shows_more_is_taken() {
        let inner = "30 23 0:26 /a /mnt/inner rw - cgroup2 cgroup2 rw\n";
        let dirs = ["/sys/fs/cgroup/a/b", "/mnt/inner/b"];
        for mounts in [format!("{inner}{V2_MOUNTS}"), format!("{V2_MOUNTS}{inner}")] {
            let fixture = with_dirs("0::/a/b\n", &mounts, &dirs);
            assert_eq!(chain_of(&fixture, "memory").0.len(), 3);
        }
    }

    #[test]
    fn escapes_in_a_mount_point_are_undone() {
        let mounts = V2_MOUNTS.replace("/sys/fs/cgroup ", "/my\\040groups ");
        let fixture = with_dirs("0::/\n", &mounts, &["/my groups"]);
        assert_eq!(chain_of(&fixture, "memory").0, ["/my groups"]);
    }

    #[test]
    fn what_is_missing_is_noted() {
        let fixture = with_dirs("4:memory:/x\n0::/\n", "", &[]);
        let (chain, warnings) = chain_of(&fixture, "memory");
        assert!(chain.is_empty());
        assert!(warnings.contains(&HostWarning::ControllerNotMounted { controller: "memory" }), "{warnings:?}");
        std::fs::remove_file(fixture.path("/proc/self/cgroup")).unwrap();
        let (groups, warnings) = fixture.groups();
        assert!(groups.of("memory").is_empty() && groups.own_v2().is_none());
        assert!(
            warnings.len() == 1 && warnings[0].to_string().starts_with("/proc/self/cgroup cannot be read"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_kernel_without_groups_is_no_news() {
        let (chain, warnings) = chain_of(&Fixture::new("", V1_MOUNTS), "memory");
        assert!(chain.is_empty() && warnings.is_empty(), "{warnings:?}");
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parsers_panic(line in "[0-9:,/. a-z\\\\-]{0,60}") {
            let _ = parse_own_group(&line);
            let _ = Mount::parse(&line);
            let _ = Mount::parse(&format!("1 2 3:4 {line} - cgroup {line}"));
        }
    }
}
