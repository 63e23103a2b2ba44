//! Convolutions and linear layers, as operations of the router.

use burn::backend::ir::ModuleOperationIr as Module;

use super::kernel::{self, ConvParams};
use super::meta_tensor::MetaTensor;
use super::tensors::TensorTable;

impl TensorTable {
    /// Convolutions and linear layers.
    pub(super) fn module(&mut self, op: &Module) -> Option<MetaTensor> {
        macro_rules! conv {
            ($op:expr) => {{
                let (x, weight, bias) = (self.take(&$op.x), self.take(&$op.weight), self.maybe($op.bias.as_ref()));
                kernel::conv(x, weight, bias, params!($op))
            }};
        }
        macro_rules! conv_transpose {
            ($op:expr) => {{
                let (x, weight, bias) = (self.take(&$op.x), self.take(&$op.weight), self.maybe($op.bias.as_ref()));
                kernel::conv_transpose(x, weight, bias, $op.options.groups, $op.out.shape.clone())
            }};
        }
        macro_rules! x_backward {
            ($op:expr) => {{
                let (x, weight, grad) = (self.take(&$op.x), self.take(&$op.weight), self.take(&$op.output_grad));
                kernel::conv_x_backward(x, weight, grad, $op.options.groups)
            }};
        }
        macro_rules! weight_backward {
            ($op:expr) => {{
                let (x, weight, grad) = (self.take(&$op.x), self.take(&$op.weight), self.take(&$op.output_grad));
                kernel::conv_weight_backward(x, weight, grad, params!($op))
            }};
        }
        macro_rules! bias_backward {
            ($op:expr) => {{
                let (x, bias, grad) = (self.take(&$op.x), self.take(&$op.bias), self.take(&$op.output_grad));
                kernel::conv_bias_backward(x, bias, grad)
            }};
        }
        macro_rules! params {
            ($op:expr) => {{
                let options = &$op.options;
                ConvParams {
                    stride: &options.stride,
                    padding: &options.padding,
                    dilation: &options.dilation,
                    groups: options.groups,
                }
            }};
        }
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
            Module::Conv1d(op) => conv!(op),
            Module::Conv2d(op) => conv!(op),
            Module::Conv3d(op) => conv!(op),
            Module::Conv1dXBackward(op) => x_backward!(op),
            Module::Conv2dXBackward(op) => x_backward!(op),
            Module::Conv3dXBackward(op) => x_backward!(op),
            Module::Conv1dWeightBackward(op) => weight_backward!(op),
            Module::Conv2dWeightBackward(op) => weight_backward!(op),
            Module::Conv3dWeightBackward(op) => weight_backward!(op),
            Module::Conv1dBiasBackward(op) => bias_backward!(op),
            Module::Conv2dBiasBackward(op) => bias_backward!(op),
            Module::Conv3dBiasBackward(op) => bias_backward!(op),
            Module::ConvTranspose1d(op) => conv_transpose!(op),
            Module::ConvTranspose2d(op) => conv_transpose!(op),
            Module::ConvTranspose3d(op) => conv_transpose!(op),
            _ => return None,
        })
    }
}
