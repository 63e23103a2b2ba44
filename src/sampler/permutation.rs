//! The shuffle: a keyed bijection on `[0, n)` without a table of n numbers. The same (n, seed, epoch) gives the same
//! order on every machine.

use crate::rng::{KeyedRng, Seed, mix64};
use crate::units::SampleId;

/// Separates this use of (seed, epoch) from every other: "permute!" in ASCII.
const SALT: u64 = u64::from_be_bytes(*b"permute!");

/// Rounds of the Feistel network. Four make it a pseudorandom permutation where the halves are wide (Luby and Rackoff,
/// 1988). Halves of a few bits need more: the tests of `statistics.rs` fail with two rounds and with four, and hold
/// with six; two more are the margin.
const ROUNDS: usize = 8;

/// Maximum length that is shuffled into a table.
const MAX_TABLE_LEN: u64 = 256;

/// A pseudorandom order of `0..len` with random access.
///
/// It takes under 400 bytes and about a microsecond to build, whether `len` is ten or ten billion; [`at`](Self::at)
/// takes some tens of nanoseconds.
///
/// Numbers of b bits, the fewest that hold `len - 1`, go through a Feistel network: each round xors one half with a
/// keyed hash of the other, which can be undone, so it is a bijection. A result of `len` or more goes through again
/// until it falls below ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). That
/// restricts the bijection to `0..len`; as `len` is more than half of 2^b, it takes fewer than two passes on average.
/// Up to 256 elements, for which halves of a few bits mix poorly, it is a table shuffled by Fisher and Yates's method:
/// every one of the `len!` orders is equally likely.
///
/// This is a shuffle for training, not a cipher.
///
/// # Example
/// ```
/// use feedstock::rng::Seed;
/// use feedstock::sampler::Permutation;
///
/// let epoch = Permutation::new(10_000_000_000, Seed(17), 3);
/// let sample = epoch.at(9_999_999_999);
/// assert_eq!(epoch.position(sample), 9_999_999_999);
/// ```
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Table(Box<[u8]>),
    Feistel(Feistel),
}

impl Permutation {
    /// The order of `len` elements in one epoch of a run.
    #[must_use]
    pub fn new(len: u64, seed: Seed, epoch: u64) -> Self {
        let mut rng = KeyedRng::new(seed, epoch, SampleId(0), SALT);
        let kind = if len <= MAX_TABLE_LEN {
            Kind::Table(shuffled(len, &mut rng))
        } else {
            Kind::Feistel(Feistel::new(u64::BITS - (len - 1).leading_zeros(), &mut rng))
        };
        Permutation { len, kind }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element at a position.
    ///
    /// # Panics
    /// Panics if `position` is not in `0..len`.
    #[must_use]
    pub fn at(&self, position: u64) -> u64 {
        self.check(position);
        match &self.kind {
            Kind::Table(table) => u64::from(table[position as usize]),
            Kind::Feistel(feistel) => self.walk(position, |x| feistel.forward(x)),
        }
    }

    /// The position of an element: the inverse of [`at`](Self::at).
    ///
    /// # Panics
    /// Panics if `element` is not in `0..len`.
    #[must_use]
    pub fn position(&self, element: u64) -> u64 {
        self.check(element);
        match &self.kind {
            Kind::Table(table) => table.iter().take_while(|&&other| u64::from(other) != element).count() as u64,
            Kind::Feistel(feistel) => self.walk(element, |x| feistel.backward(x)),
        }
    }

    /// Follows the cycle of `x` to the next number below `len`. It ends because `x` itself is below `len`.
    fn walk(&self, mut x: u64, step: impl Fn(u64) -> u64) -> u64 {
        loop {
            x = step(x);
            if x < self.len {
                return x;
            }
        }
    }

    fn check(&self, number: u64) {
        assert!(number < self.len, "index {number} of a permutation of {} elements", self.len);
    }
}

fn shuffled(len: u64, rng: &mut KeyedRng) -> Box<[u8]> {
    let mut table: Box<[u8]> = (0..len).map(|i| i as u8).collect();
    for i in (1..table.len()).rev() {
        table.swap(i, rng.below(i as u64 + 1) as usize);
    }
    table
}

/// A bijection on the numbers of `bits` bits, whose halves may differ by one bit.
#[derive(Clone, Debug)]
struct Feistel {
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; ROUNDS],
}

impl Feistel {
    /// `bits` is in `2..=64`.
    fn new(bits: u32, rng: &mut KeyedRng) -> Self {
        let low_bits = bits / 2;
        let mask = |bits: u32| (1u64 << bits) - 1;
        Feistel {
            low_bits,
            low_mask: mask(low_bits),
            high_mask: mask(bits - low_bits),
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    fn forward(&self, x: u64) -> u64 {
        let (mut low, mut high) = (x & self.low_mask, x >> self.low_bits);
        for keys in self.keys.chunks_exact(2) {
            low ^= mix64(high ^ keys[0]) & self.low_mask;
            high ^= mix64(low ^ keys[1]) & self.high_mask;
        }
        high << self.low_bits | low
    }

    fn backward(&self, x: u64) -> u64 {
        let (mut low, mut high) = (x & self.low_mask, x >> self.low_bits);
        for keys in self.keys.chunks_exact(2).rev() {
            high ^= mix64(low ^ keys[1]) & self.high_mask;
            low ^= mix64(high ^ keys[0]) & self.low_mask;
        }
        high << self.low_bits | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(len: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let order = Permutation::new(len, Seed(seed), epoch);
        (0..len).map(|i| order.at(i)).collect()
    }

    #[test]
    fn it_is_a_bijection_for_every_small_length() {
        for len in 0..=2000 {
            let order = Permutation::new(len, Seed(len), 1);
            let mut seen = vec![false; len as usize];
            for i in 0..len {
                let element = order.at(i);
                assert!(!std::mem::replace(&mut seen[element as usize], true), "{len}: {element} twice");
                assert_eq!(order.position(element), i);
            }
            assert_eq!((order.len(), order.is_empty()), (len, len == 0));
        }
    }

    #[test]
    fn it_is_a_bijection_where_the_width_changes() {
        for len in [65_535, 65_536, 65_537, 131_071, 131_072, 131_073] {
            let mut elements = all(len, 5, 6);
            elements.sort_unstable();
            assert!(elements.iter().copied().eq(0..len));
        }
    }

    proptest! {
        #[test]
        fn every_position_comes_back(len in 1u64.., number: u64, seed: u64, epoch: u64) {
            let order = Permutation::new(len, Seed(seed), epoch);
            let position = number % len;
            let element = order.at(position);
            prop_assert!(element < len);
            prop_assert_eq!(order.position(element), position);
        }
    }

    #[test]
    fn the_order_of_a_key_never_changes() {
        // A resumed run continues in the order in which it began, also after an upgrade: these numbers are a format.
        assert_eq!(all(8, 17, 3), GOLDEN_TABLE);
        let order = Permutation::new(10_000_000_000, Seed(17), 3);
        assert_eq!([0, 1, 2, 9_999_999_999].map(|i| order.at(i)), GOLDEN_FEISTEL);
    }

    const GOLDEN_TABLE: [u64; 8] = [0, 7, 5, 2, 6, 3, 1, 4];
    const GOLDEN_FEISTEL: [u64; 4] = [5212235282, 8415866039, 8801030365, 5776935394];

    #[test]
    #[should_panic(expected = "index 3 of a permutation of 3 elements")]
    fn a_position_past_the_end_is_misuse() {
        let _ = Permutation::new(3, Seed(0), 0).at(3);
    }
}
