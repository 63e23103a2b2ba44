//! Rows of the byte table: one for each account, with its bytes and where they come from.

use std::fmt;

use crate::budget::AccountKind;
use crate::tensor::{DType, Layout, SampleSpec};
use crate::units::ByteCount;

/// A row of the byte table: `count` reservations of `each` bytes in one account of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// Account in the ledger.
    pub account: AccountKind,
    /// Number of reservations.
    pub count: usize,
    /// Bytes of each reservation.
    pub each: ByteCount,
    /// Origin of the bytes.
    pub detail: RowDetail,
}

/// The origin of a row's bytes, printed by [`Display`](fmt::Display).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowDetail {
    /// Memory of the process that the ledger does not see.
    Process {
        /// RAM of the device's library.
        device: ByteCount,
        /// Threads of the loader.
        threads: usize,
    },
    /// Index of the source.
    Samples(u64),
    /// Decompressors and blocks of samples.
    Reading,
    /// Weights, classes or shares.
    Sampling,
    /// Batches of pixels in slots or outputs.
    Batches {
        /// Samples in a batch.
        batch_size: usize,
        /// Shape of a sample.
        spec: SampleSpec,
        /// Element type.
        dtype: DType,
        /// Order of the axes; `None` for slots, which are always NHWC.
        layout: Option<Layout>,
    },
    /// Labels, ids and flags of the samples in slots and outputs.
    PerSample,
    /// Scratch of workers.
    Workers,
    /// Read buffers.
    ReadBuffers,
    /// Cache of small files.
    Cache {
        /// Samples in the source.
        samples: u64,
        /// True if all of them fit.
        all: bool,
    },
    /// Files larger than a read buffer.
    OversizedFiles {
        /// Size of a read buffer.
        over: ByteCount,
        /// Largest file.
        largest: ByteCount,
    },
    /// Images whose working set is larger than a worker's scratch.
    OversizedImages {
        /// Size of a scratch.
        over: ByteCount,
    },
    /// An account outside of the loader, described by its owner.
    Other(String),
}

impl Row {
    /// A row of one reservation outside of the loader's own accounts, for a program that shares the budget.
    #[must_use]
    pub fn other(name: &'static str, bytes: ByteCount, detail: impl Into<String>) -> Row {
        Row::one(AccountKind::Other(name), bytes, RowDetail::Other(detail.into()))
    }

    pub(super) fn one(account: AccountKind, bytes: ByteCount, detail: RowDetail) -> Row {
        Row { account, count: 1, each: bytes, detail }
    }

    /// Bytes of all reservations of the row.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        self.each * self.count as u64
    }

    /// The origin of the bytes, as in the last column of the table.
    #[must_use]
    pub fn explanation(&self) -> String {
        let Row { count, each, detail, .. } = self;
        match detail {
            RowDetail::Process { device: ByteCount::ZERO, threads } => {
                format!("the process itself, and {threads} threads")
            }
            RowDetail::Process { device, threads } => {
                format!("the process itself, the device's library ({device}) and {threads} threads")
            }
            RowDetail::Samples(samples) => format!("{samples} samples"),
            RowDetail::Reading => "decompressors and blocks of samples of the source".to_owned(),
            RowDetail::Sampling => "the table that samples are drawn from: weights, classes or shares".to_owned(),
            RowDetail::Batches { batch_size, spec, dtype, layout } => {
                let layout = layout.map_or(String::new(), |layout| format!(", {layout}"));
                format!("{count} x {each} (batch {batch_size} x {spec} {dtype}{layout})")
            }
            RowDetail::PerSample => format!("labels, ids and flags: {count} x {each}"),
            RowDetail::Workers => format!("{count} workers x {each}"),
            RowDetail::ReadBuffers => format!("{count} read buffers x {each}"),
            RowDetail::Cache { samples, all: true } => format!("{samples} small files, as stored, for later epochs"),
            RowDetail::Cache { samples, all: false } => {
                format!("as many of {samples} small files as fit, as stored, for later epochs")
            }
            RowDetail::OversizedFiles { over, largest } => format!("files over {over}, the largest {largest}"),
            RowDetail::OversizedImages { over } => {
                format!("images that need over {over}, one at a time, only while there is one")
            }
            RowDetail::Other(text) => text.clone(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18}{:>10}   {}", self.account, self.bytes(), self.explanation())
    }
}

/// The fields `account`, `bytes` and `because`.
#[cfg(feature = "serde")]
impl serde::Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Row", 3)?;
        fields.serialize_field("account", &self.account)?;
        fields.serialize_field("bytes", &self.bytes().0)?;
        fields.serialize_field("because", &self.explanation())?;
        fields.end()
    }
}

/// A budget below the least plan. Its text has the byte table of that plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetTooSmall {
    /// The least budget that works.
    pub needed: ByteCount,
    /// The budget that was given.
    pub budget: ByteCount,
    /// Byte table of the least plan.
    pub rows: Vec<Row>,
}

impl BudgetTooSmall {
    /// An error for a budget below `needed`.
    #[must_use]
    pub fn new(needed: ByteCount, budget: ByteCount, rows: Vec<Row>) -> Self {
        BudgetTooSmall { needed, budget, rows }
    }

    /// Adds an account of the program to the table, for a loader that got the rest of a shared budget.
    #[must_use]
    pub fn with_row(mut self, row: Row) -> Self {
        self.needed += row.bytes();
        self.budget += row.bytes();
        self.rows.push(row);
        self
    }
}

impl fmt::Display for BudgetTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BudgetTooSmall { needed, budget, rows } = self;
        write!(
            f,
            "a RAM budget of {budget} is too small: at least {needed} are needed. Raise the budget, or lower the batch \
             size, the image size or the size of the output type. The smallest plan:"
        )?;
        rows.iter().try_for_each(|row| write!(f, "\n{row}"))
    }
}

impl std::error::Error for BudgetTooSmall {}
