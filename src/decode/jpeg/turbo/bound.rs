//! Upper bound of the memory that libjpeg-turbo takes for an image, from the header alone. The arena is exactly that
//! large.
//!
//! The sizes are those of libjpeg-turbo 3.1.0 on a 64-bit machine; the tests compare them with the memory taken, for
//! every sampling. With one scan the bound does not depend on the image's height; with several, all coefficients are
//! kept.

use crate::decode::jpeg::frame::Frame;

/// Alignment of every piece, and of every row of samples (`shim.c`: `ALIGN`, `ROW_ALIGN`).
const ALIGN: u64 = 32;
const ROW_ALIGN: u64 = 64;

const POINTER: u64 = 8;
/// A block of 8 x 8 coefficients of 16 bits.
const BLOCK: u64 = 128;

/// The arena's own alignment, and the state of `shim.c`.
const STATE: u64 = (ROW_ALIGN - 1) + 2048;
/// Readers, controllers and the master record, which every image has.
const CONTROLLERS: u64 = 2432;
/// The table that clamps samples to a byte.
const RANGE_LIMIT: u64 = 1408;
/// Four quantization tables and eight Huffman tables, the most in a header.
const TABLES: u64 = 4 * 160 + 8 * 288;
/// Of each component: its record, its quantization table, and the table of its inverse transform.
const COMPONENT: u64 = 96 + 160 + 256;
/// The blocks of one MCU, where there is one scan.
const MCU: u64 = 10 * BLOCK;
/// A Huffman table expanded for look-up.
const DERIVED: u64 = 1344;
/// The tables of `huffman.h`, which needs all components in one scan.
const OWN_CODES: u64 = 22 << 10;
/// The adaptive statistics of arithmetic coding: all tables that can be named.
const STATISTICS: u64 = 16 * (64 + 256);
/// From YCC to RGB without SIMD, and as a step to CMYK.
const COLOR: u64 = 2 * 1024 + 2 * 2048;
/// Progress of each coefficient of a component, in a progressive file.
const PROGRESS: u64 = 2 * 64 * 4;

/// Upper bound of the arena for this image at 1/`denominator` of its size.
pub(super) fn arena_bytes(frame: &Frame, denominator: u32) -> u64 {
    let components = frame.components();
    let count = components.len() as u64;
    let (across, down) = frame.sampling_max();
    let (width, height) = (u64::from(frame.width), u64::from(frame.height));
    let scaled_width = width.div_ceil(u64::from(denominator));
    // Samples per side that a block of 8 x 8 coefficients becomes.
    let side = u64::from(8 / denominator);

    let mut bytes = STATE + CONTROLLERS + RANGE_LIMIT + TABLES + count * COMPONENT;
    bytes += if frame.arithmetic { STATISTICS } else { DERIVED * if frame.progressive { 4 } else { 8 } };
    bytes += if frame.progressive { count * PROGRESS } else { 0 };
    bytes += if frame.one_scan { MCU } else { 0 };
    bytes += if frame.one_scan && !frame.arithmetic { OWN_CODES } else { 0 };
    // Without SIMD, this is made for three components, too. And a row of CMYK before its conversion to RGB.
    bytes += if count >= 3 { COLOR } else { 0 };
    bytes += if count == 4 { up(4 * scaled_width, ALIGN) } else { 0 };

    // Samples between the inverse transform and the upsampler: one row of MCUs, and, where a pixel is made from those
    // around it, two more row groups, seen through two lists of pointers.
    let context = denominator < 8 && components.iter().any(|c| 2 * c.vertical == down);
    let groups = if context { side + 2 } else { side };
    bytes += if context { up(2 * count * POINTER, ALIGN) } else { 0 };
    for component in components {
        // The library scales color less than brightness where that saves it enlarging color afterwards.
        let mut own_side = side;
        while own_side < 8
            && (across * side).is_multiple_of(component.horizontal * own_side * 2)
            && (down * side).is_multiple_of(component.vertical * own_side * 2)
        {
            own_side *= 2;
        }
        let grown = own_side / side;
        let block_columns = (width * component.horizontal).div_ceil(8 * across);
        let block_rows = (height * component.vertical).div_ceil(8 * down);
        let group_rows = component.vertical * grown;
        bytes += rows(up(block_columns * own_side, ROW_ALIGN), group_rows * groups);
        if context {
            bytes += up(2 * group_rows * (side + 4) * POINTER, ALIGN);
        }
        if component.horizontal * grown != across || group_rows != down {
            bytes += rows(up(scaled_width.next_multiple_of(across), ROW_ALIGN), down);
        }
        if !frame.one_scan {
            let columns = block_columns.next_multiple_of(component.horizontal);
            bytes += ALIGN + rows(columns * BLOCK, block_rows.next_multiple_of(component.vertical));
        }
    }
    bytes
}

/// Rows of this many bytes, and a pointer to each.
fn rows(row_bytes: u64, count: u64) -> u64 {
    up(count * POINTER, ALIGN) + row_bytes * count
}

fn up(bytes: u64, to: u64) -> u64 {
    bytes.next_multiple_of(to)
}
