//! Kernels that flex has in one piece and a router spells out as several operations: activations and their gradients.

use burn::backend::ir::{
    BaseOperationIr as Base, FloatOperationIr as Floats, NumericOperationIr as Numeric, OperationIr, TensorIr,
    TensorStatus,
};

/// Result of matching a sequence of operations with the kernels.
pub(super) enum Match {
    /// It is the beginning of a kernel.
    Prefix,
    /// It is a kernel, with one input or two.
    Complete(Vec<TensorIr>),
    /// It is not the beginning of a kernel.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    LowerEqual,
    MaskFill,
    MulScalar,
    DivScalar,
    AddScalar,
    Powi,
    Add,
    Mul,
    Erf,
    Tanh,
}

use Op::{Add, AddScalar, DivScalar, Erf, LowerEqual, MaskFill, Mul, MulScalar, Powi, Tanh};

/// Operations of each kernel in burn-backend, and its number of inputs. A kernel of two writes to the first where it
/// can.
const KERNELS: &[(&[Op], &[usize])] = &[
    // relu, and its gradient
    (&[LowerEqual, MaskFill], &[1, 2]),
    // gelu, and its gradient
    (&[DivScalar, Erf, AddScalar, Mul, DivScalar], &[1]),
    (
        &[
            Powi, MulScalar, MulScalar, MulScalar, MulScalar, Add, Add, Tanh, Mul, MulScalar, AddScalar, MulScalar,
            Mul, AddScalar, Add, Mul,
        ],
        &[2],
    ),
];

fn op_of(op: &OperationIr) -> Option<Op> {
    Some(match op {
        OperationIr::BaseFloat(Base::MaskFill(_)) => MaskFill,
        OperationIr::NumericFloat(_, op) => match op {
            Numeric::LowerEqualElem(_) => LowerEqual,
            Numeric::MulScalar(_) => MulScalar,
            Numeric::DivScalar(_) => DivScalar,
            Numeric::AddScalar(_) => AddScalar,
            Numeric::PowiScalar(_) => Powi,
            Numeric::Add(_) => Add,
            Numeric::Mul(_) => Mul,
            _ => return None,
        },
        OperationIr::Float(_, Floats::Erf(_)) => Erf,
        OperationIr::Float(_, Floats::Tanh(_)) => Tanh,
        _ => return None,
    })
}

/// Matches operations that follow each other with the kernels.
pub(super) fn match_kernel(ops: &[OperationIr]) -> Match {
    let Some(sequence) = ops.iter().map(op_of).collect::<Option<Vec<_>>>() else { return Match::None };
    let mut found = Match::None;
    for (kernel, arities) in KERNELS.iter().filter(|(kernel, _)| kernel.starts_with(&sequence)) {
        if kernel.len() > sequence.len() {
            found = Match::Prefix;
        } else if let Some(inputs) = inputs_of(ops)
            && arities.contains(&inputs.len())
        {
            return Match::Complete(inputs);
        }
    }
    found
}

/// Inputs from outside, each with the status of its last reader. `None` if an intermediate result outlives the last
/// operation.
fn inputs_of(ops: &[OperationIr]) -> Option<Vec<TensorIr>> {
    let made = ops.iter().rev().skip(1).flat_map(OperationIr::outputs).map(|out| out.id).collect::<Vec<_>>();
    let mut read: Vec<TensorIr> = Vec::new();
    for input in ops.iter().flat_map(OperationIr::inputs) {
        match read.iter_mut().find(|before| before.id == input.id) {
            Some(before) => before.status = input.status,
            None => read.push(input.clone()),
        }
    }
    let (inner, outer): (Vec<_>, Vec<_>) = read.into_iter().partition(|tensor| made.contains(&tensor.id));
    let ends = inner.len() == made.len() && inner.iter().all(|tensor| tensor.status == TensorStatus::ReadWrite);
    ends.then_some(outer)
}
