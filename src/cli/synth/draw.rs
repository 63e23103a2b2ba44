//! Drawing of synthetic images: ten classes of shapes and textures in any color, position, size and rotation, on a
//! gradient with clutter and noise.
//!
//! Arithmetic is limited to additions, products, quotients and square roots, which round alike on all platforms: one
//! seed gives one image everywhere.

use feedstock::rng::KeyedRng;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use std::io;

/// A class: a figure given by its distance function.
pub(super) struct Class {
    pub(super) name: &'static str,
    /// Distance of a point from the figure's edge, negative inside, where the figure has about radius 1. The third
    /// argument is the figure's own random number in 0..1 (how thick, how fine).
    distance: fn(f32, f32, f32) -> f32,
    /// Minimum and maximum radius, as a share of the image's shorter side.
    radius: (f64, f64),
    /// Maximum tangent of its rotation; `None` allows any angle.
    tilt: Option<f64>,
}

const SHAPE: (f64, f64) = (0.17, 0.36);
const TEXTURE: (f64, f64) = (0.3, 0.48);

/// Classes in the sort order of their folders, so that an index is a label.
pub(super) const CLASSES: [Class; 10] = [
    Class { name: "checkerboard", distance: checkerboard, radius: TEXTURE, tilt: Some(0.3) },
    Class { name: "cross", distance: cross, radius: SHAPE, tilt: None },
    Class { name: "diagonal", distance: diagonal, radius: TEXTURE, tilt: Some(0.2) },
    Class { name: "disc", distance: |x, y, _| length(x, y) - 1.0, radius: SHAPE, tilt: None },
    Class { name: "dots", distance: dots, radius: TEXTURE, tilt: None },
    Class { name: "horizontal", distance: |x, y, k| window(x, y, bars(y, k)), radius: TEXTURE, tilt: Some(0.2) },
    Class { name: "ring", distance: ring, radius: SHAPE, tilt: None },
    Class { name: "square", distance: |x, y, _| x.abs().max(y.abs()) - 0.86, radius: SHAPE, tilt: None },
    Class { name: "triangle", distance: triangle, radius: SHAPE, tilt: None },
    Class { name: "vertical", distance: |x, y, k| window(x, y, bars(x, k)), radius: TEXTURE, tilt: Some(0.2) },
];

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

fn ring(x: f32, y: f32, k: f32) -> f32 {
    let half_width = 0.12 + 0.12 * k;
    (length(x, y) - 1.0 + half_width).abs() - half_width
}

fn cross(x: f32, y: f32, k: f32) -> f32 {
    let arm = 0.2 + 0.15 * k;
    let bar = |along: f32, across: f32| (along.abs() - 1.0).max(across.abs() - arm);
    bar(x, y).min(bar(y, x))
}

fn triangle(x: f32, y: f32, _: f32) -> f32 {
    const HALF_SQRT_3: f32 = 0.866_025_4;
    let sides = [-y, 0.5 * y + HALF_SQRT_3 * x, 0.5 * y - HALF_SQRT_3 * x];
    sides.into_iter().fold(f32::MIN, f32::max) - 0.55
}

/// Limits a texture to a disc.
fn window(x: f32, y: f32, texture: f32) -> f32 {
    texture.max(length(x, y) - 1.0)
}

/// Periods in one radius.
fn fineness(k: f32) -> f32 {
    1.4 + 1.4 * k
}

/// Position within a period, in -0.5..0.5.
fn phase(x: f32, k: f32) -> f32 {
    let periods = x * fineness(k) + 0.37;
    periods - periods.floor() - 0.5
}

fn bars(x: f32, k: f32) -> f32 {
    (phase(x, k).abs() - 0.25) / fineness(k)
}

fn diagonal(x: f32, y: f32, k: f32) -> f32 {
    // Both diagonals are one class, so that a flipped image keeps its label; the last bit of k picks one.
    let sign = if ((k * 64.0) as u32).is_multiple_of(2) { 1.0 } else { -1.0 };
    window(x, y, bars((x + sign * y) * std::f32::consts::FRAC_1_SQRT_2, k))
}

fn checkerboard(x: f32, y: f32, k: f32) -> f32 {
    let (a, b) = (bars(x, k), bars(y, k));
    let nearest = a.abs().min(b.abs());
    window(x, y, if (a < 0.0) == (b < 0.0) { -nearest } else { nearest })
}

fn dots(x: f32, y: f32, k: f32) -> f32 {
    window(x, y, (length(phase(x, k), phase(y, k)) - 0.29) / fineness(k))
}

type Color = [f32; 3];

/// RGB8 image being drawn, row-major.
pub(super) struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Canvas {
    pub(super) fn new(width: u32, height: u32) -> Canvas {
        Canvas { width, height, pixels: Vec::with_capacity(width as usize * height as usize * 3) }
    }

    /// Replaces `bytes` by the image as a JPEG file of `quality` 1 to 100.
    pub(super) fn encode(&self, quality: u8, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        let mut encoder = JpegEncoder::new_with_quality(bytes, quality);
        encoder.encode(&self.pixels, self.width, self.height, ExtendedColorType::Rgb8).map_err(io::Error::other)
    }

    /// Draws a gradient, two strokes as distractors, the class's figure and noise.
    pub(super) fn draw(&mut self, class: &Class, rng: &mut KeyedRng) {
        let side = f64::from(self.width.min(self.height));
        let (width, height) = (f64::from(self.width) / side, f64::from(self.height) / side);
        let pixel = 1.0 / side as f32;
        let from = color(rng);
        let to = mix(from, color(rng), 0.5);
        let figure_color = contrasting(mix(from, to, 0.5), rng);
        let slope = direction(rng, None);
        let strokes = [Stroke::new(rng, width, height), Stroke::new(rng, width, height)];
        let radius = rng.range(class.radius.0, class.radius.1);
        let turn = direction(rng, class.tilt);
        // Up to a fifth of the figure may lie outside.
        let inner = radius * 0.8;
        let (cx, cy) = (rng.range(inner, width - inner) as f32, rng.range(inner, height - inner) as f32);
        let (kind, radius) = (rng.unit() as f32, radius as f32);
        let strength = rng.range(0.65, 1.0) as f32;
        let noise = rng.range(4.0, 20.0) as f32;

        self.pixels.clear();
        for row in 0..self.height {
            for column in 0..self.width {
                let (x, y) = ((column as f32 + 0.5) * pixel, (row as f32 + 0.5) * pixel);
                let along = (x - 0.5) * slope.0 + (y - 0.5) * slope.1 + 0.5;
                let mut here = mix(from, to, along.clamp(0.0, 1.0));
                for stroke in &strokes {
                    here = mix(here, stroke.color, 0.45 * coverage(stroke.distance(x, y), pixel));
                }
                let (x, y) = ((x - cx) / radius, (y - cy) / radius);
                let (x, y) = (x * turn.0 + y * turn.1, y * turn.0 - x * turn.1);
                let covered = coverage((class.distance)(x, y, kind) * radius, pixel);
                here = mix(here, figure_color, strength * covered);
                let bits = rng.next_u64();
                for (channel, value) in here.into_iter().enumerate() {
                    // The sum of two even numbers in -0.5..0.5 is a fair stand-in for a bell curve.
                    let byte = |shift: usize| ((bits >> (16 * channel + shift)) & 0xFF) as f32 / 255.0 - 0.5;
                    self.pixels.push((value + noise * (byte(0) + byte(8))).round().clamp(0.0, 255.0) as u8);
                }
            }
        }
    }
}

/// A thin line across the image, so that a single edge does not reveal the class.
struct Stroke {
    x: f32,
    y: f32,
    normal: (f32, f32),
    half_width: f32,
    color: Color,
}

impl Stroke {
    fn new(rng: &mut KeyedRng, width: f64, height: f64) -> Stroke {
        Stroke {
            x: rng.range(0.0, width) as f32,
            y: rng.range(0.0, height) as f32,
            normal: direction(rng, None),
            half_width: rng.range(0.005, 0.03) as f32,
            color: color(rng),
        }
    }

    fn distance(&self, x: f32, y: f32) -> f32 {
        ((x - self.x) * self.normal.0 + (y - self.y) * self.normal.1).abs() - self.half_width
    }
}

/// Share of a pixel of side `pixel` inside an edge at `distance`.
fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

fn mix(a: Color, b: Color, share: f32) -> Color {
    std::array::from_fn(|channel| a[channel] + (b[channel] - a[channel]) * share)
}

fn color(rng: &mut KeyedRng) -> Color {
    std::array::from_fn(|_| rng.range(0.0, 256.0) as f32)
}

/// A color distinguishable from `other`: the first of eight tries that is far enough, else the last.
fn contrasting(other: Color, rng: &mut KeyedRng) -> Color {
    let far = |color: &Color| color.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f32>() > 150.0;
    let mut last = color(rng);
    for _ in 0..7 {
        if far(&last) {
            break;
        }
        last = color(rng);
    }
    last
}

/// A unit vector, of any direction or with a tangent of at most `tilt`.
fn direction(rng: &mut KeyedRng, tilt: Option<f64>) -> (f32, f32) {
    let (x, y) = match tilt {
        Some(tilt) => (1.0, rng.range(-tilt, tilt)),
        // Rejection sampling of the disc: one try in five fails, sixteen in a row practically never.
        None => (0..16)
            .map(|_| (rng.range(-1.0, 1.0), rng.range(-1.0, 1.0)))
            .find(|(x, y)| (0.01..=1.0).contains(&(x * x + y * y)))
            .unwrap_or((1.0, 0.0)),
    };
    let length = (x * x + y * y).sqrt();
    ((x / length) as f32, (y / length) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use feedstock::SampleId;
    use feedstock::rng::Seed;

    #[test]
    fn every_figure_fits_its_circle_and_fills_some_of_it() {
        for class in &CLASSES {
            for k in [0.0, 0.3, 0.99] {
                let grid = (-200..=200).flat_map(|x| (-200..=200).map(move |y| (x as f32 / 100.0, y as f32 / 100.0)));
                let inside: Vec<(f32, f32)> = grid.filter(|(x, y)| (class.distance)(*x, *y, k) < 0.0).collect();
                assert!(inside.iter().all(|(x, y)| length(*x, *y) < 1.25), "{} {k}", class.name);
                // The circle has 31,416 grid points.
                assert!((5_000..32_000).contains(&inside.len()), "{} {k}: {}", class.name, inside.len());
            }
        }
    }

    #[test]
    fn images_have_their_size_and_differ() {
        let mut canvas = Canvas::new(40, 24);
        let mut seen = Vec::new();
        for class in &CLASSES {
            for sample in 0..3 {
                canvas.draw(class, &mut KeyedRng::new(Seed(1), 0, SampleId(sample), 0));
                assert_eq!(canvas.pixels.len(), 40 * 24 * 3);
                assert!(!seen.contains(&canvas.pixels), "{} {sample}", class.name);
                seen.push(canvas.pixels.clone());
            }
        }
    }
}
