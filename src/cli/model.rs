//! Flags of the model and its memory, and the tables of predicted and measured training memory.

use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};

use feedstock::train::{
    Checkpointing, Freeze, MemoryAccount, MemoryReport, MemorySaving, ModelKind, NetworkConfig, OptimizerKind, Phase,
    Precision, Prune, TrainConfig,
};
use feedstock::{ByteCount, ParseError};

use super::failure::Failure;
use super::table::columns;

/// Model and memory options.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model and memory")]
pub(crate) struct ModelArgs {
    /// Activations in f32, bf16 or f16; weights stay f32
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Activation checkpointing: none, balanced or blocks
    #[arg(long, value_name = "WHAT", default_value_t = Checkpointing::None)]
    pub(crate) checkpoint: Checkpointing,
    /// Frozen parameters: backbone, or names such as stem,blocks.0
    #[arg(long, value_name = "NAMES", default_value_t = Freeze::Nothing, hide_default_value = true)]
    pub(crate) freeze: Freeze,
    /// sgd or adamw [default: adamw for vit-tiny, else sgd]
    #[arg(long, value_name = "NAME")]
    pub(crate) optimizer: Option<OptimizerKind>,
    /// Samples in a forward pass: N, or auto to fit the budget
    #[arg(long, value_name = "N")]
    pub(crate) micro_batch: Option<MicroBatch>,
    /// Memory budget of training on its device: 8G [default: free memory]
    #[arg(long, value_name = "SIZE")]
    pub(crate) vram_budget: Option<ByteCount>,
}

/// Number of samples in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MicroBatch {
    Auto,
    Of(usize),
}

impl FromStr for MicroBatch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(MicroBatch::Of(number)),
            _ if text == "auto" => Ok(MicroBatch::Auto),
            _ => Err(format!("invalid batch size '{text}': expected a number from 1 on, or auto")),
        }
    }
}

/// Network to train.
#[derive(Clone, Copy)]
pub(crate) enum Model {
    Auto,
    Kind(ModelKind),
}

impl FromStr for Model {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "auto" => Ok(Model::Auto),
            _ => text
                .parse()
                .map(Model::Kind)
                .map_err(|error: ParseError| ParseError::unknown("model", text, format!("auto, {}", error.expected()))),
        }
    }
}

impl Model {
    /// Resolves `auto` for images of this side.
    pub(crate) fn kind(self, side: u32) -> ModelKind {
        match self {
            Model::Auto => ModelKind::for_side(side),
            Model::Kind(kind) => kind,
        }
    }
}

impl ModelArgs {
    /// Builds the training configuration.
    pub(crate) fn config(&self, kind: ModelKind, classes: usize, side: u32) -> TrainConfig {
        let mut config = TrainConfig::new(kind, classes, side);
        if let Some(optimizer) = self.optimizer {
            config = config.optimizer(optimizer);
        }
        TrainConfig {
            model: NetworkConfig::new(kind, classes, side),
            precision: self.precision,
            checkpointing: self.checkpoint,
            freeze: self.freeze.clone(),
            device_budget: self.vram_budget,
            ..config
        }
    }

    /// Returns the number of micro-batches in a step and their size, without a memory budget.
    pub(crate) fn batches(&self, batch_size: usize) -> Result<(u64, usize), Failure> {
        match self.micro_batch {
            Some(MicroBatch::Of(micro_batch)) if !batch_size.is_multiple_of(micro_batch) => {
                Err(Failure::Usage(format!(
                    "--micro-batch {micro_batch} does not divide --batch-size {batch_size}: choose a \
                     divisor, so that all steps have one size"
                )))
            }
            Some(MicroBatch::Of(micro_batch)) => Ok(((batch_size / micro_batch) as u64, micro_batch)),
            _ => Ok((1, batch_size)),
        }
    }
}

/// Table of training memory: predicted and, if given, measured.
pub(crate) fn account_text(predicted: &MemoryAccount, measured: Option<&MemoryAccount>) -> String {
    let share = |bytes: ByteCount, of: &MemoryAccount| format!("{:.0} %", percent(bytes, of.peak));
    let line =
        |name: &str, predicted_bytes: ByteCount, measured_bytes: Option<ByteCount>| match (measured, measured_bytes) {
            (Some(of), Some(bytes)) => [
                name.to_owned(),
                predicted_bytes.to_string(),
                bytes.to_string(),
                ratio(bytes, predicted_bytes).map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                share(bytes, of),
            ],
            _ => {
                let share = share(predicted_bytes, predicted);
                [name.to_owned(), predicted_bytes.to_string(), "-".to_owned(), "-".to_owned(), share]
            }
        };
    let mut rows: Vec<[String; 5]> = Vec::new();
    let measured_rows = measured.map(MemoryAccount::rows);
    for (n, (name, bytes)) in predicted.rows().into_iter().enumerate() {
        rows.push(line(name, bytes, measured_rows.map(|rows| rows[n].1)));
    }
    rows.push(line("peak", predicted.peak, measured.map(|account| account.peak)));
    if measured.is_some() {
        return columns(["account", "predicted", "measured", "ratio", "of peak"], &rows);
    }
    let rows: Vec<[String; 3]> = rows.into_iter().map(|[name, bytes, _, _, share]| [name, bytes, share]).collect();
    columns(["account", "predicted", "of peak"], &rows)
}

fn percent(bytes: ByteCount, of: ByteCount) -> f64 {
    bytes.0 as f64 / of.0.max(1) as f64 * 100.0
}

fn ratio(measured: ByteCount, predicted: ByteCount) -> Option<f64> {
    (predicted.0 > 0).then(|| measured.0 as f64 / predicted.0 as f64)
}

/// Table of memory savings, one a line.
pub(crate) fn savings_text(savings: &[MemorySaving]) -> String {
    let rows: Vec<[String; 4]> = savings
        .iter()
        .map(|saving| {
            let MemorySaving { flag, cost, peak, saved } = saving;
            [flag.clone(), saved.to_string(), peak.to_string(), (*cost).to_owned()]
        })
        .collect();
    columns(["saving", "saves", "peak", "cost"], &rows)
}

/// Failure of a budget that not even a batch of one image fits, with the savings that would help.
pub(crate) fn not_even_one(config: &TrainConfig, batch_size: usize, budget: ByteCount) -> Failure {
    let least = TrainConfig { accumulate: batch_size as u64, ..config.clone() };
    match feedstock::train::memory_savings(&least, 1, 3) {
        Ok(savings) => Failure::Budget(format!(
            "not even a batch of one image fits the budget of {budget} for training; savings that would help:\n{}",
            savings_text(&savings)
        )),
        Err(error) => error.into(),
    }
}

/// Table of memory after each phase, predicted and measured.
pub(crate) fn phases_text(report: &MemoryReport) -> String {
    let rows: Vec<[String; 5]> = Phase::ALL
        .into_iter()
        .zip(report.forecast.at.iter().zip(&report.at))
        .map(|(phase, (predicted, measured))| {
            let [a, b, c, d] =
                [predicted.in_use, measured.in_use, predicted.peak, measured.peak].map(|bytes| bytes.to_string());
            [phase.to_string(), a, b, c, d]
        })
        .collect();
    columns(["after", "predicted", "measured", "peak predicted", "peak measured"], &rows)
}

pub(crate) fn account_json(account: &MemoryAccount) -> Value {
    let mut object: serde_json::Map<String, Value> = account
        .rows()
        .into_iter()
        .map(|(name, bytes)| (format!("{}_bytes", name.replace(' ', "_")), bytes.0.into()))
        .collect();
    object.insert("peak_bytes".to_owned(), account.peak.0.into());
    object.into()
}

pub(crate) fn report_json(report: &MemoryReport) -> Value {
    let phases: Vec<Value> = Phase::ALL
        .into_iter()
        .zip(report.forecast.at.iter().zip(&report.at))
        .map(|(phase, (predicted, measured))| {
            json!({
                "after": phase.to_string(),
                "predicted_bytes": predicted.in_use.0,
                "measured_bytes": measured.in_use.0,
                "predicted_peak_bytes": predicted.peak.0,
                "measured_peak_bytes": measured.peak.0,
            })
        })
        .collect();
    json!({
        "micro_batch": report.forecast.micro_batch,
        "predicted": account_json(&report.forecast.account),
        "measured": account_json(&report.account),
        "phases": phases,
    })
}

pub(crate) fn savings_json(savings: &[MemorySaving]) -> Value {
    let saving = |saving: &MemorySaving| {
        json!({
            "flag": saving.flag, "peak_bytes": saving.peak.0, "saved_bytes": saving.saved.0
        })
    };
    savings.iter().map(saving).collect()
}

/// Pruning by `share` after `after_epochs`, by default half of the epochs.
pub(crate) fn pruning(share: Option<f64>, after_epochs: Option<u64>, epochs: u64) -> Option<Prune> {
    share.map(|share| Prune { share, after_epochs: after_epochs.unwrap_or(epochs.div_ceil(2)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batch_is_a_number_or_auto() {
        assert_eq!("auto".parse(), Ok(MicroBatch::Auto));
        assert_eq!("16".parse(), Ok(MicroBatch::Of(16)));
        for text in ["0", "-1", "x", ""] {
            assert!(text.parse::<MicroBatch>().is_err(), "{text}");
        }
    }

    #[test]
    fn table_has_a_row_and_ratio_for_each_account() {
        let account = MemoryAccount { parameters: ByteCount(100), peak: ByteCount(400), ..MemoryAccount::default() };
        let measured = MemoryAccount { parameters: ByteCount(110), peak: ByteCount(440), ..MemoryAccount::default() };
        let text = account_text(&account, Some(&measured));
        assert_eq!(text.lines().count(), 8, "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("1.10") && line.ends_with("25 %")), "{text}");
        assert!(!account_text(&account, None).contains("measured"));
    }
}
