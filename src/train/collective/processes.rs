//! Sum among processes, over TCP: every process sends its vector to rank 0, which adds them and sends the sum back.
//!
//! A vector crosses in pieces, and each process sends and receives at once: the first pieces of the sum come back while
//! the last of its own are still to be sent. Rank 0 adds to its own piece those of ranks 1, 2 and so on, in this order.
//! With r ranks and a vector of b bytes, (r - 1) b cross the network of rank 0 in each direction.
//!
//! A message is a header of two numbers, the exchange and the length of the vector, and the bytes of a piece. In place
//! of the exchange, [`END`] announces a text: the sender ends the run, and says why.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{CollectiveError, LostReason, Problem, RankInfo, Ranks};
use crate::host::Coordinator;
use crate::host::DistributedEnv;

/// Numbers in one message: 1 MiB.
const PIECE: usize = 1 << 18;
/// First number of a greeting: "feedstk" and the version of the protocol.
const GREETING: u64 = u64::from_le_bytes(*b"feedstk2");
/// Number in place of an exchange: a text follows, and no sum.
const END: u64 = u64::MAX;
/// Maximum length of such a text, in bytes.
const TEXT_MAX: u64 = 4096;
/// Pause between two attempts to connect or to accept.
const RETRY: Duration = Duration::from_millis(50);
/// Maximum time for a greeting, and for the last message.
const BRIEF: Duration = Duration::from_secs(1);

/// Connections of this process to the others.
#[derive(Debug)]
pub(super) struct Processes {
    info: RankInfo,
    role: Role,
}

#[derive(Debug)]
enum Role {
    /// Rank 0, connected to ranks 1, 2 and so on, each of a process of that many threads.
    Hub { others: Vec<TcpStream>, threads: usize },
    /// Any other rank, connected to rank 0.
    Spoke { hub: TcpStream, hub_rank: Ranks },
}

impl Processes {
    /// Connects the processes. Returns when all have joined.
    pub(super) fn join(world: &DistributedEnv, threads: usize, info: RankInfo) -> Result<Processes, CollectiveError> {
        let Some(coordinator) = &world.coordinator else {
            return Err(CollectiveError::Config(
                "several processes without the address of rank 0: set MASTER_ADDR".into(),
            ));
        };
        let deadline = Instant::now() + info.timeout;
        let role = if world.rank == 0 {
            let port = coordinator.port;
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .map_err(|source| CollectiveError::Listen { port, source })?;
            Role::Hub { others: accept_all(&listener, world.world_size, threads, info, deadline)?, threads }
        } else {
            let hub_rank = Ranks { ranks: vec![0], address: Some(coordinator.to_string()) };
            let greeting = [GREETING, world.rank as u64, world.world_size as u64, threads as u64];
            let hub = connect(coordinator, deadline);
            let hub = hub.ok_or_else(|| info.error(hub_rank.clone(), Problem::Late, 0))?;
            // Once connected, it is the other ranks that rank 0 waits for.
            let welcomed = send(&hub, &greeting, &[], deadline).map_err(Problem::from);
            let welcomed = welcomed.and_then(|()| receive_header(&hub, 0, 0, deadline));
            welcomed.map_err(|problem| match problem {
                Problem::Late => info.error(Ranks::default(), problem, 0),
                Problem::Lost(_) => info.error(hub_rank.clone(), problem, 0),
            })?;
            Role::Spoke { hub, hub_rank }
        };
        Ok(Processes { info, role })
    }

    /// Replaces `values` by the sum over all processes.
    pub(super) fn sum(&mut self, values: &mut [f32], exchange: u64) -> Result<(), CollectiveError> {
        let (info, deadline) = (self.info, Instant::now() + self.info.timeout);
        match &self.role {
            Role::Hub { others, threads } => {
                let summed = add_up(others, *threads, info, exchange, values, deadline);
                summed.inspect_err(|error| end(others, &format!("rank 0 has ended the run: {}", error.summary())))
            }
            Role::Spoke { hub, hub_rank } => {
                swap(hub, exchange, values, deadline).map_err(|problem| info.error(hub_rank.clone(), problem, exchange))
            }
        }
    }
}

/// Waits on rank 0 for all the other processes.
fn accept_all(
    listener: &TcpListener,
    processes: usize,
    threads: usize,
    info: RankInfo,
    deadline: Instant,
) -> Result<Vec<TcpStream>, CollectiveError> {
    let mut others: Vec<Option<TcpStream>> = (1..processes).map(|_| None).collect();
    while others.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => match admit(&stream, processes, threads, &mut others) {
                Ok(place) => *place = Some(stream),
                Err(text) => end([&stream], &text),
            },
            Err(_) if Instant::now() < deadline => thread::sleep(RETRY),
            Err(_) => {
                let missing = (1..processes).filter(|process| others[process - 1].is_none());
                let late = Ranks::new(missing.flat_map(|process| ranks_of(process, threads)));
                let error = info.error(late, Problem::Late, 0);
                end(others.iter().flatten(), &format!("rank 0 has ended the run: {}", error.summary()));
                return Err(error);
            }
        }
    }
    let others: Vec<_> = others.into_iter().flatten().collect();
    for (stream, process) in others.iter().zip(1..) {
        let welcomed = send(stream, &[0, 0], &[], deadline);
        welcomed.map_err(|error| info.error(Ranks::new(ranks_of(process, threads)), error.into(), 0))?;
    }
    Ok(others)
}

/// Reads a greeting. Returns the place of that process, or the reason why it has none.
fn admit<'a>(
    stream: &TcpStream,
    processes: usize,
    threads: usize,
    others: &'a mut [Option<TcpStream>],
) -> Result<&'a mut Option<TcpStream>, String> {
    let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
    let greeting = prepared.and_then(|()| receive_numbers(stream, Instant::now() + BRIEF));
    let Ok([GREETING, rank, their_processes, their_threads]) = greeting else {
        return Err(
            "rank 0 does not understand the greeting: use the same version of feedstock on all ranks".to_owned()
        );
    };
    if (their_processes, their_threads) != (processes as u64, threads as u64) {
        return Err(format!(
            "rank 0 is of a run of {processes} processes with {threads} ranks each, not {their_processes} with \
             {their_threads}"
        ));
    }
    match others.get_mut((rank as usize).wrapping_sub(1)) {
        Some(place) if place.is_none() => Ok(place),
        _ => Err(format!("process {rank} of {processes} has joined already, or is out of range")),
    }
}

/// Connects to rank 0. Returns `None` at the deadline.
fn connect(Coordinator { host, port }: &Coordinator, deadline: Instant) -> Option<TcpStream> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        for address in (host.as_str(), *port).to_socket_addrs().into_iter().flatten() {
            if let Ok(stream) = TcpStream::connect_timeout(&address, left)
                // On one machine a socket may connect to itself, if its own port is the one that it looks for.
                && stream.local_addr().ok() != stream.peer_addr().ok()
                && stream.set_nodelay(true).is_ok()
            {
                return Some(stream);
            }
        }
        thread::sleep(RETRY.min(left));
    }
}

/// Sum on rank 0.
fn add_up(
    others: &[TcpStream],
    threads: usize,
    info: RankInfo,
    exchange: u64,
    values: &mut [f32],
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let length = values.len() as u64;
    let mut bytes = Vec::new();
    for piece in values.chunks_mut(PIECE) {
        for (stream, process) in others.iter().zip(1..) {
            let received = receive_piece(stream, exchange, length, piece.len(), &mut bytes, deadline);
            received.map_err(|problem| info.error(Ranks::new(ranks_of(process, threads)), problem, exchange))?;
            piece.iter_mut().zip(bytes.as_chunks().0).for_each(|(sum, value)| *sum += f32::from_le_bytes(*value));
        }
        to_bytes(piece, &mut bytes);
        for (stream, process) in others.iter().zip(1..) {
            let sent = send(stream, &[exchange, length], &bytes, deadline);
            sent.map_err(|error| info.error(Ranks::new(ranks_of(process, threads)), error.into(), exchange))?;
        }
    }
    Ok(())
}

/// Sum on any other rank: sends on a thread of its own, so that neither side waits for the other to read.
fn swap(hub: &TcpStream, exchange: u64, values: &mut [f32], deadline: Instant) -> Result<(), Problem> {
    let (own, length) = (values.to_vec(), values.len() as u64);
    thread::scope(|scope| {
        let sending = thread::Builder::new().name("feedstock-rank".to_owned()).spawn_scoped(scope, || {
            let mut bytes = Vec::new();
            own.chunks(PIECE).try_for_each(|piece| {
                to_bytes(piece, &mut bytes);
                send(hub, &[exchange, length], &bytes, deadline)
            })
        });
        let sending = sending.map_err(|error| Problem::Lost(LostReason::Connection(error)))?;
        let mut bytes = Vec::new();
        let received = values.chunks_mut(PIECE).try_for_each(|piece| {
            receive_piece(hub, exchange, length, piece.len(), &mut bytes, deadline)?;
            piece.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, sum)| *value = f32::from_le_bytes(*sum));
            Ok(())
        });
        if received.is_err() {
            // Ends the sending too.
            let _ = hub.shutdown(Shutdown::Both);
        }
        let sent = sending.join().unwrap_or(Ok(()));
        received.and(sent.map_err(Problem::from))
    })
}

/// Sends the reason for which no sum follows. It waits a moment for the receivers to close: to close first, with
/// bytes of theirs unread, would discard the text on its way.
fn end<'a>(streams: impl IntoIterator<Item = &'a TcpStream>, text: &str) {
    let deadline = Instant::now() + BRIEF;
    let text = &text.as_bytes()[..text.len().min(TEXT_MAX as usize)];
    let told = streams.into_iter().filter(|stream| {
        send(stream, &[END, text.len() as u64], text, deadline).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
    });
    for stream in told.collect::<Vec<_>>() {
        let mut unread = [0; 4096];
        while receive_some(stream, &mut unread, deadline).is_ok_and(|bytes| bytes > 0) {}
    }
}

/// Receives the bytes of a piece of `numbers` numbers.
fn receive_piece(
    stream: &TcpStream,
    exchange: u64,
    length: u64,
    numbers: usize,
    bytes: &mut Vec<u8>,
    deadline: Instant,
) -> Result<(), Problem> {
    receive_header(stream, exchange, length, deadline)?;
    bytes.resize(numbers * size_of::<f32>(), 0);
    Ok(receive(stream, bytes, deadline)?)
}

/// Receives a header, and checks that it is one of this exchange and length.
fn receive_header(stream: &TcpStream, exchange: u64, length: u64, deadline: Instant) -> Result<(), Problem> {
    let [theirs, their_length] = receive_numbers(stream, deadline)?;
    Err(Problem::Lost(if theirs == END {
        let mut text = vec![0; their_length.min(TEXT_MAX) as usize];
        receive(stream, &mut text, deadline)?;
        LostReason::Told(String::from_utf8_lossy(&text).into_owned())
    } else if theirs != exchange {
        LostReason::Exchange { theirs, ours: exchange }
    } else if their_length != length {
        LostReason::Length { theirs: their_length, ours: length }
    } else {
        return Ok(());
    }))
}

fn receive_numbers<const N: usize>(stream: &TcpStream, deadline: Instant) -> io::Result<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    receive(stream, bytes.as_flattened_mut(), deadline)?;
    Ok(bytes.map(u64::from_le_bytes))
}

/// Fills `bytes`.
fn receive(stream: &TcpStream, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match receive_some(stream, bytes, deadline)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            received => bytes = &mut bytes[received..],
        }
    }
    Ok(())
}

fn receive_some(mut stream: &TcpStream, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
    stream.set_read_timeout(Some(time_left(deadline)?))?;
    retry(|| stream.read(bytes))
}

/// Sends numbers, then bytes.
fn send(mut stream: &TcpStream, numbers: &[u64], bytes: &[u8], deadline: Instant) -> io::Result<()> {
    let header: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    for mut part in [header.as_slice(), bytes] {
        while !part.is_empty() {
            stream.set_write_timeout(Some(time_left(deadline)?))?;
            part = &part[retry(|| stream.write(part))?..];
        }
    }
    Ok(())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn to_bytes(piece: &[f32], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
}

/// Ranks of the threads of a process.
fn ranks_of(process: usize, threads: usize) -> std::ops::Range<usize> {
    process * threads..(process + 1) * threads
}
