//! Owns the type that a network is computed in, and the scale that keeps small gradients above zero in f16.
//! It must never touch the weights: those, their gradients and the optimizer's state stay 32-bit numbers.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, FloatDType, backend::Backend};

/// The type that activations are computed and kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit floats with more digits and a small range: the loss is scaled up, so that gradients do not vanish.
    F16,
}

impl Precision {
    /// Every type there is.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

    pub(super) fn dtype(self) -> FloatDType {
        match self {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
            Precision::F16 => FloatDType::F16,
        }
    }

    /// Whether a device computes in this type at all.
    #[must_use]
    pub fn supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, DType::from(self.dtype()))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let found = Precision::ALL.into_iter().find(|precision| precision.to_string() == lower);
        found.ok_or_else(|| format!("'{text}' is no precision: use f32, bf16 or f16"))
    }
}

/// The factor on the loss (Micikevicius and others, "Mixed precision training", 2018, section 3.2): halved when a gradient
/// is no number any more, and that step is left out; doubled after many steps without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LossScale {
    factor: f32,
    good_steps: u32,
}

/// Where it starts, and the most it grows to: beyond, a mean loss of 1 would itself be infinite in f16.
const FACTOR_START: f32 = 32_768.0;
/// Steps without an overflow before it is doubled.
const GOOD_STEPS: u32 = 1000;

impl LossScale {
    /// For this type; `None` where none is needed.
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

    /// Learns whether all gradients of a step were numbers. Whether the step may be taken.
    pub(super) fn saw(&mut self, finite: bool) -> bool {
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

    /// Whether there is nothing left to halve: what overflows now is the loss itself.
    pub(super) fn is_least(self) -> bool {
        self.factor <= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_as_they_print() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert!("fp8".parse::<Precision>().is_err());
    }

    #[test]
    fn an_overflow_halves_the_factor_and_many_good_steps_double_it() {
        assert_eq!(LossScale::new(Precision::Bf16), None);
        let mut scale = LossScale::new(Precision::F16).expect("f16 has one");
        assert!(!scale.saw(false) && !scale.saw(false));
        assert_eq!(scale.factor(), 8192.0);
        for _ in 0..GOOD_STEPS - 1 {
            assert!(scale.saw(true));
        }
        assert_eq!(scale.factor(), 8192.0);
        scale.saw(true);
        assert_eq!(scale.factor(), 16_384.0);
        for _ in 0..40 {
            scale.saw(false);
        }
        assert!(scale.is_least() && scale.factor() == 1.0);
    }
}
