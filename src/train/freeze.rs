//! Parameters that are not trained.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::error::TrainError;
use crate::ParseError;

/// Parameters that are frozen: they keep their values, and have neither gradients nor optimizer state.
///
/// ```
/// use feedstock::train::Freeze;
///
/// assert_eq!("backbone".parse(), Ok(Freeze::Backbone));
/// assert_eq!("stem,blocks.0".parse(), Ok(Freeze::Named(vec!["stem".to_owned(), "blocks.0".to_owned()])));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Freeze {
    /// No parameter.
    #[default]
    Nothing,
    /// All parameters but those of the head.
    Backbone,
    /// Parameters whose name begins with one of these, such as `stem` or `blocks.0`.
    Named(Vec<String>),
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freeze::Nothing => f.pad("nothing"),
            Freeze::Backbone => f.pad("backbone"),
            Freeze::Named(names) => f.pad(&names.join(",")),
        }
    }
}

impl FromStr for Freeze {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "nothing" => Ok(Freeze::Nothing),
            "backbone" => Ok(Freeze::Backbone),
            _ if text.split(',').any(str::is_empty) => Err(ParseError::invalid(
                "names of parameters",
                text,
                "nothing, backbone, or names such as stem,blocks.0",
            )),
            _ => Ok(Freeze::Named(text.split(',').map(str::to_owned).collect())),
        }
    }
}

impl Freeze {
    /// Returns true if a parameter of this name is frozen. Names match by whole parts: `blocks.1` is not `blocks.10`.
    fn holds(&self, name: &str) -> bool {
        match self {
            Freeze::Nothing => false,
            Freeze::Backbone => !begins_with(name, "head"),
            Freeze::Named(starts) => starts.iter().any(|start| begins_with(name, start)),
        }
    }

    /// Freezes these parameters of a model.
    pub(super) fn apply<B: AutodiffBackend, M: Module<B>>(&self, model: M) -> Result<M, TrainError> {
        let all: Vec<String> = shapes(&model, false).into_iter().map(|(name, _)| name).collect();
        if let Freeze::Named(starts) = self
            && let Some(start) = starts.iter().find(|start| !all.iter().any(|name| begins_with(name, start)))
        {
            return Err(TrainError::Config(format!(
                "no parameter '{start}' to freeze: expected one of {}",
                groups(&all).join(", ")
            )));
        }
        let trainable = parameter_names(&model);
        if !trainable.is_empty() && trainable.iter().all(|name| self.holds(name)) {
            return Err(TrainError::Config(format!(
                "freezing '{self}' leaves no parameter to train: do not freeze the head"
            )));
        }
        Ok(match self {
            Freeze::Nothing => model,
            _ => model.map(&mut Mapper { freeze: self, path: Path::default() }),
        })
    }
}

fn begins_with(name: &str, start: &str) -> bool {
    name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// First parts of the names, such as `blocks.0`.
fn groups(names: &[String]) -> Vec<String> {
    let mut groups: Vec<String> = names
        .iter()
        .map(|name| {
            let parts = if name.starts_with("blocks") { 2 } else { 1 };
            name.split('.').take(parts).collect::<Vec<_>>().join(".")
        })
        .collect();
    groups.dedup();
    groups
}

/// Position of a visit in the model. The variant of a block is not part of a name.
#[derive(Default)]
struct Path(Vec<Option<String>>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push((!container.starts_with("Enum:")).then(|| name.to_owned()));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        self.0.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

/// Names and shapes of the parameters of a model.
pub(super) fn shapes<B: Backend, M: Module<B>>(model: &M, trainable_only: bool) -> Vec<(String, Vec<usize>)> {
    struct Shapes {
        path: Path,
        trainable_only: bool,
        found: Vec<(String, Vec<usize>)>,
    }
    impl<B: Backend> ModuleVisitor<B> for Shapes {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if !self.trainable_only || param.is_require_grad() {
                self.found.push((self.path.name(), param.val().dims().to_vec()));
            }
        }
    }
    let mut shapes = Shapes { path: Path::default(), trainable_only, found: Vec::new() };
    model.visit(&mut shapes);
    shapes.found
}

/// Names of all trainable parameters.
fn parameter_names<B: Backend, M: Module<B>>(model: &M) -> Vec<String> {
    shapes(model, true).into_iter().map(|(name, _)| name).collect()
}

struct Mapper<'a> {
    freeze: &'a Freeze,
    path: Path,
}

impl<B: Backend> ModuleMapper<B> for Mapper<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() || !self.freeze.holds(&self.path.name()) {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, tensor.detach().set_require_grad(false), mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;
    use crate::train::{Cpu, ModelKind, NetworkConfig};

    #[test]
    fn names_are_matched_part_by_part_and_unknown_ones_refused() {
        let config = NetworkConfig { width: 3, ..NetworkConfig::new(ModelKind::VitTiny, 4, 32) };
        let model = config.init::<Cpu>(Seed(0), &Default::default());
        let learning = |freeze: &str| {
            let freeze: Freeze = freeze.parse().expect("a freeze");
            freeze.apply::<Cpu, _>(model.clone()).map(|model| parameter_names::<Cpu, _>(&model))
        };
        let all = learning("nothing").expect("nothing frozen");
        assert!(all.iter().any(|name| name == "blocks.11.qkv.weight"), "{all:?}");
        let head = learning("backbone").expect("backbone frozen");
        assert!(head.len() == 4 && head.iter().all(|name| name.starts_with("head.")), "{head:?}");
        let some = learning("stem,blocks.1").expect("two frozen");
        assert!(
            some.iter().any(|name| name.starts_with("blocks.10.")) && !some.iter().any(|n| n.starts_with("blocks.1."))
        );
        let error = learning("blocks.12").expect_err("there are 12").to_string();
        assert!(error.contains("blocks.12") && error.contains("blocks.11") && error.contains("head"), "{error}");
        assert!(learning("stem,blocks,head").is_err());
        assert!("".parse::<Freeze>().is_err());
    }

    #[test]
    fn a_frozen_model_can_be_frozen_again() {
        let config = NetworkConfig { width: 3, ..NetworkConfig::new(ModelKind::VitTiny, 4, 32) };
        let model = config.init::<Cpu>(Seed(0), &Default::default());
        let once = Freeze::Backbone.apply::<Cpu, _>(model).expect("the head is trained");
        let twice = Freeze::Backbone.apply::<Cpu, _>(once.clone()).expect("the head is still trained");
        assert_eq!(parameter_names::<Cpu, _>(&twice), parameter_names::<Cpu, _>(&once));
        let both: Freeze = "stem,blocks".parse().expect("names");
        assert!(both.apply::<Cpu, _>(twice).is_ok(), "names of frozen parameters are known");
    }
}
