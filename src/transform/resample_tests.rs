//! Owns what is expected of a resampling. It must never rest on the kernel's own sums for what is right: a plain filter in
//! floating point says it.

use std::convert::Infallible;

use super::*;
use crate::units::mix64;
use proptest::prelude::*;

const SPEC: SampleSpec = SampleSpec { height: 4, width: 4 };

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    (0..bytes as u64).map(|at| mix64(at ^ seed << 32) as u8).collect()
}

/// Smooth and rough at once, so that an error of the filter shows.
fn picture(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let noise = noise(width as usize * height as usize * CHANNELS, seed);
    let at = |i: usize| {
        ((i / CHANNELS) % width as usize * 7 + (i / CHANNELS) / width as usize * 5 + i % CHANNELS * 60) as u8
    };
    noise.iter().enumerate().map(|(i, &noise)| at(i) / 2 + noise / 2).collect()
}

fn numbered(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|i| i as u8).collect()
}

/// Resamples in a workspace of exactly the size that is asked for, full of rubbish, with guards on both sides.
fn sample(kernel: Kernel, resampler: Resampler, image: ImageView<'_>, dirt: u8) -> Result<Vec<u8>, TransformError> {
    const GUARD: usize = 100;
    let Resampler { orientation, spec, .. } = resampler;
    let bytes = Resampler::working_set(image.width(), image.height(), spec, orientation) as usize;
    let mut memory = vec![dirt; bytes + 2 * GUARD];
    let mut out = vec![!dirt; spec.elements() + 2 * GUARD];
    let end = out.len() - GUARD;
    let workspace = &mut memory[GUARD..][..bytes];
    resampler.apply_with(kernel, image, workspace, &mut out[GUARD..end])?;
    assert!(memory[..GUARD].iter().chain(&memory[GUARD + bytes..]).all(|&byte| byte == dirt), "beyond the workspace");
    assert!(out[..GUARD].iter().chain(&out[end..]).all(|&byte| byte == !dirt), "beyond the sample");
    Ok(out[GUARD..end].to_vec())
}

fn best(resampler: Resampler, image: ImageView<'_>) -> Vec<u8> {
    sample(Kernel::best(), resampler, image, 0x5A).expect("fits")
}

/// As [`best`], of rows that are pulled one by one, each with more pixels at both ends than the region has.
fn pulled(resampler: Resampler, image: ImageView<'_>, more: (u32, u32)) -> Vec<u8> {
    let Resampler { geometry: Geometry { region, .. }, orientation, spec } = resampler;
    let first = region.x.saturating_sub(more.0);
    let end = (region.x + region.width + more.1).min(image.width());
    let (row_pixels, left) = (end - first, region.x - first);
    let mut workspace = vec![3; Resampler::working_set(row_pixels, region.height, spec, orientation) as usize];
    let mut out = vec![7; spec.elements()];
    let mut next = region.y as usize;
    let row = |row: &mut [u8]| {
        let start = (next * image.width() as usize + first as usize) * CHANNELS;
        row.copy_from_slice(&image.data()[start..][..row_pixels as usize * CHANNELS]);
        next += 1;
        Ok::<(), Infallible>(())
    };
    resampler.apply_rows(row_pixels, left, row, &mut workspace, &mut out).expect("fits");
    assert!(next <= (region.y + region.height) as usize, "more rows than the region has");
    out
}

/// The same by a filter in floating point, with the rounding between the passes.
fn reference(resampler: Resampler, image: ImageView<'_>) -> Vec<u8> {
    let Resampler { geometry: Geometry { region, window, target, flip }, spec, .. } = resampler;
    let weights = |start: f64, span: f64, length: u32, count: u32| -> Vec<Vec<(usize, f64)>> {
        let scale = span / f64::from(count);
        let support = scale.max(1.0);
        (0..count)
            .map(|at| {
                let middle = start + (f64::from(at) + 0.5) * scale;
                let raw = |x: u32| (1.0 - (f64::from(x) + 0.5 - middle).abs() / support).max(0.0);
                let all: Vec<_> = (0..length).map(|x| (x as usize, raw(x))).filter(|&(_, w)| w > 0.0).collect();
                let sum: f64 = all.iter().map(|&(_, w)| w).sum();
                all.into_iter().map(|(x, w)| (x, w / sum)).collect()
            })
            .collect()
    };
    let [left, top, width, height] = window;
    let (columns, rows) =
        (weights(left, width, region.width, target.width), weights(top, height, region.height, target.height));
    let pixel = |x: usize, y: usize, c: usize| {
        let (x, y) = (region.x as usize + x, region.y as usize + y);
        f64::from(image.data()[(y * image.width() as usize + x) * CHANNELS + c])
    };
    let mut out = vec![0; spec.elements()];
    for (y, row) in rows.iter().enumerate() {
        let between: Vec<[f64; CHANNELS]> = (0..region.width as usize)
            .map(|x| std::array::from_fn(|c| row.iter().map(|&(y, w)| w * pixel(x, y, c)).sum::<f64>().round()))
            .collect();
        for (x, column) in columns.iter().enumerate() {
            let at = target.x as usize + x;
            let at = if flip { spec.width as usize - 1 - at } else { at };
            for c in 0..CHANNELS {
                let value: f64 = column.iter().map(|&(x, w)| w * between[x][c]).sum();
                out[((target.y as usize + y) * spec.width as usize + at) * CHANNELS + c] = value.round() as u8;
            }
        }
    }
    out
}

/// A picture as it is seen, of one as it is stored.
fn turned(stored: ImageView<'_>, orientation: Orientation) -> (Vec<u8>, u32, u32) {
    let (width, height) = orientation.sides(stored.width(), stored.height());
    let mut seen = Vec::new();
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let (mut column, mut row) = if orientation.swaps_sides() { (y, x) } else { (x, y) };
        if orientation.mirrors_columns() {
            column = stored.width() - 1 - column;
        }
        if orientation.mirrors_rows() {
            row = stored.height() - 1 - row;
        }
        let at = (row * stored.width() + column) as usize * CHANNELS;
        seen.extend_from_slice(&stored.data()[at..][..CHANNELS]);
    }
    (seen, width, height)
}

fn most_apart(a: &[u8], b: &[u8]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn an_unscaled_part_is_copied_to_the_bit() {
    let pixels = numbered(6, 5);
    let image = ImageView::new(&pixels, 6, 5);
    let region = Region { x: 2, y: 1, width: 4, height: 4 };
    for flip in [false, true] {
        let resampler = Resampler::new(Geometry::stretch(region, SPEC, flip), SPEC);
        for out in [best(resampler, image), pulled(resampler, image, (1, 9))] {
            for (y, x) in (0..4).flat_map(|y| (0..4).map(move |x| (y, x))) {
                let shown = if flip { 3 - x } else { x };
                let from = ((1 + y) * 6 + 2 + shown) * 3;
                assert_eq!(out[(y * 4 + x) * 3..][..3], pixels[from..][..3], "{x},{y} {flip}");
            }
        }
    }
}

#[test]
fn what_the_target_leaves_is_black() {
    let pixels = [200; 2 * 3 * 3];
    let image = ImageView::new(&pixels, 2, 3);
    let target = Region { x: 1, y: 0, width: 2, height: 3 };
    let geometry = Geometry { target, ..Geometry::stretch(Region::whole(2, 3), SPEC, true) };
    let lit = |geometry| {
        let out = best(Resampler::new(geometry, SPEC), image);
        assert!(out.iter().all(|&value| value == 0 || value == 200));
        (0..16).filter(|i| out[i * 3..][..3] == [200; 3]).collect::<Vec<usize>>()
    };
    assert_eq!(lit(geometry), [1, 2, 5, 6, 9, 10]);
    let target = Region { x: 0, y: 1, width: 3, height: 2 };
    assert_eq!(lit(Geometry { target, flip: false, ..geometry }), [4, 5, 6, 8, 9, 10]);
    assert_eq!(lit(Geometry { target, flip: true, ..geometry }), [5, 6, 7, 9, 10, 11]);
}

#[test]
fn a_regions_edge_is_a_hard_one() {
    // White around a black middle: were the filter to look outside the region, its edges would be grey.
    let mut pixels = vec![255; 30 * 30 * 3];
    for y in 10..20 {
        pixels[(y * 30 + 10) * 3..][..30].fill(0);
    }
    let region = Region { x: 10, y: 10, width: 10, height: 10 };
    let image = ImageView::new(&pixels, 30, 30);
    assert_eq!(best(Resampler::new(Geometry::stretch(region, SPEC, false), SPEC), image), [0; 48]);
    // A window inside a larger region is another matter.
    let geometry =
        Geometry { window: [10.0, 10.0, 10.0, 10.0], ..Geometry::stretch(Region::whole(30, 30), SPEC, false) };
    let out = best(Resampler::new(geometry, SPEC), image);
    assert!(out[0] > 0 && out[(4 + 1) * 3] < out[0], "{out:?}");
}

#[test]
fn misfits_are_errors_with_their_numbers() {
    let pixels = numbered(6, 5);
    let image = ImageView::new(&pixels, 6, 5);
    let good = Geometry::stretch(Region::whole(6, 5), SPEC, false);
    let mut workspace = vec![0; Resampler::working_set(6, 5, SPEC, Orientation::UPRIGHT) as usize];
    let error = Resampler::new(good, SPEC).apply(image, &mut workspace, &mut [0; 47]).expect_err("short");
    assert_eq!(error.to_string(), "a sample takes 48 bytes, and 47 were given");
    let error = Resampler::new(good, SPEC).apply(image, &mut [], &mut [0; 48]).expect_err("no workspace");
    assert!(error.to_string().ends_with("and 0 were given"), "{error}");
    for bad in [
        Geometry { region: Region { x: 1, ..Region::whole(6, 5) }, ..good },
        Geometry { region: Region { x: u32::MAX, ..Region::whole(6, 5) }, ..good },
        Geometry { region: Region::whole(0, 5), ..good },
        Geometry { target: Region::whole(5, 4), ..good },
        Geometry { target: Region::whole(4, 0), ..good },
        Geometry { window: [0.0, 0.0, 6.1, 5.0], ..good },
        Geometry { window: [0.0, -1.0, 6.0, 5.0], ..good },
        Geometry { window: [0.0, 0.0, 0.0, 5.0], ..good },
        Geometry { window: [0.0, f64::NAN, 6.0, 5.0], ..good },
    ] {
        let error = Resampler::new(bad, SPEC).apply(image, &mut workspace, &mut [0; 48]).expect_err("misfit");
        assert!(matches!(error, TransformError::Geometry { .. }), "{error}");
        assert!(error.to_string().contains("a picture of 6x5 and a sample of 4x4x3"), "{error}");
    }
}

#[test]
fn what_the_source_of_rows_says_comes_through() {
    let geometry = Geometry::stretch(Region::whole(20, 20), SPEC, false);
    let mut workspace = vec![0; Resampler::working_set(20, 20, SPEC, Orientation::UPRIGHT) as usize];
    let mut left = 7;
    let rows = |_: &mut [u8]| {
        left -= 1;
        if left == 0 { Err("cut off") } else { Ok(()) }
    };
    let error = Resampler::new(geometry, SPEC).apply_rows(20, 0, rows, &mut workspace, &mut [0; 48]);
    assert_eq!(error, Err(RowsError::Rows("cut off")));
}

#[test]
fn a_large_photograph_needs_little() {
    let spec = SampleSpec { height: 224, width: 224 };
    let bytes = |width, height| Resampler::working_set(width, height, spec, Orientation::UPRIGHT);
    assert!(bytes(4000, 3000) < 1 << 20, "{}", bytes(4000, 3000));
    assert!(bytes(12_000, 9_000) < 2 << 20, "{}", bytes(12_000, 9_000));
    assert!(bytes(500, 375) < 150 << 10, "{}", bytes(500, 375));
}

prop_compose! {
    /// Any cut of any picture, to any sample.
    fn any_cut()(
        width in 1u32..120, height in prop_oneof![1u32..90, 200u32..400],
        spec in (1u32..20, 1u32..20).prop_map(|(height, width)| SampleSpec { height, width }),
        at in [0.0f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        window in [0.0f64..1.0, 0.0..1.0, 0.05..1.0, 0.05..1.0],
        inner in any::<bool>(), target_at in [0.0f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0], part in any::<bool>(),
        flip in any::<bool>(), seed in any::<u64>(),
    ) -> (Vec<u8>, u32, u32, Geometry, SampleSpec) {
        let axis = |all: u32, at: f64, length: f64| {
            let at = (f64::from(all - 1) * at) as u32;
            (at, 1 + (f64::from(all - at - 1) * length) as u32)
        };
        let ((x, columns), (y, rows)) = (axis(width, at[0], at[2]), axis(height, at[1], at[3]));
        let region = Region { x, y, width: columns, height: rows };
        let mut geometry = Geometry::stretch(region, spec, flip);
        if inner {
            let (columns, rows) = (f64::from(columns), f64::from(rows));
            let (w, h) = (columns * window[2], rows * window[3]);
            geometry.window = [(columns - w) * window[0], (rows - h) * window[1], w, h];
        }
        if part {
            let ((x, width), (y, height)) =
                (axis(spec.width, target_at[0], target_at[2]), axis(spec.height, target_at[1], target_at[3]));
            geometry.target = Region { x, y, width, height };
        }
        (picture(width, height, seed), width, height, geometry, spec)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_filter(cut in any_cut()) {
        let (pixels, width, height, geometry, spec) = cut;
        let image = ImageView::new(&pixels, width, height);
        let resampler = Resampler::new(geometry, spec);
        let out = best(resampler, image);
        let expected = reference(resampler, image);
        prop_assert!(most_apart(&out, &expected) <= 1, "{:?}", geometry);
    }

    #[test]
    fn the_bytes_depend_on_nothing_else(cut in any_cut(), more in (0u32..40, 0u32..40)) {
        let (pixels, width, height, geometry, spec) = cut;
        let image = ImageView::new(&pixels, width, height);
        for value in [1, 2, 3, 4, 5, 6, 7, 8] {
            let orientation = Orientation::from_exif(value);
            // Any region of the stored picture will do; the target is the sample's.
            let resampler = Resampler::new(geometry, spec).oriented(orientation);
            let expected = best(resampler, image);
            prop_assert_eq!(&sample(Kernel::PORTABLE, resampler, image, 0xA5).expect("fits"), &expected, "portable");
            prop_assert_eq!(&sample(Kernel::best(), resampler, image, 0).expect("fits"), &expected, "a clean workspace");
            prop_assert_eq!(&pulled(resampler, image, more), &expected, "pulled");
        }
    }

    #[test]
    fn a_turned_picture_is_cut_as_it_is_seen(cut in any_cut(), value in 1u8..=8) {
        let (pixels, width, height, geometry, spec) = cut;
        let orientation = Orientation::from_exif(value);
        // The picture of the cut is the one that is seen.
        let (seen_width, seen_height) = (width, height);
        let seen = ImageView::new(&pixels, seen_width, seen_height);
        let (stored_width, stored_height) = orientation.sides(seen_width, seen_height);
        // Turning back: of 6 and 8 each undoes the other, the rest undo themselves.
        let back = Orientation::from_exif(match value { 6 => 8, 8 => 6, other => other });
        let (stored, ..) = turned(seen, back);
        let stored = ImageView::new(&stored, stored_width, stored_height);
        prop_assert_eq!(&turned(stored, orientation).0, &pixels);
        let expected = best(Resampler::new(geometry, spec), seen);
        let resampler = Resampler::new(geometry.stored(orientation, stored_width, stored_height), spec);
        let out = best(resampler.oriented(orientation), stored);
        // Where rows become columns the passes run in the other order.
        let most = if orientation.swaps_sides() { 1 } else { 0 };
        prop_assert!(most_apart(&out, &expected) <= most, "{} {:?}", value, geometry);
    }

    #[test]
    fn one_colour_stays_that_colour(cut in any_cut(), value in any::<u8>()) {
        let (pixels, width, height, geometry, spec) = cut;
        let pixels = vec![value; pixels.len()];
        let geometry = Geometry { target: Region::whole(spec.width, spec.height), ..geometry };
        let out = best(Resampler::new(geometry, spec), ImageView::new(&pixels, width, height));
        prop_assert!(out.iter().all(|&v| v == value));
    }
}
