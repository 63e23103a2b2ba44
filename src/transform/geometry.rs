//! Owns what a transform has chosen: which part of a picture is shown, and where in the sample; and the same choice in
//! the coordinates of a picture that is stored turned, or decoded smaller. It must never name a pixel that is not there.

use crate::tensor::{Orientation, Region, SampleSpec};

/// Which part of a picture a sample shows, and where in the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The part of the picture that is looked at. Pixels outside are never read, so they need not be decoded.
    pub region: Region,
    /// What is stretched over the target: left, top, width, height in pixels, relative to the region's corner, fractions
    /// allowed. The filter's support may reach out of the window but not out of the region.
    pub window: [f64; 4],
    /// The part of the sample that the window fills. What is left of the sample is black.
    pub target: Region,
    /// Whether the sample, the black included, is then mirrored left to right.
    pub flip: bool,
}

impl Geometry {
    /// All of `region`, stretched over the whole sample.
    #[must_use]
    pub fn stretch(region: Region, spec: SampleSpec, flip: bool) -> Self {
        let window = [0.0, 0.0, f64::from(region.width), f64::from(region.height)];
        Geometry { region, window, target: Region::whole(spec.width, spec.height), flip }
    }

    /// The same cut from the picture as it is stored, `width` x `height` pixels, where this one is cut from the picture
    /// as it is seen. Target and flip stay those of the sample: [`Resampler::oriented`](super::Resampler::oriented)
    /// turns what is cut.
    ///
    /// A region that is not inside the picture gives one that is not either.
    #[must_use]
    pub fn stored(self, orientation: Orientation, width: u32, height: u32) -> Self {
        let Geometry { region: seen, window: [left, top, window_width, window_height], .. } = self;
        let (mut x, mut y, mut columns, mut rows) = (seen.x, seen.y, seen.width, seen.height);
        let (mut across, mut down) = ((left, window_width), (top, window_height));
        if orientation.swaps_sides() {
            (x, y, columns, rows) = (y, x, rows, columns);
            (across, down) = (down, across);
        }
        let mirrored = |at: u32, length: u32, (start, span): (f64, f64), all: u32| {
            let end = u64::from(at) + u64::from(length);
            // No picture is that large, so a region beyond its end stays one.
            let at = u64::from(all).checked_sub(end).map_or(u32::MAX, |at| at as u32);
            (at, (f64::from(length) - (start + span), span))
        };
        if orientation.mirrors_columns() {
            (x, across) = mirrored(x, columns, across, width);
        }
        if orientation.mirrors_rows() {
            (y, down) = mirrored(y, rows, down, height);
        }
        Geometry {
            region: Region { x, y, width: columns, height: rows },
            window: [across.0, down.0, across.1, down.1],
            ..self
        }
    }

    /// The same cut from the picture decoded at 1/`denominator`, where this one is cut from one of `width` x `height`
    /// pixels: its smaller self has its sides divided and rounded up, and its corner where it was, so that coordinates
    /// divide exactly (libjpeg's scaling).
    ///
    /// The region becomes all pixels that the region touches. It holds what the filter reaches if it did before and the
    /// window is still no smaller than the target.
    ///
    /// # Panics
    /// Panics if `denominator` is 0.
    #[must_use]
    pub fn scaled(self, denominator: u32, width: u32, height: u32) -> Self {
        assert!(denominator > 0, "a picture cannot be decoded at 1/0");
        if denominator == 1 {
            return self;
        }
        let by = f64::from(denominator);
        let axis = |at: u32, length: u32, start: f64, span: f64, all: u32| {
            let first = at / denominator;
            let end = at.saturating_add(length).div_ceil(denominator);
            let end = end.min(all.div_ceil(denominator));
            let start = (f64::from(at) + start) / by - f64::from(first);
            (first, end.saturating_sub(first), start, span / by)
        };
        let (region, [left, top, window_width, window_height]) = (self.region, self.window);
        let (x, columns, left, window_width) = axis(region.x, region.width, left, window_width, width);
        let (y, rows, top, window_height) = axis(region.y, region.height, top, window_height, height);
        Geometry {
            region: Region { x, y, width: columns, height: rows },
            window: [left, top, window_width, window_height],
            ..self
        }
    }

    /// The window, if it is one and within its region; rounding errors of less than a thousandth of a pixel are mended.
    pub(super) fn window_inside(&self) -> Option<[f64; 4]> {
        const SLACK: f64 = 1e-3;
        let axis = |start: f64, span: f64, length: u32| {
            let length = f64::from(length);
            let sound = start >= -SLACK && span > 0.0 && start + span <= length + SLACK;
            let start = start.clamp(0.0, length);
            let span = span.min(length - start);
            (sound && span > 0.0).then_some((start, span))
        };
        let [left, top, width, height] = self.window;
        let (left, width) = axis(left, width, self.region.width)?;
        let (top, height) = axis(top, height, self.region.height)?;
        Some([left, top, width, height])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: SampleSpec = SampleSpec { height: 4, width: 6 };

    #[test]
    fn a_stored_cut_lies_where_it_is_seen() {
        // Stored 10 x 7, seen 7 x 10 turned a quarter clockwise: the seen top left corner is stored at the bottom left.
        let region = Region { x: 1, y: 2, width: 3, height: 5 };
        let seen = Geometry { window: [0.5, 1.0, 2.0, 3.0], ..Geometry::stretch(region, SPEC, true) };
        let stored = seen.stored(Orientation::from_exif(6), 10, 7);
        assert_eq!(stored.region, Region { x: 2, y: 3, width: 5, height: 3 });
        assert_eq!(stored.window, [1.0, 0.5, 3.0, 2.0]);
        assert_eq!((stored.target, stored.flip), (seen.target, true));
        for value in 1..=8 {
            let orientation = Orientation::from_exif(value);
            let (width, height) = orientation.sides(10, 10);
            assert!(
                !Geometry { region: Region { x: 9, ..region }, ..seen }
                    .stored(orientation, width, height)
                    .region
                    .fits(width, height)
            );
        }
    }

    #[test]
    fn a_scaled_cut_covers_what_it_covered() {
        let region = Region { x: 9, y: 16, width: 492, height: 300 };
        let scaled = Geometry::stretch(region, SPEC, false).scaled(8, 501, 400);
        assert_eq!(scaled.region, Region { x: 1, y: 2, width: 62, height: 38 });
        assert_eq!(scaled.window, [0.125, 0.0, 61.5, 37.5]);
        assert_eq!(Geometry::stretch(region, SPEC, false).scaled(1, 501, 400), Geometry::stretch(region, SPEC, false));
    }

    proptest! {
        #[test]
        fn no_picture_is_left(
            width in 1u32..5000, height in 1u32..5000, cut in [0.0f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
            value in 1u8..=8, denominator in 1u32..=8,
        ) {
            let orientation = Orientation::from_exif(value);
            let (seen_width, seen_height) = orientation.sides(width, height);
            let axis = |all: u32, at: f64, length: f64| {
                let at = (f64::from(all - 1) * at) as u32;
                (at, 1 + (f64::from(all - at - 1) * length) as u32)
            };
            let ((x, columns), (y, rows)) = (axis(seen_width, cut[0], cut[2]), axis(seen_height, cut[1], cut[3]));
            let seen = Geometry::stretch(Region { x, y, width: columns, height: rows }, SPEC, false);
            let stored = seen.stored(orientation, width, height);
            prop_assert!(stored.region.fits(width, height) && stored.window_inside().is_some());
            let scaled = stored.scaled(denominator, width, height);
            prop_assert!(scaled.region.fits(width.div_ceil(denominator), height.div_ceil(denominator)));
            prop_assert!(scaled.window_inside().is_some(), "{:?}", scaled);
        }
    }
}
