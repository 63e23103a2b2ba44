//! Portable loops, the reference for the others.
//!
//! Sums stay below 2^30 (weights sum to one, with at most 21 binary places). They are added as if they could wrap
//! because overflow checks at each step would keep the compiler from vector code.

use super::table::{BATCH, Table};
use crate::tensor::CHANNELS;

/// Bytes of a row that are summed together: their sums stay in registers.
const COLUMNS: usize = 16;

pub(super) fn vertical(rows: &[&[u8]], weights: &[i16], precision: u32, out: &mut [u8]) {
    each_block(rows, weights, out.len(), |at, sums| {
        for (out, sum) in out[at..].iter_mut().zip(sums) {
            *out = rounded(*sum, precision);
        }
    });
}

pub(super) fn accumulate(rows: &[&[u8]], weights: &[i16], sums: &mut [i32]) {
    each_block(rows, weights, sums.len(), |at, more| {
        for (sum, more) in sums[at..].iter_mut().zip(more) {
            *sum = sum.wrapping_add(*more);
        }
    });
}

pub(super) fn round(sums: &[i32], precision: u32, out: &mut [u8]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = rounded(*sum, precision);
    }
}

pub(super) fn horizontal(rows: [&[u8]; BATCH], table: Table<'_>, out: [&mut [u8]; BATCH]) {
    for (row, out) in rows.into_iter().zip(out) {
        horizontal_row(row, table, out);
    }
}

fn horizontal_row(row: &[u8], table: Table<'_>, out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<CHANNELS>();
    let (out, _) = out.as_chunks_mut::<CHANNELS>();
    for ((&start, weights), out) in table.starts.iter().zip(table.weights.chunks_exact(table.taps)).zip(out) {
        let mut sums = [0i32; CHANNELS];
        for (pixel, &weight) in pixels[start as usize..][..table.taps].iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(i32::from(weight)));
            }
        }
        *out = sums.map(|sum| rounded(sum, table.precision));
    }
}

pub(super) fn reverse(row: &[u8], out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<CHANNELS>();
    for (out, pixel) in out.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(pixels.iter().rev()) {
        *out = *pixel;
    }
}

/// Rounds to the nearest level, halves upward. Weights are not negative and sum to one, so the result is a level.
#[inline(always)]
fn rounded(sum: i32, precision: u32) -> u8 {
    (sum.wrapping_add(1 << (precision - 1)) >> precision) as u8
}

#[inline(always)]
fn each_block(rows: &[&[u8]], weights: &[i16], bytes: usize, mut with: impl FnMut(usize, &[i32])) {
    let (pairs, _) = rows.as_chunks::<2>();
    let (pair_weights, _) = weights.as_chunks::<2>();
    let whole = bytes - bytes % COLUMNS;
    for at in (0..whole).step_by(COLUMNS) {
        let mut sums = [0i32; COLUMNS];
        for ([above, below], [a, b]) in pairs.iter().zip(pair_weights) {
            let (above, below) = (&above[at..][..COLUMNS], &below[at..][..COLUMNS]);
            // Two products of 16 bits and their sum are one instruction of most processors.
            for column in 0..COLUMNS {
                let above = i32::from(i16::from(above[column])).wrapping_mul(i32::from(*a));
                let below = i32::from(i16::from(below[column])).wrapping_mul(i32::from(*b));
                sums[column] = sums[column].wrapping_add(above.wrapping_add(below));
            }
        }
        with(at, &sums);
    }
    let mut sums = [0i32; COLUMNS];
    for (row, &weight) in rows.iter().zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(&row[whole..]) {
            *sum = sum.wrapping_add(i32::from(value).wrapping_mul(i32::from(weight)));
        }
    }
    with(whole, &sums[..bytes - whole]);
}
