//! Owns the row decoder's figures: pictures a second on one core against zune-jpeg's, and what regions differ by on real
//! photographs. It must never judge: they are measured by hand, on files that lie beside the repository.
//!
//! ```sh
//! cargo test --release --no-default-features --features turbo --lib turbo::speed -- --ignored --nocapture
//! ```

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::*;
use crate::decode::{Limits, probe};

/// At most `count` files below a folder that a variable names, or that lies beside the repository.
fn files(variable: &str, beside: &str, count: usize) -> Vec<Vec<u8>> {
    let folder =
        std::env::var_os(variable).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(beside), PathBuf::from);
    let (mut folders, mut paths) = (vec![folder], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    paths.sort();
    let step = (paths.len() / count).max(1);
    let read = paths.iter().step_by(step).filter_map(|path| fs::read(path).ok());
    read.filter(|file| Format::of(file) == Some(Format::Jpeg)).collect()
}

/// A region as `RandomResizedCrop` chooses it: 8 to 100 % of the area, 3:4 to 4:3.
fn some_region(header: &Header, state: &mut u64) -> Region {
    let mut random = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let (width, height) = (f64::from(header.width), f64::from(header.height));
    let area = width * height * (0.08 + 0.92 * random());
    let ratio = (0.75f64.ln() + (4.0f64 / 3.0).ln() * 2.0 * random()).exp();
    let (w, h) = ((area * ratio).sqrt().min(width).max(1.0), (area / ratio).sqrt().min(height).max(1.0));
    let (x, y) = ((width - w) * random(), (height - h) * random());
    Region { x: x as u32, y: y as u32, width: w as u32, height: h as u32 }
}

fn zune(file: &[u8], header: &Header, pixels: &mut [u8]) {
    let options = DecoderOptions::default().set_strict_mode(true).jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_into(&mut pixels[..header.width as usize * header.height as usize * 3]).expect("good");
}

/// Where the row lies in its page: not where the arena's state lies in its own, which the processor takes for the same.
const ROW_AT: usize = 3000;

type Work<'w> = Box<dyn FnMut(&[u8], &Header) + 'w>;

/// Every row's time, best of some interleaved passes.
fn table(title: &str, files: &[Vec<u8>], passes: usize, works: &mut [(&str, Work<'_>)]) {
    let headers: Vec<_> = files.iter().map(|file| probe(file, &Limits::default()).expect("header")).collect();
    let mut best = vec![f64::INFINITY; works.len()];
    for _ in 0..passes {
        for ((_, work), best) in works.iter_mut().zip(&mut best) {
            let began = Instant::now();
            files.iter().zip(&headers).for_each(|(file, header)| work(file, header));
            *best = best.min(began.elapsed().as_secs_f64());
        }
    }
    println!("{title}, {} files", files.len());
    for ((name, _), seconds) in works.iter().zip(&best) {
        println!("{name:>42} {:>9.0} pictures/s {:>6.2}", files.len() as f64 / seconds, best[0] / seconds);
    }
}

fn measure(title: &str, files: &[Vec<u8>], passes: usize) {
    if files.is_empty() {
        println!("{title}: no files");
        return;
    }
    let room = 64 << 20;
    let (mut a, mut b, mut c) = (vec![1u8; room], vec![1u8; room], vec![1u8; room]);
    let simple = super::sample::Simple::new();
    let (mut arena, mut arena_2, mut arena_3, mut arena_4) =
        (vec![1u8; room], vec![1u8; room], vec![1u8; room], vec![1u8; room]);
    let (mut row, mut row_2, mut row_3) = (vec![0u8; 1 << 20], vec![0u8; 1 << 20], vec![0u8; 1 << 20]);
    let mut state = 1;
    let one_by_one = |file: &[u8], header: &Header, cut: &Cut, arena: &mut [u8], row: &mut [u8]| {
        let mut rows = start(file, header, cut, arena).expect("good");
        let row = &mut row[ROW_AT..][..rows.width() as usize * 3];
        while rows.next_into(row).expect("good") {
            black_box(&row);
        }
    };
    table(
        title,
        files,
        passes,
        &mut [
            ("zune-jpeg, whole", Box::new(|file, header| zune(file, header, &mut a))),
            ("libjpeg-turbo's simple interface, whole", Box::new(|file, _| simple.decode(file, &mut c))),
            (
                "whole, at once",
                Box::new(|file, header| {
                    let pixels = &mut b[..header.width as usize * header.height as usize * 3];
                    decode(file, header, false, pixels, &mut arena).expect("good");
                }),
            ),
            (
                "whole, row by row into one row",
                Box::new(|file, header| one_by_one(file, header, &Cut::whole(header), &mut arena_2, &mut row)),
            ),
            (
                "random region, row by row",
                Box::new(|file, header| {
                    let cut = Cut { region: some_region(header, &mut state), ..Cut::whole(header) };
                    one_by_one(file, header, &cut, &mut arena_3, &mut row_2);
                }),
            ),
            (
                "whole at 1/8",
                Box::new(|file, header| {
                    let cut = Cut { denominator: 8, ..Cut::whole(header) };
                    one_by_one(file, header, &cut, &mut arena_4, &mut row_3);
                }),
            ),
            (
                "the header alone",
                Box::new(|file, _| {
                    black_box(probe(file, &Limits::default())).expect("header");
                }),
            ),
        ],
    );
}

#[test]
#[ignore = "measures, by hand"]
fn pictures_a_second() {
    let photographs = files("FEEDSTOCK_IMAGENET", "../shared/datasets/imagenet-sample-500", 500);
    let passes = std::env::var("FEEDSTOCK_PASSES").map_or(4, |passes| passes.parse().expect("a number"));
    measure("photographs", &photographs, passes);
    measure("32x32", &files("FEEDSTOCK_CIFAR", "datasets/cifar10", 5000), 2 * passes);
}

#[test]
#[ignore = "measures, by hand"]
fn regions_of_photographs() {
    let (mut same, mut count, mut worst) = (0, 0, 0u8);
    let mut state = 7;
    for file in files("FEEDSTOCK_IMAGENET", "../shared/datasets/imagenet-sample-500", 500) {
        let header = probe(&file, &Limits::default()).expect("header");
        for denominator in [1, 2, 4, 8] {
            let whole = Cut { denominator, ..Cut::whole(&header) };
            let decoded = |cut: &Cut| {
                let mut arena = vec![0; arena_bytes(&header, denominator) as usize];
                let mut rows = start(&file, &header, cut, &mut arena).expect("good");
                let mut pixels = vec![0; rows.width() as usize * rows.height() as usize * 3];
                rows.rest_into(&mut pixels).expect("good");
                (pixels, rows.left(), rows.width())
            };
            let (full, _, full_width) = decoded(&whole);
            let cut = Cut { region: some_region(&header, &mut state), ..whole };
            let (part, left, part_width) = decoded(&cut);
            let scaled = cut.scaled();
            let mut most = 0;
            for y in 0..scaled.height {
                let a = &full[((scaled.y + y) * full_width + scaled.x) as usize * 3..][..scaled.width as usize * 3];
                let b = &part[(y * part_width + left) as usize * 3..][..scaled.width as usize * 3];
                most = most.max(a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0));
            }
            (count, same, worst) = (count + 1, same + u32::from(most == 0), worst.max(most));
        }
    }
    println!("{same} of {count} regions are the same, byte for byte; the largest difference is {worst}");
}
