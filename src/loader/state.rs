//! The resume token.

use std::fmt;
use std::str::FromStr;

use crate::rng::mix64;
use crate::units::ParseError;

/// A position in a run. Together with the settings of the loader it names every batch still to come.
///
/// It prints as a token with a version and a checksum, and parses from it.
///
/// ```
/// use feedstock::State;
/// let state = State { epoch: 3, batch: 120 };
/// let token = state.to_string();
/// assert!(token.starts_with("v1-3-120-"));
/// assert_eq!(token.parse(), Ok(state));
/// assert!(token.replace("120", "121").parse::<State>().is_err(), "the checksum does not match");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct State {
    /// The current epoch.
    pub epoch: u64,
    /// The next batch of that epoch.
    pub batch: u64,
}

impl State {
    fn checksum(self) -> u32 {
        mix64(mix64(self.epoch.wrapping_add(1)) ^ self.batch) as u32
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1-{}-{}-{:08x}", self.epoch, self.batch, self.checksum())
    }
}

impl FromStr for State {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_prefix("v1-")?.split('-');
            let state = State { epoch: parts.next()?.parse().ok()?, batch: parts.next()?.parse().ok()? };
            // Printed again it has to be the same, checksum included.
            (state.to_string() == text).then_some(state)
        };
        parse()
            .ok_or_else(|| ParseError::invalid("resume token", text, "v1-EPOCH-BATCH-CHECKSUM, as a state prints it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_printed_state_parses(epoch: u64, batch: u64) {
            let state = State { epoch, batch };
            prop_assert_eq!(state.to_string().parse(), Ok(state));
        }

        #[test]
        fn other_text_is_refused(text in "(v1-)?[-0-9a-f]{0,20}") {
            prop_assert!(text.parse::<State>().is_err_and(|error| error.text() == text));
        }
    }

    #[test]
    fn tokens_of_another_form_are_refused() {
        let token = State { epoch: 1, batch: 2 }.to_string();
        for text in
            ["", "v1-1-2", &token[1..], &format!("{token} "), &token.replace("v1", "v2"), &token.replace("-2-", "-02-")]
        {
            assert!(text.parse::<State>().is_err(), "{text}");
        }
    }
}
