//! Statistics of the pixels of one epoch of a folder, as one JSON line, to be compared with those of other loaders by
//! `benches/peers/run`. `cargo run --release --example pixel_stats -- FOLDER f32|u8`
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::collections::BTreeSet;

use feedstock::tensor::Normalize;
use feedstock::transform::RandomResizedCrop;
use feedstock::{DType, ImageFolder, Loader};

const SIZE: usize = 224;
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: pixel_stats FOLDER f32|u8")?;
    let is_f32 = args.next().as_deref() != Some("u8");
    let mut builder = Loader::builder(ImageFolder::open(folder)?)
        .batch_size(64)
        .transform(RandomResizedCrop::new(SIZE as u32).flip(0.5))
        .dtype(if is_f32 { DType::F32 } else { DType::U8 });
    if is_f32 {
        builder = builder.normalize(Normalize { mean: MEAN, std: STD });
    }
    let loader = builder.build()?;

    let (mut images, mut classes) = (0, BTreeSet::new());
    let (mut sums, mut squares, mut detail) = ([0.0; 3], [0.0; 3], 0.0);
    for batch in loader.epoch(0) {
        let batch = batch?;
        images += batch.len();
        classes.extend(batch.labels().iter().copied());
        let bytes = batch.bytes().ok_or("on the CPU, batches are in host memory")?;
        let width = if is_f32 { 4 } else { 1 };
        for (row_index, row) in bytes.chunks_exact(SIZE * width).enumerate() {
            let channel = row_index / SIZE % 3;
            let mut last = None;
            for element in row.chunks_exact(width) {
                let value = match *element {
                    [a, b, c, d] => {
                        let normal = f32::from_ne_bytes([a, b, c, d]);
                        255.0 * f64::from(normal * STD[channel] + MEAN[channel])
                    }
                    [byte, ..] => f64::from(byte),
                    [] => unreachable!("chunks are not empty"),
                };
                sums[channel] += value;
                squares[channel] += value * value;
                detail += last.map_or(0.0, |last: f64| (value - last).abs());
                last = Some(value);
            }
        }
    }
    let elements = (images * SIZE * SIZE) as f64;
    let mean = sums.map(|sum| sum / elements);
    let std = [0, 1, 2].map(|c| (squares[c] / elements - mean[c] * mean[c]).sqrt());
    let detail = detail / (elements * 3.0 * (SIZE - 1) as f64 / SIZE as f64);
    let (classes, dtype) = (classes.len(), if is_f32 { "float32" } else { "uint8" });
    println!(
        r#"{{"images": {images}, "classes": {classes}, "dtype": "{dtype}", "shape": [3, {SIZE}, {SIZE}], "mean": {mean:?}, "std": {std:?}, "detail": {detail}}}"#
    );
    Ok(())
}
