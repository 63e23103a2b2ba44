//! Several sources as one: mixed by weight, split, and balanced by class.
//!
//! `cargo run --release --example mixing`
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::sync::Arc;

use feedstock::source::{Concat, MemorySource, Source, Subset};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, Loader, Sampling};

/// Squares of one color as image files (PPM) in memory. Any other `Source` works too.
fn squares(classes: [&str; 2], counts: [usize; 2], shade: u8) -> Result<MemorySource, Box<dyn std::error::Error>> {
    let file = [&b"P6 32 32 255\n"[..], &[shade; 32 * 32 * 3]].concat();
    let labels = (0..2u32).flat_map(|label| vec![label; counts[label as usize]]);
    Ok(MemorySource::new(classes.map(String::from).to_vec(), labels.map(|label| (file.clone(), label)).collect())?)
}

/// Counts the samples of each class in an epoch.
fn count(title: &str, source: Arc<dyn Source>, sampling: Sampling) -> Result<(), Box<dyn std::error::Error>> {
    let loader = Loader::builder(source)
        .batch_size(100)
        .ram_budget(ByteCount(64 << 20))
        .transform(RandomResizedCrop::new(24).flip(0.5))
        .sampling(sampling)
        .build()?;
    let mut counts = vec![0; loader.classes().len()];
    for batch in loader.epoch(0) {
        batch?.labels().iter().for_each(|&label| counts[label as usize] += 1);
    }
    println!("{title}: {} samples", loader.samples_per_epoch());
    for (class, count) in loader.classes().iter().zip(counts) {
        println!("  {class:<6} {count}");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = Arc::new(squares(["cat", "dog"], [900, 90], 200)?);
    let drawings = Arc::new(squares(["bird", "cat"], [40, 60], 100)?);
    // Classes are matched by name: the cats of both sources are one class.
    let both = Arc::new(Concat::new([images as Arc<dyn Source>, drawings])?);
    println!("{}: {:?}\n", both.title(), both.classes());

    // Without weights, nine samples in ten are images. Mixed 3:1, drawings are repeated.
    count("every sample once", both.clone(), Sampling::Shuffled)?;
    count("images to drawings 3:1", both.clone(), Sampling::mixed(&both, [3.0, 1.0]))?;

    // A tenth is held out, by a seed; the rest is for training, balanced by class.
    let (train, validation) = Subset::split(both, 0.9, 17)?;
    println!("{} to train on, {} to validate with", train.len(), validation.len());
    count("balanced", Arc::new(train), Sampling::balanced().num_samples(600))?;
    count("validation", Arc::new(validation), Sampling::Sequential)
}
