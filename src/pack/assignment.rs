//! Assignment of samples to shards, and the keys of samples. Everything is computed from the index; no sample is read.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::error::PackError;
use super::settings::{SHARDS_MAX, Settings, Treatment};
use crate::plan::ENCODED_BYTES_MAX;
use crate::sampler::Order;
use crate::source::Source;
use crate::tensor::CHANNELS;
use crate::{ByteCount, SampleId};

/// Size of a tar header, and the unit to which contents are padded.
const BLOCK: u64 = 512;
/// Maximum length of the part of a key that comes from the sample's name.
const STEM_BYTES_MAX: usize = 60;
/// Ratio of decoded to encoded size where the index does not know the dimensions: a JPEG of medium quality.
const DECODED_FACTOR: u64 = 6;
/// Maximum size of a PPM header.
const PPM_HEADER_BYTES: u64 = 24;

/// Packed order of the samples, divided into shards.
pub(super) struct ShardAssignment {
    order: Order,
    /// End position of each shard, exclusive.
    ends: Vec<u64>,
    /// Total size of all samples as stored, bytes.
    pub(super) stored_bytes: u64,
    /// Size of the largest packed sample as stored, bytes.
    pub(super) encoded_max: u64,
    /// Hash of the parts of the index that determine keys, labels and the assignment.
    pub(super) index_hash: u128,
}

impl ShardAssignment {
    pub(super) fn new(source: &dyn Source, settings: &Settings) -> Result<Self, PackError> {
        let order = match (settings.in_order, source.blocks()) {
            (true, _) => Order::sequential(source.len()),
            (false, Some(blocks)) => Order::blocked(blocks, settings.seed, 0),
            (false, None) => Order::shuffled(source.len(), settings.seed, 0),
        };
        let mut ends = Vec::new();
        let (mut stored_bytes, mut encoded_max, mut shard_bytes) = (0u64, 0, 0u64);
        for position in 0..order.len() {
            let id = order.at(position);
            let encoded = source.encoded_bytes(id);
            stored_bytes = stored_bytes.saturating_add(encoded);
            if encoded <= ENCODED_BYTES_MAX {
                encoded_max = encoded_max.max(encoded);
            }
            let bytes = sample_bytes(source, id, settings.treatment);
            if shard_bytes > 0 && shard_bytes.saturating_add(bytes) > settings.shard_size.0 {
                ends.push(position);
                shard_bytes = 0;
            }
            shard_bytes = shard_bytes.saturating_add(bytes);
            if ends.len() as u64 >= SHARDS_MAX {
                return Err(PackError::Config(format!(
                    "a shard size of {} makes more than {SHARDS_MAX} shards: raise it",
                    settings.shard_size
                )));
            }
        }
        if !order.is_empty() {
            ends.push(order.len());
        }
        Ok(ShardAssignment { order, ends, stored_bytes, encoded_max, index_hash: index_hash(source) })
    }

    pub(super) fn shard_count(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Positions of a shard in the packed order.
    pub(super) fn positions(&self, shard: u64) -> Range<u64> {
        let shard = shard as usize;
        shard.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[shard]
    }

    /// Sample at a position of the packed order.
    pub(super) fn sample(&self, position: u64) -> SampleId {
        self.order.at(position)
    }

    /// RAM of this value, bytes.
    pub(super) fn bytes(&self, source: &dyn Source) -> ByteCount {
        let blocks = source.blocks().map_or(0, |blocks| blocks.bytes());
        ByteCount(blocks + 8 * self.ends.capacity() as u64)
    }
}

/// Size of a sample in its shard: two members, as far as the index knows their sizes.
fn sample_bytes(source: &dyn Source, id: SampleId, treatment: Treatment) -> u64 {
    let encoded = source.encoded_bytes(id);
    let of_pixels = |width: u32, height: u32| {
        (u64::from(width) * u64::from(height)).saturating_mul(CHANNELS as u64).saturating_add(PPM_HEADER_BYTES)
    };
    let image = match treatment {
        Treatment::Stored | Treatment::ShortSide { .. } => encoded,
        Treatment::Decoded { size: Some(size), .. } => of_pixels(size, size),
        Treatment::Decoded { size: None, .. } => match source.dimensions(id) {
            Some((width, height)) => of_pixels(width, height),
            None => encoded.saturating_mul(DECODED_FACTOR),
        },
    };
    // Two headers, and the block of the class.
    image.div_ceil(BLOCK).saturating_mul(BLOCK).saturating_add(3 * BLOCK)
}

/// Key of the sample at a position: the names of its members up to the dot.
pub(super) fn key(position: u64, name: &str) -> String {
    format!("{position:08}-{}", stem(name))
}

/// Last component of a name without its extension, in characters that every tar and file system supports.
fn stem(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let stem = match last.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => last,
    };
    let kept = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    stem.chars().map(kept).take(STEM_BYTES_MAX).collect()
}

fn index_hash(source: &dyn Source) -> u128 {
    fn text(hash: &mut Xxh3, text: &str) {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let mut hash = Xxh3::new();
    source.classes().iter().for_each(|class| text(&mut hash, class));
    for id in (0..source.len()).map(SampleId) {
        text(&mut hash, &stem(&source.name(id)));
        hash.update(&source.encoded_bytes(id).to_le_bytes());
        hash.update(&source.label(id).to_le_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::MemorySource;

    #[test]
    fn keys_are_plain_and_short() {
        for (name, expected) in [
            ("photos/ant/n0144_10026.JPEG", "00000007-n0144_10026"),
            ("shard.tar/a/b.c.d.jpg", "00000007-b_c_d"),
            ("dir/.jpg", "00000007-_jpg"),
            ("Größe \u{1F41C}.png", "00000007-Gr__e__"),
            ("memory:3", "00000007-memory_3"),
            ("x/", "00000007-"),
        ] {
            assert_eq!(key(7, name), expected);
        }
        let long = key(123_456_789_012, &"é".repeat(200));
        assert_eq!(long, format!("123456789012-{}", "_".repeat(60)));
    }

    #[test]
    fn shards_end_before_the_sample_that_exceeds_the_size() {
        let samples = [0, 513, 512, 100_000, 1, 1].map(|bytes| (vec![0; bytes], 0)).to_vec();
        let source = MemorySource::new(vec!["one".to_owned()], samples).unwrap();
        let settings = Settings { in_order: true, shard_size: ByteCount(9 * 512), ..Settings::default() };
        // 3, 5, 4, 199, 4 and 4 blocks.
        let assignment = ShardAssignment::new(&source, &settings).unwrap();
        let shards: Vec<_> = (0..assignment.shard_count()).map(|shard| assignment.positions(shard)).collect();
        assert_eq!(shards, [0..2, 2..3, 3..4, 4..6]);
        assert_eq!((assignment.stored_bytes, assignment.encoded_max), (101_027, 100_000));
        let decoded = Treatment::Decoded { size: Some(10), level: 1 };
        let assignment = ShardAssignment::new(&source, &Settings { treatment: decoded, ..settings }).unwrap();
        assert_eq!(assignment.shard_count(), 3);
    }

    #[test]
    fn too_many_shards_are_refused() {
        let source = MemorySource::new(vec!["one".to_owned()], vec![(vec![], 0); 100_002]).unwrap();
        let settings = Settings { shard_size: ByteCount(1), ..Settings::default() };
        let error = ShardAssignment::new(&source, &settings).err().unwrap();
        assert!(error.to_string().contains("a shard size of 1 B makes more than 100000 shards"), "{error}");
    }
}
