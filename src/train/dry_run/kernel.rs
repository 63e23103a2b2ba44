//! Workspaces of matrix products, convolutions, linear layers and their gradients. Each is one that burn-flex 0.21
//! allocates, and follows from the shapes alone.

#![allow(clippy::needless_pass_by_value, reason = "arguments stay alive until the end, as they do in burn-flex")]

use std::env;
use std::sync::LazyLock;
use std::thread;

use burn::tensor::ops::conv::calculate_conv_output_size;
use burn::tensor::{DType, Shape};
use burn_flex::Layout;

use super::meta_tensor::{Kernel, MetaTensor};

/// Parameters of a convolution.
#[derive(Clone, Copy)]
pub(super) struct ConvParams<'a> {
    pub(super) stride: &'a [usize],
    pub(super) padding: &'a [usize],
    pub(super) dilation: &'a [usize],
}

/// Output positions that `conv3d_impl` works on at once.
const TILE: usize = 512;

/// Threads that hold a tile at the same time: rayon's default pool.
static THREADS: LazyLock<usize> = LazyLock::new(|| {
    let asked = env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok()).filter(|&threads| threads > 0);
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
});

/// `ops::matmul::matmul`. Strided inputs are read in place, except for element types without a kernel in the gemm
/// library.
pub(super) fn matmul(lhs: MetaTensor, rhs: MetaTensor, shape: Shape) -> MetaTensor {
    match lhs.dtype() {
        DType::BF16 => {
            let (lhs, rhs) = (lhs.to_contiguous(), rhs.to_contiguous());
            let product = matmul(widened(&lhs), widened(&rhs), shape.clone());
            product.fresh(shape, DType::BF16)
        }
        dtype => {
            let dims = shape.num_dims();
            let (m, n, k) = (shape[dims - 2], shape[dims - 1], lhs.shape()[lhs.layout().num_dims() - 1]);
            let products: usize = shape[..dims - 2].iter().product();
            let made = lhs.fresh_bytes(shape, dtype);
            // Many small products are distributed over the threads; the library splits a large one itself.
            let _packed = made.workspace(packed(m, n, k) * products.clamp(1, *THREADS), dtype.size());
            made
        }
    }
}

/// Elements that the gemm library packs before an `[m, k] x [k, n]` product (`gemm_basic_generic` in gemm-
/// common 0.19): a panel of the right side where the left has more rows than two micro-kernels, and the whole left
/// side's panel where it is short. Depth goes by 512, and the right panel has to fit the last cache: 32 MiB, as on most
/// servers.
fn packed(m: usize, n: usize, k: usize) -> usize {
    let depth = k.min(512);
    let right = if m > 32 { n.min((32 << 20) / (4 * depth.max(1))) } else { 0 };
    let left = if m <= 256 { m } else { 0 };
    depth * (left + right)
}

/// `conv_common::convert_bf16_to_f32`.
fn widened(half: &MetaTensor) -> MetaTensor {
    let flat = half.to_contiguous();
    flat.fresh(half.shape(), DType::F32)
}

/// `ops::conv`: the fast paths need nothing but their output. The general one transposes its input and weights to
/// channels-last, and holds on each thread a tile of im2col columns and of the product.
pub(super) fn conv(x: MetaTensor, weight: MetaTensor, bias: Option<MetaTensor>, params: ConvParams<'_>) -> MetaTensor {
    if x.dtype() == DType::BF16 {
        let out = conv(widened(&x), widened(&weight), bias.as_ref().map(widened), params);
        return out.fresh(out.shape(), DType::BF16);
    }
    let dtype = x.dtype();
    let (x, weight) = (&x, &weight);
    let (flat_x, flat_weight) = (x.reshape(x.shape()), weight.reshape(weight.shape()));
    let (flat_x, flat_weight) = (flat_x.to_contiguous(), flat_weight.to_contiguous());

    let samples = x.shape()[0];
    let (outputs, channels_each) = (weight.shape()[0], weight.shape()[1]);
    let kernel = &weight.shape()[2..];
    let side = |i: usize| {
        let ConvParams { stride, padding, dilation, .. } = params;
        calculate_conv_output_size(kernel[i], stride[i], padding[i], dilation[i], x.shape()[2 + i])
    };
    let mut dims = vec![samples, outputs];
    dims.extend((0..kernel.len()).map(side));
    let positions: usize = dims[2..].iter().product();

    let out = || flat_x.fresh(dims.clone(), dtype);
    if is_fast(x, weight, params, &dims) {
        return out();
    }
    let columns = channels_each * kernel.iter().product::<usize>();
    let _weight_transposed = flat_weight.workspace(outputs * columns, dtype.size());
    let _x_transposed = flat_x.workspace(x.elements(), dtype.size());
    let made = out();
    let tasks = samples * positions.div_ceil(TILE);
    // Of its product, only the weights are packed: the columns are in the right order as they are.
    let tile = (columns + outputs) * positions.min(TILE) + packed(outputs, 0, columns);
    let _tiles = made.workspace(tile * tasks.min(*THREADS), dtype.size());
    made
}

/// `is_1x1_conv`, `should_use_small_channel_conv`, `should_use_direct_conv`.
fn is_fast(x: &MetaTensor, weight: &MetaTensor, params: ConvParams<'_>, out: &[usize]) -> bool {
    let (channels, outputs) = (x.shape()[1], weight.shape()[0]);
    let kernel = &weight.shape()[2..];
    let ConvParams { stride, padding, dilation } = params;
    let all = |values: &[usize], value| values.iter().all(|&it| it == value);

    let pointwise = all(kernel, 1) && all(stride, 1) && all(padding, 0);
    let few = (1..=4).contains(&channels) && (1..=16).contains(&outputs);
    let line = kernel[0] == 1 && x.shape()[2] == 1;
    let direct = all(padding, 0) && all(dilation, 1) && line && x.dtype() != DType::F16;
    pointwise || few || (direct && channels >= 32 && kernel[1] <= 8 && out[3] <= 800)
}

/// burn-backend's `conv2d_x_backward`, by `ops::conv_transpose`: columns of one sample at a time.
pub(super) fn conv_x_backward(x: MetaTensor, weight: MetaTensor, grad: MetaTensor) -> MetaTensor {
    let shape = x.shape();
    if grad.dtype() == DType::BF16 {
        let out = conv_x_backward(x, widened(&weight), widened(&grad));
        return out.fresh(shape, DType::BF16);
    }
    let (flat_grad, flat_weight) = (grad.reshape(grad.shape()), weight.reshape(weight.shape()));
    let (flat_grad, flat_weight) = (flat_grad.to_contiguous(), flat_weight.to_contiguous());
    let made = flat_grad.fresh(shape, grad.dtype());
    let rows: usize = weight.shape()[1..].iter().product();
    let positions: usize = grad.shape()[2..].iter().product();
    let workspace = rows * positions + packed(rows, positions, grad.shape()[1]);
    let _columns = flat_weight.workspace(workspace, grad.dtype().size());
    made
}

/// burn-backend's `conv2d_weight_backward`: a convolution over samples, whose result is a view.
pub(super) fn conv_weight_backward(
    x: MetaTensor,
    weight: MetaTensor,
    grad: MetaTensor,
    params: ConvParams<'_>,
) -> MetaTensor {
    let ConvParams { stride, padding, dilation } = params;
    let transposed = ConvParams { stride: dilation, padding, dilation: stride };
    let shape = weight.shape();
    let (x, grad) = (moved(x, |x| x.swap(0, 1)), moved(grad, |grad| grad.swap(0, 1)));
    let found = moved(conv(x, grad, None, transposed), |found| found.swap(0, 1));
    moved(found, |found| found.view(corner(found.layout(), &shape)))
}

/// Replaces a tensor by a view of it.
fn moved(tensor: MetaTensor, view: impl FnOnce(&MetaTensor) -> MetaTensor) -> MetaTensor {
    view(&tensor)
}

/// The first elements along each dimension.
fn corner(layout: &Layout, shape: &Shape) -> Layout {
    (0..shape.num_dims()).fold(layout.clone(), |layout, dim| layout.narrow(dim, 0, shape[dim]))
}

/// burn-backend's `conv2d_bias_backward`.
pub(super) fn conv_bias_backward(_x: MetaTensor, bias: MetaTensor, grad: MetaTensor) -> MetaTensor {
    let channels = grad.shape()[1];
    let rest = grad.elements() / channels.max(1);
    let grad = moved(grad, |grad| grad.swap(0, 1));
    let grad = moved(grad, |grad| grad.reshape([channels, rest]));
    grad.reduce_dim(1).reshape(bias.shape())
}

/// burn-backend's `linear`.
pub(super) fn linear(x: MetaTensor, weight: MetaTensor, bias: Option<MetaTensor>, shape: Shape) -> MetaTensor {
    let dims = x.layout().num_dims();
    let out = matmul(x, unsqueezed(weight, dims), shape);
    match bias {
        Some(bias) => out.binary(unsqueezed(bias, dims), Kernel::Vector),
        None => out,
    }
}

/// burn-backend's `linear_x_backward`.
pub(super) fn linear_x_backward(weight: MetaTensor, grad: MetaTensor, shape: Shape) -> MetaTensor {
    let dims = grad.layout().num_dims();
    let weight = unsqueezed(moved(weight, |weight| weight.swap(0, 1)), dims);
    matmul(grad, weight, shape)
}

/// burn-backend's `linear_weight_backward`: one product for each of the batch, summed afterwards.
pub(super) fn linear_weight_backward(x: MetaTensor, grad: MetaTensor, shape: Shape) -> MetaTensor {
    let dims = x.layout().num_dims();
    let x = moved(x, |x| x.swap(dims - 2, dims - 1));
    let mut each = x.shape().to_vec();
    each[dims - 1] = shape[1];
    let product = matmul(x, grad, Shape::from(each));
    (0..dims - 2).fold(product, |sum, dim| sum.reduce_dim(dim)).reshape(shape)
}

/// burn-backend's `linear_bias_backward`.
pub(super) fn linear_bias_backward(grad: MetaTensor, shape: Shape) -> MetaTensor {
    (0..grad.layout().num_dims() - 1).fold(grad, |sum, dim| sum.reduce_dim(dim)).reshape(shape)
}

/// `unsqueeze_leading`.
fn unsqueezed(tensor: MetaTensor, dims: usize) -> MetaTensor {
    let own = tensor.shape();
    if own.num_dims() >= dims {
        return tensor;
    }
    let mut shape = vec![1; dims - own.num_dims()];
    shape.extend(own.iter());
    tensor.reshape(shape)
}
