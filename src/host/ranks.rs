//! Number of ranks that share this machine, from the environment variables of the launcher of a distributed run; one
//! rank without a launcher.

use super::{HostWarning, LocalRanks};

/// Variables with the number of processes on this machine: torchrun, Open MPI, MPICH and Intel MPI (Hydra), MVAPICH.
const COUNTS: [&str; 4] =
    ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"];
/// Slurm lists the tasks of every node of the step, as in `4(x2),3`; `SLURM_NODEID` is the number of this node.
pub(super) const SLURM_LOCAL_TASKS: [&str; 2] = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];
pub(super) const SLURM_TASK: &str = "SLURM_PROCID";
pub(super) const SLURM_NODE: &str = "SLURM_NODEID";

/// Reads the environment through `get`.
pub(super) fn read(get: impl Fn(&str) -> Option<String>, warnings: &mut Vec<HostWarning>) -> LocalRanks {
    let mut valid = |variable, count: Option<usize>, value: String| match count {
        Some(count) if count > 0 => Some(LocalRanks { count, variable: Some(variable) }),
        _ => {
            warnings.push(HostWarning::RanksInvalid { variable, value });
            None
        }
    };
    for name in COUNTS {
        let Some(text) = get(name) else { continue };
        if let Some(ranks) = valid(name, text.trim().parse().ok(), text) {
            return ranks;
        }
    }
    if is_slurm_task(&get) {
        let node = get(SLURM_NODE).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        for name in SLURM_LOCAL_TASKS {
            let Some(text) = get(name) else { continue };
            if let Some(ranks) = valid(name, tasks_of_node(&text, node), text) {
                return ranks;
            }
        }
    }
    LocalRanks { count: 1, variable: None }
}

/// Returns true if `srun` has started this process as a task of a step. A batch script is task 0 as well, but of no
/// step: it is one process.
pub(super) fn is_slurm_task(get: impl Fn(&str) -> Option<String>) -> bool {
    get(SLURM_TASK).is_some() && ["SLURM_STEP_ID", "SLURM_STEPID"].into_iter().any(|name| get(name).is_some())
}

/// The tasks of one node in a list such as `4(x2),3`.
pub(super) fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut first = 0_usize;
    for entry in list.trim().split(',') {
        let (tasks, nodes) = match entry.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        first = first.checked_add(nodes)?;
        if node < first {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Variables that a task of `srun` has and a batch script has not.
    const TASK: [(&str, &str); 2] = [("SLURM_PROCID", "9"), ("SLURM_STEP_ID", "0")];

    fn ranks(environment: &[(&str, &str)]) -> (usize, Option<&'static str>, usize) {
        let mut warnings = Vec::new();
        let get = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let LocalRanks { count, variable } = read(get, &mut warnings);
        (count, variable, warnings.len())
    }

    #[test]
    fn without_a_launcher_there_is_one() {
        assert_eq!(ranks(&[]), (1, None, 0));
        assert_eq!(ranks(&[("WORLD_SIZE", "8"), ("RANK", "3")]), (1, None, 0));
        // A batch script, or a shell of `salloc`: the tasks are not there yet.
        assert_eq!(ranks(&[("SLURM_TASKS_PER_NODE", "8")]), (1, None, 0));
        assert_eq!(ranks(&[("SLURM_PROCID", "0"), ("SLURM_TASKS_PER_NODE", "8")]), (1, None, 0));
    }

    #[test]
    fn launchers_are_understood() {
        for name in COUNTS {
            assert_eq!(ranks(&[(name, "4")]), (4, Some(name), 0));
        }
        let slurm =
            |list, node| ranks(&[TASK[0], TASK[1], ("SLURM_NODEID", node), ("SLURM_STEP_TASKS_PER_NODE", list)]).0;
        assert_eq!(slurm("8", "0"), 8);
        assert_eq!([slurm("4(x2),3", "0"), slurm("4(x2),3", "1"), slurm("4(x2),3", "2")], [4, 4, 3]);
        // torchrun inside of a Slurm task: the innermost launcher counts.
        assert_eq!(ranks(&[("LOCAL_WORLD_SIZE", "2"), TASK[0], TASK[1], ("SLURM_TASKS_PER_NODE", "1")]).0, 2);
    }

    #[test]
    fn what_is_no_number_is_noted_and_ignored() {
        for text in ["", "four", "-1", "0", "1.5"] {
            assert_eq!(ranks(&[("LOCAL_WORLD_SIZE", text)]), (1, None, 1), "{text}");
        }
        for text in ["", "(x2)", "4(x", "4(xx)", "4,"] {
            let seen = ranks(&[TASK[0], TASK[1], ("SLURM_NODEID", "5"), ("SLURM_TASKS_PER_NODE", text)]);
            assert_eq!((seen.0, seen.2), (1, 1), "{text}");
        }
    }
}
