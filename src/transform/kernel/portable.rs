//! Owns the loops that every processor runs, and that say what the others have to give. They must never differ from the
//! sums of integers that `kernel` describes.
//!
//! Sums stay below 2^30 (weights sum to one, at most 21 binary places). They are added as if they could wrap because
//! looking for overflow at each step would keep the compiler from vector code.

use super::Table;
use crate::tensor::CHANNELS;

/// Bytes of a row that are summed together: as many sums as stay in registers.
const COLUMNS: usize = 16;

pub(super) fn down(rows: &[&[u8]], weights: &[i16], places: u32, out: &mut [u8]) {
    each_block(rows, weights, out.len(), |at, sums| {
        for (out, sum) in out[at..].iter_mut().zip(sums) {
            *out = rounded(*sum, places);
        }
    });
}

pub(super) fn gather(rows: &[&[u8]], weights: &[i16], sums: &mut [i32]) {
    each_block(rows, weights, sums.len(), |at, more| {
        for (sum, more) in sums[at..].iter_mut().zip(more) {
            *sum = sum.wrapping_add(*more);
        }
    });
}

pub(super) fn settle(sums: &[i32], places: u32, out: &mut [u8]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = rounded(*sum, places);
    }
}

pub(super) fn along(row: &[u8], table: Table<'_>, out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<CHANNELS>();
    let (out, _) = out.as_chunks_mut::<CHANNELS>();
    for ((&start, weights), out) in table.starts.iter().zip(table.weights.chunks_exact(table.taps)).zip(out) {
        let mut sums = [0i32; CHANNELS];
        for (pixel, &weight) in pixels[start as usize..][..table.taps].iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(i32::from(weight)));
            }
        }
        *out = sums.map(|sum| rounded(sum, table.places));
    }
}

pub(super) fn reverse(row: &[u8], out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<CHANNELS>();
    for (out, pixel) in out.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(pixels.iter().rev()) {
        *out = *pixel;
    }
}

/// To the nearest level, halves upward. Weights are not negative and sum to one, so it is a level.
#[inline(always)]
fn rounded(sum: i32, places: u32) -> u8 {
    (sum.wrapping_add(1 << (places - 1)) >> places) as u8
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
