//! Operations on all gradients of a model at once: adding, scaling, and flattening into one vector and back.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// Gradients of the batches of a step.
///
/// A step uses the mean over all its images, whatever the sizes of its batches: the loss of each batch is a mean over
/// its own images, and is weighted by their number.
#[derive(Debug, Default)]
pub(super) struct GradientSum {
    gradients: GradientsParams,
    /// Number of images so far.
    pub(super) images: u64,
}

impl GradientSum {
    /// Factor on the loss of a batch; the sum is divided by that of all images. The unit of 64 images keeps sums near
    /// the magnitude of means.
    pub(super) fn weight(images: usize) -> f64 {
        images as f64 / 64.0
    }

    pub(super) fn add<B: AutodiffBackend, M: AutodiffModule<B>>(
        &mut self,
        model: &M,
        more: GradientsParams,
        images: usize,
    ) {
        if self.images == 0 {
            self.gradients = more;
        } else {
            add(model, &mut self.gradients, more);
        }
        self.images += images as u64;
    }

    /// Takes the gradients out.
    pub(super) fn take(&mut self) -> GradientsParams {
        std::mem::take(self).gradients
    }
}

/// Adds gradients, of the same parameters or of others.
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

/// Returns true if every gradient is finite. Waits for the device.
pub(super) fn are_finite<B: AutodiffBackend, M: AutodiffModule<B>>(model: &M, gradients: &GradientsParams) -> bool {
    struct Largest<'a, B: Backend>(&'a GradientsParams, Vec<Tensor<B, 1>>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Largest<'_, B::InnerBackend> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<B::InnerBackend, D>(param.id) {
                // 0 times a finite number is 0; 0 times infinity or NaN is NaN.
                self.1.push((gradient * 0.0).sum());
            }
        }
    }
    let mut largest = Largest::<B::InnerBackend>(gradients, Vec::new());
    model.visit(&mut largest);
    let Some(sum) = largest.1.into_iter().reduce(|a, b| a + b) else { return true };
    sum.into_data().iter::<f32>().all(f32::is_finite)
}

/// Flattens the gradients of every trainable parameter, in the order of the model; zeros where there are none.
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

/// Splits the concatenated vectors of [`flatten`] into gradients. Further numbers of the vector are ignored.
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
