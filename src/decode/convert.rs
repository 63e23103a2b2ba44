//! Owns the step from what a codec writes to RGB8, in place. It must never allocate.
//!
//! - Grey is repeated over the three channels.
//! - 16 bits are rounded, not cut: `(v * 255 + 32767) / 65535`, so that white stays white and the mean does not sink.
//! - Alpha is composited over black: what is transparent is black, whatever colour hides under it.
//! - Floats are taken as `[0, 1]` and clamped; NaN is black.

use image::ColorType;

/// Turns `pixels` pixels of `color`, which lie at the front of `bytes`, into RGB8 at the front of `bytes`.
/// `None` where this colour type is not known; `bytes` is then as before.
pub(super) fn to_rgb8(bytes: &mut [u8], pixels: usize, color: ColorType) -> Option<()> {
    match color {
        ColorType::Rgb8 => {}
        ColorType::L8 => rewrite(bytes, pixels, |[v]: [u8; 1]| [v; 3]),
        ColorType::La8 => rewrite(bytes, pixels, |[v, a]: [u8; 2]| [over_black(v, a); 3]),
        ColorType::Rgba8 => {
            rewrite(bytes, pixels, |[r, g, b, a]: [u8; 4]| [over_black(r, a), over_black(g, a), over_black(b, a)]);
        }
        ColorType::L16 => rewrite(bytes, pixels, |[v0, v1]: [u8; 2]| [round16(v0, v1); 3]),
        ColorType::La16 => {
            rewrite(bytes, pixels, |[v0, v1, a0, a1]: [u8; 4]| [over_black16([v0, v1], [a0, a1]); 3]);
        }
        ColorType::Rgb16 => rewrite(bytes, pixels, |[r0, r1, g0, g1, b0, b1]: [u8; 6]| {
            [round16(r0, r1), round16(g0, g1), round16(b0, b1)]
        }),
        ColorType::Rgba16 => rewrite(bytes, pixels, |[r0, r1, g0, g1, b0, b1, a0, a1]: [u8; 8]| {
            let alpha = [a0, a1];
            [over_black16([r0, r1], alpha), over_black16([g0, g1], alpha), over_black16([b0, b1], alpha)]
        }),
        ColorType::Rgb32F => rewrite(bytes, pixels, |p: [u8; 12]| {
            [float(&p, 0), float(&p, 1), float(&p, 2)].map(|v| (v * 255.0).round() as u8)
        }),
        ColorType::Rgba32F => rewrite(bytes, pixels, |p: [u8; 16]| {
            let alpha = float(&p, 3);
            [float(&p, 0), float(&p, 1), float(&p, 2)].map(|v| (v * alpha * 255.0).round() as u8)
        }),
        _ => return None,
    }
    Some(())
}

/// Rewrites pixels of `S` bytes as pixels of three. Narrow pixels are widened from the last to the first, wide ones
/// narrowed from the first to the last: either way a pixel is read before anything is written over it.
fn rewrite<const S: usize>(bytes: &mut [u8], pixels: usize, convert: impl Fn([u8; S]) -> [u8; 3]) {
    let mut one = |at: usize| {
        let mut pixel = [0; S];
        pixel.copy_from_slice(&bytes[at * S..][..S]);
        bytes[at * 3..][..3].copy_from_slice(&convert(pixel));
    };
    if S < 3 {
        (0..pixels).rev().for_each(&mut one);
    } else {
        (0..pixels).for_each(&mut one);
    }
}

fn over_black(value: u8, alpha: u8) -> u8 {
    ((u32::from(value) * u32::from(alpha) + 127) / 255) as u8
}

fn round16(low: u8, high: u8) -> u8 {
    ((u32::from(u16::from_ne_bytes([low, high])) * 255 + 32_767) / 65_535) as u8
}

fn over_black16(value: [u8; 2], alpha: [u8; 2]) -> u8 {
    const WHITE: u64 = 65_535 * 65_535;
    let product = u64::from(u16::from_ne_bytes(value)) * u64::from(u16::from_ne_bytes(alpha));
    ((product * 255 + WHITE / 2) / WHITE) as u8
}

/// The float at place `index`, in `[0, 1]`.
fn float(pixel: &[u8], index: usize) -> f32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&pixel[index * 4..][..4]);
    // NaN stays NaN here, and is 0 once it is cast.
    f32::from_ne_bytes(bytes).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(native: &[u8], pixels: usize, color: ColorType) -> Vec<u8> {
        let mut bytes = native.to_vec();
        bytes.resize(native.len().max(pixels * 3), 0xAA);
        to_rgb8(&mut bytes, pixels, color).expect("known");
        bytes.truncate(pixels * 3);
        bytes
    }

    fn ne16(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    #[test]
    fn every_colour_type_becomes_rgb() {
        let float = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_ne_bytes()).collect() };
        assert_eq!(converted(&[1, 2, 3, 4], 4, ColorType::L8), [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
        assert_eq!(converted(&[200, 255, 200, 128, 9, 0], 3, ColorType::La8), [200, 200, 200, 100, 100, 100, 0, 0, 0]);
        assert_eq!(converted(&[1, 2, 3, 4, 5, 6], 2, ColorType::Rgb8), [1, 2, 3, 4, 5, 6]);
        assert_eq!(converted(&[10, 20, 30, 255, 255, 90, 3, 51], 2, ColorType::Rgba8), [10, 20, 30, 51, 18, 1]);
        assert_eq!(converted(&ne16(&[65_535, 128, 129]), 3, ColorType::L16), [255, 255, 255, 0, 0, 0, 1, 1, 1]);
        assert_eq!(converted(&ne16(&[65_535, 32_768]), 1, ColorType::La16), [128, 128, 128]);
        assert_eq!(converted(&ne16(&[0, 257, 65_535]), 1, ColorType::Rgb16), [0, 1, 255]);
        assert_eq!(converted(&ne16(&[257, 514, 65_535, 65_535]), 1, ColorType::Rgba16), [1, 2, 255]);
        assert_eq!(converted(&float(&[f32::NAN, 0.5, 7.0]), 1, ColorType::Rgb32F), [0, 128, 255]);
        assert_eq!(converted(&float(&[1.0, -3.0, 1.0, 0.2]), 1, ColorType::Rgba32F), [51, 0, 51]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_the_nearest() {
        for value in 0..=u16::MAX {
            let [low, high] = value.to_ne_bytes();
            assert_eq!(round16(low, high), (f64::from(value) / 257.0).round() as u8, "{value}");
        }
    }
}
