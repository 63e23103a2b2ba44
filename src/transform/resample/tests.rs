//! Compares the resampler with copies, with a slow one in floating point, and with itself: every kernel, rows of
//! different widths, every orientation.

use super::*;
use crate::rng::mix64;
use proptest::prelude::*;

const SPEC: SampleSpec = SampleSpec { height: 4, width: 4 };

fn numbered(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|i| i as u8).collect()
}

fn noise(width: u32, height: u32, seed: u64) -> Vec<u8> {
    (0..u64::from(width) * u64::from(height) * 3).map(|at| mix64(at ^ seed << 40) as u8).collect()
}

/// RGB image: rows of `width * 3` bytes.
#[derive(Clone, Copy)]
struct Image<'a> {
    data: &'a [u8],
    width: u32,
    height: u32,
}

impl<'a> Image<'a> {
    fn new(data: &'a [u8], width: u32, height: u32) -> Self {
        assert_eq!(data.len(), width as usize * height as usize * 3);
        Image { data, width, height }
    }

    /// Rows from `y` on, without their first `x` pixels.
    fn rows(self, x: u32, y: u32) -> impl FnMut(&mut [u8]) -> Result<(), TransformError> + 'a {
        let mut from = (y as usize * self.width as usize + x as usize) * 3;
        move |row| {
            row.copy_from_slice(&self.data[from..][..row.len()]);
            from += self.width as usize * 3;
            Ok(())
        }
    }
}

/// Resamples in a workspace of the promised size, full of noise, between guards; checks the guards.
fn with_workspace<T>(bound: u64, seed: u64, run: impl FnOnce(&mut [u8]) -> T) -> T {
    const GUARD: usize = 100;
    let skew = (seed % 64) as usize;
    let mut memory: Vec<u8> = (0..bound as usize + 2 * GUARD + skew).map(|at| mix64(at as u64 ^ seed) as u8).collect();
    let before = memory.clone();
    let (start, end) = (GUARD + skew, GUARD + skew + bound as usize);
    let result = run(&mut memory[start..end]);
    assert!(memory[..start] == before[..start] && memory[end..] == before[end..], "a guard was overwritten");
    result
}

fn apply(image: Image<'_>, geometry: &Geometry, spec: SampleSpec, out: &mut [u8]) -> Result<(), TransformError> {
    let bound = Resampler::working_set(image.width, image.height, spec, Orientation::UPRIGHT);
    let (x, rows) = (geometry.crop.x, image.rows(0, geometry.crop.y));
    with_workspace(bound, 1, |workspace| Resampler::new(*geometry, spec).apply(image.width, x, rows, workspace, out))
}

#[test]
fn an_unscaled_crop_is_copied() {
    let pixels = numbered(6, 5);
    let image = Image::new(&pixels, 6, 5);
    let crop = Region { x: 2, y: 1, width: 4, height: 4 };
    for flip in [false, true] {
        let mut out = [0; 48];
        apply(image, &Geometry::stretch(crop, SPEC, flip), SPEC, &mut out).expect("fits");
        for y in 0..4 {
            for x in 0..4 {
                let shown = if flip { 3 - x } else { x };
                let from = ((1 + y) * 6 + 2 + shown) * 3;
                assert_eq!(out[(y * 4 + x) * 3..][..3], pixels[from..][..3], "{x},{y} {flip}");
            }
        }
    }
}

#[test]
fn pixels_outside_the_target_are_black() {
    let pixels = [200; 2 * 3 * 3];
    let image = Image::new(&pixels, 2, 3);
    let target = Region { x: 1, y: 0, width: 2, height: 3 };
    let geometry = Geometry { target, ..Geometry::stretch(Region::whole(2, 3), SPEC, true) };
    let mut out = [9; 48];
    apply(image, &geometry, SPEC, &mut out).expect("fits");
    let lit: Vec<usize> = (0..16).filter(|i| out[i * 3..][..3] == [200; 3]).collect();
    assert_eq!(lit, [1, 2, 5, 6, 9, 10]);
    assert_eq!(out.iter().filter(|&&v| v == 0).count(), 48 - 18);
    // Scaled into a part of the sample, and mirrored with its black.
    let target = Region { x: 0, y: 1, width: 3, height: 2 };
    for (flip, expected) in [(false, [4, 5, 6, 8, 9, 10]), (true, [5, 6, 7, 9, 10, 11])] {
        apply(image, &Geometry { target, flip, ..geometry }, SPEC, &mut out).expect("fits");
        let lit: Vec<usize> = (0..16).filter(|i| out[i * 3..][..3] == [200; 3]).collect();
        assert_eq!(lit, expected);
    }
}

#[test]
fn the_filter_does_not_reach_out_of_the_crop() {
    // White around a black middle: if the filter reached out of the crop, its edges would be gray.
    let mut pixels = vec![255; 30 * 30 * 3];
    for y in 10..20 {
        pixels[(y * 30 + 10) * 3..][..30].fill(0);
    }
    let crop = Region { x: 10, y: 10, width: 10, height: 10 };
    let mut out = [1; 48];
    let image = Image::new(&pixels, 30, 30);
    apply(image, &Geometry::stretch(crop, SPEC, false), SPEC, &mut out).expect("fits");
    assert_eq!(out, [0; 48]);
    // It reaches out of a source box inside a larger crop.
    let source_box = [10.0, 10.0, 10.0, 10.0];
    let geometry = Geometry { source_box, ..Geometry::stretch(Region::whole(30, 30), SPEC, false) };
    apply(image, &geometry, SPEC, &mut out).expect("fits");
    assert!(out[0] > 0 && out[(4 + 1) * 3] < out[0], "{out:?}");
}

#[test]
fn misuse_is_an_error_with_its_numbers() {
    let pixels = numbered(6, 5);
    let image = Image::new(&pixels, 6, 5);
    let good = Geometry::stretch(Region::whole(6, 5), SPEC, false);
    let error = apply(image, &good, SPEC, &mut [0; 47]).expect_err("short");
    assert_eq!(error.to_string(), "a sample has 48 bytes, but the output has 47");
    for bad in [
        Geometry { crop: Region { x: 1, ..Region::whole(6, 5) }, ..good },
        Geometry { crop: Region { x: u32::MAX, ..Region::whole(6, 5) }, ..good },
        Geometry { crop: Region::whole(0, 5), ..good },
        Geometry { target: Region::whole(5, 4), ..good },
        Geometry { target: Region::whole(4, 0), ..good },
        Geometry { source_box: [0.0, 0.0, 6.1, 5.0], ..good },
        Geometry { source_box: [0.0, -1.0, 6.0, 5.0], ..good },
        Geometry { source_box: [0.0, 0.0, 0.0, 5.0], ..good },
        Geometry { source_box: [0.0, f64::NAN, 6.0, 5.0], ..good },
    ] {
        let error = apply(image, &bad, SPEC, &mut [0; 48]).expect_err("misfit");
        assert!(matches!(error, TransformError::Geometry { .. }), "{error}");
        assert!(error.to_string().contains("an image of 6x5 and a sample of 4x4x3"), "{error}");
    }
    let never = |_: &mut [u8]| -> Result<(), TransformError> { panic!("no row is pulled") };
    let error = Resampler::new(good, SPEC).apply(6, 0, never, &mut [0; 100], &mut [0; 48]).expect_err("too small");
    assert!(matches!(error, TransformError::Workspace { needed_bytes: 101.., given_bytes: 100 }), "{error}");
    // The crop has to lie within a row.
    let mut workspace = vec![0; Resampler::working_set(7, 5, SPEC, Orientation::UPRIGHT) as usize];
    let error = Resampler::new(good, SPEC).apply(7, 2, never, &mut workspace, &mut [0; 48]).expect_err("beyond");
    assert!(matches!(error, TransformError::Geometry { width: 7, .. }), "{error:?}");
}

#[derive(Debug, PartialEq)]
struct RowError(u32);

impl From<TransformError> for RowError {
    fn from(error: TransformError) -> Self {
        panic!("{error}")
    }
}

#[test]
fn errors_of_the_row_source_are_returned() {
    let geometry = Geometry::stretch(Region::whole(6, 9), SPEC, false);
    let mut workspace = vec![0; Resampler::working_set(6, 9, SPEC, Orientation::UPRIGHT) as usize];
    let mut rows = 0;
    let mut next_row = |row: &mut [u8]| {
        assert_eq!(row.len(), 18);
        rows += 1;
        if rows == 4 { Err(RowError(rows)) } else { Ok(()) }
    };
    let outcome = Resampler::new(geometry, SPEC).apply(6, 0, &mut next_row, &mut workspace, &mut [0; 48]);
    assert_eq!(outcome, Err(RowError(4)));
    assert_eq!(rows, 4, "nothing is pulled after an error");
}

/// The filter by its definition, in floating point, with no rounding between the passes.
fn slow(image: Image<'_>, geometry: &Geometry, spec: SampleSpec) -> Vec<f64> {
    let Geometry { crop, source_box: [left, top, width, height], target, flip } = *geometry;
    let weights = |start: f64, span: f64, count: u32, length: u32| -> Vec<Vec<f64>> {
        let scale = span / f64::from(count);
        let each = |at: u32| {
            let middle = start + (f64::from(at) + 0.5) * scale;
            let raw = |x: u32| (1.0 - (f64::from(x) + 0.5 - middle).abs() / scale.max(1.0)).max(0.0);
            let sum: f64 = (0..length).map(raw).sum();
            (0..length).map(|x| raw(x) / sum).collect()
        };
        (0..count).map(each).collect()
    };
    let across = weights(left, width, target.width, crop.width);
    let down = weights(top, height, target.height, crop.height);
    let mut out = vec![0.0; spec.elements()];
    for (y, down) in down.iter().enumerate() {
        for c in 0..CHANNELS {
            let column = |x: usize| -> f64 {
                let at = |row: usize| ((crop.y as usize + row) * image.width as usize + crop.x as usize + x) * 3 + c;
                down.iter()
                    .enumerate()
                    .filter(|(_, w)| **w > 0.0)
                    .map(|(row, w)| w * f64::from(image.data[at(row)]))
                    .sum()
            };
            let columns: Vec<f64> = (0..crop.width as usize).map(column).collect();
            for (x, across) in across.iter().enumerate() {
                let shown = target.x as usize + x;
                let shown = if flip { spec.width as usize - 1 - shown } else { shown };
                out[((target.y as usize + y) * spec.width as usize + shown) * 3 + c] =
                    across.iter().zip(&columns).map(|(w, v)| w * v).sum();
            }
        }
    }
    out
}

/// Turns the stored pixels upright.
fn oriented(pixels: &[u8], width: u32, height: u32, exif: u8) -> Vec<u8> {
    let (w, h) = (width as usize, height as usize);
    let (seen_width, seen_height) = if exif > 4 { (h, w) } else { (w, h) };
    let mut seen = Vec::with_capacity(pixels.len());
    for y in 0..seen_height {
        for x in 0..seen_width {
            let (column, row) = match exif {
                1 => (x, y),
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            seen.extend_from_slice(&pixels[(row * w + column) * 3..][..3]);
        }
    }
    seen
}

#[derive(Clone, Debug)]
struct Case {
    width: u32,
    height: u32,
    geometry: Geometry,
    spec: SampleSpec,
    seed: u64,
}

/// Images up to `side`, with crops and source boxes of all sorts: whole, on whole pixels, as large as the target, any.
fn cases(side: u32, out_side: u32) -> impl Strategy<Value = Case> {
    let share = || 0.0f64..1.0;
    let axis =
        move || (1..=side, share(), share(), 0u32..5, share(), share(), 1..=out_side, share(), share(), any::<bool>());
    (axis(), axis(), any::<bool>(), any::<u64>()).prop_map(|(across, down, flip, seed)| {
        let axis = |(all, at, length, kind, start, span, out, to, many, fill): (
            u32,
            f64,
            f64,
            u32,
            f64,
            f64,
            u32,
            f64,
            f64,
            bool,
        )| {
            let mut at = (f64::from(all) * at) as u32;
            let mut length = 1 + (f64::from(all - at - 1) * length) as u32;
            if kind < 2 {
                (at, length) = (0, all);
            }
            let (to, mut many) = if fill {
                (0, out)
            } else {
                let to = (f64::from(out) * to) as u32;
                (to, 1 + (f64::from(out - to - 1) * many) as u32)
            };
            let whole = f64::from(length);
            let (start, span) = match kind {
                0 | 2 => (0.0, whole),
                1 => {
                    many = many.min(length);
                    ((start * f64::from(length - many)).floor(), f64::from(many))
                }
                _ => {
                    let span = (whole * span).max(0.01).min(whole);
                    (start * (whole - span), span)
                }
            };
            (all, at, length, start, span, out, to, many)
        };
        let (width, x, columns, left, box_width, out_width, target_x, target_width) = axis(across);
        let (height, y, rows, top, box_height, out_height, target_y, target_height) = axis(down);
        let geometry = Geometry {
            crop: Region { x, y, width: columns, height: rows },
            source_box: [left, top, box_width, box_height],
            target: Region { x: target_x, y: target_y, width: target_width, height: target_height },
            flip,
        };
        Case { width, height, geometry, spec: SampleSpec { height: out_height, width: out_width }, seed }
    })
}

fn check(case: &Case, exif: u8) -> Result<(), TestCaseError> {
    let Case { width, height, geometry: seen, spec, seed } = case.clone();
    let orientation = Orientation::from_exif(exif);
    // The case is of the upright image; the stored one may be turned.
    let (stored_width, stored_height) = orientation.sides(width, height);
    let pixels = noise(stored_width, stored_height, seed);
    let image = Image::new(&pixels, stored_width, stored_height);
    let seen_pixels = oriented(&pixels, stored_width, stored_height, exif);
    let seen_image = Image::new(&seen_pixels, width, height);
    let geometry = seen.stored(orientation, stored_width, stored_height);
    let resampler = Resampler::new(geometry, spec).oriented(orientation);

    let (crop, mut out) = (geometry.crop, vec![0x5A; spec.elements()]);
    let bound = Resampler::working_set(stored_width, stored_height, spec, orientation);
    let made = with_workspace(bound, seed, |workspace| {
        resampler.apply(stored_width, crop.x, image.rows(0, crop.y), workspace, &mut out)
    });
    prop_assert_eq!(made, Ok(()));
    // Every kernel, other rows around the crop, whatever the workspace holds.
    let mut other = vec![0xA5; spec.elements()];
    let (left, after) = (crop.x.min((seed % 20) as u32), (stored_width - crop.x - crop.width).min((seed % 7) as u32));
    let row_pixels = left + crop.width + after;
    let bound = Resampler::working_set(row_pixels, crop.height, spec, orientation);
    for kernel in [Kernel::best(), Kernel::PORTABLE] {
        let mut rows = image.rows(crop.x - left, crop.y);
        let mut pulled = 0;
        let next_row = |row: &mut [u8]| {
            assert_eq!(row.len(), row_pixels as usize * 3);
            assert!(pulled < crop.height, "no row below the crop is pulled");
            pulled += 1;
            rows(row)
        };
        other.fill(0x33);
        let made = with_workspace(bound, seed ^ 77, |workspace| {
            resampler.apply_with(kernel, (row_pixels, left), next_row, workspace, &mut other)
        });
        prop_assert_eq!(made, Ok(()));
        prop_assert!(out == other, "kernels or rows differ");
    }
    // Turned first, then resampled: the same bytes, unless the passes have changed places.
    apply(seen_image, &seen, spec, &mut other).expect("fits");
    let most = out.iter().zip(&other).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    prop_assert!(most <= u8::from(orientation.swaps_sides()), "{} levels from the turned image", most);
    let slow = slow(seen_image, &seen, spec);
    for (at, (&got, &want)) in out.iter().zip(&slow).enumerate() {
        // Each pass rounds once, by half a level at most; weights are off by a few hundredths.
        prop_assert!((f64::from(got) - want).abs() < 1.1, "{}: {} for {}", at, got, want);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn every_way_gives_the_same_sample(case in cases(70, 24), exif in 1u8..=8) {
        check(&case, exif)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_way_gives_the_same_sample_wide(case in cases(400, 12), exif in 1u8..=8) {
        check(&case, exif)?;
    }

    #[test]
    fn one_color_stays_that_color(case in cases(300, 40), value in any::<u8>()) {
        let Case { width, height, mut geometry, spec, .. } = case;
        geometry.target = Region::whole(spec.width, spec.height);
        let pixels = vec![value; (width * height * 3) as usize];
        let mut out = vec![!value; spec.elements()];
        prop_assert_eq!(apply(Image::new(&pixels, width, height), &geometry, spec, &mut out), Ok(()));
        prop_assert!(out.iter().all(|&v| v == value));
    }

    #[test]
    fn more_pixels_never_need_less(
        width in 1u32..5000, height in 1u32..5000, wider in 0u32..70, higher in 0u32..70, side in 1u32..300,
        exif in 1u8..=8,
    ) {
        let (spec, orientation) = (SampleSpec { height: side, width: side }, Orientation::from_exif(exif));
        let need = |width, height| Resampler::working_set(width, height, spec, orientation);
        prop_assert!(need(width, height) <= need(width + wider, height + higher));
    }
}

#[test]
fn a_workspace_stays_small() {
    let spec = SampleSpec { height: 224, width: 224 };
    let need = |width, height| Resampler::working_set(width, height, spec, Orientation::from_exif(6));
    assert!(need(500, 375) < 256 << 10, "{}", need(500, 375));
    assert!(need(4000, 3000) < 1 << 20, "{}", need(4000, 3000));
    assert!(need(12_000, 9000) < 2 << 20, "{}", need(12_000, 9000));
}
