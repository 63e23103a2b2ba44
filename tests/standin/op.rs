//! Streams, events, and the operations on them, shared by the calls and the executor.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::clock::Clock;
use crate::memory::Block;

#[derive(Default)]
pub struct Stream {
    /// True if it is ordered with the default stream (created with flags 0).
    pub blocking: bool,
    pub queue: VecDeque<Op>,
    /// The head of the queue once it has begun, and when it may end.
    pub begun: Option<(Op, Instant)>,
    /// Operations enqueued, and operations over.
    pub issued: u64,
    pub done: u64,
    /// Clock of the last operation enqueued.
    pub clock: Clock,
    /// Time since which its head could have run.
    pub ready_since: Option<Instant>,
}

pub struct Event {
    pub timed: bool,
    pub record: Option<Record>,
}

#[derive(Clone)]
pub struct Record {
    pub stream: usize,
    pub number: u64,
    pub clock: Clock,
    pub time: Arc<OnceLock<Instant>>,
}

pub struct Op {
    pub number: u64,
    pub what: Arc<str>,
    pub task: Task,
    /// Keeps the bytes it touches from going away.
    pub blocks: Vec<Arc<Block>>,
}

pub enum Task {
    Wait { stream: usize, number: u64 },
    Record { time: Arc<OnceLock<Instant>> },
    Copy(Copy),
    Fill { to: usize, byte: u8, len: usize },
    Launch(Box<Launch>),
}

pub struct Copy {
    pub direction: Direction,
    pub to: usize,
    pub from: usize,
    pub len: usize,
    /// Bytes that were taken at the call, in place of `from`.
    pub snapshot: Option<Vec<u8>>,
    /// Hash of the source at the call, which must not change before the copy is over.
    pub checksum: Option<u64>,
    pub write_combined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
}

pub struct Launch {
    pub name: CString,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    /// Each parameter in words of its own, so that all of them are aligned.
    pub params: Vec<Vec<u64>>,
    /// A pointer parameter that leads nowhere: the launch fails in place of touching it.
    pub wild: bool,
}

/// The pinned source of a copy, which must not be written until the host knows that the copy is over: neither while it
/// is under way, which the copy itself finds out, nor after it, which would be right by luck alone.
pub struct Watch {
    pub stream: usize,
    pub number: u64,
    pub what: Arc<str>,
    pub start: usize,
    pub len: usize,
    pub checksum: u64,
    pub block: Arc<Block>,
}
