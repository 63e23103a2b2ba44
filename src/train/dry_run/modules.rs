//! Convolutions and linear layers, as operations of the router.

use burn::backend::ir::ModuleOperationIr as Module;

use super::kernel::{self, ConvParams};
use super::meta_tensor::MetaTensor;
use super::tensors::TensorTable;

impl TensorTable {
    /// Convolutions of images, and linear layers.
    pub(super) fn module(&mut self, op: &Module) -> Option<MetaTensor> {
        Some(match op {
            Module::Linear(op) => {
                let (x, weight, bias) = (self.take(&op.x), self.take(&op.weight), self.maybe(op.bias.as_ref()));
                kernel::linear(x, weight, bias, op.out.shape.clone())
            }
            Module::LinearXBackward(op) => {
                let (weight, grad) = (self.take(&op.weight), self.take(&op.output_grad));
                kernel::linear_x_backward(weight, grad, op.out.shape.clone())
            }
            Module::LinearWeightBackward(op) => {
                let (x, grad) = (self.take(&op.x), self.take(&op.output_grad));
                kernel::linear_weight_backward(x, grad, op.out.shape.clone())
            }
            Module::LinearBiasBackward(op) => {
                kernel::linear_bias_backward(self.take(&op.output_grad), op.out.shape.clone())
            }
            Module::Conv2d(op) => {
                let (x, weight, bias) = (self.take(&op.x), self.take(&op.weight), self.maybe(op.bias.as_ref()));
                let options = &op.options;
                let (stride, padding, dilation) = (&options.stride, &options.padding, &options.dilation);
                kernel::conv(x, weight, bias, ConvParams { stride, padding, dilation })
            }
            Module::Conv2dXBackward(op) => {
                let (x, weight, grad) = (self.take(&op.x), self.take(&op.weight), self.take(&op.output_grad));
                kernel::conv_x_backward(x, weight, grad)
            }
            Module::Conv2dWeightBackward(op) => {
                let (x, weight, grad) = (self.take(&op.x), self.take(&op.weight), self.take(&op.output_grad));
                let options = &op.options;
                let (stride, padding, dilation) = (&options.stride, &options.padding, &options.dilation);
                kernel::conv_weight_backward(x, weight, grad, ConvParams { stride, padding, dilation })
            }
            Module::Conv2dBiasBackward(op) => {
                let (x, bias, grad) = (self.take(&op.x), self.take(&op.bias), self.take(&op.output_grad));
                kernel::conv_bias_backward(x, bias, grad)
            }
            _ => return None,
        })
    }
}
