//! Ranks that are processes, as a launcher starts them: this test program starts itself once for each.
#![cfg(feature = "cli")]
#![allow(clippy::print_stdout, reason = "the tests read what their processes print")]

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use burn::backend::Flex;
use burn::tensor::Tensor;
use feedstock::host::DistributedEnv;
use feedstock::train::ProcessGroup;

mod common;

/// Task of a process: number of threads, length of the vector, number of sums, rank that dies after one sum.
const TASK: &str = "FEEDSTOCK_TEST_RANK";

/// Runs a rank in a process that another test started; does nothing in a run of all tests. A launcher can start it too:
/// `FEEDSTOCK_TEST_RANK="1 100000 10 -" mpirun -n 2 PROGRAM --exact a_rank --nocapture`
#[test]
fn a_rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<_> = task.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<usize>().expect("a number");
    let (threads, length, sums) = (number(0), number(1), number(2));
    let world = DistributedEnv::from_env().expect("understood");
    let dies = world.as_ref().is_some_and(|world| words[3].parse() == Ok(world.rank));
    let group = ProcessGroup::new(world, threads).expect("a group").timeout(Duration::from_secs(60));
    thread::scope(|scope| {
        for thread in 0..threads {
            let group = &group;
            scope.spawn(move || rank(group, thread, length, sums, dies));
        }
    });
}

fn rank(group: &ProcessGroup, thread: usize, length: usize, sums: usize, dies: bool) {
    let device = Default::default();
    let mut communicator = group.join(thread).expect("joined");
    let (rank, ranks) = (communicator.rank(), communicator.world_size());
    let mine =
        |rank: usize| (0..length).map(move |at| ((at + rank * 17) % 1009) as f32 * 1.3_f32.powi(rank as i32 * 11));
    let values: Vec<f32> = mine(rank).collect();
    let (mut fastest, mut seen) = (Duration::MAX, 0);
    for _ in 0..sums {
        let vector = Tensor::<Flex, 1>::from_floats(values.as_slice(), &device);
        let begun = Instant::now();
        let sum = match communicator.all_reduce_sum(vector) {
            Ok(sum) => sum.into_data().to_vec::<f32>().expect("numbers"),
            Err(error) => return println!("\nrank {rank}: {error}"),
        };
        fastest = fastest.min(begun.elapsed());
        seen = sum.iter().fold(0_u64, |hash, value| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(value.to_bits()));
        // The sum in any order of additions, but for rounding.
        let about: f32 = (0..ranks).map(|rank| mine(rank).next_back().unwrap_or(0.0)).sum();
        let last = sum.last().copied().unwrap_or(0.0);
        assert!((last - about).abs() <= about.abs() * 1e-5, "{last} is not {about}");
        if dies {
            std::process::abort();
        }
    }
    println!("\nrank {rank} of {ranks} saw {seen:016x}, {:.3} ms at best", fastest.as_secs_f64() * 1e3);
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Starts processes as a launcher does, and returns their output.
fn launch(processes: usize, task: &str) -> Vec<Output> {
    let port = free_port().to_string();
    let start = |rank: usize| -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "a_rank", "--nocapture"]).env(TASK, task);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", processes.to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", processes.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
    };
    let running: Vec<_> = (0..processes).map(start).collect();
    running.into_iter().map(common::finish).collect()
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| line.starts_with("rank ")).map(str::to_owned).collect()
}

/// Hashes of the sums that the ranks got.
fn seen(outputs: &[Output]) -> Vec<String> {
    let word = |line: String| line.split(" saw ").nth(1).and_then(|rest| rest.split(',').next()).map(str::to_owned);
    outputs.iter().flat_map(lines).filter_map(word).collect()
}

#[test]
fn processes_get_one_sum_and_print_nothing_else() {
    let first = launch(3, "1 300000 4 -");
    assert_eq!(seen(&first).len(), 3, "{first:?}");
    let again = launch(3, "1 300000 4 -");
    assert!(seen(&first).iter().chain(&seen(&again)).all(|sum| *sum == seen(&first)[0]), "{first:?} {again:?}");
    let text = String::from_utf8_lossy(&first[0].stdout).into_owned();
    let strange = |line: &&str| !["rank ", "running 1 test", "test "].iter().any(|start| line.starts_with(start));
    assert_eq!(text.lines().filter(|line| !line.is_empty()).find(strange), None, "{text}");
}

#[test]
fn threads_in_each_of_two_processes_get_one_sum() {
    let first = launch(2, "2 3000 4 -");
    assert_eq!(seen(&first).len(), 4, "{first:?}");
    let again = launch(2, "2 3000 4 -");
    assert!(seen(&first).iter().chain(&seen(&again)).all(|sum| *sum == seen(&first)[0]), "{first:?} {again:?}");
}

#[test]
fn a_process_that_dies_ends_the_others_with_its_name() {
    let begun = Instant::now();
    let outputs = launch(3, "1 100000 4 1");
    assert!(begun.elapsed() < Duration::from_secs(30), "long before the deadline: {:?}", begun.elapsed());
    assert!(
        lines(&outputs[0]).iter().any(|line| line.contains("rank 0 of 3 has lost rank 1 after 1 exchanges")),
        "{outputs:?}"
    );
    assert!(
        lines(&outputs[2]).iter().any(|line| line.contains("rank 0 has ended the run: rank 1 was lost")),
        "{outputs:?}"
    );
}
