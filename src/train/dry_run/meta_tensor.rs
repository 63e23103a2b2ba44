//! Tensors with a shape, a layout and a shared storage, but without data; and the counter of their bytes.
//!
//! Each function follows one of burn-flex 0.21 line by line, down to the tensors that stay alive until it returns. Its
//! comment names that function.

#![allow(clippy::needless_pass_by_value, reason = "arguments stay alive until the end, as they do in burn-flex")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Shape};
use burn_flex::Layout;

/// Counter of bytes in use, and of their peak.
#[derive(Debug, Default)]
pub(super) struct ByteCounter {
    in_use: AtomicU64,
    peak: AtomicU64,
}

impl ByteCounter {
    pub(super) fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.in_use(), Ordering::Relaxed);
    }
}

/// Bytes in use until it is dropped, of a tensor or the workspace of an operation.
#[derive(Debug)]
pub(super) struct Storage {
    bytes: u64,
    counter: Arc<ByteCounter>,
}

impl Storage {
    pub(super) fn new(counter: &Arc<ByteCounter>, bytes: usize) -> Storage {
        let bytes = bytes as u64;
        let now = counter.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        counter.peak.fetch_max(now, Ordering::Relaxed);
        Storage { bytes, counter: Arc::clone(counter) }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.counter.in_use.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Kind of the kernels of a binary operation: those with vector instructions work in place in more cases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Addition, subtraction, multiplication, division of f32.
    Vector,
    /// All other operations.
    Plain,
}

/// `FlexTensor` without data.
#[derive(Clone, Debug)]
pub(super) struct MetaTensor {
    storage: Arc<Storage>,
    layout: Layout,
    dtype: DType,
}

impl MetaTensor {
    /// Creates a tensor with a storage of its own.
    pub(super) fn new(counter: &Arc<ByteCounter>, shape: Shape, dtype: DType) -> MetaTensor {
        let storage = Arc::new(Storage::new(counter, shape.num_elements() * dtype.size()));
        MetaTensor { storage, layout: Layout::contiguous(shape), dtype }
    }

    /// Creates another tensor, with a storage of its own.
    pub(super) fn fresh(&self, shape: impl Into<Shape>, dtype: DType) -> MetaTensor {
        MetaTensor::new(&self.storage.counter, shape.into(), dtype)
    }

    /// Creates another tensor from bytes: `Bytes::from_bytes_vec` copies them once, to a greater alignment.
    pub(super) fn fresh_bytes(&self, shape: Shape, dtype: DType) -> MetaTensor {
        MetaTensor::new_bytes(&self.storage.counter, shape, dtype)
    }

    /// Creates a tensor from bytes.
    pub(super) fn new_bytes(counter: &Arc<ByteCounter>, shape: Shape, dtype: DType) -> MetaTensor {
        let _unaligned = Storage::new(counter, shape.num_elements() * dtype.size());
        MetaTensor::new(counter, shape, dtype)
    }

    /// Workspace of this many elements of this size, until it is dropped.
    pub(super) fn workspace(&self, elements: usize, bytes_each: usize) -> Storage {
        Storage::new(&self.storage.counter, elements * bytes_each)
    }

    /// Creates a view of the same storage.
    pub(super) fn view(&self, layout: Layout) -> MetaTensor {
        MetaTensor { storage: Arc::clone(&self.storage), layout, dtype: self.dtype }
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn shape(&self) -> Shape {
        self.layout.shape().clone()
    }

    pub(super) fn elements(&self) -> usize {
        self.layout.num_elements()
    }

    pub(super) fn is_half(&self) -> bool {
        matches!(self.dtype, DType::F16 | DType::BF16)
    }

    fn is_unique(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    /// Returns true if it is row-major and begins at the start of its storage.
    fn is_plain(&self) -> bool {
        self.layout.is_contiguous() && self.layout.start_offset() == 0
    }

    fn fills_its_storage(&self) -> bool {
        self.storage.bytes == (self.elements() * self.dtype.size()) as u64
    }

    /// `FlexTensor::to_contiguous`.
    pub(super) fn to_contiguous(&self) -> MetaTensor {
        if self.is_plain() && self.fills_its_storage() {
            return self.clone();
        }
        self.fresh(self.shape(), self.dtype)
    }

    /// `FlexTensor::reshape`.
    pub(super) fn reshape(&self, shape: impl Into<Shape>) -> MetaTensor {
        let shape = shape.into();
        match self.layout.reshape(shape.clone()) {
            Some(layout) => self.view(layout),
            None => self.to_contiguous().view(Layout::contiguous(shape)),
        }
    }

    /// `FlexTensor::transpose`.
    pub(super) fn swap(&self, a: usize, b: usize) -> MetaTensor {
        self.view(self.layout.transpose(a, b))
    }

    /// `ops::expand::expand`.
    pub(super) fn expand(self, shape: Shape) -> MetaTensor {
        let new = shape.num_dims() - self.layout.num_dims();
        let strides = (0..shape.num_dims()).map(|dim| match dim.checked_sub(new) {
            Some(own) if self.layout.shape()[own] == shape[dim] => self.layout.strides()[own],
            _ => 0,
        });
        let layout = Layout::new(shape.clone(), strides.collect(), self.layout.start_offset());
        self.view(layout)
    }

    /// `ops::unary::unary_op`.
    pub(super) fn unary(self) -> MetaTensor {
        if self.is_unique() && self.is_plain() {
            return self;
        }
        let forward = self.layout.strides().iter().all(|&stride| stride >= 0);
        let mut made = self.fresh(self.shape(), self.dtype);
        if forward && self.layout.start_offset() == 0 && self.fills_its_storage() {
            made.layout = self.layout;
        }
        made
    }

    /// `ops::binary::scalar_op`, `ops::bool::bool_not`.
    pub(super) fn scalar(self) -> MetaTensor {
        if self.is_unique() && self.is_plain() {
            return self;
        }
        self.fresh(self.shape(), self.dtype)
    }

    /// `ops::binary::binary_op`: writes in place to the left side where possible, never to the right side.
    pub(super) fn binary(self, rhs: MetaTensor, kernel: Kernel) -> MetaTensor {
        let (mut lhs, rhs) = broadcast(self, rhs);
        let vector = kernel == Kernel::Vector && lhs.dtype == DType::F32;
        if vector && !lhs.layout.is_contiguous() && rhs.layout.strides().contains(&0) {
            lhs = lhs.to_contiguous();
        }
        let in_place = rhs.layout.is_contiguous() || (vector && repeats_rows(&lhs.layout, &rhs.layout));
        if in_place && lhs.is_unique() && lhs.is_plain() {
            return lhs;
        }
        lhs.fresh(lhs.shape(), lhs.dtype)
    }

    /// `ops::comparison::compare` and `compare_elem`: bools of a byte each.
    pub(super) fn compare(self, rhs: Option<MetaTensor>, dtype: DType) -> MetaTensor {
        let shape = match &rhs {
            Some(rhs) => broadcast_shape(self.layout.shape(), rhs.layout.shape()),
            None => self.shape(),
        };
        self.fresh(shape, dtype)
    }

    /// `ops::mask::mask_fill` and `mask_where`.
    pub(super) fn mask(self, mask: MetaTensor, value: Option<MetaTensor>) -> MetaTensor {
        let (tensor, mask) = broadcast(self, mask);
        let (tensor, value) = match value {
            Some(value) => {
                let (tensor, value) = broadcast(tensor, value);
                (tensor, Some(value))
            }
            None => (tensor, None),
        };
        let shape = tensor.shape();
        let _flat = (tensor.to_contiguous(), mask.to_contiguous(), value.as_ref().map(MetaTensor::to_contiguous));
        tensor.fresh(shape, tensor.dtype)
    }

    /// `ops::reduce::sum_dim` and `prod_dim`.
    pub(super) fn reduce_dim(self, dim: usize) -> MetaTensor {
        let outer_or_inner = dim > 1 || self.layout.num_dims() - dim - 1 > 1;
        let strided = matches!(self.dtype, DType::F32 | DType::F64 | DType::I64 | DType::U64);
        let copies = !strided || (!self.layout.is_contiguous() && outer_or_inner);
        let _flat = copies.then(|| self.to_contiguous());
        self.fresh(self.without(dim), self.dtype)
    }

    /// `ops::reduce::mean_dim`: sums f16 and bf16 in f32.
    pub(super) fn mean_dim(self, dim: usize) -> MetaTensor {
        if !self.is_half() {
            return self.reduce_dim(dim);
        }
        let flat = self.to_contiguous();
        let _numbers = flat.workspace(flat.elements(), 4);
        let shape = self.without(dim);
        let _sums = flat.workspace(shape.num_elements(), 4);
        flat.fresh(shape, self.dtype)
    }

    /// `ops::reduce::max_dim`, `argmax` and the like. Indices are found as 64 bits, then cast.
    pub(super) fn extremum_dim(
        self,
        dim: usize,
        values: Option<DType>,
        indices: Option<DType>,
    ) -> [Option<MetaTensor>; 2] {
        let flat = self.to_contiguous();
        let shape = self.without(dim);
        let values = values.map(|dtype| flat.fresh(shape.clone(), dtype));
        let indices = indices.map(|dtype| {
            let found = flat.fresh(shape, DType::I64);
            if dtype.size() == DType::I64.size() { found } else { found.converted(dtype) }
        });
        [values, indices]
    }

    fn without(&self, dim: usize) -> Shape {
        let mut dims = self.layout.shape().to_vec();
        dims[dim] = 1;
        Shape::from(dims)
    }

    /// Casts between kinds of numbers: `float_into_int`, `int_cast`, `bool_into_float` and the like.
    pub(super) fn converted(self, dtype: DType) -> MetaTensor {
        let flat = self.to_contiguous();
        flat.fresh(self.shape(), dtype)
    }

    /// `float_cast`: always converts through f64.
    pub(super) fn float_cast(self, dtype: DType) -> MetaTensor {
        if self.dtype == dtype {
            return self;
        }
        let flat = self.to_contiguous();
        let wide = flat.fresh(self.shape(), DType::F64);
        if dtype == DType::F64 { wide } else { flat.fresh(self.shape(), dtype) }
    }

    /// `ops::repeat_dim::repeat_dim`.
    pub(super) fn repeat_dim(self, times: usize, shape: Shape) -> MetaTensor {
        if times == 1 {
            return self;
        }
        let flat = self.to_contiguous();
        flat.fresh_bytes(shape, self.dtype)
    }

    /// `ops::slice::slice_assign`: its input is alive until the end, so it always writes to a copy.
    pub(super) fn slice_assign(self, value: MetaTensor) -> MetaTensor {
        let splat = value.layout.strides().iter().all(|&stride| stride == 0);
        let _flat = (!splat).then(|| value.to_contiguous());
        self.fresh(self.shape(), self.dtype)
    }
}

/// `ops::expand::broadcast_binary`.
fn broadcast(lhs: MetaTensor, rhs: MetaTensor) -> (MetaTensor, MetaTensor) {
    let shape = broadcast_shape(lhs.layout.shape(), rhs.layout.shape());
    let fit = |tensor: MetaTensor| if tensor.layout.shape() == &shape { tensor } else { tensor.expand(shape.clone()) };
    (fit(lhs), fit(rhs))
}

fn broadcast_shape(lhs: &Shape, rhs: &Shape) -> Shape {
    let dims = lhs.num_dims().max(rhs.num_dims());
    let at = |shape: &Shape, dim: usize| (dim + shape.num_dims()).checked_sub(dims).map_or(1, |own| shape[own]);
    Shape::from((0..dims).map(|dim| if at(lhs, dim) == 1 { at(rhs, dim) } else { at(lhs, dim) }).collect::<Vec<_>>())
}

/// `ops::binary::detect_broadcast_pattern`: one row for all rows, or one number for each row.
fn repeats_rows(lhs: &Layout, rhs: &Layout) -> bool {
    let (shape, strides) = (lhs.shape(), rhs.strides());
    let Some(last) = strides.len().checked_sub(1) else { return false };
    match strides[last] {
        1 => (0..last).all(|dim| strides[dim] == 0 || shape[dim] == 1),
        0 => {
            let inner = strides.iter().rev().take_while(|&&stride| stride == 0).count();
            let mut expected = 1;
            (0..strides.len() - inner).rev().all(|dim| {
                let fits = strides[dim] == expected;
                expected *= shape[dim] as isize;
                fits
            })
        }
        _ => false,
    }
}
