//! Conversion of a codec's output to RGB8, in place and without allocating.
//!
//! - Gray is repeated over the three channels.
//! - 16 bits are rounded, not cut: `(v * 255 + 32767) / 65535`, so that white stays white and the mean does not sink.
//! - Alpha (never premultiplied) is composited on a background color. The sum is rounded once, at 8 bits, also where
//!   both have 16.
//! - Floats are taken as `[0, 1]` and clamped; NaN is 0.
//! - Color profiles and gamma are ignored.

use image::ColorType;

/// Converts `pixels` pixels of type `color` at the front of `bytes` to RGB8, composited on `background`. Returns `None`
/// for an unknown color type, and leaves `bytes` as it was.
pub(super) fn to_rgb8(bytes: &mut [u8], pixels: usize, color: ColorType, background: [u8; 3]) -> Option<()> {
    let [red, green, blue] = background;
    match color {
        ColorType::Rgb8 => {}
        ColorType::L8 => rewrite(bytes, pixels, |[v]: [u8; 1]| [v; 3]),
        ColorType::La8 => rewrite(bytes, pixels, |[v, a]: [u8; 2]| background.map(|b| over(b, v, a))),
        ColorType::Rgba8 => {
            rewrite(bytes, pixels, |[r, g, b, a]: [u8; 4]| [over(red, r, a), over(green, g, a), over(blue, b, a)]);
        }
        ColorType::L16 => rewrite(bytes, pixels, |[v0, v1]: [u8; 2]| [round16(v0, v1); 3]),
        ColorType::La16 => {
            rewrite(bytes, pixels, |[v0, v1, a0, a1]: [u8; 4]| background.map(|b| over16(b, [v0, v1], [a0, a1])));
        }
        ColorType::Rgb16 => rewrite(bytes, pixels, |[r0, r1, g0, g1, b0, b1]: [u8; 6]| {
            [round16(r0, r1), round16(g0, g1), round16(b0, b1)]
        }),
        ColorType::Rgba16 => rewrite(bytes, pixels, |[r0, r1, g0, g1, b0, b1, a0, a1]: [u8; 8]| {
            let alpha = [a0, a1];
            [over16(red, [r0, r1], alpha), over16(green, [g0, g1], alpha), over16(blue, [b0, b1], alpha)]
        }),
        ColorType::Rgb32F => rewrite(bytes, pixels, |p: [u8; 12]| {
            [float(&p, 0), float(&p, 1), float(&p, 2)].map(|v| (v * 255.0).round() as u8)
        }),
        ColorType::Rgba32F => rewrite(bytes, pixels, |p: [u8; 16]| {
            let alpha = float(&p, 3);
            let over = |index, b| (float(&p, index) * alpha * 255.0 + f32::from(b) * (1.0 - alpha)).round() as u8;
            [over(0, red), over(1, green), over(2, blue)]
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

/// Composites `value` on `background`, rounded to the nearest.
fn over(background: u8, value: u8, alpha: u8) -> u8 {
    let (seen, through) = (u32::from(alpha), u32::from(255 - alpha));
    ((u32::from(value) * seen + u32::from(background) * through + 127) / 255) as u8
}

fn round16(low: u8, high: u8) -> u8 {
    ((u32::from(u16::from_ne_bytes([low, high])) * 255 + 32_767) / 65_535) as u8
}

/// Composites a 16-bit value as [`over`] does: 255 and 65535 are the same white.
fn over16(background: u8, value: [u8; 2], alpha: [u8; 2]) -> u8 {
    const WHITE: u64 = 65_535 * 65_535;
    let alpha = u64::from(u16::from_ne_bytes(alpha));
    let product = u64::from(u16::from_ne_bytes(value)) * alpha + u64::from(background) * 257 * (65_535 - alpha);
    ((product * 255 + WHITE / 2) / WHITE) as u8
}

/// Returns the float at `index`, clamped to `[0, 1]`.
fn float(pixel: &[u8], index: usize) -> f32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&pixel[index * 4..][..4]);
    let value = f32::from_ne_bytes(bytes);
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(native: &[u8], pixels: usize, color: ColorType) -> Vec<u8> {
        converted_on([0; 3], native, pixels, color)
    }

    fn converted_on(background: [u8; 3], native: &[u8], pixels: usize, color: ColorType) -> Vec<u8> {
        let mut bytes = native.to_vec();
        bytes.resize(native.len().max(pixels * 3), 0xAA);
        to_rgb8(&mut bytes, pixels, color, background).expect("known");
        bytes.truncate(pixels * 3);
        bytes
    }

    fn ne16(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    #[test]
    fn every_color_type_becomes_rgb() {
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
    fn transparent_pixels_show_the_background() {
        let background = [10, 100, 255];
        let on = |native: &[u8], color| converted_on(background, native, 1, color);
        assert_eq!(on(&[200, 0], ColorType::La8), background);
        assert_eq!(on(&[200, 255], ColorType::La8), [200; 3]);
        assert_eq!(on(&[0, 51], ColorType::La8), [8, 80, 204]);
        assert_eq!(on(&[9, 9, 9, 0], ColorType::Rgba8), background);
        assert_eq!(on(&[20, 0, 0, 128], ColorType::Rgba8), [15, 50, 127]);
        assert_eq!(on(&ne16(&[0, 0]), ColorType::La16), background);
        assert_eq!(on(&ne16(&[65_535, 1, 2, 0]), ColorType::Rgba16), background);
        assert_eq!(on(&ne16(&[65_535, 65_535, 65_535, 65_535]), ColorType::Rgba16), [255; 3]);
        assert_eq!(on(&ne16(&[0, 0, 0, 13_107]), ColorType::Rgba16), [8, 80, 204]);
        let float = |values: [f32; 4]| -> Vec<u8> { values.iter().flat_map(|v| v.to_ne_bytes()).collect() };
        assert_eq!(on(&float([1.0, 1.0, 1.0, f32::NAN]), ColorType::Rgba32F), background);
        assert_eq!(on(&float([0.0, 0.0, 0.0, 0.2]), ColorType::Rgba32F), [8, 80, 204]);
        // Color types without alpha do not.
        assert_eq!(on(&[7, 8, 9], ColorType::Rgb8), [7, 8, 9]);
        assert_eq!(on(&[7], ColorType::L8), [7; 3]);
    }

    #[test]
    fn compositing_is_rounded_to_the_nearest() {
        for alpha in 0..=255u8 {
            for value in 0..=255u8 {
                for background in [0, 1, 77, 128, 254, 255] {
                    let share = f64::from(alpha) / 255.0;
                    let exact = f64::from(value) * share + f64::from(background) * (1.0 - share);
                    let found = over(background, value, alpha);
                    assert!((f64::from(found) - exact).abs() <= 0.5 + 1e-9, "{value} {alpha} {background}: {found}");
                    let wide = |v: u8| (u16::from(v) * 257).to_ne_bytes();
                    assert_eq!(over16(background, wide(value), wide(alpha)), found, "{value} {alpha} {background}");
                }
            }
        }
    }

    #[test]
    fn sixteen_bits_are_rounded_to_the_nearest() {
        for value in 0..=u16::MAX {
            let [low, high] = value.to_ne_bytes();
            assert_eq!(round16(low, high), (f64::from(value) / 257.0).round() as u8, "{value}");
        }
    }
}
