//! Owns a memory control group for a test: made, limited, read, and removed again whatever happens. It must never touch
//! a group that it did not make.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A group below the one that the tests run in (or beside it, where v2 has no place below).
pub struct Group {
    dir: PathBuf,
    version: Version,
}

/// What a group holds now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charged {
    /// All of it but the cache of files, which the kernel takes back before it kills: what really presses on the limit.
    pub firm: u64,
    /// Page tables, thread stacks and whatever else the kernel keeps for the processes.
    pub kernel: u64,
}

static MADE: AtomicUsize = AtomicUsize::new(0);

impl Group {
    /// Makes a group with this limit and no swap.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn make(limit: u64) -> Result<Group, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let path_of = |is: fn(&str) -> bool| {
            own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                is(controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let name = format!("feedstock-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        if let Some(path) = path_of(|controllers| controllers.split(',').any(|one| one == "memory")) {
            let parent = Path::new("/sys/fs/cgroup/memory").join(path);
            let group = Group::below(&parent, &name, Version::V1)?;
            group.set("memory.limit_in_bytes", limit)?;
            // Absent where swap is not counted; with none there, nothing can be swapped out either.
            let _ = group.set("memory.memsw.limit_in_bytes", limit);
            let _ = group.set("memory.swappiness", 0);
            return Ok(group);
        }
        let path = path_of(str::is_empty).ok_or("no control groups")?;
        let own = Path::new("/sys/fs/cgroup").join(path);
        // A v2 group with processes in it hands no controllers down, unless it is the root; then beside is the place.
        let parents =
            [Some(own.as_path()), own.parent()].into_iter().flatten().filter(|dir| dir.starts_with("/sys/fs/cgroup"));
        let mut why = "no control groups".to_owned();
        for parent in parents {
            let _ = write(&parent.join("cgroup.subtree_control"), "+memory");
            match Group::below(parent, &name, Version::V2)
                .and_then(|group| group.set("memory.max", limit).map(|()| group))
            {
                Ok(group) => {
                    let _ = group.set("memory.swap.max", 0);
                    return Ok(group);
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn below(parent: &Path, name: &str, version: Version) -> Result<Group, String> {
        let dir = parent.join(name);
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Group { dir, version })
    }

    fn set(&self, file: &str, value: u64) -> Result<(), String> {
        write(&self.dir.join(file), &value.to_string())
    }

    /// The file that a process writes its id to, to enter.
    pub fn door(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.dir.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// A number of a file with a name and a number on each line.
    fn keyed(&self, file: &str, keys: &[&str]) -> u64 {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(key, _)| keys.contains(key));
        lines.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
    }

    pub fn charged(&self) -> Charged {
        match self.version {
            Version::V1 => {
                let kernel = self.number("memory.kmem.usage_in_bytes");
                Charged { firm: self.keyed("memory.stat", &["rss", "shmem"]) + kernel, kernel }
            }
            Version::V2 => {
                let kernel = self.keyed("memory.stat", &["kernel"]);
                Charged { firm: self.keyed("memory.stat", &["anon", "shmem"]) + kernel, kernel }
            }
        }
    }

    /// The most that was ever charged, the cache of files included; zero where the kernel does not keep it.
    pub fn peak(&self) -> u64 {
        self.number(match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        })
    }

    /// How often the kernel killed a process in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        match self.version {
            Version::V1 => self.keyed("memory.oom_control", &["oom_kill"]),
            Version::V2 => self.keyed("memory.events", &["oom", "oom_kill"]),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A test that failed may have left its process in here.
        for _ in 0..200 {
            let inside = fs::read_to_string(self.door()).unwrap_or_default();
            for pid in inside.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        println!("{} was left behind", self.dir.display());
    }
}

/// Writes into a file that the kernel made; where it has none, none must come into being.
fn write(file: &Path, value: &str) -> Result<(), String> {
    let written = OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| format!("{}: {error}", file.display()))
}
