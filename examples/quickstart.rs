//! The shortest way from a folder of class folders to batches: `cargo run --release --example quickstart -- FOLDER 256M`.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::time::Instant;

use feedstock::transform::RandomResizedCrop;
use feedstock::{ImageFolder, Loader, RamBudget};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: quickstart FOLDER [RAM_BUDGET]")?;
    let budget: RamBudget = args.next().as_deref().unwrap_or("auto").parse()?;

    let loader = Loader::builder(ImageFolder::open(folder)?)
        .batch_size(64)
        .ram_budget(budget)
        .transform(RandomResizedCrop::new(224).flip(0.5))
        .seed(17)
        .build()?;
    println!("{}", loader.plan().explain());

    for epoch in 0..3 {
        let (start, mut images) = (Instant::now(), 0);
        for batch in loader.epoch(epoch) {
            let batch = batch?; // pixels, labels, sample ids; its memory goes back when it drops
            images += batch.len();
        }
        println!("epoch {epoch}: {:.0} images/s", images as f64 / start.elapsed().as_secs_f64());
    }
    for bad in loader.bad_samples() {
        println!("could not be used: {bad}");
    }
    Ok(())
}
