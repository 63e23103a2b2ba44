//! Floating-point type of the activations, and the loss scale that f16 needs. Weights, their gradients and the state
//! of the optimizer are always f32.

use burn::tensor::{DType, FloatDType, backend::Backend};

use super::names::named;

/// Floating-point type that activations are computed and kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit floats with more digits and a small range: the loss is scaled up, so that gradients do not become zero.
    F16,
}

impl Precision {
    pub(super) fn dtype(self) -> FloatDType {
        match self {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
            Precision::F16 => FloatDType::F16,
        }
    }

    /// Returns true if a device computes in this type.
    #[must_use]
    pub fn supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, DType::from(self.dtype()))
    }
}

named!(Precision, "precision", F32 => "f32", Bf16 => "bf16", F16 => "f16");

/// Factor on the loss (Micikevicius and others, "Mixed precision training", 2018, section 3.2): halved when a
/// gradient is not finite, and that step is skipped; doubled after many steps without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LossScale {
    factor: f32,
    good_steps: u32,
}

/// First and largest factor: above it, a mean loss of 1 would itself be infinite in f16.
const FACTOR_START: f32 = 32_768.0;
/// Steps without an overflow before the factor is doubled.
const GOOD_STEPS: u32 = 1000;

impl LossScale {
    /// Scale for this type; `None` if it needs none.
    pub(super) fn new(precision: Precision) -> Option<Self> {
        (precision == Precision::F16).then_some(LossScale { factor: FACTOR_START, good_steps: 0 })
    }

    pub(super) fn from_parts(factor: f32, good_steps: u32) -> Self {
        LossScale { factor, good_steps }
    }

    pub(super) fn parts(self) -> (f32, u32) {
        (self.factor, self.good_steps)
    }

    pub(super) fn factor(self) -> f64 {
        f64::from(self.factor)
    }

    /// Updates the factor after a step whose gradients were all finite, or not. Returns true if the step may be taken.
    pub(super) fn update(&mut self, finite: bool) -> bool {
        if finite {
            self.good_steps += 1;
            if self.good_steps >= GOOD_STEPS {
                *self = LossScale { factor: (self.factor * 2.0).min(FACTOR_START), good_steps: 0 };
            }
        } else {
            *self = LossScale { factor: (self.factor / 2.0).max(1.0), good_steps: 0 };
        }
        finite
    }

    /// Returns true if the factor cannot be halved: then it is the loss itself that overflows.
    pub(super) fn is_least(self) -> bool {
        self.factor <= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_the_factor_and_many_good_steps_double_it() {
        assert_eq!(LossScale::new(Precision::Bf16), None);
        let mut scale = LossScale::new(Precision::F16).expect("f16 has one");
        assert!(!scale.update(false) && !scale.update(false));
        assert_eq!(scale.factor(), 8192.0);
        for _ in 0..GOOD_STEPS - 1 {
            assert!(scale.update(true));
        }
        assert_eq!(scale.factor(), 8192.0);
        scale.update(true);
        assert_eq!(scale.factor(), 16_384.0);
        for _ in 0..40 {
            scale.update(false);
        }
        assert!(scale.is_least() && scale.factor() == 1.0);
    }
}
