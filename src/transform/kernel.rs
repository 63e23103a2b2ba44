//! Inner loops of resampling: weighted sums of rows, weighted sums along rows, pixels in reverse.
//!
//! Every processor gives the same bytes: all sums are of integers. The portable loops, as the compiler vectorizes them,
//! are enough for any processor; with AVX2, loops written for it are about as fast as memory allows. Loads and stores
//! go through slices, so that the one unsafe step is the call of a function compiled for AVX2.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
pub(super) mod table;

use self::table::{BATCH, GROUP, OUT_SLACK_BYTES, Table};
use crate::tensor::CHANNELS;

/// Choice of the loops.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// True only if the processor has AVX2, which makes calling its functions sound.
    avx2: bool,
}

/// Calls the AVX2 function where the processor has AVX2, or else the portable one.
macro_rules! dispatch {
    ($kernel:expr, $function:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if $kernel.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::$function($($argument),*) };
        }
        portable::$function($($argument),*)
    }};
}

impl Kernel {
    /// Returns the fastest kernel that this processor runs.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx2 = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Kernel { avx2 }
    }

    #[cfg(test)]
    pub(super) const PORTABLE: Kernel = Kernel { avx2: false };

    /// Sums rows, each times its weight, and rounds: `out = (half + sum) >> precision`.
    ///
    /// # Panics
    /// Panics unless there is a weight for each row, an even number of them, and each row is as long as `out`.
    pub(super) fn vertical(self, rows: &[&[u8]], weights: &[i16], precision: u32, out: &mut [u8]) {
        check(rows, weights, out.len());
        dispatch!(self, vertical(rows, weights, precision, out));
    }

    /// Adds rows, each times its weight, to sums that [`round`](Self::round) rounds; the first time sets them. The
    /// order of the sums is the kernel's own.
    ///
    /// # Panics
    /// Panics unless there is a weight for each row, an even number of them, and each row has a byte for each sum.
    pub(super) fn accumulate(self, rows: &[&[u8]], weights: &[i16], first: bool, sums: &mut [i32]) {
        check(rows, weights, sums.len());
        if first {
            sums.fill(0);
        }
        dispatch!(self, accumulate(rows, weights, sums));
    }

    /// Rounds accumulated sums, as [`vertical`](Self::vertical) does.
    ///
    /// # Panics
    /// Panics unless `out` is as long as `sums`.
    pub(super) fn round(self, sums: &[i32], precision: u32, out: &mut [u8]) {
        assert_eq!(sums.len(), out.len(), "a sum for each byte");
        dispatch!(self, round(sums, precision, out));
    }

    /// Resamples each of `rows` horizontally into its row of `out`. The bytes after the pixels of an output row do not
    /// matter.
    ///
    /// # Panics
    /// Panics unless each pixel's taps and [`ROW_SLACK_BYTES`](table::ROW_SLACK_BYTES) are within a row, and the
    /// result, all its groups and four bytes more within a row of `out`.
    pub(super) fn horizontal(self, rows: [&[u8]; BATCH], table: Table<'_>, out: [&mut [u8]; BATCH]) {
        let pixels = table.starts.len();
        assert!(pixels.is_multiple_of(GROUP), "whole groups of pixels");
        assert!(table.taps > 0 && table.taps.is_multiple_of(2) && table.weights.len() == pixels * table.taps);
        assert!(out.iter().all(|row| row.len() >= pixels * CHANNELS + 4), "room for a row and its slack");
        dispatch!(self, horizontal(rows, table, out));
    }

    /// Copies a row of pixels in reverse order.
    ///
    /// # Panics
    /// Panics unless `out` is [`OUT_SLACK_BYTES`] longer than `row`; the bytes written there do not matter.
    pub(super) fn reverse(self, row: &[u8], out: &mut [u8]) {
        assert!(out.len() >= row.len() + OUT_SLACK_BYTES, "room for a row and its slack");
        dispatch!(self, reverse(row, out));
    }
}

fn check(rows: &[&[u8]], weights: &[i16], bytes: usize) {
    assert!(
        rows.len() == weights.len() && rows.len().is_multiple_of(2),
        "an even number of rows, each with its weight"
    );
    assert!(rows.iter().all(|row| row.len() == bytes), "rows as long as the result");
}

#[cfg(test)]
mod tests {
    use super::table::ROW_SLACK_BYTES;
    use super::*;
    use crate::rng::mix64;
    use proptest::prelude::*;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        (0..bytes as u64).map(|at| mix64(at ^ seed << 32) as u8).collect()
    }

    /// An even number of weights that sum to `1 << precision`, none above what 16 bits hold.
    fn weights(count: usize, precision: u32, seed: u64) -> Vec<i16> {
        let each = (1 << precision) / count as i32;
        let mut weights: Vec<i16> = vec![each as i16; count];
        for (at, pair) in weights.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let shift = (mix64(seed ^ (at as u64) << 48) % (each as u64 + 1)) as i16;
            let shift = shift.min(i16::MAX - pair[1]);
            *pair = [pair[0] - shift, pair[1] + shift];
        }
        weights[0] += ((1 << precision) - each * count as i32) as i16;
        weights
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn every_kernel_gives_the_same_bytes(
            width in 1usize..90, pairs in 1usize..9, precision in 14u32..18, groups in 1usize..10, seed in any::<u64>(),
        ) {
            let best = Kernel::best();
            let (bytes, count) = (width * CHANNELS, pairs * 2);
            let precision = if count < 8 { 14 } else { precision };
            let pixels = noise(bytes * count, seed);
            let rows: Vec<&[u8]> = pixels.chunks_exact(bytes).collect();
            let weights = weights(count, precision, seed);
            let (mut a, mut b) = (vec![1; bytes], vec![2; bytes]);
            Kernel::PORTABLE.vertical(&rows, &weights, precision, &mut a);
            best.vertical(&rows, &weights, precision, &mut b);
            prop_assert_eq!(&a, &b);
            for kernel in [best, Kernel::PORTABLE] {
                let mut sums = vec![-7; bytes];
                kernel.accumulate(&rows[..2], &weights[..2], true, &mut sums);
                kernel.accumulate(&rows[2..], &weights[2..], false, &mut sums);
                kernel.round(&sums, precision, &mut b);
                prop_assert_eq!(&a, &b);
            }

            let taps = count.min(width / 2 * 2);
            if taps > 0 {
                let out_width = groups * GROUP;
                let start = |at| (mix64(at ^ seed) % (width - taps + 1) as u64) as u32;
                let starts: Vec<u32> = (0..out_width as u64).map(start).collect();
                let precision = if taps < 8 { 14 } else { precision };
                let weights_of = |at| self::weights(taps, precision, seed ^ at);
                let all: Vec<i16> = (0..out_width as u64).flat_map(weights_of).collect();
                let table = Table { starts: &starts, weights: &all, taps, precision };
                let stride = bytes + ROW_SLACK_BYTES;
                let pixels = noise(stride * BATCH, seed);
                let rows = std::array::from_fn(|at| &pixels[at * stride..][..stride]);
                let out_stride = out_width * CHANNELS + OUT_SLACK_BYTES;
                let (mut a, mut b) = (vec![1; out_stride * BATCH], vec![2; out_stride * BATCH]);
                for (kernel, out) in [(Kernel::PORTABLE, &mut a), (best, &mut b)] {
                    let mut out = out.chunks_exact_mut(out_stride);
                    kernel.horizontal(rows, table, std::array::from_fn(|_| out.next().expect("a row")));
                }
                for (a, b) in a.chunks_exact(out_stride).zip(b.chunks_exact(out_stride)) {
                    prop_assert_eq!(&a[..out_width * CHANNELS], &b[..out_width * CHANNELS]);
                }
            }

            let row = noise(bytes, seed);
            let mut expected = row.clone();
            expected.as_chunks_mut::<CHANNELS>().0.reverse();
            for kernel in [best, Kernel::PORTABLE] {
                let mut out = vec![9; bytes + OUT_SLACK_BYTES];
                kernel.reverse(&row, &mut out);
                prop_assert_eq!(&out[..bytes], &expected);
            }
        }
    }
}
