//! Environments of launchers, complete, contradictory and incomplete.

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Option<DistributedEnv>, DistributedEnvError> {
    DistributedEnv::from_vars(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

/// Variables in one text, `NAME=value NAME=value`.
fn parse(text: &str) -> Result<Option<DistributedEnv>, DistributedEnvError> {
    let variables: Vec<_> = text.split_whitespace().filter_map(|word| word.split_once('=')).collect();
    read(&variables)
}

fn world(text: &str) -> DistributedEnv {
    parse(text).expect("valid").expect("a launcher")
}

fn place(text: &str) -> (usize, usize, usize, usize) {
    let world = world(text);
    (world.rank, world.world_size, world.local_rank, world.local_world_size)
}

fn coordinator(text: &str) -> Option<String> {
    world(text).coordinator.map(|coordinator| coordinator.to_string())
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("refused").to_string()
}

const TORCH: &str = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=a.b MASTER_PORT=1234";
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                        OMPI_COMM_WORLD_LOCAL_SIZE=4";
const HYDRA: &str = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";
const SLURM: &str = "SLURM_PROCID=5 SLURM_NTASKS=7 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_ID=0 SLURM_JOB_ID=77 \
                     SLURM_STEP_TASKS_PER_NODE=4,3 SLURM_STEP_NODELIST=node[003-004]";

#[test]
fn without_a_launcher_the_run_is_not_distributed() {
    for text in ["", "MASTER_ADDR=a MASTER_PORT=1", "LOCAL_WORLD_SIZE=4", "SLURM_NTASKS=8 SLURM_JOB_ID=7"] {
        assert_eq!(parse(text), Ok(None), "{text}");
    }
    // A batch script is told that it is task 0, though it is no task of a step.
    assert_eq!(parse("SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 SLURM_TASKS_PER_NODE=4(x2)"), Ok(None));
    // Scripts empty what they cannot unset.
    assert_eq!(parse("RANK= WORLD_SIZE="), Ok(None));
}

#[test]
fn each_launcher_is_understood() {
    assert_eq!(place(TORCH), (5, 8, 1, 4));
    assert_eq!(place(OPEN_MPI), (5, 8, 1, 4));
    assert_eq!(place(&OPEN_MPI.replace("OMPI", "MV2")), (5, 8, 1, 4));
    assert_eq!(place(HYDRA), (1, 2, 1, 2));
    assert_eq!(place(SLURM), (5, 7, 1, 3));
    let names = [TORCH, OPEN_MPI, HYDRA, SLURM].map(|text| world(text).launcher.to_string());
    assert_eq!(names, ["torchrun", "Open MPI", "MPICH", "Slurm"]);
}

#[test]
fn slurm_gives_the_local_size_in_several_ways() {
    let local = |node: &str, more: &str| {
        place(&format!("SLURM_PROCID=6 SLURM_NTASKS=7 SLURM_LOCALID=0 SLURM_STEP_ID=0 SLURM_NODEID={node} {more}")).3
    };
    assert_eq!(local("3", "SLURM_STEP_TASKS_PER_NODE=2(x3),1"), 1);
    assert_eq!(local("2", "SLURM_STEP_TASKS_PER_NODE=2(x3),1"), 2);
    assert_eq!(local("1", "SLURM_TASKS_PER_NODE=5,2"), 2);
    assert_eq!(local("1", "SLURM_NTASKS_PER_NODE=2"), 2);
    // The step's word is before the job's: `srun -n 1` in a job of eight tasks.
    let one = "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0 SLURM_STEP_ID=2 \
               SLURM_STEP_TASKS_PER_NODE=1 SLURM_TASKS_PER_NODE=4(x2)";
    assert_eq!(place(one), (0, 1, 0, 1));
}

#[test]
fn the_innermost_launcher_counts() {
    assert_eq!(world(&format!("{TORCH} {OPEN_MPI} {SLURM}")).launcher, Launcher::Torchrun);
    assert_eq!(world(&format!("{OPEN_MPI} {SLURM}")).launcher, Launcher::OpenMpi);
    assert_eq!(world(&format!("{HYDRA} {SLURM}")).launcher, Launcher::Mpich);
    // Slurm speaks PMI to its tasks, too, without MPICH's local ranks.
    assert_eq!(world(&format!("PMI_RANK=5 PMI_SIZE=7 {SLURM}")).launcher, Launcher::Slurm);
}

#[test]
fn ranks_set_by_hand_share_a_machine_if_rank_0_is_local() {
    assert_eq!(place("RANK=1 WORLD_SIZE=3 MASTER_ADDR=127.0.0.1"), (1, 3, 1, 3));
    assert_eq!(place("RANK=1 WORLD_SIZE=3 MASTER_ADDR=localhost"), (1, 3, 1, 3));
    assert_eq!(place("RANK=1 WORLD_SIZE=3 MASTER_ADDR=[::1]"), (1, 3, 1, 3));
    assert_eq!(place("RANK=1 WORLD_SIZE=3 MASTER_ADDR=10.0.0.1"), (1, 3, 0, 1));
    assert_eq!(place("RANK=0 WORLD_SIZE=1"), (0, 1, 0, 1));
}

#[test]
fn the_coordinator_is_given_or_the_first_host_or_local() {
    assert_eq!(coordinator(TORCH).as_deref(), Some("a.b:1234"));
    assert_eq!(coordinator(&format!("{SLURM} MASTER_ADDR=::1 MASTER_PORT=9")).as_deref(), Some("[::1]:9"));
    assert_eq!(coordinator(&format!("{HYDRA} MASTER_PORT=9")).as_deref(), Some("127.0.0.1:9"));
    assert_eq!(coordinator(&format!("{SLURM} MASTER_PORT=9")).as_deref(), Some("node003:9"));
    assert_eq!(coordinator(OPEN_MPI), None, "several machines, and none of them named");
    // torchrun's own store sits on the port that it names.
    assert_eq!(coordinator(&format!("{TORCH} TORCHELASTIC_USE_AGENT_STORE=True")).as_deref(), Some("a.b:1235"));
    assert_eq!(coordinator(&format!("{TORCH} TORCHELASTIC_USE_AGENT_STORE=False")).as_deref(), Some("a.b:1234"));
}

#[test]
fn a_port_is_made_from_the_job() {
    let port = |text: &str| world(text).coordinator.expect("a coordinator").port;
    assert_eq!(port(HYDRA), PORT_BASE);
    let of_job = |job: u32, step: u32| {
        let text = SLURM.replace("JOB_ID=77", &format!("JOB_ID={job}"));
        port(&text.replace("STEP_ID=0", &format!("STEP_ID={step}")))
    };
    let ports: std::collections::BTreeSet<_> = (0..100).map(|at| of_job(at / 2, at % 2)).collect();
    assert!(ports.len() > 90, "jobs and steps spread: {ports:?}");
    assert!(ports.iter().all(|port| (PORT_BASE..PORT_BASE + PORT_COUNT as u16).contains(port)), "{ports:?}");
    assert_eq!(of_job(77, 0), port(SLURM), "the same for every rank");
    let space = format!("{OPEN_MPI} MASTER_ADDR=a PMIX_NAMESPACE=");
    assert_ne!(port(&format!("{space}1")), port(&format!("{space}2")));
}

#[test]
fn an_incomplete_environment_is_an_error_that_names_the_variable() {
    let all = [TORCH, OPEN_MPI, HYDRA, SLURM];
    for text in all {
        let words: Vec<_> = text.split_whitespace().collect();
        let needed = words.iter().filter(|word| {
            // The rest has other sources, or none that are missed.
            ["RANK", "SIZE", "PROCID", "NTASKS", "LOCALID", "RANKS"]
                .iter()
                .any(|end| word.split('=').next().is_some_and(|name| name.ends_with(end)))
        });
        for left_out in needed.map(|word| word.split('=').next().expect("a name")) {
            let rest: Vec<_> =
                words.iter().filter(|word| !word.starts_with(&format!("{left_out}="))).copied().collect();
            match parse(&rest.join(" ")) {
                Err(error) => assert!(error.to_string().contains(left_out), "{left_out}: {error}"),
                // Without its first word a launcher has error nothing at all.
                Ok(world) => assert!(world.is_none() && left_out == "SLURM_PROCID", "{left_out}: {world:?}"),
            }
        }
    }
    assert!(refusal("RANK=3").contains("RANK=3 is set, but WORLD_SIZE is not"));
    assert!(refusal("PMI_RANK=1 PMI_SIZE=2").contains("MPI_LOCALRANKID"));
    assert!(refusal("WORLD_SIZE=4").contains("WORLD_SIZE=4"));
}

#[test]
fn invalid_values_are_errors_that_name_them() {
    for (from, to) in [
        ("RANK=5", "RANK=8"),
        ("LOCAL_RANK=1", "LOCAL_RANK=4"),
        ("LOCAL_RANK=1", "LOCAL_RANK=-1"),
        ("WORLD_SIZE=8", "WORLD_SIZE=0"),
        ("WORLD_SIZE=8", "WORLD_SIZE=eight"),
        ("LOCAL_WORLD_SIZE=4", "LOCAL_WORLD_SIZE=9"),
        ("MASTER_PORT=1234", "MASTER_PORT=70000"),
    ] {
        let error = refusal(&TORCH.replacen(from, to, 1));
        assert!(error.contains(to), "{to}: {error}");
    }
    let error = refusal(&format!("{SLURM} WORLD_SIZE=8"));
    assert!(error.contains("WORLD_SIZE=8") && error.contains("7 ranks"), "{error}");
    assert_eq!(place(&format!("{SLURM} WORLD_SIZE=7")), (5, 7, 1, 3));
    let error = refusal(&SLURM.replace("=4,3", "=4"));
    assert!(error.contains("SLURM_STEP_TASKS_PER_NODE=4") && error.contains("SLURM_NODEID=1"), "{error}");
    let error = refusal(&SLURM.replace("node[003-004]", "node[003"));
    assert!(error.contains("SLURM_STEP_NODELIST=node[003"), "{error}");
}

#[test]
fn the_first_host_of_a_list() {
    for (list, host) in [
        ("gpu1", Some("gpu1")),
        ("gpu1,gpu2", Some("gpu1")),
        ("node[003-007,9],gpu1", Some("node003")),
        ("node[9,003-007]", Some("node9")),
        ("gpu1,node[003-007]", Some("gpu1")),
        ("rack[2-3]-node[07-09].site", Some("rack2-node07.site")),
        ("a-b.c-d[1]", Some("a-b.c-d1")),
        ("", None),
        (",a", None),
        ("node[", None),
        ("node[]", None),
        ("node[-3]", None),
        ("node]3", None),
    ] {
        assert_eq!(first_host(list).as_deref(), host, "{list}");
    }
}
