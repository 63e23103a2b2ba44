//! A custom source, whose images are generated when they are read. Any kind of storage can be added this way.
//!
//! `cargo run --release --example custom_source`
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use feedstock::source::{Source, SourceError, conformance};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, Loader, SampleId};

/// Squares of one color as uncompressed BMP files: light ones and dark ones.
struct Squares {
    classes: Vec<String>,
    count: u64,
}

const SIDE: usize = 32;
const HEADER_BYTES: usize = 54;
const FILE_BYTES: usize = HEADER_BYTES + SIDE * SIDE * 3;

impl Source for Squares {
    fn len(&self) -> u64 {
        self.count
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, id: SampleId) -> u32 {
        (id.0 % 2) as u32
    }

    // The pipeline reserves this many bytes before it asks for them.
    fn encoded_bytes(&self, _: SampleId) -> u64 {
        FILE_BYTES as u64
    }

    // Errors name the sample by this.
    fn name(&self, id: SampleId) -> String {
        format!("square {}", id.0)
    }

    // Called from several threads at once. A sample that cannot be read is a `SourceError`, not a panic.
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        let (header, pixels) = out.split_at_mut(HEADER_BYTES);
        header.fill(0);
        header[..2].copy_from_slice(b"BM");
        header[2..6].copy_from_slice(&(FILE_BYTES as u32).to_le_bytes());
        header[10..14].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        header[14..18].copy_from_slice(&40u32.to_le_bytes());
        header[18..22].copy_from_slice(&(SIDE as u32).to_le_bytes());
        header[22..26].copy_from_slice(&(SIDE as u32).to_le_bytes());
        header[26..28].copy_from_slice(&1u16.to_le_bytes());
        header[28..30].copy_from_slice(&24u16.to_le_bytes());
        let shade = (id.0 % 100) as u8;
        pixels.fill(if self.label(id) == 0 { 255 - shade } else { shade });
        Ok(())
    }

    fn index_bytes(&self) -> u64 {
        0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let squares = Squares { classes: vec!["light".to_owned(), "dark".to_owned()], count: 1000 };
    // Checks the rules of the trait. Use it in a test of your own source.
    conformance::check(&squares)?;

    let loader = Loader::builder(squares)
        .batch_size(100)
        .ram_budget(ByteCount(64 << 20))
        .transform(RandomResizedCrop::new(24).flip(0.5))
        .build()?;
    for batch in loader.epoch(0) {
        let batch = batch?;
        let bytes = batch.bytes().ok_or("on the CPU, batches are in host memory")?;
        let mean = bytes.iter().map(|&byte| f64::from(byte)).sum::<f64>() / bytes.len() as f64;
        let light = batch.labels().iter().filter(|&&label| label == 0).count();
        println!("batch {}: {light} of {} are light, mean brightness {mean:.0}", batch.index(), batch.len());
    }
    Ok(())
}
