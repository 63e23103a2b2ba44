//! Owns structured pruning: which channels inside blocks go, and the network without them.
//! It must never take a channel that other blocks see, so that no shape between blocks changes.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::model::{Network, NetworkConfig};

/// The network without the channels whose weights have the smallest norm (Li and others, "Pruning filters for efficient
/// ConvNets", 2017), and its shape. Inside each block this share of the channels goes; one stays at least.
pub(super) fn prune<B: AutodiffBackend>(
    model: Network<B>,
    config: &NetworkConfig,
    share: f64,
    device: &B::Device,
) -> (Network<B>, NetworkConfig) {
    let norms = model.channel_norms().into_iter().map(|norms| norms.into_data().iter::<f32>().collect::<Vec<f32>>());
    let kept: Vec<Vec<i64>> = norms.map(|norms| heaviest(&norms, share)).collect();
    let hidden = kept.iter().map(Vec::len).collect();
    let places = |kept: &Vec<i64>| Tensor::<B, 1, Int>::from_data(TensorData::new(kept.clone(), [kept.len()]), device);
    let model = model.with_channels(&kept.iter().map(places).collect::<Vec<_>>());
    (model, NetworkConfig { hidden, ..config.clone() })
}

/// The places of those that stay, in order.
fn heaviest(norms: &[f32], share: f64) -> Vec<i64> {
    let gone = (norms.len() as f64 * share).round() as usize;
    let mut places: Vec<usize> = (0..norms.len()).collect();
    // Of two that weigh the same, the first stays.
    places.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
    places.truncate((norms.len() - gone).max(1));
    places.sort_unstable();
    places.into_iter().map(|place| place as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;
    use crate::train::{Cpu, ModelKind, Pass};
    use burn::module::{AutodiffModule, Module};

    #[test]
    fn the_heaviest_stay_in_their_order() {
        assert_eq!(heaviest(&[0.5, 3.0, 0.1, 2.0], 0.5), [1, 3]);
        assert_eq!(heaviest(&[1.0, 1.0, 1.0], 0.3), [0, 1]);
        assert_eq!(heaviest(&[1.0, 2.0], 0.99), [1]);
    }

    #[test]
    fn a_channel_that_weighs_nothing_is_not_missed() {
        let device = Default::default();
        for (kind, side) in [(ModelKind::Small, 16), (ModelKind::ResNet18, 32), (ModelKind::VitTiny, 16)] {
            let config = NetworkConfig { width: 6, ..NetworkConfig::new(kind, 4, side) };
            let model = config.init::<Cpu>(Seed(3), &device);
            let before = model.num_params();
            let (small, shape) = prune(model, &config, 0.5, &device);
            assert!(small.num_params() < before, "{kind}");
            assert_eq!(shape.hidden, config.hidden().iter().map(|hidden| hidden / 2).collect::<Vec<_>>());
            assert_eq!(shape.init::<Cpu>(Seed(0), &device).num_params(), small.num_params(), "{kind}");
            let images = Tensor::zeros([2, 3, side as usize, side as usize], &device);
            assert_eq!(small.valid().forward(images, Pass::Evaluate).dims(), [2, 4]);
            // Half of what is left once more: what was pruned can be pruned again.
            let (smaller, _) = prune(small, &shape, 0.5, &device);
            assert!(smaller.num_params() < shape.init::<Cpu>(Seed(0), &device).num_params());
        }
    }
}
