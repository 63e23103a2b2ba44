//! Cost of the order of an epoch: the sample at one position, and a whole small epoch.
#![allow(missing_docs, reason = "benchmarks have no public API")]

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, criterion_group, criterion_main};

use feedstock::rng::Seed;
use feedstock::sampler::Order;

fn orders(c: &mut Criterion) {
    for (name, samples) in [("a thousand", 1000), ("a million", 1_000_000), ("a billion", 1_000_000_000)] {
        let order = Order::shuffled(samples, Seed(7), 3);
        let mut position = 0;
        c.bench_function(&format!("one position of {name}, shuffled"), |b| {
            b.iter(|| {
                position = (position + 1) % samples;
                black_box(order.at(position))
            });
        });
    }
    c.bench_function("create an order of a billion", |b| {
        b.iter(|| black_box(Order::shuffled(black_box(1_000_000_000), Seed(7), 3)));
    });
    let batch = NonZeroUsize::new(64).unwrap_or(NonZeroUsize::MIN);
    let order = Order::shuffled(50_000, Seed(7), 3);
    c.bench_function("an epoch of 50,000 in batches of 64", |b| {
        b.iter(|| {
            let batches = order.batches(batch, false);
            let positions = (0..batches.len()).flat_map(|batch| batches.positions(batch));
            positions.map(|position| order.at(position).0).fold(0u64, u64::wrapping_add)
        });
    });
}

criterion_group!(benches, orders);
criterion_main!(benches);
