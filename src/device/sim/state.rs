//! State of the simulated accelerator that outlives its streams: memory in use, the sticky error, and the violations.

use crate::device::{DeviceError, bytes};
use crate::sync::{Mutex, lock};
use crate::units::ByteCount;

/// Violations that are kept in words. The first is the most useful.
const VIOLATIONS_MAX: usize = 64;

/// State shared by the engine and every allocation.
#[derive(Debug)]
pub(super) struct DeviceState {
    /// Size of the device's memory, if limited.
    limit: Option<ByteCount>,
    memory: Mutex<Memory>,
    errors: Mutex<Errors>,
}

#[derive(Debug, Default)]
struct Memory {
    used: ByteCount,
    /// Allocations made so far.
    count: u64,
}

#[derive(Debug, Default)]
struct Errors {
    sticky: Option<DeviceError>,
    violations: Vec<String>,
}

impl DeviceState {
    pub(super) fn new(limit: Option<ByteCount>) -> Self {
        DeviceState { limit, memory: Mutex::default(), errors: Mutex::default() }
    }

    /// Takes device memory. Returns the number of the allocation, from 1.
    pub(super) fn allocate(&self, len: usize) -> Result<u64, DeviceError> {
        let mut memory = lock(&self.memory);
        let (what, asked) = ("device memory", bytes(len));
        let free = self.limit.map(|limit| limit.saturating_sub(memory.used));
        if free.is_some_and(|free| asked > free) {
            return Err(DeviceError::OutOfMemory { what, asked, free, usage: None });
        }
        memory.used += asked;
        memory.count += 1;
        Ok(memory.count)
    }

    pub(super) fn free(&self, len: usize) {
        let mut memory = lock(&self.memory);
        memory.used = memory.used.saturating_sub(bytes(len));
    }

    /// Device memory in use.
    pub(super) fn held(&self) -> ByteCount {
        lock(&self.memory).used
    }

    /// Makes this error the sticky one, if it is the first.
    pub(super) fn fail(&self, error: &DeviceError) {
        lock(&self.errors).sticky.get_or_insert_with(|| error.clone());
    }

    /// Records a violation. The streams go on, so that waiting threads get to see it.
    pub(super) fn violation(&self, words: String) -> DeviceError {
        let mut errors = lock(&self.errors);
        if errors.violations.len() < VIOLATIONS_MAX {
            errors.violations.push(words.clone());
        }
        let error = DeviceError::Lifetime(words);
        errors.sticky.get_or_insert_with(|| error.clone());
        error
    }

    pub(super) fn violations(&self) -> Vec<String> {
        lock(&self.errors).violations.clone()
    }

    /// # Errors
    /// The sticky error, if any.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        lock(&self.errors).sticky.clone().map_or(Ok(()), Err)
    }
}
