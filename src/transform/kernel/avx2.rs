//! Loops for processors with AVX2. They give the same bytes as the portable ones.
//!
//! Two neighbours (two rows, or two pixels of a row) are put side by side as 16-bit values, multiplied with their two
//! weights and added to one 32-bit sum: one `vpmaddwd` for eight sums.

use std::arch::x86_64::*;

use super::portable;
use super::table::{BATCH, GROUP, Table};
use crate::tensor::CHANNELS;

/// Bytes of a row in one register.
const LANE: usize = 32;

#[inline(always)]
fn load32(bytes: &[u8], at: usize) -> __m256i {
    bytemuck::pod_read_unaligned(&bytes[at..][..32])
}

#[inline(always)]
fn load16(bytes: &[u8], at: usize) -> __m128i {
    bytemuck::pod_read_unaligned(&bytes[at..][..16])
}

/// Broadcasts two weights, side by side, to every sum.
#[inline]
#[target_feature(enable = "avx2")]
fn both(pair: [i16; 2]) -> __m256i {
    _mm256_set1_epi32(bytemuck::cast(pair))
}

/// Adds 32 columns of two rows to their sums, in the order in which the instructions leave them.
#[inline]
#[target_feature(enable = "avx2")]
fn add_two(above: __m256i, below: __m256i, weights: __m256i, sums: &mut [__m256i; 4]) {
    let zero = _mm256_setzero_si256();
    let (low, high) = (_mm256_unpacklo_epi8(above, below), _mm256_unpackhi_epi8(above, below));
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weights));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weights));
    sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weights));
    sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weights));
}

/// Rounds 32 sums, to which half a level has been added, to bytes in the order of the columns.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes_of(sums: [__m256i; 4], precision: __m128i) -> [u8; LANE] {
    let low = _mm256_packs_epi32(_mm256_sra_epi32(sums[0], precision), _mm256_sra_epi32(sums[1], precision));
    let high = _mm256_packs_epi32(_mm256_sra_epi32(sums[2], precision), _mm256_sra_epi32(sums[3], precision));
    bytemuck::cast(_mm256_packus_epi16(low, high))
}

#[target_feature(enable = "avx2")]
pub(super) fn vertical(rows: &[&[u8]], weights: &[i16], precision: u32, out: &mut [u8]) {
    let bytes = out.len();
    if bytes < LANE {
        return portable::vertical(rows, weights, precision, out);
    }
    let (rows, _) = rows.as_chunks::<2>();
    let (weights, _) = weights.as_chunks::<2>();
    let (half, shift) = (_mm256_set1_epi32(1 << (precision - 1)), _mm_cvtsi32_si128(precision as i32));
    let mut at = 0;
    while at + 2 * LANE <= bytes {
        let (mut left, mut right) = ([half; 4], [half; 4]);
        for (&[above, below], &pair) in rows.iter().zip(weights) {
            let weights = both(pair);
            let (above, below) = (&above[at..][..2 * LANE], &below[at..][..2 * LANE]);
            add_two(load32(above, 0), load32(below, 0), weights, &mut left);
            add_two(load32(above, LANE), load32(below, LANE), weights, &mut right);
        }
        let out = &mut out[at..][..2 * LANE];
        out[..LANE].copy_from_slice(&bytes_of(left, shift));
        out[LANE..].copy_from_slice(&bytes_of(right, shift));
        at += 2 * LANE;
    }
    while at < bytes {
        // The last columns together with some that are done already, with the same result.
        let from = at.min(bytes - LANE);
        let mut sums = [half; 4];
        for (&[above, below], &pair) in rows.iter().zip(weights) {
            add_two(load32(above, from), load32(below, from), both(pair), &mut sums);
        }
        out[from..][..LANE].copy_from_slice(&bytes_of(sums, shift));
        at += LANE;
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn accumulate(rows: &[&[u8]], weights: &[i16], sums: &mut [i32]) {
    let whole = sums.len() - sums.len() % LANE;
    let (pairs, _) = rows.as_chunks::<2>();
    let (pair_weights, _) = weights.as_chunks::<2>();
    for (at, sums) in sums.as_chunks_mut::<LANE>().0.iter_mut().enumerate() {
        let mut running: [__m256i; 4] = bytemuck::cast(*sums);
        for (&[above, below], &pair) in pairs.iter().zip(pair_weights) {
            add_two(load32(above, at * LANE), load32(below, at * LANE), both(pair), &mut running);
        }
        *sums = bytemuck::cast(running);
    }
    for (row, &weight) in rows.iter().zip(weights) {
        for (sum, &value) in sums[whole..].iter_mut().zip(&row[whole..]) {
            *sum = sum.wrapping_add(i32::from(value).wrapping_mul(i32::from(weight)));
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn round(sums: &[i32], precision: u32, out: &mut [u8]) {
    let (half, shift) = (_mm256_set1_epi32(1 << (precision - 1)), _mm_cvtsi32_si128(precision as i32));
    let (blocks, rest) = sums.as_chunks::<LANE>();
    let (out, out_rest) = out.as_chunks_mut::<LANE>();
    for (sums, out) in blocks.iter().zip(out) {
        let mut sums: [__m256i; 4] = bytemuck::cast(*sums);
        for sum in &mut sums {
            *sum = _mm256_add_epi32(*sum, half);
        }
        *out = bytes_of(sums, shift);
    }
    portable::round(rest, precision, out_rest);
}

#[target_feature(enable = "avx2")]
pub(super) fn horizontal(rows: [&[u8]; BATCH], table: Table<'_>, out: [&mut [u8]; BATCH]) {
    // With a constant number of taps, the loop over them is unrolled.
    match table.taps {
        2 => horizontal_taps::<2>(rows, table, out),
        4 => horizontal_taps::<4>(rows, table, out),
        6 => horizontal_taps::<6>(rows, table, out),
        8 => horizontal_taps::<8>(rows, table, out),
        _ => horizontal_taps::<0>(rows, table, out),
    }
}

/// `TAPS` of 0 means any number.
#[inline]
#[target_feature(enable = "avx2")]
fn horizontal_taps<const TAPS: usize>(rows: [&[u8]; BATCH], table: Table<'_>, mut out: [&mut [u8]; BATCH]) {
    let taps = if TAPS == 0 { table.taps } else { TAPS };
    // All of the same length, so that one bounds check serves all four. (No closures here: they would be functions
    // without AVX2, or not be inlined.)
    let [row_0, row_1, row_2, row_3] = rows;
    let length = row_0.len().min(row_1.len()).min(row_2.len()).min(row_3.len());
    let (row_0, row_1, row_2, row_3) = (&row_0[..length], &row_1[..length], &row_2[..length], &row_3[..length]);
    let (starts, _) = table.starts.as_chunks::<GROUP>();
    let (half, shift) = (_mm256_set1_epi32(1 << (table.precision - 1)), _mm_cvtsi32_si128(table.precision as i32));
    // Pixels 0 and 1, then 2 and 3, of 16 bytes: red beside red, green beside green, blue beside blue.
    let first_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    let last_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    // Three of the four bytes of each pixel, to the front.
    let close = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (group, (starts, weights)) in starts.iter().zip(table.weights.chunks_exact(GROUP * taps)).enumerate() {
        // Red, green, blue and 0 as 16-bit values: of rows 0 and 2 in the lower lane, of rows 1 and 3 in the upper.
        let mut words = [half; GROUP];
        for ((word, &start), weights) in words.iter_mut().zip(starts).zip(weights.chunks_exact(taps)) {
            let start = start as usize * CHANNELS;
            // The last load begins at the last but one tap.
            let bytes = (taps - 2) * CHANNELS + 16;
            let (row_0, row_1) = (&row_0[start..][..bytes], &row_1[start..][..bytes]);
            let (row_2, row_3) = (&row_2[start..][..bytes], &row_3[start..][..bytes]);
            let mut at = 0;
            let (mut upper, mut lower) = (half, half);
            let (fours, rest) = weights.as_chunks::<4>();
            for &[a, b, c, d] in fours {
                let (ab, cd) = (both([a, b]), both([c, d]));
                let source = _mm256_set_m128i(load16(row_1, at), load16(row_0, at));
                upper = _mm256_add_epi32(upper, _mm256_madd_epi16(_mm256_shuffle_epi8(source, first_two), ab));
                upper = _mm256_add_epi32(upper, _mm256_madd_epi16(_mm256_shuffle_epi8(source, last_two), cd));
                let source = _mm256_set_m128i(load16(row_3, at), load16(row_2, at));
                lower = _mm256_add_epi32(lower, _mm256_madd_epi16(_mm256_shuffle_epi8(source, first_two), ab));
                lower = _mm256_add_epi32(lower, _mm256_madd_epi16(_mm256_shuffle_epi8(source, last_two), cd));
                at += 4 * CHANNELS;
            }
            if let &[a, b] = rest {
                let ab = both([a, b]);
                let source = _mm256_set_m128i(load16(row_1, at), load16(row_0, at));
                upper = _mm256_add_epi32(upper, _mm256_madd_epi16(_mm256_shuffle_epi8(source, first_two), ab));
                let source = _mm256_set_m128i(load16(row_3, at), load16(row_2, at));
                lower = _mm256_add_epi32(lower, _mm256_madd_epi16(_mm256_shuffle_epi8(source, first_two), ab));
            }
            *word = _mm256_packs_epi32(_mm256_sra_epi32(upper, shift), _mm256_sra_epi32(lower, shift));
        }
        // Pixels 0 and 1, 2 and 3: each of rows 0 and 2 in the lower lane, of rows 1 and 3 in the upper.
        let first = _mm256_castsi256_ps(_mm256_packus_epi16(words[0], words[1]));
        let last = _mm256_castsi256_ps(_mm256_packus_epi16(words[2], words[3]));
        let upper = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, last));
        let lower = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, last));
        let [made_0, made_1]: [[u8; 16]; 2] = bytemuck::cast(_mm256_shuffle_epi8(upper, close));
        let [made_2, made_3]: [[u8; 16]; 2] = bytemuck::cast(_mm256_shuffle_epi8(lower, close));
        for (out, made) in out.iter_mut().zip([made_0, made_1, made_2, made_3]) {
            // The last four bytes are overwritten by the next pixels.
            out[group * GROUP * CHANNELS..][..16].copy_from_slice(&made);
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn reverse(row: &[u8], out: &mut [u8]) {
    let backward = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, -1, -1, -1, -1);
    let bytes = row.len();
    // Four pixels at a time; the four bytes of slack behind them are overwritten by the next.
    let mut done = 0;
    while done + 16 <= bytes {
        let pixels = _mm_shuffle_epi8(load16(row, bytes - done - 16), backward);
        out[done..][..16].copy_from_slice(&bytemuck::cast::<_, [u8; 16]>(pixels));
        done += 12;
    }
    portable::reverse(&row[..bytes - done], &mut out[done..]);
}
