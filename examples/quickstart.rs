//! Batches from a folder of class folders: `cargo run --release --example quickstart -- FOLDER 256M`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::time::Instant;

use feedstock::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: quickstart FOLDER [RAM_BUDGET]")?;
    let budget = args.next().unwrap_or_else(|| "auto".to_owned());

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
            let batch = batch?; // pixels, labels, sample ids; dropping it releases its memory
            images += batch.len();
        }
        println!("epoch {epoch}: {:.0} images/s", images as f64 / start.elapsed().as_secs_f64());
    }
    for bad in loader.bad_samples() {
        println!("bad sample: {bad}");
    }
    Ok(())
}
