//! Owns the inner loops of resampling: weighted sums of rows, weighted sums along rows, pixels in reverse. It must never
//! read or write outside the slices it is given, and every processor gives the same bytes: all sums are of integers.
//!
//! What the compiler makes of the portable loops is enough for any processor; where there is AVX2, loops written for it
//! are about as fast as memory allows. Loads and stores go through slices, so that the one unsafe step is to call a
//! function compiled for AVX2.

use crate::tensor::CHANNELS;

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

/// Bytes that may be read after the last pixel of a row that is resampled along, whatever they are.
pub(super) const ROW_SLACK_BYTES: usize = 16;

/// Bytes that may be written after the last pixel of a resampled row: three pixels too many, and a register's rest.
pub(super) const OUT_SLACK_BYTES: usize = 16;

/// Rows that are resampled along together.
pub(super) const BATCH: usize = 4;

/// Pixels along a row that are made together.
pub(super) const GROUP: usize = 4;

/// The weights along a row: for each pixel of the result, `taps` (an even number) and where they start. The number of
/// pixels is made up to whole groups; what becomes of those that are too many is of no account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) starts: &'a [u32],
    pub(super) weights: &'a [i16],
    pub(super) taps: usize,
    pub(super) places: u32,
}

/// Which loops run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// True only where the processor has AVX2: what makes calling its functions sound.
    avx2: bool,
}

impl Kernel {
    /// The fastest that this processor runs.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx2 = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Kernel { avx2 }
    }

    #[cfg(test)]
    pub(super) const PORTABLE: Kernel = Kernel { avx2: false };

    /// Whether this is not the portable one.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn is_avx2(self) -> bool {
        self.avx2
    }

    /// Sums rows, each times its weight, and rounds: `out = (half + sum) >> places`.
    ///
    /// # Panics
    /// Panics unless there is a weight for each row, an even number of them, and each row is as long as `out`.
    pub(super) fn down(self, rows: &[&[u8]], weights: &[i16], places: u32, out: &mut [u8]) {
        check(rows, weights, out.len());
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::down(rows, weights, places, out) };
        }
        portable::down(rows, weights, places, out);
    }

    /// Adds rows, each times its weight, to sums that [`settle`](Self::settle) rounds; the first time sets them. The order
    /// of the sums is the kernel's own.
    ///
    /// # Panics
    /// Panics unless there is a weight for each row, an even number of them, and each row has as many bytes as there are
    /// sums.
    pub(super) fn gather(self, rows: &[&[u8]], weights: &[i16], first: bool, sums: &mut [i32]) {
        check(rows, weights, sums.len());
        if first {
            sums.fill(0);
        }
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::gather(rows, weights, sums) };
        }
        portable::gather(rows, weights, sums);
    }

    /// Rounds gathered sums, as [`down`](Self::down) does.
    ///
    /// # Panics
    /// Panics unless `out` is as long as `sums`.
    pub(super) fn settle(self, sums: &[i32], places: u32, out: &mut [u8]) {
        assert_eq!(sums.len(), out.len(), "a sum for each byte");
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::settle(sums, places, out) };
        }
        portable::settle(sums, places, out);
    }

    /// Resamples along `rows`, each into its row of `out`; what a row of `out` holds behind its pixels is of no account.
    ///
    /// # Panics
    /// Panics unless each pixel's taps and [`ROW_SLACK_BYTES`] are within a row, and the result, all its groups and four
    /// bytes more within a row of `out`.
    pub(super) fn along(self, rows: [&[u8]; BATCH], table: Table<'_>, out: [&mut [u8]; BATCH]) {
        let pixels = table.starts.len();
        assert!(pixels.is_multiple_of(GROUP), "whole groups of pixels");
        assert!(table.taps > 0 && table.taps.is_multiple_of(2) && table.weights.len() == pixels * table.taps);
        assert!(out.iter().all(|row| row.len() >= pixels * CHANNELS + 4), "room for a row and its slack");
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::along(rows, table, out) };
        }
        for (row, out) in rows.into_iter().zip(out) {
            portable::along(row, table, out);
        }
    }

    /// Copies a row of pixels in reverse order.
    ///
    /// # Panics
    /// Panics unless `out` is [`OUT_SLACK_BYTES`] longer than `row`; what is written there is of no account.
    pub(super) fn reverse(self, row: &[u8], out: &mut [u8]) {
        assert!(out.len() >= row.len() + OUT_SLACK_BYTES, "room for a row and its slack");
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            #[allow(unsafe_code, reason = "a function compiled for AVX2 is called where AVX2 is")]
            // SAFETY: `avx2` is true only where the processor has said that it has AVX2.
            return unsafe { avx2::reverse(row, out) };
        }
        portable::reverse(row, out);
    }
}

fn check(rows: &[&[u8]], weights: &[i16], bytes: usize) {
    assert!(
        rows.len() == weights.len() && rows.len().is_multiple_of(2),
        "an even number of rows, each with its weight"
    );
    assert!(rows.iter().all(|row| row.len() == bytes), "rows as long as what becomes of them");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::mix64;
    use proptest::prelude::*;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        (0..bytes as u64).map(|at| mix64(at ^ seed << 32) as u8).collect()
    }

    /// An even number of weights that sum to `1 << places`, none above what 16 bits hold.
    fn weights(count: usize, places: u32, seed: u64) -> Vec<i16> {
        let each = (1 << places) / count as i32;
        let mut weights: Vec<i16> = vec![each as i16; count];
        for (at, pair) in weights.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let shift = (mix64(seed ^ (at as u64) << 48) % (each as u64 + 1)) as i16;
            let shift = shift.min(i16::MAX - pair[1]);
            *pair = [pair[0] - shift, pair[1] + shift];
        }
        weights[0] += ((1 << places) - each * count as i32) as i16;
        weights
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn every_kernel_gives_the_same_bytes(
            width in 1usize..90, pairs in 1usize..9, places in 14u32..18, groups in 1usize..10, seed in any::<u64>(),
        ) {
            let best = Kernel::best();
            #[cfg(target_arch = "x86_64")]
            prop_assert_eq!(best.is_avx2(), std::arch::is_x86_feature_detected!("avx2"));
            let (bytes, count) = (width * CHANNELS, pairs * 2);
            let places = if count < 8 { 14 } else { places };
            let pixels = noise(bytes * count, seed);
            let rows: Vec<&[u8]> = pixels.chunks_exact(bytes).collect();
            let weights = weights(count, places, seed);
            let (mut a, mut b) = (vec![1; bytes], vec![2; bytes]);
            Kernel::PORTABLE.down(&rows, &weights, places, &mut a);
            best.down(&rows, &weights, places, &mut b);
            prop_assert_eq!(&a, &b);
            for kernel in [best, Kernel::PORTABLE] {
                let mut sums = vec![-7; bytes];
                kernel.gather(&rows[..2], &weights[..2], true, &mut sums);
                kernel.gather(&rows[2..], &weights[2..], false, &mut sums);
                kernel.settle(&sums, places, &mut b);
                prop_assert_eq!(&a, &b);
            }

            let taps = count.min(width / 2 * 2);
            if taps > 0 {
                let out_width = groups * GROUP;
                let starts: Vec<u32> = (0..out_width as u64).map(|at| (mix64(at ^ seed) % (width - taps + 1) as u64) as u32).collect();
                let places = if taps < 8 { 14 } else { places };
                let all: Vec<i16> = (0..out_width as u64).flat_map(|at| self::weights(taps, places, seed ^ at)).collect();
                let table = Table { starts: &starts, weights: &all, taps, places };
                let stride = bytes + ROW_SLACK_BYTES;
                let pixels = noise(stride * BATCH, seed);
                let rows = std::array::from_fn(|at| &pixels[at * stride..][..stride]);
                let out_stride = out_width * CHANNELS + OUT_SLACK_BYTES;
                let (mut a, mut b) = (vec![1; out_stride * BATCH], vec![2; out_stride * BATCH]);
                for (kernel, out) in [(Kernel::PORTABLE, &mut a), (best, &mut b)] {
                    let mut out = out.chunks_exact_mut(out_stride);
                    kernel.along(rows, table, std::array::from_fn(|_| out.next().expect("a row")));
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
