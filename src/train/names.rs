//! Names of the settings that are enums.

/// Implements `ALL`, `Display` and `FromStr` for an enum of named values.
macro_rules! named {
    ($type:ident, $what:literal, $($variant:ident => $name:literal),+ $(,)?) => {
        impl $type {
            /// All values.
            pub const ALL: [$type; [$($name),+].len()] = [$($type::$variant),+];
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($type::$variant => $name),+ })
            }
        }

        impl std::str::FromStr for $type {
            type Err = crate::ParseError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text.to_ascii_lowercase().as_str() {
                    $($name => Ok($type::$variant),)+
                    _ => Err(crate::ParseError::unknown($what, text, [$($name),+].join(", "))),
                }
            }
        }
    };
}

pub(super) use named;

#[cfg(test)]
mod tests {
    use crate::train::{Checkpointing, ModelKind, OptimizerKind, Precision};

    #[test]
    fn names_parse_as_they_print() {
        macro_rules! check {
            ($($type:ident),+) => {$(
                for value in $type::ALL {
                    assert_eq!(value.to_string().to_uppercase().parse(), Ok(value));
                }
            )+};
        }
        check!(Checkpointing, ModelKind, OptimizerKind, Precision);
        let error = "adam".parse::<OptimizerKind>().expect_err("not an optimizer").to_string();
        assert_eq!(error, "unknown optimizer 'adam': expected sgd, adamw");
    }
}
