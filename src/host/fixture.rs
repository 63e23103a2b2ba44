//! Shared by the tests of this module: a small `/proc` and `/sys` in a temporary directory, and a separate process for
//! tests that measure the process.

use super::HostWarning;
use super::groups::Groups;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A root directory that tests fill with files.
pub(super) struct Fixture {
    dir: tempfile::TempDir,
}

pub(super) const V1_MOUNTS: &str = "\
23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
";
pub(super) const V2_MOUNTS: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

impl Fixture {
    pub(super) fn new(own_groups: &str, mounts: &str) -> Fixture {
        let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
        fixture.file("/proc/self/cgroup", own_groups);
        fixture.file("/proc/self/mountinfo", mounts);
        fixture
    }

    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        super::groups::rooted(self.root(), Path::new(path))
    }

    pub(super) fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// A v1 memory group: its limit, its use, and how much of that is inactive page cache.
    pub(super) fn memory_v1(&self, group: &str, limit: u64, used: u64, inactive: u64) -> &Self {
        let dir = format!("/sys/fs/cgroup/memory{group}");
        self.file(&format!("{dir}/memory.limit_in_bytes"), &format!("{limit}\n"));
        self.file(&format!("{dir}/memory.usage_in_bytes"), &format!("{used}\n"));
        self.file(&format!("{dir}/memory.stat"), &format!("inactive_file 1\ntotal_inactive_file {inactive}\n"))
    }

    /// A v2 memory group: its two limits, its use, and how much of that is inactive page cache.
    pub(super) fn memory_v2(&self, group: &str, max: &str, high: &str, used: u64, inactive: u64) -> &Self {
        let dir = format!("/sys/fs/cgroup{group}");
        self.file(&format!("{dir}/memory.max"), &format!("{max}\n"));
        self.file(&format!("{dir}/memory.high"), &format!("{high}\n"));
        self.file(&format!("{dir}/memory.current"), &format!("{used}\n"));
        self.file(&format!("{dir}/memory.stat"), &format!("anon 7\ninactive_file {inactive}\n"))
    }

    pub(super) fn groups(&self) -> (Groups, Vec<HostWarning>) {
        let mut warnings = Vec::new();
        let groups = Groups::read(self.root(), &mut warnings);
        (groups, warnings)
    }
}

const ALONE_VARIABLE: &str = "FEEDSTOCK_TEST_ALONE";

/// Argument of [`run_alone`] in the process that it started; `None` in the process of all tests.
pub(super) fn alone() -> Option<String> {
    std::env::var(ALONE_VARIABLE).ok()
}

/// Runs one test of this binary in a process of its own and returns what it printed.
pub(super) fn run_alone(test: &str, handed: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE_VARIABLE, handed).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}{complaint}");
    printed
}
