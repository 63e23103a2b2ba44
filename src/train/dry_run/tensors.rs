//! The table of tensors, and the effect of each operation on it. An operation depends on the shapes and element types
//! of its inputs, and on whether they have another owner. The operations are those of the networks of this crate; any
//! other one counts as a kernel with contiguous inputs and new outputs.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use burn::backend::ir::{
    BaseOperationIr as Base, BinaryOpIr, BoolOperationIr as Bools, FloatOperationIr as Floats, IntOperationIr as Ints,
    ModuleOperationIr as Module, NumericOperationIr as Numeric, OperationIr, ScalarOpIr, TensorId, TensorIr,
    TensorStatus, UnaryOpIr,
};
use burn::tensor::{DType, Shape};

use super::fused::{self, Match};
use super::kernel;
use super::meta_tensor::{ByteCounter, Kernel, MetaTensor, Storage};

/// All tensors of a dry run.
#[derive(Debug, Default)]
pub(super) struct TensorTable {
    counter: Arc<ByteCounter>,
    tensors: HashMap<TensorId, MetaTensor>,
    /// Operations that may be the first ones of a kernel that flex has in one piece.
    pending: Vec<OperationIr>,
}

impl TensorTable {
    /// Counter, with everything that was registered.
    pub(super) fn counter(&mut self) -> &ByteCounter {
        for op in mem::take(&mut self.pending) {
            self.run(&op);
        }
        &self.counter
    }

    /// Adds a tensor with data from outside.
    pub(super) fn write(&mut self, id: TensorId, shape: Shape, dtype: DType) {
        let tensor = MetaTensor::new(&self.counter, shape, dtype);
        self.tensors.insert(id, tensor);
    }

    /// Counts a read, which may be the last one of the tensor.
    pub(super) fn read(&mut self, tensor: &TensorIr) {
        self.counter();
        self.take(tensor);
    }

    /// Adds an operation, which may take effect only with the next one.
    pub(super) fn register(&mut self, op: OperationIr) {
        self.pending.push(op);
        while !self.pending.is_empty() {
            match fused::match_kernel(&self.pending) {
                Match::Prefix => return,
                Match::Complete(inputs) => {
                    let ops = mem::take(&mut self.pending);
                    let mut inputs = inputs.iter().map(|input| self.take(input)).collect::<Vec<_>>().into_iter();
                    let made = match (inputs.next(), inputs.next()) {
                        (Some(x), Some(grad)) => x.binary(grad, Kernel::Plain),
                        (Some(x), None) => x.unary(),
                        (None, _) => return,
                    };
                    if let Some(out) = ops.last().and_then(|op| op.outputs().next()) {
                        self.tensors.insert(out.id, made);
                    }
                    return;
                }
                Match::None => {
                    let op = self.pending.remove(0);
                    self.run(&op);
                }
            }
        }
    }

    /// Tensor of an input. The table keeps its own copy while there may be another reader.
    pub(super) fn take(&mut self, tensor: &TensorIr) -> MetaTensor {
        let found = match tensor.status {
            TensorStatus::ReadWrite => self.tensors.remove(&tensor.id),
            TensorStatus::ReadOnly | TensorStatus::NotInit => self.tensors.get(&tensor.id).cloned(),
        };
        found
            .unwrap_or_else(|| panic!("{} belongs to a dry run that has ended: create tensors anew in each", tensor.id))
    }

    pub(super) fn maybe(&mut self, tensor: Option<&TensorIr>) -> Option<MetaTensor> {
        tensor.map(|tensor| self.take(tensor))
    }

    fn run(&mut self, op: &OperationIr) {
        let made = match op {
            OperationIr::Drop(tensor) => {
                // It may belong to an earlier dry run, whose bytes are no longer counted.
                self.tensors.remove(&tensor.id);
                return;
            }
            OperationIr::Init(_) => return,
            OperationIr::BaseFloat(op) | OperationIr::BaseInt(op) | OperationIr::BaseBool(op) => self.base(op),
            OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => self.numeric(op),
            OperationIr::Float(_, op) => self.float(op),
            OperationIr::Int(Ints::IntoFloat(op)) => Some(self.take(&op.input).converted(op.out.dtype)),
            OperationIr::Bool(op) => self.bool(op),
            OperationIr::Module(op) => self.module(op),
            OperationIr::Int(_) | OperationIr::Custom(_) => None,
        };
        match (made, op.outputs().next()) {
            (Some(made), Some(out)) => drop(self.tensors.insert(out.id, made)),
            _ => self.other(op),
        }
    }

    /// Default effect of a kernel: contiguous inputs and new outputs. Pooling of bf16 is computed in f32, with
    /// indices of 64 bits.
    fn other(&mut self, op: &OperationIr) {
        let inputs: Vec<MetaTensor> = op.inputs().map(|input| self.take(input)).collect();
        let _flat: Vec<MetaTensor> = inputs.iter().map(MetaTensor::to_contiguous).collect();
        let indices = match op {
            OperationIr::Module(Module::MaxPool2dWithIndices(op)) => Some(op.out_indices.id),
            _ => None,
        };
        let mut wide = 0;
        for out in op.outputs() {
            let dtype = if Some(out.id) == indices { DType::I64 } else { out.dtype };
            let made = MetaTensor::new(&self.counter, out.shape.clone(), dtype);
            wide += if dtype == DType::BF16 { made.elements() } else { 0 };
            self.tensors.insert(out.id, made);
        }
        if matches!(op, OperationIr::Module(_)) {
            let halves = inputs.iter().filter(|input| input.dtype() == DType::BF16);
            let _wide = Storage::new(&self.counter, (halves.map(MetaTensor::elements).sum::<usize>() + wide) * 4);
        }
    }

    fn new_tensor(&self, out: &TensorIr) -> MetaTensor {
        MetaTensor::new(&self.counter, out.shape.clone(), out.dtype)
    }

    fn unary(&mut self, op: &UnaryOpIr) -> MetaTensor {
        self.take(&op.input).unary()
    }

    fn scalar(&mut self, op: &ScalarOpIr) -> MetaTensor {
        self.take(&op.lhs).scalar()
    }

    fn binary(&mut self, op: &BinaryOpIr, kernel: Kernel) -> MetaTensor {
        let (lhs, rhs) = (self.take(&op.lhs), self.take(&op.rhs));
        lhs.binary(rhs, kernel)
    }

    fn compare(&mut self, op: &BinaryOpIr) -> MetaTensor {
        let (lhs, rhs) = (self.take(&op.lhs), self.take(&op.rhs));
        lhs.compare(Some(rhs), op.out.dtype)
    }

    fn compare_elem(&mut self, op: &ScalarOpIr) -> MetaTensor {
        self.take(&op.lhs).compare(None, op.out.dtype)
    }

    /// Views and copies.
    fn base(&mut self, op: &Base) -> Option<MetaTensor> {
        Some(match op {
            Base::Reshape(op) => self.take(&op.input).reshape(op.out.shape.clone()),
            Base::SwapDims(op) => self.take(&op.input).swap(op.dim1, op.dim2),
            Base::Permute(op) => {
                let x = self.take(&op.input);
                x.view(x.layout().permute(&op.axes))
            }
            Base::Expand(op) => self.take(&op.input).expand(op.out.shape.clone()),
            Base::Slice(op) => {
                let x = self.take(&op.tensor);
                let (layout, copies) = x.layout().slice(&op.ranges);
                if copies { self.new_tensor(&op.out) } else { x.view(layout) }
            }
            Base::SliceAssign(op) => {
                let (x, value) = (self.take(&op.tensor), self.take(&op.value));
                x.slice_assign(value)
            }
            Base::MaskWhere(op) => {
                let (x, mask, value) = (self.take(&op.tensor), self.take(&op.mask), self.take(&op.value));
                x.mask(mask, Some(value))
            }
            Base::MaskFill(op) => {
                let (x, mask) = (self.take(&op.tensor), self.take(&op.mask));
                x.mask(mask, None)
            }
            Base::Equal(op) => self.compare(op),
            Base::EqualElem(op) => self.compare_elem(op),
            Base::RepeatDim(op) => self.take(&op.tensor).repeat_dim(op.times, op.out.shape.clone()),
            Base::Cast(op) => {
                let x = self.take(&op.input);
                match (x.dtype(), op.out.dtype) {
                    (from, to) if from == to => x,
                    (from, to) if from.is_float() => x.float_cast(to),
                    (_, to) => x.converted(to),
                }
            }
            Base::Empty(op) | Base::Zeros(op) => {
                MetaTensor::new_bytes(&self.counter, op.out.shape.clone(), op.out.dtype)
            }
            Base::Ones(op) => self.new_tensor(&op.out),
            _ => return None,
        })
    }

    /// Arithmetic, comparisons and reductions.
    fn numeric(&mut self, op: &Numeric) -> Option<MetaTensor> {
        Some(match op {
            Numeric::Add(op) | Numeric::Sub(op) | Numeric::Mul(op) | Numeric::Div(op) => {
                self.binary(op, Kernel::Vector)
            }
            Numeric::AddScalar(op)
            | Numeric::SubScalar(op)
            | Numeric::MulScalar(op)
            | Numeric::DivScalar(op)
            | Numeric::RemScalar(op)
            | Numeric::PowiScalar(op) => self.scalar(op),
            Numeric::Abs(op) => self.unary(op),
            Numeric::Clamp(op) => self.take(&op.tensor).unary(),
            Numeric::Full(op) => self.new_tensor(&op.out),
            Numeric::IntRandom(op) => self.new_tensor(&op.out),
            Numeric::Sum(op) | Numeric::Prod(op) | Numeric::Max(op) | Numeric::Min(op) => {
                let _x = self.take(&op.input);
                self.new_tensor(&op.out)
            }
            Numeric::Mean(op) => {
                let x = self.take(&op.input);
                let flat = x.is_half().then(|| x.to_contiguous());
                let _wide = flat.as_ref().map(|flat| flat.workspace(flat.elements(), 4));
                self.new_tensor(&op.out)
            }
            Numeric::SumDim(op) | Numeric::ProdDim(op) => self.take(&op.input).reduce_dim(op.axis),
            Numeric::MeanDim(op) => self.take(&op.input).mean_dim(op.axis),
            Numeric::MaxDim(op) | Numeric::MinDim(op) => {
                let [values, _] = self.take(&op.input).extremum_dim(op.axis, Some(op.out.dtype), None);
                return values;
            }
            Numeric::ArgMax(op) | Numeric::ArgMin(op) => {
                let [_, indices] = self.take(&op.input).extremum_dim(op.axis, None, Some(op.out.dtype));
                return indices;
            }
            Numeric::MaxDimWithIndices(op) | Numeric::MinDimWithIndices(op) => {
                let x = self.take(&op.tensor);
                let [values, indices] = x.extremum_dim(op.dim, Some(op.out.dtype), Some(op.out_indices.dtype));
                self.tensors.extend(indices.map(|indices| (op.out_indices.id, indices)));
                return values;
            }
            Numeric::Greater(op) | Numeric::GreaterEqual(op) | Numeric::Lower(op) | Numeric::LowerEqual(op) => {
                self.compare(op)
            }
            Numeric::GreaterElem(op)
            | Numeric::GreaterEqualElem(op)
            | Numeric::LowerElem(op)
            | Numeric::LowerEqualElem(op) => self.compare_elem(op),
            _ => return None,
        })
    }

    fn float(&mut self, op: &Floats) -> Option<MetaTensor> {
        Some(match op {
            Floats::Exp(op)
            | Floats::Log(op)
            | Floats::Log1p(op)
            | Floats::Erf(op)
            | Floats::Sqrt(op)
            | Floats::Tanh(op)
            | Floats::Recip(op) => self.unary(op),
            Floats::PowfScalar(op) => self.scalar(op),
            Floats::Powf(op) => self.binary(op, Kernel::Plain),
            Floats::IntoInt(op) => self.take(&op.input).converted(op.out.dtype),
            Floats::Matmul(op) => {
                let (lhs, rhs) = (self.take(&op.lhs), self.take(&op.rhs));
                kernel::matmul(lhs, rhs, op.out.shape.clone())
            }
            Floats::Random(op) => self.new_tensor(&op.out),
            _ => return None,
        })
    }

    fn bool(&mut self, op: &Bools) -> Option<MetaTensor> {
        Some(match op {
            Bools::IntoFloat(op) | Bools::IntoInt(op) => self.take(&op.input).converted(op.out.dtype),
            Bools::Not(op) => self.take(&op.input).scalar(),
            Bools::And(op) | Bools::Or(op) => self.binary(op, Kernel::Plain),
        })
    }
}
