//! Structured pruning: removes channels inside blocks, which no other block sees, so that no shape between blocks
//! changes.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::model::{Network, NetworkConfig};

/// Removes this share of the channels inside each block, but not the last one: those whose weights have the smallest
/// norm (Li and others, "Pruning filters for efficient ConvNets", 2017). Returns the network and its shape.
pub(super) fn prune<B: AutodiffBackend>(
    model: Network<B>,
    config: &NetworkConfig,
    share: f64,
    device: &B::Device,
) -> (Network<B>, NetworkConfig) {
    let norms = model.channel_norms().into_iter().map(|norms| norms.into_data().iter::<f32>().collect::<Vec<f32>>());
    let kept: Vec<Vec<i64>> = norms.map(|norms| heaviest(&norms, share)).collect();
    let hidden = kept.iter().map(Vec::len).collect();
    let indices = |kept: &Vec<i64>| Tensor::<B, 1, Int>::from_data(TensorData::new(kept.clone(), [kept.len()]), device);
    let model = model.with_channels(&kept.iter().map(indices).collect::<Vec<_>>());
    (model, NetworkConfig { hidden, ..config.clone() })
}

/// Indices of the channels that stay, in order.
fn heaviest(norms: &[f32], share: f64) -> Vec<i64> {
    let removed = (norms.len() as f64 * share).round() as usize;
    let mut indices: Vec<usize> = (0..norms.len()).collect();
    // Of two equal norms the first stays.
    indices.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]).then(a.cmp(&b)));
    indices.truncate((norms.len() - removed).max(1));
    indices.sort_unstable();
    indices.into_iter().map(|index| index as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;
    use crate::train::{Cpu, ModelKind, Pass};
    use burn::module::{AutodiffModule, Module};

    #[test]
    fn the_heaviest_stay_in_their_order() {
        assert_eq!(heaviest(&[0.5, 3.0, 0.1, 2.0], 0.5), [1, 3]);
        assert_eq!(heaviest(&[1.0, 1.0, 1.0], 0.3), [0, 1]);
        assert_eq!(heaviest(&[1.0, 2.0], 0.99), [1]);
    }

    #[test]
    fn pruned_networks_have_the_shape_of_their_config() {
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
            // A pruned network can be pruned again.
            let (smaller, _) = prune(small, &shape, 0.5, &device);
            assert!(smaller.num_params() < shape.init::<Cpu>(Seed(0), &device).num_params());
        }
    }
}
