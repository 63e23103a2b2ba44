//! Owns the networks: a stem, blocks and a head, each a residual network or a transformer, chosen by name.
//! It must never take a random number from anywhere but the seed it is given: same seed, same weights, on any backend.
//!
//! A network is run block by block, so that a trainer can keep what goes into each block alone and make the rest anew.
//! Weights are cast to the type of what they meet: with 32-bit weights, a picture in bf16 is computed in bf16.

use std::fmt;
use std::str::FromStr;

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

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModelKind {
    /// A residual network for images of 32 to 96 pixels, made for the CPU: a 4x4 stem of stride 2 and two stages.
    #[default]
    Small,
    /// A residual network for images of about 224 pixels, made for the CPU: a 7x7 stem of stride 4 and four stages.
    Large,
    /// ResNet-18 (He and others, "Deep residual learning for image recognition", 2016). Up to 96 pixels its stem is a 3x3
    /// convolution, as is usual for CIFAR; above, a 7x7 one of stride 2 and a pool.
    ResNet18,
    /// ViT-Tiny (Touvron and others, "Training data-efficient image transformers", 2021), without class token: the head
    /// takes the mean over tokens (Beyer, Zhai and Kolesnikov, "Better plain ViT baselines", 2022). Patches have 16
    /// pixels; up to 96 pixels of side, 4.
    VitTiny,
}

/// Images up to this side, in pixels, are small ones.
const SMALL_SIDE_MAX: usize = 96;

impl ModelKind {
    /// Every network there is.
    pub const ALL: [ModelKind; 4] = [ModelKind::Small, ModelKind::Large, ModelKind::ResNet18, ModelKind::VitTiny];

    /// The one made for the CPU that suits images of this side, in pixels.
    #[must_use]
    pub fn for_side(side: u32) -> Self {
        if side as usize <= SMALL_SIDE_MAX { ModelKind::Small } else { ModelKind::Large }
    }

    /// Channels of the first block, or numbers of a token, where nothing else is asked for.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            ModelKind::Small | ModelKind::Large => 32,
            ModelKind::ResNet18 => 64,
            ModelKind::VitTiny => 192,
        }
    }

    fn name(self) -> &'static str {
        match self {
            ModelKind::Small => "small",
            ModelKind::Large => "large",
            ModelKind::ResNet18 => "resnet18",
            ModelKind::VitTiny => "vit-tiny",
        }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ModelKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let found = ModelKind::ALL.into_iter().find(|kind| kind.name() == lower);
        found.ok_or_else(|| format!("'{text}' is no model: use {}", ModelKind::ALL.map(ModelKind::name).join(", ")))
    }
}

/// The shape of a [`Network`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Which network.
    pub kind: ModelKind,
    /// Channels of the first block; every stage that halves the picture doubles them. For a transformer the numbers of a
    /// token, a multiple of 3, the number of its heads.
    pub width: usize,
    /// How many classes there are.
    pub classes: usize,
    /// Height and width of the images, in pixels.
    pub side: usize,
    /// Channels inside each block, where pruning has taken some; empty where none are gone.
    pub hidden: Vec<usize>,
}

impl NetworkConfig {
    /// A network of its usual width, with nothing pruned.
    #[must_use]
    pub fn new(kind: ModelKind, classes: usize, side: u32) -> Self {
        NetworkConfig { kind, width: kind.width(), classes, side: side as usize, hidden: Vec::new() }
    }

    fn is_small(&self) -> bool {
        self.side <= SMALL_SIDE_MAX
    }

    /// Channels that come out of each block, and its stride.
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

    /// What is wrong with these numbers, if anything is.
    pub(super) fn check(&self) -> Result<(), String> {
        let NetworkConfig { kind, width, classes, side, hidden } = self;
        if *classes == 0 || *width == 0 || *side == 0 {
            return Err(format!(
                "a model of width {width} for {classes} classes of images of {side} pixels: each is at least 1"
            ));
        }
        if *kind == ModelKind::VitTiny {
            let patch = transformer::patch(self.is_small());
            if !width.is_multiple_of(transformer::HEADS) {
                return Err(format!("{kind} of width {width}: it is a multiple of its {} heads", transformer::HEADS));
            }
            if !side.is_multiple_of(patch) {
                return Err(format!(
                    "{kind} cuts images into patches of {patch} pixels, and {side} is no multiple of it: use --size {}",
                    side.next_multiple_of(patch)
                ));
            }
        }
        if !hidden.is_empty() && (hidden.len() != self.stages().len() || hidden.contains(&0)) {
            return Err(format!("{} hidden widths ({hidden:?}) for {} blocks", hidden.len(), self.stages().len()));
        }
        Ok(())
    }

    /// A network with weights that this seed decides.
    #[must_use]
    pub fn init<B: Backend>(&self, seed: crate::Seed, device: &B::Device) -> Network<B> {
        self.build(WeightInit::new(seed), device)
    }

    /// A network of this shape whose weights nobody will look at.
    pub(super) fn init_blank<B: Backend>(&self, device: &B::Device) -> Network<B> {
        self.build(WeightInit::blank(), device)
    }

    fn build<B: Backend>(&self, mut start: WeightInit, device: &B::Device) -> Network<B> {
        let (stages, hidden) = (self.stages(), self.hidden());
        let mut channels = self.width;
        let stem = match (self.kind, self.is_small()) {
            (ModelKind::Small, _) => Entry::Picture(Stem::init(channels, 4, 2, false, &mut start, device)),
            (ModelKind::Large, _) => Entry::Picture(Stem::init(channels, 7, 4, false, &mut start, device)),
            (ModelKind::ResNet18, true) => Entry::Picture(Stem::init(channels, 3, 1, false, &mut start, device)),
            (ModelKind::ResNet18, false) => Entry::Picture(Stem::init(channels, 7, 2, true, &mut start, device)),
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

/// A network for images: a stem, blocks, and a head.
///
/// What goes from block to block is `[samples, channels, height, width]`, or `[samples, 1, tokens, width]` in a
/// transformer.
#[derive(Module, Debug)]
pub struct Network<B: Backend> {
    stem: Entry<B>,
    blocks: Vec<Block<B>>,
    head: Head<B>,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a network")]
enum Entry<B: Backend> {
    Picture(Stem<B>),
    Patches(Patches<B>),
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a network has blocks of one kind")]
enum Block<B: Backend> {
    Stage(Stage<B>),
    Basic(Basic<B>),
    Encoder(Encoder<B>),
}

/// The mean over the picture or the tokens, and one linear layer.
#[derive(Module, Debug)]
struct Head<B: Backend> {
    norm: Option<Norm<B>>,
    linear: Linear<B>,
}

impl<B: Backend> Network<B> {
    /// Scores of images.
    ///
    /// # Shapes
    /// Images `[samples, 3, height, width]`, scores `[samples, classes]`.
    pub fn forward(&self, images: Tensor<B, 4>, pass: Pass) -> Tensor<B, 2> {
        self.head((0..self.parts()).fold(images, |x, part| self.part(part, x, pass)))
    }

    /// How many parts there are before the head: the stem and the blocks.
    pub(super) fn parts(&self) -> usize {
        1 + self.blocks.len()
    }

    /// What one of them makes of what the one before it made.
    pub(super) fn part(&self, part: usize, x: Tensor<B, 4>, pass: Pass) -> Tensor<B, 4> {
        match part.checked_sub(1) {
            None => match &self.stem {
                Entry::Picture(stem) => stem.forward(x, pass),
                Entry::Patches(patches) => patches.forward(x),
            },
            Some(place) => match &self.blocks[place] {
                Block::Stage(stage) => stage.forward(x, pass),
                Block::Basic(basic) => basic.forward(x, pass),
                Block::Encoder(encoder) => encoder.forward(x),
            },
        }
    }

    /// Scores, from what the last part made.
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

    /// The first part in which something learns; as many as there are parts where the head alone does.
    pub(super) fn first_learning_part(&self) -> usize {
        let learns = |part: &usize| match part.checked_sub(1) {
            None => any_learns::<B, _>(&self.stem),
            Some(place) => any_learns::<B, _>(&self.blocks[place]),
        };
        (0..self.parts()).find(learns).unwrap_or(self.parts())
    }

    /// The same network with another's head.
    pub(super) fn with_head_of(self, other: &Self) -> Self {
        Network { head: other.head.clone(), ..self }
    }

    /// How much each channel inside each block weighs: the norm of the weights that make it.
    pub(super) fn channel_norms(&self) -> Vec<Tensor<B, 1>> {
        let norms = |block: &Block<B>| match block {
            Block::Stage(stage) => stage.channel_norms(),
            Block::Basic(basic) => basic.channel_norms(),
            Block::Encoder(encoder) => encoder.channel_norms(),
        };
        self.blocks.iter().map(norms).collect()
    }

    /// The same network with these channels alone inside each block.
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

/// Whether a module has a parameter that learns.
fn any_learns<B: Backend, M: Module<B>>(module: &M) -> bool {
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
