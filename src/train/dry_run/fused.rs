//! Owns the kernels that flex has in one piece and a router spells out: activations and their gradients.
//! It must never know what they need: only which operations belong to one, and what goes in.

use burn::backend::ir::{
    BaseOperationIr as Base, FloatOperationIr as Floats, NumericOperationIr as Numeric, OperationIr, TensorIr,
    TensorStatus,
};

/// What a row of operations may be.
pub(super) enum Look {
    /// The beginning of a kernel.
    Unknown,
    /// A kernel, with one input or two.
    Whole(Vec<TensorIr>),
    /// Not the beginning of any.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Above,
    Below,
    NotAbove,
    Fill,
    Choose,
    Cast,
    Scale,
    Divide,
    Shift,
    Power,
    Add,
    Times,
    Erf,
    Exp,
    Log,
    Tanh,
}

use Step::{Above, Add, Below, Cast, Choose, Divide, Erf, Exp, Fill, Log, NotAbove, Power, Scale, Shift, Tanh, Times};

/// burn-backend's spelling of each, and how many inputs it has. A kernel of two writes to the first where it can.
const KERNELS: &[(&[Step], &[usize])] = &[
    // relu, and its gradient
    (&[NotAbove, Fill], &[1, 2]),
    // clamp_min, clamp_max
    (&[Below, Fill], &[1]),
    (&[Above, Fill], &[1]),
    // leaky_relu, prelu
    (&[Below, Scale, Choose], &[1]),
    (&[Below, Times, Choose], &[2]),
    // gelu, and its gradient
    (&[Divide, Erf, Shift, Times, Divide], &[1]),
    (&[Power, Scale, Scale, Scale, Scale, Add, Add, Tanh, Times, Scale, Shift, Scale, Times, Shift, Add, Times], &[2]),
    // sigmoid, and its gradient
    (&[Cast, Scale, Exp, Shift, Log, Scale, Exp, Cast], &[1]),
    (&[Scale, Shift, Times, Times], &[2]),
];

fn step(op: &OperationIr) -> Option<Step> {
    Some(match op {
        OperationIr::BaseFloat(Base::MaskFill(_)) => Fill,
        OperationIr::BaseFloat(Base::MaskWhere(_)) => Choose,
        OperationIr::BaseFloat(Base::Cast(_)) => Cast,
        OperationIr::NumericFloat(_, op) => match op {
            Numeric::GreaterElem(_) => Above,
            Numeric::LowerElem(_) => Below,
            Numeric::LowerEqualElem(_) => NotAbove,
            Numeric::MulScalar(_) => Scale,
            Numeric::DivScalar(_) => Divide,
            Numeric::AddScalar(_) => Shift,
            Numeric::PowiScalar(_) => Power,
            Numeric::Add(_) => Add,
            Numeric::Mul(_) => Times,
            _ => return None,
        },
        OperationIr::Float(_, Floats::Erf(_)) => Erf,
        OperationIr::Float(_, Floats::Exp(_)) => Exp,
        OperationIr::Float(_, Floats::Log(_)) => Log,
        OperationIr::Float(_, Floats::Tanh(_)) => Tanh,
        _ => return None,
    })
}

/// What these operations may be, in this order and with nothing in between.
pub(super) fn look(ops: &[OperationIr]) -> Look {
    let Some(steps) = ops.iter().map(step).collect::<Option<Vec<_>>>() else { return Look::None };
    let mut look = Look::None;
    for (kernel, arities) in KERNELS.iter().filter(|(kernel, _)| kernel.starts_with(&steps)) {
        if kernel.len() > steps.len() {
            look = Look::Unknown;
        } else if let Some(inputs) = inputs_of(ops)
            && arities.contains(&inputs.len())
        {
            return Look::Whole(inputs);
        }
    }
    look
}

/// What goes in from outside, each as its last reader has it. `None` if something in between outlives the last
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
