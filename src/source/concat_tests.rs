//! Tests of joined sources.

use std::fs;

use super::*;
use crate::source::{ImageFolder, MemorySource, Subset, conformance};
use crate::sync::Mutex;

/// Samples in memory with whatever else a source may have.
pub(in crate::source) struct Storage {
    samples: MemorySource,
    title: &'static str,
    blocks: Option<Blocks>,
    io_profile: IoProfile,
    notes: Vec<String>,
    in_memory: bool,
    /// Ids of each `read_ahead` call.
    pub(in crate::source) ahead: Mutex<Vec<Vec<u64>>>,
}

pub(in crate::source) fn storage(title: &'static str, classes: &[&str], labels: &[u32]) -> Storage {
    let samples =
        labels.iter().enumerate().map(|(i, &label)| (vec![title.len() as u8 * 16 + i as u8; i + 1], label)).collect();
    Storage {
        samples: MemorySource::new(classes.iter().map(|&class| class.to_owned()).collect(), samples).unwrap(),
        title,
        blocks: None,
        io_profile: IoProfile::default(),
        notes: vec![],
        in_memory: true,
        ahead: Mutex::default(),
    }
}

impl Storage {
    pub(in crate::source) fn in_blocks(self, blocks: Blocks) -> Self {
        Storage { blocks: Some(blocks), ..self }
    }
}

impl Source for Storage {
    delegate! {
        this => this.samples;
        len() -> u64;
        classes() -> &[String];
        label(id: SampleId) -> u32;
        encoded_bytes(id: SampleId) -> u64;
        read_into(id: SampleId, out: &mut [u8]) -> Result<(), SourceError>;
    }
    fn name(&self, id: SampleId) -> String {
        format!("{}/{}", self.title, id.0)
    }
    fn index_bytes(&self) -> u64 {
        1000
    }
    fn is_in_memory(&self) -> bool {
        self.in_memory
    }
    fn title(&self) -> String {
        self.title.to_owned()
    }
    fn notes(&self) -> &[String] {
        &self.notes
    }
    fn dimensions(&self, id: SampleId) -> Option<(u32, u32)> {
        Some((self.title.len() as u32, id.0 as u32))
    }
    fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }
    fn io_profile(&self) -> IoProfile {
        self.io_profile
    }
    fn read_ahead(&self, ids: &[SampleId], _: PageCache) {
        self.ahead.lock().unwrap().push(ids.iter().map(|id| id.0).collect());
    }
}

fn concat(sources: Vec<Storage>) -> Concat {
    Concat::new(sources.into_iter().map(|source| Arc::new(source) as Arc<dyn Source>)).unwrap()
}

fn names(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|id| source.name(SampleId(id))).collect()
}

#[test]
fn samples_keep_their_properties() {
    let empty = storage("empty", &["b"], &[]);
    let both = concat(vec![storage("a", &["b", "a"], &[0, 1, 1]), empty, storage("bb", &["c", "b"], &[0, 1])]);
    conformance::check(&both).unwrap();
    assert_eq!((both.len(), both.ends(), both.classes()), (5, &[3, 3, 5][..], &["a", "b", "c"].map(String::from)[..]));
    let all = || (0..5).map(SampleId);
    assert_eq!(all().map(|id| both.label(id)).collect::<Vec<_>>(), [1, 0, 0, 2, 1]);
    assert_eq!(names(&both), ["a/0", "a/1", "a/2", "bb/0", "bb/1"]);
    assert_eq!(
        all().map(|id| both.origin(id)).map(|(p, id)| (p, id.0)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    );
    assert_eq!(both.dimensions(SampleId(4)), Some((2, 1)));
    let mut out = vec![0; 2];
    both.read_into(SampleId(4), &mut out).unwrap();
    assert_eq!(out, [33; 2]);
    assert_eq!(both.title(), "a + empty + bb");
    assert!(both.notes()[0].contains("the 3 sources have different classes"), "{:?}", both.notes());
    assert!((3000..4500).contains(&both.index_bytes()), "{}", both.index_bytes());
}

#[test]
fn equal_lists_of_classes_stay_as_they_are() {
    let both = concat(vec![storage("a", &["z", "a"], &[0]), storage("b", &["z", "a"], &[1])]);
    assert_eq!((both.classes(), both.label(SampleId(1))), (&["z", "a"].map(String::from)[..], 1));
    assert_eq!(both.notes(), [""; 0]);
}

#[test]
fn ambiguous_names_get_the_number_of_their_source() {
    let of =
        |titles: &[&'static str]| names(&concat(titles.iter().map(|title| storage(title, &["x"], &[0])).collect()));
    assert_eq!(of(&["data", "data2"]), ["data/0", "data2/0"]);
    assert_eq!(of(&["data", "other", "data"]), ["#1 data/0", "other/0", "data/0"]);
    // A class of the second may be the root of the first.
    assert_eq!(of(&["data/cat", "data"]), ["data/cat/0", "#2 data/0"]);
    let memory = || Arc::new(MemorySource::new(vec!["x".into()], vec![(vec![1], 0)]).unwrap()) as Arc<dyn Source>;
    let both = Concat::new([memory(), memory()]).unwrap();
    assert_eq!(names(&both), ["#1 memory:0", "#2 memory:0"]);
    conformance::check(&both).unwrap();
    assert_eq!(names(&Concat::new([memory()]).unwrap()), ["memory:0"]);
}

#[test]
fn folders_keep_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        fs::create_dir_all(dir.path().join(name).join("cat")).unwrap();
        fs::write(dir.path().join(name).join("cat/1.jpg"), name).unwrap();
        Arc::new(ImageFolder::open(dir.path().join(name)).unwrap()) as Arc<dyn Source>
    };
    let both = Concat::new([folder("train"), folder("train2/")]).unwrap();
    conformance::check(&both).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(names(&both), [path("train/cat/1.jpg"), path("train2/cat/1.jpg")]);
}

#[test]
fn profiles_and_notes_are_joined() {
    let profile = |concurrency, buffer_bytes, coalesce_bytes| IoProfile { concurrency, buffer_bytes, coalesce_bytes };
    let first =
        Storage { io_profile: profile(2, 100, 0), notes: vec!["dusty".into()], ..storage("a", &["x"], &[0; 3]) };
    let second = Storage { io_profile: profile(7, 10, 50), in_memory: false, ..storage("b", &["x"], &[0; 3]) };
    let both = concat(vec![first, second]);
    // All seven concurrent reads may be of the first.
    assert_eq!(both.io_profile(), profile(7, 4 * 100 + 10, 50));
    assert_eq!((both.is_in_memory(), both.notes()), (false, &["a: dusty".to_owned()][..]));
    assert!(concat(vec![storage("a", &["x"], &[0])]).is_in_memory());
}

#[test]
fn read_ahead_translates_ids_for_each_source() {
    let parts =
        [storage("a", &["x"], &[0; 3]), storage("b", &["x"], &[0; 2]), storage("c", &["x"], &[0; 4])].map(Arc::new);
    let all = Concat::new(parts.iter().map(|part| part.clone() as Arc<dyn Source>)).unwrap();
    all.read_ahead(&[0, 2, 5, 8].map(SampleId), PageCache::Keep);
    all.read_ahead(&[], PageCache::Keep);
    let announced = parts.map(|part| part.ahead.lock().unwrap().clone());
    assert_eq!(announced, [vec![vec![0, 2]], vec![], vec![vec![0, 3]]]);
}

#[test]
fn read_many_translates_ids_for_each_source() {
    let all = concat(vec![storage("a", &["x"], &[0; 3]), storage("bb", &["x"], &[0; 2])]);
    let ids = [3, 4, 0, 3].map(SampleId);
    let mut outs = [1, 2, 1, 1].map(|bytes| vec![0; bytes]);
    let mut reads: Vec<SampleRead<'_>> = ids.iter().zip(&mut outs).map(|(&id, out)| SampleRead::new(id, out)).collect();
    all.read_many(&mut reads);
    assert!(reads.iter().map(|read| read.id).eq(ids) && reads.iter().all(|read| read.result.is_ok()));
    assert_eq!(outs, [vec![32], vec![33; 2], vec![16], vec![32]]);
}

#[test]
fn sources_without_blocks_are_divided() {
    assert_eq!(concat(vec![storage("a", &["x"], &[0])]).blocks(), None);
    let blocked = |runs: Option<Vec<u64>>, shuffle_window| {
        let blocks = Blocks::new([3, 5], shuffle_window);
        storage("a", &["x"], &[0; 5]).in_blocks(match runs {
            Some(runs) => blocks.with_runs(runs),
            None => blocks,
        })
    };
    let plain = || storage("b", &["x"], &[0; 7]);
    let both = concat(vec![plain(), blocked(None, 3), blocked(None, 2)]);
    // The mean of 3, 2, 3 and 2 is 2.
    assert_eq!(both.blocks(), Some(&Blocks::new([2, 4, 6, 7, 10, 12, 15, 17], 2)));
    let runs = concat(vec![blocked(Some(vec![2]), 2), plain(), blocked(None, 2)]);
    let joined = Blocks::new([3, 5, 7, 9, 11, 12, 15, 17], 2).with_runs([2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(runs.blocks(), Some(&joined));
    conformance::check(&runs).unwrap();
}

#[test]
fn an_empty_list_is_refused() {
    let error = Concat::new([]).unwrap_err();
    assert_eq!(error.to_string(), "no sources to join: give at least one");
    let none = concat(vec![storage("a", &["x"], &[])]);
    assert!(none.is_empty());
    conformance::check(&none).unwrap();
    // Subsets of one source are sources like others.
    let all: Arc<dyn Source> = Arc::new(storage("a", &["x"], &[0; 9]));
    let halves = [0, 1].map(|offset| Arc::new(Subset::every(all.clone(), 2, offset).unwrap()) as Arc<dyn Source>);
    conformance::check(&Concat::new(halves).unwrap()).unwrap();
}
