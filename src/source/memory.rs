//! Source of samples in memory: for tests, examples, and generated data.

use std::mem::size_of;

use super::{Source, SourceError, heap_size};
use crate::units::SampleId;

/// Samples in memory. All of them count as its index.
///
/// ```
/// use feedstock::SampleId;
/// use feedstock::source::{MemorySource, Source};
///
/// let classes = ["cat", "dog"].map(String::from).to_vec();
/// let source = MemorySource::new(classes, vec![(b"tabby".to_vec(), 0), (b"poodle".to_vec(), 1)])?;
/// assert_eq!(source.len(), 2);
/// assert_eq!(source.label(SampleId(1)), 1);
/// # Ok::<(), feedstock::source::SourceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemorySource {
    classes: Vec<String>,
    samples: Vec<(Vec<u8>, u32)>,
}

impl MemorySource {
    /// Creates a source of `samples`: encoded bytes and label each, in the order of their ids.
    ///
    /// # Errors
    /// [`SourceError::LabelOutOfRange`] for the first label that is not below `classes.len()`.
    pub fn new(classes: Vec<String>, samples: Vec<(Vec<u8>, u32)>) -> Result<Self, SourceError> {
        match samples.iter().position(|(_, label)| *label as usize >= classes.len()) {
            Some(index) => {
                Err(SourceError::LabelOutOfRange { index, label: samples[index].1, class_count: classes.len() })
            }
            None => Ok(MemorySource { classes, samples }),
        }
    }

    fn sample(&self, id: SampleId) -> &(Vec<u8>, u32) {
        &self.samples[id.0 as usize]
    }
}

impl Source for MemorySource {
    fn len(&self) -> u64 {
        self.samples.len() as u64
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, id: SampleId) -> u32 {
        self.sample(id).1
    }

    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.sample(id).0.len() as u64
    }

    fn name(&self, id: SampleId) -> String {
        format!("memory:{}", id.0)
    }

    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        out.copy_from_slice(&self.sample(id).0);
        Ok(())
    }

    fn index_bytes(&self) -> u64 {
        let bytes = size_of::<Self>()
            + heap_size::strings(&self.classes)
            + self.samples.capacity() * size_of::<(Vec<u8>, u32)>()
            + self.samples.iter().map(|(bytes, _)| bytes.capacity()).sum::<usize>();
        bytes as u64
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[test]
    fn memory_source_keeps_the_rules() {
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let samples = (0..50u32).map(|i| (vec![i as u8; i as usize * 7], i % 3)).collect();
        let source = MemorySource::new(classes.clone(), samples).unwrap();
        conformance::check(&source).unwrap();
        assert!(source.index_bytes() > 50 * 49 / 2 * 7);
        conformance::check(&MemorySource::new(classes, vec![]).unwrap()).unwrap();
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        let error = MemorySource::new(vec!["only".into()], vec![(vec![], 0), (vec![], 1)]).unwrap_err();
        assert!(error.to_string().starts_with("sample 1 has label 1, but there are 1 classes"), "{error}");
    }
}
