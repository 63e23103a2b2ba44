//! Sums of several ranks, and errors if one is missing.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use burn::backend::Flex;
use burn::tensor::Tensor;

use super::*;
use crate::host::DistributedEnv;

/// Timeout of tests that do not reach it.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(500);

/// Vector of a rank: numbers whose sum depends on the order of additions.
fn given(rank: usize, sum: usize, length: usize) -> Vec<f32> {
    (0..length)
        .map(|at| ((at * 7919 + rank * 104_729 + sum * 31) % 10_007) as f32 * 1.7_f32.powi(rank as i32 * 9))
        .collect()
}

/// Sum in the order of ranks, as bits.
fn in_order(ranks: usize, sum: usize, length: usize) -> Vec<u32> {
    let mut total = given(0, sum, length);
    for rank in 1..ranks {
        total.iter_mut().zip(given(rank, sum, length)).for_each(|(total, value)| *total += value);
    }
    total.into_iter().map(f32::to_bits).collect()
}

fn vector(values: &[f32]) -> Tensor<Flex, 1> {
    Tensor::from_floats(values, &Default::default())
}

fn bits(tensor: Tensor<Flex, 1>) -> Vec<u32> {
    tensor.into_data().to_vec::<f32>().expect("numbers").into_iter().map(f32::to_bits).collect()
}

fn join(group: &ProcessGroup, thread: usize) -> Result<Communicator, CollectiveError> {
    group.join(thread)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Group of one of several processes on this machine.
fn process(rank: usize, processes: usize, port: u16, timeout: Duration) -> ProcessGroup {
    let variables = [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", processes.to_string()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ];
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    ProcessGroup::new(DistributedEnv::from_vars(get).expect("understood"), 1).expect("a group").timeout(timeout)
}

/// Runs each rank on a thread, and returns the results.
fn each<T: Send>(ranks: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || work(rank))).collect();
        running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

/// Checks sums of several lengths, one of which takes more than one piece.
fn sums_are_those_in_order(mut communicator: Communicator) {
    let (rank, ranks) = (communicator.rank(), communicator.world_size());
    for (sum, length) in [1, 5, 1000, 600_001, 3].into_iter().enumerate() {
        let total = communicator.all_reduce_sum(vector(&given(rank, sum, length))).expect("a sum");
        assert!(bits(total) == in_order(ranks, sum, length), "rank {rank} of {ranks}, sum {sum}");
    }
}

#[test]
fn sums_depend_on_the_order_of_additions() {
    let ahead = in_order(3, 0, 1000);
    let mut back = given(2, 0, 1000);
    for rank in [1, 0] {
        back.iter_mut().zip(given(rank, 0, 1000)).for_each(|(total, value)| *total += value);
    }
    assert_ne!(ahead, back.into_iter().map(f32::to_bits).collect::<Vec<_>>());
}

#[test]
fn a_single_rank_gets_its_own_vector() {
    let mut communicator = join(&ProcessGroup::new(None, 1).expect("a group"), 0).expect("joined");
    assert_eq!((communicator.rank(), communicator.world_size()), (0, 1));
    assert_eq!(
        bits(communicator.all_reduce_sum(vector(&[1.5, -0.0])).expect("a sum")),
        [1.5_f32.to_bits(), (-0.0_f32).to_bits()]
    );
}

#[test]
fn threads_are_added_in_order() {
    for ranks in [2, 3, 5] {
        let group = ProcessGroup::new(None, ranks).expect("a group").timeout(LONG);
        each(ranks, |rank| sums_are_those_in_order(join(&group, rank).expect("joined")));
    }
}

#[test]
fn processes_are_added_in_order() {
    for ranks in [2, 3] {
        let port = free_port();
        each(ranks, |rank| sums_are_those_in_order(join(&process(rank, ranks, port, LONG), 0).expect("joined")));
    }
}

#[test]
fn a_missing_thread_is_named_in_time() {
    let begun = Instant::now();
    let group = ProcessGroup::new(None, 3).expect("a group").timeout(SHORT);
    let said = each(2, |rank| join(&group, rank).expect_err("one is missing").to_string());
    assert!(begun.elapsed() < SHORT * 4, "{:?}", begun.elapsed());
    assert!(said.iter().any(|text| text.contains("waited 0.5 s for rank 2:")), "{said:?}");
    drop(group);
    let group = ProcessGroup::new(None, 2).expect("a second group").timeout(LONG);
    each(2, |rank| sums_are_those_in_order(join(&group, rank).expect("joined")));
}

#[test]
fn a_late_thread_is_named_and_all_fail() {
    let group = ProcessGroup::new(None, 3).expect("a group").timeout(SHORT);
    let said = each(3, |rank| {
        let mut communicator = join(&group, rank).expect("joined");
        communicator.all_reduce_sum(vector(&[1.0])).expect("all are there");
        let begun = Instant::now();
        if rank == 1 {
            thread::sleep(SHORT * 2);
        }
        let error = communicator.all_reduce_sum(vector(&[1.0])).expect_err("one was away").to_string();
        assert!(begun.elapsed() < SHORT * 5, "{:?}", begun.elapsed());
        let again = communicator.all_reduce_sum(vector(&[1.0])).expect_err("over").to_string();
        assert!(again.contains("earlier exchange failed"), "{again}");
        error
    });
    assert!(said[0].contains("for rank 1:") || said[2].contains("for rank 1:"), "{said:?}");
}

#[test]
fn a_thread_that_left_is_noticed_at_once() {
    let group = ProcessGroup::new(None, 2).expect("a group").timeout(LONG);
    let begun = Instant::now();
    let said = each(2, |rank| {
        let mut communicator = join(&group, rank).expect("joined");
        communicator.all_reduce_sum(vector(&[1.0])).expect("all are there");
        (rank == 0).then(|| communicator.all_reduce_sum(vector(&[1.0])).expect_err("one has left").to_string())
    });
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    assert!(said[0].as_ref().is_some_and(|text| text.contains("after 1 exchanges (it has left)")), "{said:?}");
}

#[test]
fn vectors_of_different_lengths_are_refused_by_all() {
    let group = ProcessGroup::new(None, 2).expect("a group").timeout(LONG);
    let lengths = |rank: usize, mut communicator: Communicator| {
        communicator.all_reduce_sum(vector(&[1.0, 2.0, 3.0][..2 + rank])).expect_err("two lengths").to_string()
    };
    for said in each(2, |rank| lengths(rank, join(&group, rank).expect("joined"))) {
        assert!(
            said.contains("rank 1 was lost (it gave 3") || said.contains("it gave 3 numbers, this rank has 2"),
            "{said}"
        );
    }
    let port = free_port();
    let said = each(2, |rank| lengths(rank, join(&process(rank, 2, port, LONG), 0).expect("joined")));
    assert!(said[0].contains("it gave 3 numbers, this rank has 2"), "{said:?}");
    assert!(said[1].contains("rank 0 has ended the run: rank 1 was lost (it gave 3 numbers"), "{said:?}");
}

#[test]
fn groups_of_threads_are_independent() {
    let groups = [2, 3].map(|threads| ProcessGroup::new(None, threads).expect("a group").timeout(LONG));
    each(5, |n| {
        let (group, thread) = if n < 2 { (&groups[0], n) } else { (&groups[1], n - 2) };
        sums_are_those_in_order(join(group, thread).expect("joined"));
    });
    assert!(ProcessGroup::new(None, 0).is_err());
}

#[test]
fn a_missing_process_is_named_and_all_fail() {
    let port = free_port();
    let begun = Instant::now();
    let said = each(2, |rank| {
        let timeout = if rank == 0 { SHORT * 2 } else { LONG };
        join(&process(rank, 3, port, timeout), 0).expect_err("one is missing").to_string()
    });
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    assert!(said[0].contains("rank 0 of 3 waited 1.0 s for rank 2"), "{said:?}");
    assert!(said[1].contains("rank 0 has ended the run: rank 2 did not arrive in time"), "{said:?}");
}

#[test]
fn without_rank_0_the_others_name_its_address() {
    let port = free_port();
    let begun = Instant::now();
    let said = join(&process(1, 2, port, SHORT), 0).expect_err("rank 0 is missing").to_string();
    assert!(begun.elapsed() < SHORT * 4, "{:?}", begun.elapsed());
    assert!(said.contains(&format!("rank 1 of 2 waited 0.5 s for rank 0 at 127.0.0.1:{port}")), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let said = join(&process(0, 2, port, LONG), 0).expect_err("in use").to_string();
    assert!(said.contains(&format!("port {port}")) && said.contains("MASTER_PORT"), "{said}");
}

#[test]
fn a_rank_of_another_run_is_turned_away() {
    let port = free_port();
    thread::scope(|scope| {
        let hub = scope.spawn(|| join(&process(0, 2, port, LONG), 0));
        let said = join(&process(1, 3, port, LONG), 0).expect_err("of another run").to_string();
        assert!(said.contains("rank 0 is of a run of 2 processes with 1 ranks each, not 3 with 1"), "{said}");
        let other = join(&process(1, 2, port, LONG), 0);
        assert!(other.is_ok() && hub.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_process_that_left_is_noticed_at_once_and_all_fail() {
    let port = free_port();
    let begun = Instant::now();
    let said = each(3, |rank| {
        let mut communicator = join(&process(rank, 3, port, LONG), 0).expect("joined");
        communicator.all_reduce_sum(vector(&[1.0])).expect("all are there");
        (rank != 2).then(|| communicator.all_reduce_sum(vector(&[1.0])).expect_err("one has left").to_string())
    });
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    assert!(
        said[0].as_ref().is_some_and(|text| text.contains("rank 0 of 3 has lost rank 2 after 1 exchanges")),
        "{said:?}"
    );
    assert!(
        said[1].as_ref().is_some_and(|text| text.contains("rank 0 has ended the run: rank 2 was lost")),
        "{said:?}"
    );
}

#[test]
fn ranks_on_several_machines_need_an_address() {
    let variables = ["OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=0"];
    let all = variables.iter().chain(&["OMPI_COMM_WORLD_LOCAL_SIZE=2"]);
    let get = |name: &str| all.clone().find_map(|word| word.strip_prefix(&format!("{name}=")).map(str::to_owned));
    let said =
        ProcessGroup::new(DistributedEnv::from_vars(get).expect("understood"), 1).expect_err("no address").to_string();
    assert!(said.contains("Open MPI started 4 ranks") && said.contains("MASTER_ADDR"), "{said}");
}
