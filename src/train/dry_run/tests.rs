//! Bytes of single operations. `tests/training_memory.rs` compares whole steps with a counting allocator.

use std::thread;

use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::s;
use burn::tensor::{Bool, FloatDType, Int, Tensor, TensorData};

use super::*;

type T<const D: usize> = Tensor<MetaBackend, D>;

fn ones<const D: usize>(shape: [usize; D]) -> T<D> {
    Tensor::ones(shape, &FlexDevice)
}

/// Bytes that a piece of code adds to those in use, and the most that it adds meanwhile.
fn cost<R>(dry_run: &DryRun, code: impl FnOnce() -> R) -> (R, [u64; 2]) {
    dry_run.reset_peak();
    let before = dry_run.sample().in_use.0;
    let kept = code();
    let sample = dry_run.sample();
    (kept, [sample.in_use.0 - before, sample.peak.0 - before])
}

#[test]
fn bytes_follow_the_type_and_end_with_the_last_view() {
    let dry_run = DryRun::begin();
    let x = ones([10, 100]);
    let half = x.clone().cast(FloatDType::BF16);
    let whole = Tensor::<MetaBackend, 1, Int>::from_data(TensorData::new(vec![1_i64; 50], [50]), &FlexDevice);
    let sign = x.clone().greater_elem(0.0);
    let bytes = |dry_run: &DryRun| dry_run.sample().in_use.0;
    // Integers from outside are stored as the integer type of the backend, of 32 bits.
    assert_eq!(bytes(&dry_run), 4000 + 2000 + 200 + 1000);
    let view = half.clone().swap_dims(0, 1);
    drop((half, whole, sign));
    assert_eq!(bytes(&dry_run), 4000 + 2000);
    drop((x, view));
    assert_eq!(bytes(&dry_run), 0);
}

#[test]
fn views_share_and_copies_do_not() {
    let dry_run = DryRun::begin();
    let x = ones([1, 8, 50]);
    let views = || {
        let turned = x.clone().swap_dims(1, 2);
        (x.clone().reshape([8, 50]), turned, x.clone().expand([9, 8, 50]), x.clone().slice([0..1, 2..4]))
    };
    assert_eq!(cost(&dry_run, views).1, [0, 0]);
    assert_eq!(cost(&dry_run, || x.clone().swap_dims(1, 2).reshape([400])).1, [1600, 1600]);
    // Bytes are copied once more, to be aligned.
    assert_eq!(cost(&dry_run, || x.clone().repeat_dim(0, 3)).1, [4800, 9600]);
    assert_eq!(cost(&dry_run, || x.clone().repeat_dim(0, 1)).1, [0, 0]);
    // A slice keeps the whole storage alive.
    assert_eq!(cost(&dry_run, || ones([4, 100]).slice(s![0..1])).1, [1600, 1600]);
}

#[test]
fn a_tensor_with_one_owner_is_written_in_place() {
    let dry_run = DryRun::begin();
    assert_eq!(cost(&dry_run, || ((ones([100]) + 1.0).exp() * ones([100])).sqrt()).1, [400, 800]);
    let x = ones([100]);
    assert_eq!(cost(&dry_run, || x.clone() + 1.0).1, [400, 400]);
    assert_eq!(cost(&dry_run, || x.clone().exp()).1, [400, 400]);
    // The left side is reused, never the right one.
    assert_eq!(cost(&dry_run, || x.clone() * ones([100])).1, [400, 800]);
    assert_eq!(cost(&dry_run, || ones([100]) * x.clone()).1, [400, 400]);
    // A tensor times itself has two holders.
    let square = || {
        let y = ones([100]);
        y.clone() * y
    };
    assert_eq!(cost(&dry_run, square).1, [400, 800]);
    // One row for all and one number a row are known; numbers for the dimension between are not.
    assert_eq!(cost(&dry_run, || ones([5, 10, 10]) + ones([1, 1, 10])).1, [2000, 2040]);
    assert_eq!(cost(&dry_run, || ones([5, 10, 10]) + ones([5, 1, 1])).1, [2000, 2020]);
    assert_eq!(cost(&dry_run, || ones([5, 10, 10]) + ones([1, 10, 1])).1, [2000, 4040]);
}

#[test]
fn a_relu_is_one_kernel_and_another_mask_is_not() {
    let dry_run = DryRun::begin();
    assert_eq!(cost(&dry_run, || relu(ones([1000]))).1, [4000, 4000]);
    let x = ones([1000]);
    assert_eq!(cost(&dry_run, || relu(x.clone())).1, [4000, 4000]);
    let masked = || {
        let mask: Tensor<MetaBackend, 1, Bool> = x.clone().lower_elem(0.5);
        (x.clone().mask_fill(mask.clone(), 0.0), mask)
    };
    assert_eq!(cost(&dry_run, masked).1, [5000, 5000]);
    // The first half of a kernel is counted as soon as the counter is read.
    assert_eq!(cost(&dry_run, || x.clone().lower_equal_elem(0.0)).1, [1000, 1000]);
}

#[test]
fn casts_and_convolutions_have_their_workspace() {
    let dry_run = DryRun::begin();
    let x = ones([2, 8, 10, 10]);
    assert_eq!(cost(&dry_run, || x.clone().cast(FloatDType::BF16)).1, [3200, 1600 * 10]);

    // On flex: the output, the transposed weights and input, and on each thread a tile of columns, its product, and the
    // weights packed. Two samples are two tiles, if there are threads for two.
    let weight = ones([32, 8, 3, 3]);
    let convolve = || conv2d(x.clone(), weight.clone(), None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
    let tiles = thread::available_parallelism().map_or(1, usize::from).min(2) as u64;
    let tile = (72 + 32) * 100 + 72 * 32;
    let (out, spent) = cost(&dry_run, convolve);
    assert_eq!(out.dims(), [2, 32, 10, 10]);
    assert_eq!(spent, [4 * 6400, 4 * (6400 + 2304 + 1600 + tiles * tile)]);

    // Kernels of one pixel need none.
    let point = ones([32, 8, 1, 1]);
    let convolve = || conv2d(x.clone(), point.clone(), None, ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
    assert_eq!(cost(&dry_run, convolve).1, [4 * 6400, 4 * 6400]);
}

#[test]
fn values_are_zero() {
    let _dry_run = DryRun::begin();
    let sum = (ones([3, 4]) + 1.0).sum();
    assert_eq!(sum.into_scalar().to_bits(), 0.0_f32.to_bits());
}

#[test]
fn dry_runs_wait_for_each_other_and_start_from_zero() {
    let kept = thread::scope(|scope| {
        let threads: Vec<_> = (1..=8_usize)
            .map(|i| {
                scope.spawn(move || {
                    let dry_run = DryRun::begin();
                    let x = ones([100 * i]);
                    thread::yield_now();
                    let sample = dry_run.sample();
                    assert_eq!(
                        sample,
                        MemorySample { in_use: ByteCount(400 * i as u64), peak: ByteCount(400 * i as u64) }
                    );
                    x
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it read its own bytes")).collect::<Vec<_>>()
    });
    let dry_run = DryRun::begin();
    drop(kept);
    assert_eq!(dry_run.sample(), MemorySample { in_use: ByteCount(0), peak: ByteCount(0) });
}
