//! Initial weights.

use std::f64::consts::TAU;

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::SampleId;
use crate::rng::{KeyedRng, Seed};

/// Purpose of the random numbers, apart from every other use of the seed.
const WEIGHTS: u64 = 0x7765_6967_6874_7300;

/// Initial weights: each tensor has a stream of random numbers of its own.
pub(super) struct WeightInit {
    /// `None` makes all weights zero.
    seed: Option<Seed>,
    next: u64,
}

impl WeightInit {
    pub(super) fn new(seed: Seed) -> Self {
        WeightInit { seed: Some(seed), next: 0 }
    }

    pub(super) fn blank() -> Self {
        WeightInit { seed: None, next: 0 }
    }

    /// Normally distributed numbers around zero (Box and Muller's transform).
    pub(super) fn normal<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        deviation: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        let Some(seed) = self.seed else { return Param::from_tensor(Tensor::zeros(shape, device)) };
        let mut rng = KeyedRng::new(seed, 0, SampleId(self.next), WEIGHTS);
        self.next += 1;
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
                (deviation * radius * (TAU * rng.unit()).cos()) as f32
            })
            .collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
    }
}
