//! Several sources as one: mixed in shares, divided, and every class as often as any other.
//!
//! `cargo run --release --example mixing`
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::sync::Arc;

use feedstock::source::{Concat, MemorySource, Source, Subset};
use feedstock::transform::RandomResizedCrop;
use feedstock::{ByteCount, Loader, Sampling};

/// Plain squares, each an image file (PPM) in memory. Any `Source` does: folders, shards, your own.
fn squares(classes: [&str; 2], counts: [usize; 2], shade: u8) -> Result<MemorySource, Box<dyn std::error::Error>> {
    let file = [&b"P6 32 32 255\n"[..], &[shade; 32 * 32 * 3]].concat();
    let labels = (0..2u32).flat_map(|label| vec![label; counts[label as usize]]);
    Ok(MemorySource::new(classes.map(String::from).to_vec(), labels.map(|label| (file.clone(), label)).collect())?)
}

/// How many samples of each class an epoch has.
fn count(what: &str, source: Arc<dyn Source>, sampling: Sampling) -> Result<(), Box<dyn std::error::Error>> {
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
    println!("{what}: {} samples", loader.samples_per_epoch());
    for (class, count) in loader.classes().iter().zip(counts) {
        println!("  {class:<6} {count}");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let photographs = Arc::new(squares(["cat", "dog"], [900, 90], 200)?);
    let drawings = Arc::new(squares(["bird", "cat"], [40, 60], 100)?);
    // Classes are known by name: the cats of both are one class.
    let both = Arc::new(Concat::new([photographs as Arc<dyn Source>, drawings])?);
    println!("{}: {:?}\n", both.title(), both.classes());

    // As they are, nine samples in ten are photographs. Mixed 3:1, drawings come again and again.
    count("all of it, once", both.clone(), Sampling::Shuffled)?;
    count("photographs to drawings 3:1", both.clone(), Sampling::mixed(&both, [3.0, 1.0]))?;

    // A tenth is set aside, by a seed; the rest is trained on, every class equally often.
    let (train, validation) = Subset::split(both, 0.9, 17)?;
    println!("{} to train on, {} to validate with", train.len(), validation.len());
    count("balanced", Arc::new(train), Sampling::balanced().draws(600))?;
    count("validation", Arc::new(validation), Sampling::ById)
}
