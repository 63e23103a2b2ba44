//! Vector clocks: the operations on every stream of a device that are known to have happened before a point.

/// The number of operations on each stream that happened before some point. Operations are numbered from 1.
#[derive(Clone, Debug, Default)]
pub struct Clock(Vec<u64>);

impl Clock {
    pub const fn new() -> Self {
        Clock(Vec::new())
    }

    pub fn get(&self, stream: usize) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    /// Learns of everything up to this operation of a stream, and of nothing that came before on other streams.
    pub fn raise(&mut self, stream: usize, number: u64) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = self.0[stream].max(number);
    }

    /// Learns what another knows.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}
