//! Rank and world size of this process, from the environment variables of the launcher of a distributed run. Without a
//! launcher there is no distributed run; an incomplete or contradictory environment is an error.

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

use super::ranks::{SLURM_LOCAL_TASKS, SLURM_NODE, SLURM_TASK, is_slurm_task, tasks_of_node};

/// First port that a coordinator listens on if none is given.
const PORT_BASE: u16 = 29_400;
/// Runs of one machine are spread over this many ports, all of them below those that systems give to clients.
const PORT_COUNT: u64 = 3_000;
const LOOPBACK: &str = "127.0.0.1";

/// Program that started the ranks of a distributed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// torchrun, or any launcher that sets its variables.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpirun` of MVAPICH.
    Mvapich,
    /// `mpirun` of MPICH or Intel MPI.
    Mpich,
    /// `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI",
            Launcher::Mvapich => "MVAPICH",
            Launcher::Mpich => "MPICH",
            Launcher::Slurm => "Slurm",
        })
    }
}

/// Environment variables of a launcher.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    local_world_size: &'static str,
    /// Variables that are the same for all ranks of one run and differ between runs.
    job: &'static [&'static str],
}

const TORCHRUN: Variables = Variables {
    launcher: Launcher::Torchrun,
    rank: "RANK",
    world_size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_world_size: "LOCAL_WORLD_SIZE",
    job: &[],
};

/// MPI launchers. They come before Slurm, which may have started the launcher.
const MPI: [Variables; 3] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
    },
    Variables {
        launcher: Launcher::Mvapich,
        rank: "MV2_COMM_WORLD_RANK",
        world_size: "MV2_COMM_WORLD_SIZE",
        local_rank: "MV2_COMM_WORLD_LOCAL_RANK",
        local_world_size: "MV2_COMM_WORLD_LOCAL_SIZE",
        job: &[],
    },
    Variables {
        launcher: Launcher::Mpich,
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world_size: "MPI_LOCALNRANKS",
        job: &[],
    },
];

/// Rank of this process in a distributed run, as its launcher tells it: torchrun, `mpirun` (Open MPI, MPICH and Intel
/// MPI, MVAPICH) or `srun`.
///
/// ```
/// match feedstock::host::DistributedEnv::from_env()? {
///     Some(env) => println!("rank {} of {}", env.rank, env.world_size),
///     None => println!("not distributed"),
/// }
/// # Ok::<(), feedstock::host::DistributedEnvError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DistributedEnv {
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of ranks on all machines.
    pub world_size: usize,
    /// Rank of this process among those of this machine, from 0.
    pub local_rank: usize,
    /// Number of ranks on this machine.
    pub local_world_size: usize,
    /// Address of rank 0. `None` if ranks are on several machines and `MASTER_ADDR` is not set.
    pub coordinator: Option<Coordinator>,
    /// Launcher that set the variables.
    pub launcher: Launcher,
}

/// Address that rank 0 listens on.
///
/// Without `MASTER_PORT` the port is 29400 plus a number below 3000 that is derived from the job's id (Slurm: job and
/// step; Open MPI: namespace), so that two runs seldom meet on one machine; 29400 itself without an id. With
/// `TORCHELASTIC_USE_AGENT_STORE=True` the store of torchrun listens on `MASTER_PORT`, and this is the port after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinator {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coordinator { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The environment is incomplete or contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DistributedEnvError {
    /// `WORLD_SIZE` is not the number of ranks that the launcher has started.
    #[error(
        "WORLD_SIZE={given} contradicts {launcher}, which started {started} ranks: unset WORLD_SIZE, or start that many"
    )]
    WorldSize {
        /// Value of `WORLD_SIZE`.
        given: usize,
        /// The launcher.
        launcher: Launcher,
        /// Ranks that it has started.
        started: usize,
    },
    /// `WORLD_SIZE` is set without a rank.
    #[error("WORLD_SIZE={0} is set, but neither RANK nor a launcher's variables: set RANK, or unset WORLD_SIZE")]
    NoRank(usize),
    /// A variable is not a number in range.
    #[error("{variable}={} is not a valid number", .value.escape_debug())]
    Number {
        /// Name of the variable.
        variable: String,
        /// Its value.
        value: String,
    },
    /// A variable is missing although others of the launcher are set.
    #[error("{launcher}: {set} is set, but {missing} is not: set both or neither")]
    Missing {
        /// The launcher.
        launcher: Launcher,
        /// Variables that are set, with their values.
        set: String,
        /// Name of the missing variable.
        missing: String,
    },
    /// A list of tasks does not name the tasks of this node.
    #[error("{variable}={} has no tasks for SLURM_NODEID={node}", .list.escape_debug())]
    Tasks {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        list: String,
        /// Number of this node.
        node: usize,
    },
    /// A list of hosts is malformed.
    #[error("{variable}={} is not a list of hosts", .list.escape_debug())]
    Hosts {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        list: String,
    },
    /// Ranks and sizes do not fit together.
    #[error(
        "{launcher}: rank {rank} of {world_size}, locally {local_rank} of {local_world_size}, is impossible: {set}"
    )]
    Impossible {
        /// The launcher.
        launcher: Launcher,
        /// Rank, from 0.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// Rank on this machine, from 0.
        local_rank: usize,
        /// Number of ranks on this machine.
        local_world_size: usize,
        /// Variables that are set, with their values.
        set: String,
    },
}

impl DistributedEnv {
    /// Reads the variables of the launcher of this process; `None` without a launcher.
    ///
    /// The innermost launcher counts: `RANK` and `WORLD_SIZE` before the variables of `mpirun`, and these before
    /// Slurm's. Slurm counts only for tasks that `srun` has started; a batch script by itself is one process.
    ///
    /// # Errors
    /// [`DistributedEnvError`] if variables contradict each other, are not numbers, or are missing.
    pub fn from_env() -> Result<Option<DistributedEnv>, DistributedEnvError> {
        DistributedEnv::from_vars(|name| std::env::var(name).ok())
    }

    /// [`from_env`](Self::from_env) with the variables that `get` returns.
    ///
    /// # Errors
    /// See [`from_env`](Self::from_env).
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Option<DistributedEnv>, DistributedEnvError> {
        let environment = Environment(&get);
        if environment.has(TORCHRUN.rank) {
            return environment.launched_by(&TORCHRUN).map(Some);
        }
        let env = match MPI.iter().find(|variables| environment.has(variables.local_rank)) {
            Some(variables) => Some(environment.launched_by(variables)?),
            None if is_slurm_task(&get) => Some(environment.slurm()?),
            // An incomplete set of `mpirun`'s variables, and no other launcher.
            None => match MPI.iter().find(|variables| environment.has(variables.rank)) {
                Some(variables) => Some(environment.launched_by(variables)?),
                None => None,
            },
        };
        // A script often exports the size for all its tasks, and leaves the rank to the launcher.
        match (environment.number::<usize>(TORCHRUN.world_size)?, &env) {
            (Some(given), Some(env)) if given != env.world_size => {
                let (launcher, started) = (env.launcher, env.world_size);
                Err(DistributedEnvError::WorldSize { given, launcher, started })
            }
            (Some(given), None) => Err(DistributedEnvError::NoRank(given)),
            _ => Ok(env),
        }
    }
}

/// Environment variables by name.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// Value of a variable. An empty one counts as unset, since scripts cannot always unset it.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, DistributedEnvError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let parsed = value.parse().map(Some);
        parsed.map_err(|_| DistributedEnvError::Number { variable: name.to_owned(), value })
    }

    /// Value of a variable that must be set because `others` are.
    fn needed(&self, name: &str, launcher: Launcher, others: &[&str]) -> Result<usize, DistributedEnvError> {
        self.number(name)?.ok_or_else(|| DistributedEnvError::Missing {
            launcher,
            set: self.set(others).unwrap_or_else(|| others.join(", ")),
            missing: name.to_owned(),
        })
    }

    /// The variables that are set, with their values.
    fn set(&self, names: &[&str]) -> Option<String> {
        let set: Vec<_> = names.iter().filter_map(|name| Some(format!("{name}={}", self.get(name)?))).collect();
        (!set.is_empty()).then(|| set.join(", "))
    }

    fn launched_by(&self, variables: &Variables) -> Result<DistributedEnv, DistributedEnvError> {
        let &Variables { launcher, job, .. } = variables;
        let names = [variables.rank, variables.world_size, variables.local_rank, variables.local_world_size];
        let needed = |name| self.needed(name, launcher, &names);
        let (rank, world_size) = (needed(variables.rank)?, needed(variables.world_size)?);
        let unset = !self.has(variables.local_rank) && !self.has(variables.local_world_size);
        // Kubernetes operators, and people, set the rank and the size alone. Their ranks share a machine if the
        // coordinator is this machine for all, and are taken to have one each otherwise.
        let (local_rank, local_world_size) = if launcher == Launcher::Torchrun && unset {
            let here = self.get("MASTER_ADDR").is_some_and(|host| is_loopback(&host));
            if here { (rank, world_size) } else { (0, 1) }
        } else {
            (needed(variables.local_rank)?, needed(variables.local_world_size)?)
        };
        let job = job.iter().find_map(|name| self.get(name));
        self.build((rank, world_size, local_rank, local_world_size), launcher, &names, None, job)
    }

    fn slurm(&self) -> Result<DistributedEnv, DistributedEnvError> {
        const SLURM: Launcher = Launcher::Slurm;
        const SIZES: [&str; 2] = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
        const PER_NODE: &str = "SLURM_NTASKS_PER_NODE";
        let names = [SLURM_TASK, SIZES[0], SIZES[1], "SLURM_LOCALID", SLURM_NODE, SLURM_LOCAL_TASKS[0], PER_NODE];
        let rank = self.needed(SLURM_TASK, SLURM, &names)?;
        let size = SIZES.into_iter().find(|name| self.has(name)).unwrap_or(SIZES[1]);
        let world_size = self.needed(size, SLURM, &names)?;
        let local_rank = self.needed("SLURM_LOCALID", SLURM, &names)?;
        let list = SLURM_LOCAL_TASKS.into_iter().find_map(|name| Some((name, self.get(name)?)));
        let local_world_size = match list {
            Some((variable, list)) => {
                let node = self.number(SLURM_NODE)?.unwrap_or(0);
                tasks_of_node(&list, node).ok_or(DistributedEnvError::Tasks { variable, list, node })?
            }
            None => self.needed(PER_NODE, SLURM, &names)?.min(world_size),
        };
        let first = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)))
            .map(|(variable, list)| first_host(&list).ok_or(DistributedEnvError::Hosts { variable, list }))
            .transpose()?;
        let job = ["SLURM_JOB_ID", "SLURM_JOBID"].into_iter().find_map(|name| self.get(name));
        let step = ["SLURM_STEP_ID", "SLURM_STEPID"].into_iter().find_map(|name| self.get(name));
        let job = job.map(|job| format!("{job}.{}", step.unwrap_or_default()));
        self.build((rank, world_size, local_rank, local_world_size), SLURM, &names, first, job)
    }

    fn build(
        &self,
        (rank, world_size, local_rank, local_world_size): (usize, usize, usize, usize),
        launcher: Launcher,
        names: &[&str],
        first_host: Option<String>,
        job: Option<String>,
    ) -> Result<DistributedEnv, DistributedEnvError> {
        let whole = rank < world_size && local_rank < local_world_size;
        // Neither a local rank nor a local size can exceed the global one.
        if !whole || local_world_size > world_size || local_rank > rank {
            let set = self.set(names).unwrap_or_default();
            return Err(DistributedEnvError::Impossible {
                launcher,
                rank,
                world_size,
                local_rank,
                local_world_size,
                set,
            });
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
        Ok(DistributedEnv { rank, world_size, local_rank, local_world_size, coordinator, launcher })
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// First host of a Slurm list such as `node[003-007,9],gpu1`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list);
    loop {
        let end = rest.find(['[', ',', ']']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        rest = &rest[end..];
        if !rest.starts_with('[') {
            // The rest belongs to later hosts; a closing bracket without an opening one is malformed.
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
