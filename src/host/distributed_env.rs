//! Owns the answer to "which of how many ranks is this process": what the launcher of a distributed run has put into
//! the environment. It must never guess: without a launcher's word there is no world, and half a word is an error.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

use super::ranks::{SLURM_LOCAL_TASKS, SLURM_NODE, SLURM_TASK, is_slurm_task, tasks_of_node};

/// The first port that a coordinator listens on where none is named.
const PORT_BASE: u16 = 29_400;
/// Runs of one machine are spread over this many ports; all of them lie below those that systems give to clients.
const PORT_COUNT: u64 = 3_000;
const LOOPBACK: &str = "127.0.0.1";

/// The names under which a launcher tells a process its place.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_world_size: &'static str,
    /// What is the same for all ranks of one run and differs between runs.
    job: &'static [&'static str],
}

const TORCHRUN: Launcher = Launcher {
    name: "torchrun",
    rank: "RANK",
    world_size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_world_size: "LOCAL_WORLD_SIZE",
    job: &[],
};

/// Starters of MPI programs. They stand in front of Slurm, which may have started the starter.
const MPI: [Launcher; 3] = [
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
    },
    Launcher {
        name: "MVAPICH",
        rank: "MV2_COMM_WORLD_RANK",
        world_size: "MV2_COMM_WORLD_SIZE",
        local_rank: "MV2_COMM_WORLD_LOCAL_RANK",
        local_world_size: "MV2_COMM_WORLD_LOCAL_SIZE",
        job: &[],
    },
    Launcher {
        name: "MPICH",
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world_size: "MPI_LOCALNRANKS",
        job: &[],
    },
];

/// The place of this process in a distributed run, as its launcher tells it: torchrun, `mpirun` (Open MPI, MPICH and
/// Intel MPI, MVAPICH) or `srun`.
///
/// ```
/// match feedstock::host::DistributedEnv::from_env()? {
///     Some(world) => println!("rank {} of {}", world.rank, world.world_size),
///     None => println!("a process by itself"),
/// }
/// # Ok::<(), feedstock::host::DistributedEnvError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DistributedEnv {
    /// Which of the ranks this one is, from 0.
    pub rank: usize,
    /// How many there are on all machines.
    pub world_size: usize,
    /// Which of the ranks of this machine this one is, from 0.
    pub local_rank: usize,
    /// How many ranks share this machine.
    pub local_world_size: usize,
    /// Where rank 0 is met. None where ranks are on several machines and nobody has said which is whose: `MASTER_ADDR`
    /// says it.
    pub coordinator: Option<Coordinator>,
    /// Who said all this, for people.
    pub told_by: &'static str,
}

/// Where rank 0 listens.
///
/// Where no `MASTER_PORT` is given, the port is 29400 plus a number below 3000 that is made from the job's (of Slurm:
/// the job and its step; of Open MPI: the name space), so that two runs seldom meet on one machine; 29400 itself
/// where there is no such number. The store of torchrun's own may sit on `MASTER_PORT`
/// (`TORCHELASTIC_USE_AGENT_STORE=True`); then it is the port after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// A name or an address.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

impl fmt::Display for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coordinator { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The environment contradicts itself, or says half of what it must. The text names the variables and their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributedEnvError(String);

impl fmt::Display for DistributedEnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DistributedEnvError {}

impl DistributedEnv {
    /// What the launcher of this process says; none where there is no launcher.
    ///
    /// The innermost launcher counts: `RANK` and `WORLD_SIZE` before those of `mpirun`, and these before Slurm's. Slurm
    /// counts in tasks that `srun` has started; a batch script by itself is one process.
    ///
    /// # Errors
    /// [`DistributedEnvError`] if variables contradict each other, are no numbers, or some are missing.
    pub fn from_env() -> Result<Option<DistributedEnv>, DistributedEnvError> {
        DistributedEnv::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), from an environment that `get` tells.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Option<DistributedEnv>, DistributedEnvError> {
        let environment = Environment(&get);
        if environment.has(TORCHRUN.rank) {
            return environment.launched_by(&TORCHRUN).map(Some);
        }
        let world = match MPI.iter().find(|launcher| environment.has(launcher.local_rank)) {
            Some(launcher) => Some(environment.launched_by(launcher)?),
            None if is_slurm_task(&get) => Some(environment.slurm()?),
            // Half of what `mpirun` says, and nobody else says more.
            None => match MPI.iter().find(|launcher| environment.has(launcher.rank)) {
                Some(launcher) => Some(environment.launched_by(launcher)?),
                None => None,
            },
        };
        // A script often exports the size for all its tasks, and leaves the rank to the launcher.
        match (environment.number::<usize>(TORCHRUN.world_size)?, &world) {
            (Some(size), Some(world)) if size != world.world_size => Err(DistributedEnvError(format!(
                "WORLD_SIZE={size} contradicts {}, which started {} ranks: unset WORLD_SIZE, or start that many",
                world.told_by, world.world_size
            ))),
            (Some(size), None) => Err(DistributedEnvError(format!(
                "WORLD_SIZE={size} is set, but no RANK, and no launcher says it: set RANK, or unset WORLD_SIZE"
            ))),
            _ => Ok(world),
        }
    }
}

/// The variables, by name.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// What a variable holds; an empty one counts as unset, since scripts cannot always unset it.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, DistributedEnvError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let refused = |_| DistributedEnvError(format!("{name}={} is no number that can be meant", text.escape_debug()));
        text.parse().map(Some).map_err(refused)
    }

    /// A variable that must be there because others are.
    fn needed(&self, name: &str, launcher: &str, others: &[&str]) -> Result<usize, DistributedEnvError> {
        self.number(name)?.ok_or_else(|| {
            DistributedEnvError(format!(
                "{launcher}: {} is set, but {name} is not: set both or neither",
                self.told(others).unwrap_or_else(|| others.join(", "))
            ))
        })
    }

    /// Those of the variables that are set, with their values.
    fn told(&self, names: &[&str]) -> Option<String> {
        let told: Vec<_> = names.iter().filter_map(|name| Some(format!("{name}={}", self.get(name)?))).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    fn launched_by(&self, launcher: &Launcher) -> Result<DistributedEnv, DistributedEnvError> {
        let names = [launcher.rank, launcher.world_size, launcher.local_rank, launcher.local_world_size];
        let needed = |name| self.needed(name, launcher.name, &names);
        let (rank, world_size) = (needed(launcher.rank)?, needed(launcher.world_size)?);
        let unsaid = !self.has(launcher.local_rank) && !self.has(launcher.local_world_size);
        // Kubernetes operators, and people, name the rank and the size alone. Their ranks share a machine where the
        // coordinator is this machine for all, and else are taken to have one each.
        let (local_rank, local_world_size) = if launcher.name == TORCHRUN.name && unsaid {
            let here = self.get("MASTER_ADDR").is_some_and(|host| is_loopback(&host));
            if here { (rank, world_size) } else { (0, 1) }
        } else {
            (needed(launcher.local_rank)?, needed(launcher.local_world_size)?)
        };
        let job = launcher.job.iter().find_map(|name| self.get(name));
        let place = (rank, world_size, local_rank, local_world_size);
        self.world(place, launcher.name, &names, None, job)
    }

    fn slurm(&self) -> Result<DistributedEnv, DistributedEnvError> {
        const NAME: &str = "Slurm";
        const SIZES: [&str; 2] = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
        const PER_NODE: &str = "SLURM_NTASKS_PER_NODE";
        let names = [SLURM_TASK, SIZES[0], SIZES[1], "SLURM_LOCALID", SLURM_NODE, SLURM_LOCAL_TASKS[0], PER_NODE];
        let rank = self.needed(SLURM_TASK, NAME, &names)?;
        let size = SIZES.into_iter().find(|name| self.has(name)).unwrap_or(SIZES[1]);
        let world_size = self.needed(size, NAME, &names)?;
        let local_rank = self.needed("SLURM_LOCALID", NAME, &names)?;
        let list = SLURM_LOCAL_TASKS.into_iter().find_map(|name| Some((name, self.get(name)?)));
        let local_world_size = match list {
            Some((name, list)) => {
                let node = self.number(SLURM_NODE)?.unwrap_or(0);
                tasks_of_node(&list, node).ok_or_else(|| {
                    DistributedEnvError(format!(
                        "{name}={} names no tasks for {SLURM_NODE}={node}",
                        list.escape_debug()
                    ))
                })?
            }
            None => self.needed(PER_NODE, NAME, &names)?.min(world_size),
        };
        let first = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)))
            .map(|(name, list)| {
                let refused = || DistributedEnvError(format!("{name}={} is no list of hosts", list.escape_debug()));
                first_host(&list).ok_or_else(refused)
            })
            .transpose()?;
        let job = ["SLURM_JOB_ID", "SLURM_JOBID"].into_iter().find_map(|name| self.get(name));
        let step = ["SLURM_STEP_ID", "SLURM_STEPID"].into_iter().find_map(|name| self.get(name));
        let job = job.map(|job| format!("{job}.{}", step.unwrap_or_default()));
        self.world((rank, world_size, local_rank, local_world_size), NAME, &names, first, job)
    }

    fn world(
        &self,
        (rank, world_size, local_rank, local_world_size): (usize, usize, usize, usize),
        told_by: &'static str,
        names: &[&str],
        first_host: Option<String>,
        job: Option<String>,
    ) -> Result<DistributedEnv, DistributedEnvError> {
        let whole = rank < world_size && local_rank < local_world_size;
        // A rank of this machine cannot be a higher one than it is among all, and nor can their numbers.
        if !whole || local_world_size > world_size || local_rank > rank {
            return Err(DistributedEnvError(format!(
                "{told_by}: rank {rank} of {world_size}, here {local_rank} of {local_world_size}, cannot be: {}",
                self.told(names).unwrap_or_default()
            )));
        }
        let here = (local_world_size == world_size).then(|| LOOPBACK.to_owned());
        let host = self.get("MASTER_ADDR").or(here).or(first_host);
        let port = match self.number("MASTER_PORT")? {
            Some(port) if self.get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True") => {
                // The last port has none after it.
                if port == u16::MAX { port - 1 } else { port + 1 }
            }
            Some(port) => port,
            None => PORT_BASE + job.map_or(0, |job| (xxh3_64(job.as_bytes()) % PORT_COUNT) as u16),
        };
        let coordinator = host.map(|host| Coordinator { host, port });
        Ok(DistributedEnv { rank, world_size, local_rank, local_world_size, coordinator, told_by })
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The first host of a list of Slurm's, such as `node[003-007,9],gpu1`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list);
    loop {
        let end = rest.find(['[', ',', ']']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        rest = &rest[end..];
        if !rest.starts_with('[') {
            // What is left belongs to later hosts, and a bracket that nobody opened to none.
            return (!host.is_empty() && !rest.starts_with(']')).then_some(host);
        }
        let (numbers, after) = rest[1..].split_once(']')?;
        let first = numbers.split([',', '-']).next()?;
        if first.is_empty() {
            return None;
        }
        host.push_str(first);
        rest = after;
    }
}

#[cfg(test)]
#[path = "distributed_env_tests.rs"]
mod tests;
