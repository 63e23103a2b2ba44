//! Sums of the loss and of correct predictions. They stay on the device, one number each, until they are read.

use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Int, Tensor};

/// Sums over the images of an epoch: what was read, and what has been added on the device since.
#[derive(Clone)]
pub(super) struct MetricSums<B: Backend> {
    device: B::Device,
    new_loss: Tensor<B, 1>,
    new_right: Tensor<B, 1, Int>,
    loss: f64,
    right: u64,
    images: u64,
}

impl<B: Backend> MetricSums<B> {
    pub(super) fn new(device: &B::Device) -> Self {
        MetricSums {
            device: device.clone(),
            new_loss: Tensor::zeros([1], device),
            new_right: Tensor::zeros([1], device),
            loss: 0.0,
            right: 0,
            images: 0,
        }
    }

    /// Continues from sums of an earlier run.
    pub(super) fn restore(&mut self, loss: f64, right: u64, images: u64) {
        (self.loss, self.right, self.images) = (loss, right, images);
    }

    /// Adds a batch of `size` images with this mean loss.
    pub(super) fn add(&mut self, loss: &Tensor<B, 1>, scores: Tensor<B, 2>, labels: Tensor<B, 1, Int>, size: usize) {
        let right = scores.argmax(1).reshape([size]).equal(labels).int().sum();
        self.new_loss = self.new_loss.clone() + loss.clone() * size as f64;
        self.new_right = self.new_right.clone() + right;
        self.images += size as u64;
    }

    /// Waits for the device, and reads the sums.
    pub(super) fn read(&mut self) {
        let fresh = MetricSums::new(&self.device);
        self.loss += std::mem::replace(&mut self.new_loss, fresh.new_loss).into_scalar().elem::<f64>();
        self.right += std::mem::replace(&mut self.new_right, fresh.new_right).into_scalar().elem::<i64>() as u64;
    }

    /// Sums of loss and of correct predictions, as of the last read.
    pub(super) fn sums(&self) -> (f64, u64) {
        (self.loss, self.right)
    }

    pub(super) fn images(&self) -> u64 {
        self.images
    }

    /// Mean loss and accuracy, as of the last read.
    pub(super) fn means(&self) -> (f64, f64) {
        let images = self.images.max(1) as f64;
        (self.loss / images, self.right as f64 / images)
    }
}
