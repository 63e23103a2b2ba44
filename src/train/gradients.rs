//! Owns what is done to all gradients of a model at once: joined, summed, scaled, laid out in one row and taken apart.
//! It must never know where they come from.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// Adds to the gradients of some parameters those of the same or of others.
pub(super) fn add<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    sum: &mut GradientsParams,
    more: GradientsParams,
) {
    struct Add<'a> {
        sum: &'a mut GradientsParams,
        more: GradientsParams,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Add<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let Some(more) = self.more.remove::<B::InnerBackend, D>(param.id) else { return };
            let sum = match self.sum.remove::<B::InnerBackend, D>(param.id) {
                Some(sum) => sum + more,
                None => more,
            };
            self.sum.register::<B::InnerBackend, D>(param.id, sum);
        }
    }
    model.visit(&mut Add { sum, more });
}

/// Multiplies every gradient.
pub(super) fn scale<B: AutodiffBackend, M: AutodiffModule<B>>(model: &M, gradients: &mut GradientsParams, factor: f64) {
    struct Scale<'a>(&'a mut GradientsParams, f64);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.remove::<B::InnerBackend, D>(param.id) {
                self.0.register::<B::InnerBackend, D>(param.id, gradient * self.1);
            }
        }
    }
    model.visit(&mut Scale(gradients, factor));
}

/// Whether every gradient is a number. Waits for the device.
pub(super) fn are_finite<B: AutodiffBackend, M: AutodiffModule<B>>(model: &M, gradients: &GradientsParams) -> bool {
    struct Largest<'a, B: Backend>(&'a GradientsParams, Vec<Tensor<B, 1>>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Largest<'_, B::InnerBackend> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<B::InnerBackend, D>(param.id) {
                // Zero times a number is zero; times infinity, or what is no number, it is no number.
                self.1.push((gradient * 0.0).sum());
            }
        }
    }
    let mut largest = Largest::<B::InnerBackend>(gradients, Vec::new());
    model.visit(&mut largest);
    let Some(sum) = largest.1.into_iter().reduce(|a, b| a + b) else { return true };
    sum.into_data().iter::<f32>().all(f32::is_finite)
}

/// The gradients of every parameter that learns, one after the other in the model's order; zeros where there are none.
pub(super) fn flatten<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    gradients: &mut GradientsParams,
) -> Vec<Tensor<B::InnerBackend, 1>> {
    struct Flatten<'a, B: Backend>(&'a mut GradientsParams, Vec<Tensor<B, 1>>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Flatten<'_, B::InnerBackend> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let weight = param.val();
            if !weight.is_require_grad() {
                return;
            }
            let numbers = weight.shape().num_elements();
            self.1.push(match self.0.remove::<B::InnerBackend, D>(param.id) {
                Some(gradient) => gradient.reshape([numbers]),
                None => Tensor::zeros([numbers], &weight.device()),
            });
        }
    }
    let mut flat = Flatten::<B::InnerBackend>(gradients, Vec::new());
    model.visit(&mut flat);
    flat.1
}

/// Takes apart what [`flatten`] laid out, joined in one row; what follows in the row is left.
pub(super) fn unflatten<B: AutodiffBackend, M: AutodiffModule<B>>(
    model: &M,
    row: &Tensor<B::InnerBackend, 1>,
) -> GradientsParams {
    struct Unflatten<'a, B: Backend> {
        row: &'a Tensor<B, 1>,
        next: usize,
        gradients: GradientsParams,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Unflatten<'_, B::InnerBackend> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let weight = param.val();
            if !weight.is_require_grad() {
                return;
            }
            let numbers = weight.shape().num_elements();
            let gradient = self.row.clone().narrow(0, self.next, numbers).reshape(weight.shape());
            self.next += numbers;
            self.gradients.register::<B::InnerBackend, D>(param.id, gradient);
        }
    }
    let mut parts = Unflatten { row, next: 0, gradients: GradientsParams::new() };
    model.visit(&mut parts);
    parts.gradients
}
