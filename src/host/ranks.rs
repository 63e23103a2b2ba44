//! Owns the answer to "how many ranks share this machine": what the launcher of a distributed run has put into the
//! environment. It must never guess: without a launcher's word there is one rank.

use super::LocalRanks;

/// What launchers call the number of processes on this machine: torchrun, Open MPI, MPICH and Intel MPI (Hydra), MVAPICH.
const COUNTS: [&str; 4] =
    ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"];
/// Slurm lists the tasks of every node of the step, as in `4(x2),3`; which node this is, it says in `SLURM_NODEID`.
pub(super) const SLURM_LOCAL_TASKS: [&str; 2] = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];
pub(super) const SLURM_TASK: &str = "SLURM_PROCID";
pub(super) const SLURM_NODE: &str = "SLURM_NODEID";

/// Reads the environment through `get`.
pub(super) fn read(get: impl Fn(&str) -> Option<String>, notes: &mut Vec<String>) -> LocalRanks {
    let mut understood = |name: &str, count: Option<usize>, text: &str| match count {
        Some(count) if count > 0 => Some(LocalRanks { count, told_by: name.to_owned() }),
        _ => {
            notes.push(format!("{name}={} is no number of ranks and is ignored", text.escape_debug()));
            None
        }
    };
    for name in COUNTS {
        let Some(text) = get(name) else { continue };
        if let Some(ranks) = understood(name, text.trim().parse().ok(), &text) {
            return ranks;
        }
    }
    if is_slurm_task(&get) {
        let node = get(SLURM_NODE).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        for name in SLURM_LOCAL_TASKS {
            let Some(text) = get(name) else { continue };
            if let Some(ranks) = understood(name, tasks_of_node(&text, node), &text) {
                return ranks;
            }
        }
    }
    LocalRanks { count: 1, told_by: String::new() }
}

/// Whether `srun` has started this process as a task of a step. A batch script is told that it is task 0, too, but of no
/// step: by itself it is one process.
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

    /// What tells a task of `srun`'s from a batch script.
    const TASK: [(&str, &str); 2] = [("SLURM_PROCID", "9"), ("SLURM_STEP_ID", "0")];

    fn ranks(environment: &[(&str, &str)]) -> (usize, String, usize) {
        let mut notes = Vec::new();
        let get = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let LocalRanks { count, told_by } = read(get, &mut notes);
        (count, told_by, notes.len())
    }

    #[test]
    fn without_a_launcher_there_is_one() {
        assert_eq!(ranks(&[]), (1, String::new(), 0));
        assert_eq!(ranks(&[("WORLD_SIZE", "8"), ("RANK", "3")]), (1, String::new(), 0));
        // A batch script, or a shell of `salloc`: the tasks are not there yet.
        assert_eq!(ranks(&[("SLURM_TASKS_PER_NODE", "8")]), (1, String::new(), 0));
        assert_eq!(ranks(&[("SLURM_PROCID", "0"), ("SLURM_TASKS_PER_NODE", "8")]), (1, String::new(), 0));
    }

    #[test]
    fn launchers_are_understood() {
        for name in COUNTS {
            assert_eq!(ranks(&[(name, "4")]), (4, name.to_owned(), 0));
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
            assert_eq!(ranks(&[("LOCAL_WORLD_SIZE", text)]), (1, String::new(), 1), "{text}");
        }
        for text in ["", "(x2)", "4(x", "4(xx)", "4,"] {
            let seen = ranks(&[TASK[0], TASK[1], ("SLURM_NODEID", "5"), ("SLURM_TASKS_PER_NODE", text)]);
            assert_eq!((seen.0, seen.2), (1, 1), "{text}");
        }
    }
}
