//! Networks: residual networks and a vision transformer, each with a stem, blocks and a head.
//!
//! A network runs part by part, so that a trainer can keep the input of each block and compute the rest again.
//! Weights are cast to the type of their input: with f32 weights, an image in bf16 is computed in bf16. The same seed
//! gives the same initial weights on any backend.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

mod convolution;
mod init;
mod layers;
mod norm;
mod transformer;

pub use layers::Pass;
pub(super) use layers::cast;

use convolution::{Basic, Stage, Stem};
use init::WeightInit;
use layers::affine;
use transformer::{Encoder, Norm, Patches};

use super::names::named;

/// Kind of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelKind {
    /// A residual network for images of 32 to 96 pixels, made for the CPU: a 4x4 stem of stride 2 and two stages.
    #[default]
    Small,
    /// A residual network for images of about 224 pixels, made for the CPU: a 7x7 stem of stride 4 and four stages.
    Large,
    /// ResNet-18 (He and others, "Deep residual learning for image recognition", 2016). Up to 96 pixels its stem is a
    /// 3x3 convolution, as is usual for CIFAR; above, a 7x7 one of stride 2 and a pool.
    ResNet18,
    /// ViT-Tiny (Touvron and others, "Training data-efficient image transformers", 2021), without class token: the head
    /// takes the mean over tokens (Beyer, Zhai and Kolesnikov, "Better plain ViT baselines", 2022). Patches have 16
    /// pixels; up to 96 pixels of side, 4.
    VitTiny,
}

/// Largest side of a small image, in pixels.
const SMALL_SIDE_MAX: usize = 96;

impl ModelKind {
    /// Network for the CPU for images of this side, in pixels.
    #[must_use]
    pub fn for_side(side: u32) -> Self {
        if side as usize <= SMALL_SIDE_MAX { ModelKind::Small } else { ModelKind::Large }
    }

    /// Default width: channels of the first block, or numbers of a token.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            ModelKind::Small | ModelKind::Large => 32,
            ModelKind::ResNet18 => 64,
            ModelKind::VitTiny => 192,
        }
    }
}

named!(ModelKind, "model", Small => "small", Large => "large", ResNet18 => "resnet18", VitTiny => "vit-tiny");

/// Shape of a [`Network`].
///
/// ```
/// use feedstock::rng::Seed;
/// use feedstock::train::{Cpu, ModelKind, NetworkConfig};
///
/// let config = NetworkConfig { width: 16, ..NetworkConfig::new(ModelKind::ResNet18, 10, 32) };
/// let network = config.init::<Cpu>(Seed(0), &Default::default());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Kind of the network.
    pub kind: ModelKind,
    /// Channels of the first block; every stage that halves the image doubles them. For a transformer the numbers of a
    /// token, a multiple of its 3 heads.
    pub width: usize,
    /// Number of classes.
    pub classes: usize,
    /// Height and width of the images, in pixels.
    pub side: usize,
    /// Channels inside each block of a pruned network; empty for one that is not pruned.
    pub hidden: Vec<usize>,
}

impl NetworkConfig {
    /// A network of the default width, not pruned.
    #[must_use]
    pub fn new(kind: ModelKind, classes: usize, side: u32) -> Self {
        NetworkConfig { kind, width: kind.width(), classes, side: side as usize, hidden: Vec::new() }
    }

    fn is_small(&self) -> bool {
        self.side <= SMALL_SIDE_MAX
    }

    /// Output channels and stride of each block.
    fn stages(&self) -> Vec<(usize, usize)> {
        let width = self.width;
        match self.kind {
            ModelKind::Small => vec![(2 * width, 2), (4 * width, 2)],
            ModelKind::Large => vec![(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)],
            ModelKind::ResNet18 => {
                let stage = |(level, stride)| [(width << level, stride), (width << level, 1)];
                [(0, 1), (1, 2), (2, 2), (3, 2)].into_iter().flat_map(stage).collect()
            }
            ModelKind::VitTiny => vec![(width, 1); transformer::DEPTH],
        }
    }

    /// Channels inside each block.
    #[must_use]
    pub fn hidden(&self) -> Vec<usize> {
        if !self.hidden.is_empty() {
            return self.hidden.clone();
        }
        let inside = |(out, _)| if self.kind == ModelKind::VitTiny { transformer::MLP * out } else { out };
        self.stages().into_iter().map(inside).collect()
    }

    /// Refuses values out of range, with a message.
    pub(super) fn check(&self) -> Result<(), String> {
        let NetworkConfig { kind, width, classes, side, hidden } = self;
        if *classes == 0 || *width == 0 || *side == 0 {
            return Err(format!(
                "a model of width {width} for {classes} classes of images of {side} pixels: each must be at least 1"
            ));
        }
        if *kind == ModelKind::VitTiny {
            let patch = transformer::patch(self.is_small());
            if !width.is_multiple_of(transformer::HEADS) {
                return Err(format!("{kind} of width {width}: use a multiple of its {} heads", transformer::HEADS));
            }
            if !side.is_multiple_of(patch) {
                return Err(format!(
                    "{kind} splits images into patches of {patch} pixels, and {side} is not a multiple of it: use \
                     --size {}",
                    side.next_multiple_of(patch)
                ));
            }
        }
        if !hidden.is_empty() && (hidden.len() != self.stages().len() || hidden.contains(&0)) {
            return Err(format!("{} hidden widths ({hidden:?}) for {} blocks", hidden.len(), self.stages().len()));
        }
        Ok(())
    }

    /// Creates a network with the initial weights of this seed.
    #[must_use]
    pub fn init<B: Backend>(&self, seed: crate::rng::Seed, device: &B::Device) -> Network<B> {
        self.build(WeightInit::new(seed), device)
    }

    /// Creates a network whose weights are zero, to be loaded.
    pub(super) fn init_blank<B: Backend>(&self, device: &B::Device) -> Network<B> {
        self.build(WeightInit::blank(), device)
    }

    fn build<B: Backend>(&self, mut start: WeightInit, device: &B::Device) -> Network<B> {
        let (stages, hidden) = (self.stages(), self.hidden());
        let mut channels = self.width;
        let stem = match (self.kind, self.is_small()) {
            (ModelKind::Small, _) => Entry::Stem(Stem::init(channels, 4, 2, false, &mut start, device)),
            (ModelKind::Large, _) => Entry::Stem(Stem::init(channels, 7, 4, false, &mut start, device)),
            (ModelKind::ResNet18, true) => Entry::Stem(Stem::init(channels, 3, 1, false, &mut start, device)),
            (ModelKind::ResNet18, false) => Entry::Stem(Stem::init(channels, 7, 2, true, &mut start, device)),
            (ModelKind::VitTiny, small) => {
                Entry::Patches(Patches::init(channels, self.side, transformer::patch(small), &mut start, device))
            }
        };
        let mut blocks = Vec::new();
        for ((out, stride), hidden) in stages.into_iter().zip(hidden) {
            let widths = [channels, hidden, out];
            blocks.push(match self.kind {
                ModelKind::Small | ModelKind::Large => Block::Stage(Stage::init(widths, stride, &mut start, device)),
                ModelKind::ResNet18 => Block::Basic(Basic::init(widths, stride, &mut start, device)),
                ModelKind::VitTiny => Block::Encoder(Encoder::init(channels, hidden, &mut start, device)),
            });
            channels = out;
        }
        let norm = (self.kind == ModelKind::VitTiny).then(|| Norm::init(channels, device));
        let mut linear = LinearConfig::new(channels, self.classes).init(device);
        linear.weight = start.normal([channels, self.classes], (1.0 / channels as f64).sqrt(), device);
        linear.bias = Some(Param::from_tensor(Tensor::zeros([self.classes], device)));
        Network { stem, blocks, head: Head { norm, linear } }
    }
}

/// Network for images: a stem, blocks, and a head.
///
/// Blocks pass on `[samples, channels, height, width]`, or `[samples, 1, tokens, width]` in a transformer.
#[derive(Module, Debug)]
pub struct Network<B: Backend> {
    stem: Entry<B>,
    blocks: Vec<Block<B>>,
    head: Head<B>,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a network")]
enum Entry<B: Backend> {
    Stem(Stem<B>),
    Patches(Patches<B>),
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a network has blocks of one kind")]
enum Block<B: Backend> {
    Stage(Stage<B>),
    Basic(Basic<B>),
    Encoder(Encoder<B>),
}

/// Mean over the image or the tokens, and one linear layer.
#[derive(Module, Debug)]
struct Head<B: Backend> {
    norm: Option<Norm<B>>,
    linear: Linear<B>,
}

impl<B: Backend> Network<B> {
    /// Computes the scores of images.
    ///
    /// # Shapes
    /// Images `[samples, 3, height, width]`, scores `[samples, classes]`.
    pub fn forward(&self, images: Tensor<B, 4>, pass: Pass) -> Tensor<B, 2> {
        self.head((0..self.parts()).fold(images, |x, part| self.part(part, x, pass)))
    }

    /// Number of parts before the head: the stem and the blocks.
    pub(super) fn parts(&self) -> usize {
        1 + self.blocks.len()
    }

    /// Computes one part.
    pub(super) fn part(&self, part: usize, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        match part.checked_sub(1) {
            None => match &self.stem {
                Entry::Stem(stem) => stem.forward(x, pass),
                Entry::Patches(patches) => patches.forward(x),
            },
            Some(block) => match &self.blocks[block] {
                Block::Stage(stage) => stage.forward(x, pass),
                Block::Basic(basic) => basic.forward(x, pass),
                Block::Encoder(encoder) => encoder.forward(x),
            },
        }
    }

    /// Computes the scores from the output of the last part.
    pub(super) fn head(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let means = match &self.head.norm {
            Some(norm) => {
                let [samples, _, tokens, width] = x.dims();
                norm.forward(x.reshape([samples, tokens, width])).mean_dim(1).reshape([samples, width])
            }
            None => {
                let [samples, channels, height, width] = x.dims();
                x.reshape([samples, channels, height * width]).mean_dim(2).reshape([samples, channels])
            }
        };
        affine(means, &self.head.linear)
    }

    /// First part with a trainable parameter; the number of parts if only the head has one.
    pub(super) fn first_trainable_part(&self) -> usize {
        let trainable = |part: &usize| match part.checked_sub(1) {
            None => is_trainable::<B, _>(&self.stem),
            Some(block) => is_trainable::<B, _>(&self.blocks[block]),
        };
        (0..self.parts()).find(trainable).unwrap_or(self.parts())
    }

    /// Replaces the head by that of another network.
    pub(super) fn with_head_of(self, other: &Self) -> Self {
        Network { head: other.head.clone(), ..self }
    }

    /// Norm of the weights of each channel inside each block.
    pub(super) fn channel_norms(&self) -> Vec<Tensor<B, 1>> {
        let norms = |block: &Block<B>| match block {
            Block::Stage(stage) => stage.channel_norms(),
            Block::Basic(basic) => basic.channel_norms(),
            Block::Encoder(encoder) => encoder.channel_norms(),
        };
        self.blocks.iter().map(norms).collect()
    }

    /// Selects channels inside each block.
    pub(super) fn with_channels(mut self, kept: &[Tensor<B, 1, Int>]) -> Self {
        let narrow = |(block, kept): (Block<B>, &Tensor<B, 1, Int>)| match block {
            Block::Stage(stage) => Block::Stage(stage.with_channels(kept)),
            Block::Basic(basic) => Block::Basic(basic.with_channels(kept)),
            Block::Encoder(encoder) => Block::Encoder(encoder.with_channels(kept)),
        };
        self.blocks = self.blocks.into_iter().zip(kept).map(narrow).collect();
        self
    }
}

/// Returns true if a module has a trainable parameter.
fn is_trainable<B: Backend, M: Module<B>>(module: &M) -> bool {
    struct Any(bool);
    impl<B: Backend> ModuleVisitor<B> for Any {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0 |= param.is_require_grad();
        }
    }
    let mut any = Any(false);
    module.visit(&mut any);
    any.0
}
