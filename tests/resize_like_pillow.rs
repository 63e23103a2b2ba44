//! The resampler gives the pixels that Pillow's antialiased bilinear filter gives, and so those of torchvision's
//! transforms on PIL images: to within one level of 255 in every value, and 0.35 levels in the mean.
//!
//! Pillow rounds to whole levels after the pass over the rows, the resampler after the pass over the columns, which is
//! faster. Noise shows that most; in photos the mean difference is about 0.1.
//!
//! `tests/fixtures/make_fixtures.py` made the expected values from the same computed images.

use std::fs;
use std::path::Path;

use feedstock::SampleId;
use feedstock::rng::Seed;
use feedstock::tensor::{Orientation, SampleSpec};
use feedstock::transform::{Geometry, KeyedRng, Region, Resampler, ResizeCenterCrop, Transform, TransformError};

/// The same as `test_image` in `make_fixtures.py`.
fn test_image(kind: &str, width: u32, height: u32) -> Vec<u8> {
    let mut pixels = Vec::new();
    for y in 0..u64::from(height) {
        for x in 0..u64::from(width) {
            for c in 0..3 {
                pixels.push(match kind {
                    "noise" => {
                        let hash = (x * 73_856_093) ^ (y * 19_349_663) ^ ((c + 1) * 83_492_791);
                        (hash.wrapping_mul(2_654_435_761) as u32 >> 24) as u8
                    }
                    "smooth" => {
                        let (w, h) = (u64::from(width), u64::from(height));
                        ((x * 255 / w * (c + 1) + y * 255 / h * (3 - c)) / 4) as u8
                    }
                    "edges" => (((x / 5 + y / 3 + c) % 2) * 255) as u8,
                    other => panic!("{other}"),
                });
            }
        }
    }
    pixels
}

#[test]
fn resampled_pixels_are_pillows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let index = fs::read_to_string(folder.join("resize.txt")).expect("index");
    let mut expected = &fs::read(folder.join("resize.bin")).expect("pixels")[..];
    let mut rng = KeyedRng::new(Seed(0), 0, SampleId(0), 0);
    let mut cases = 0;
    for line in index.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u32> = words[4..].iter().map(|word| word.parse().expect("number")).collect();
        let (width, height) = (words[1].parse().expect("width"), words[2].parse().expect("height"));
        let (geometry, spec) = match (words[3], &numbers[..]) {
            ("crop", &[x, y, w, h, out_width, out_height]) => {
                let spec = SampleSpec { height: out_height, width: out_width };
                (Geometry::stretch(Region { x, y, width: w, height: h }, spec, false), spec)
            }
            ("center", &[resize, crop]) => {
                let transform = ResizeCenterCrop::new(resize, crop);
                (transform.geometry(width, height, &mut rng), transform.out_spec())
            }
            _ => panic!("{line}"),
        };
        let pixels = test_image(words[0], width, height);
        for flip in [false, true] {
            let geometry = Geometry { flip, ..geometry };
            let mut out = vec![0xA5; spec.elements()];
            let bytes = Resampler::working_set(width, height, spec, Orientation::UPRIGHT);
            let mut workspace = vec![0xA5; bytes as usize];
            let mut rows = pixels.chunks_exact(width as usize * 3).skip(geometry.crop.y as usize);
            let next_row = |row: &mut [u8]| {
                row.copy_from_slice(rows.next().expect("a row"));
                Ok::<(), TransformError>(())
            };
            let resampler = Resampler::new(geometry, spec);
            resampler.apply(width, geometry.crop.x, next_row, &mut workspace, &mut out).expect(line);
            if flip {
                for row in out.chunks_exact_mut(spec.width as usize * 3) {
                    row.as_chunks_mut::<3>().0.reverse();
                }
            }
            let differences = || out.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
            let most = differences().max().expect("pixels");
            let mean = differences().map(f64::from).sum::<f64>() / out.len() as f64;
            println!("{line}: up to {most}, mean {mean:.4}");
            assert!(most <= 1 && mean < 0.35, "{line}: differs by up to {most}, {mean} in the mean");
        }
        expected = &expected[spec.elements()..];
        cases += 1;
    }
    assert!(cases >= 16 && expected.is_empty());
}
