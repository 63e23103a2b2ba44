//! Properties of every sampling scheme: the same batches in every configuration and after every resume, and each place
//! for one rank only.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use feedstock::Sampling;
use feedstock::budget::AccountKind;
use feedstock::sampler::{ClassTable, Mixture, Order, WeightTable};
use feedstock::source::{Blocks, Concat, Subset};

use super::*;

/// The samples, made once.
fn all() -> Arc<dyn Source> {
    static ALL: OnceLock<Arc<MemorySource>> = OnceLock::new();
    ALL.get_or_init(|| Arc::new(mixed(43))).clone()
}

/// Twelve, seventeen and fourteen samples in one, 43 in all.
fn three() -> Concat {
    let parts = [0..12, 12..29, 29..43];
    Concat::new(parts.map(|part| Arc::new(Subset::range(all(), part).unwrap()) as Arc<dyn Source>)).unwrap()
}

fn weights() -> Vec<f32> {
    (0..43).map(|i| [0.0, 1.0, 2.5, 0.25][i % 4]).collect()
}

/// Every way to draw, and the order that it should come to.
fn ways() -> Vec<(&'static str, Sampling, Order)> {
    let seed = Seed(17);
    let classes = ClassTable::new(43, 3, |id| (id.0 % 3) as u32).unwrap();
    let mix = Mixture::new(&[12, 29, 43], &[3.0, 1.0, 0.5]).unwrap();
    vec![
        ("by id", Sampling::Sequential, Order::sequential(43)),
        ("shuffled", Sampling::Shuffled, Order::shuffled(43, seed, 2)),
        (
            "weighted",
            Sampling::weighted(weights()),
            Order::weighted(&WeightTable::new(weights()).unwrap(), 43, seed, 2),
        ),
        ("balanced", Sampling::balanced().num_samples(70), Order::balanced(&classes, 70, seed, 2)),
        ("mixed", Sampling::mixed(&three(), [3.0, 1.0, 0.5]).num_samples(61), Order::mixed(&mix, 61, seed, 2)),
    ]
}

fn of(order: &Order) -> Vec<u64> {
    (0..order.len()).map(|at| order.at(at).0).collect()
}

#[test]
fn every_sampling_gives_its_order_in_every_configuration() {
    for (way, sampling, order) in ways() {
        let base = || builder(three()).sampling(sampling.clone());
        let expected = digest(base().build().unwrap().epoch(2)).unwrap();
        every_way(base, |name, loader| {
            assert_eq!(loader.samples_per_epoch(), order.len(), "{way}: {name}");
            assert_eq!(digest(loader.epoch(2)).unwrap(), expected, "{way}: {name}");
            assert_eq!(ids(loader.epoch(2)), of(&order), "{way}: {name}");
            for batch in loader.epoch(3) {
                let batch = batch.unwrap();
                // The parts are named after one another, and class labels are those of the whole.
                let own = batch.ids().iter().zip(batch.labels()).all(|(id, &label)| {
                    let (part, at) = three().origin(*id);
                    label == ([0, 12, 29][part] + at.0) as u32 % CLASSES
                });
                assert!(own, "{way}: {name}");
            }
            assert_balanced(name, &loader);
        });
    }
}

#[test]
fn every_sampling_can_be_resumed_and_shared_by_ranks() {
    for (way, sampling, order) in ways() {
        let base = || builder(three()).sampling(sampling.clone());
        let loader = base().build().unwrap();
        let whole: Vec<u64> = loader.epoch(2).map(|batch| digest(std::iter::once(batch)).unwrap()).collect();
        for taken in [1, 3, 5] {
            let mut first = loader.epoch(2);
            first.by_ref().take(taken).for_each(drop);
            let state = first.state();
            drop(first);
            let rest: Vec<u64> = loader.resume(state).map(|batch| digest(std::iter::once(batch)).unwrap()).collect();
            assert_eq!(rest, whole[taken..], "{way}: after {taken}");
        }
        // A sample is the same image whichever rank has it, and each place is one rank's.
        let mut places = vec![None; order.len() as usize];
        for rank in 0..3 {
            let loader = base().batch_size(1).shard(rank, 3).build().unwrap();
            for (at, batch) in loader.epoch(2).enumerate() {
                let place = &mut places[rank as usize + 3 * at];
                assert!(place.replace(digest(std::iter::once(batch)).unwrap()).is_none(), "{way}");
            }
        }
        let alone: Vec<_> =
            base().batch_size(1).build().unwrap().epoch(2).map(|b| digest(std::iter::once(b)).ok()).collect();
        assert_eq!(places, alone, "{way}");
    }
}

/// The pixels of each time that each sample came.
fn crops(loader: &Loader) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut all: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        for (id, pixels) in batch.ids().iter().zip(batch.bytes().unwrap().chunks(24 * 24 * 3)) {
            all.entry(id.0).or_default().push(pixels.to_vec());
        }
    }
    all
}

#[test]
fn a_repeated_sample_has_a_new_crop() {
    let once = crops(&builder(three()).build().unwrap());
    assert!(once.values().all(|crops| crops.len() == 1));
    for (way, sampling, _) in ways().into_iter().skip(2) {
        let all = crops(&builder(three()).sampling(sampling.num_samples(300)).build().unwrap());
        let mut again = 0;
        for crops in all.into_values() {
            let different: BTreeSet<&Vec<u8>> = crops.iter().collect();
            assert_eq!(different.len(), crops.len(), "{way}: the same crop twice");
            again += crops.len() - 1;
        }
        assert!(again > 100, "{way}: {again}");
    }
}

#[test]
fn a_bad_sample_is_replaced_by_one_that_may_be_drawn() {
    // Samples 5 and 12 of class 2 and 0, 11 of class 2; of the parts below, in the first and the second.
    let bad: Arc<dyn Source> = Arc::new(with_bad_samples());
    let source = || bad.clone();
    let parts = || Concat::new([0..12, 12..43].map(|p| Arc::new(Subset::range(source(), p).unwrap()) as _)).unwrap();
    let mut weights = vec![0.0; 43];
    [(5, 100.0), (7, 1.0), (8, 1.0)].into_iter().for_each(|(id, weight)| weights[id] = weight);
    let classes = [5, 11, 12, 6, 9, 20];
    let kept = || Subset::new(source(), classes.map(|id: u64| id)).unwrap();
    let lenient = |builder: LoaderBuilder| builder.max_bad_fraction(1.0);
    every_way(
        || lenient(builder(parts()).sampling(Sampling::weighted(weights.clone()))),
        |name, loader| {
            let seen: BTreeSet<u64> = ids(loader.epoch(0)).into_iter().collect();
            assert_eq!(seen, BTreeSet::from([7, 8]), "{name}");
        },
    );
    every_way(
        || lenient(builder(kept()).sampling(Sampling::balanced().num_samples(60))),
        |name, loader| {
            // Of class 2 there is 20 alone that is good, of class 0 there are 6 and 9.
            let seen = ids(loader.epoch(0));
            let count = |wanted: &[u64]| seen.iter().filter(|&&id| wanted.contains(&id)).count();
            assert_eq!((count(&[5]), count(&[3, 4])), (30, 30), "{name}: {seen:?}");
        },
    );
    every_way(
        || lenient(builder(parts()).sampling(Sampling::mixed(&parts(), [1.0, 0.0]).num_samples(60))),
        |name, loader| {
            let seen = ids(loader.epoch(0));
            assert!(seen.iter().all(|id| (0..12).contains(id) && ![5, 11].contains(id)), "{name}: {seen:?}");
        },
    );
    // Where a class has nothing that is good, another one takes its turn.
    let only = Subset::new(source(), [5, 6, 9]).unwrap();
    let loader = lenient(builder(only).sampling(Sampling::balanced().num_samples(40))).build().unwrap();
    let seen = ids(loader.epoch(0));
    assert!(seen.len() == 40 && seen.iter().all(|&id| id > 0), "{seen:?}");
}

#[test]
fn the_table_is_an_account_of_the_ledger() {
    let rows = |sampling| {
        let plan = builder(all()).sampling(sampling).plan().unwrap();
        plan.row(AccountKind::Sampling).map(|row| row.bytes().0)
    };
    assert_eq!(rows(Sampling::Shuffled), None);
    assert_eq!(rows(Sampling::weighted(weights())), Some(43 * 8));
    assert_eq!(rows(Sampling::balanced()), Some(43 * 4 + 3 * 12));
    assert_eq!(rows(Sampling::mixed(&three(), [3.0, 1.0, 0.0])), Some(3 * 8 + 2 * 3 * 4));

    let base = || builder(all()).max_workers(1);
    let least = base().plan().unwrap().minimum;
    let weighted = || base().sampling(Sampling::weighted(weights()));
    assert_eq!(weighted().plan().unwrap().minimum.0, least.0 + 43 * 8);
    let error = weighted().ram_budget(least).build().expect_err("no room for the table");
    assert_eq!(error.kind(), ErrorKind::Budget);
    assert!(error.to_string().contains("sampling"), "{error}");
    let loader = weighted().ram_budget(ByteCount(least.0 + 43 * 8)).build().unwrap();
    let account =
        loader.stats().memory.accounts.iter().find(|account| account.kind == AccountKind::Sampling).map(|a| a.held);
    assert_eq!(account, Some(ByteCount(43 * 8)));
}

/// Samples in blocks.
struct InBlocks(MemorySource, Blocks);

impl Source for InBlocks {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn label(&self, id: SampleId) -> u32 {
        self.0.label(id)
    }
    fn encoded_bytes(&self, id: SampleId) -> u64 {
        self.0.encoded_bytes(id)
    }
    fn name(&self, id: SampleId) -> String {
        self.0.name(id)
    }
    fn read_into(&self, id: SampleId, out: &mut [u8]) -> Result<(), SourceError> {
        self.0.read_into(id, out)
    }
    fn index_bytes(&self) -> u64 {
        self.0.index_bytes()
    }
    fn blocks(&self) -> Option<&Blocks> {
        Some(&self.1)
    }
}

#[test]
fn impossible_samplings_are_refused() {
    let base = || builder(all());
    let in_blocks = || builder(InBlocks(mixed(43), Blocks::new([20, 43], 1)));
    let nan = weights().into_iter().map(|w| if w == 2.5 { f32::NAN } else { w }).collect::<Vec<_>>();
    let cases: [(LoaderBuilder, &str); 12] = [
        (base().sampling(Sampling::weighted(vec![1.0; 42])), "weights for 42 samples, but the source has 43"),
        (base().sampling(Sampling::weighted(nan)), "weight 2 is NaN"),
        (base().sampling(Sampling::weighted(vec![0.0; 43])), "none of 43 weights is above 0"),
        (base().sampling(Sampling::balanced().num_samples(0)), "num_samples 0"),
        (base().sampling(Sampling::mixed(&three(), [1.0, 2.0])), "2 weights for 3 parts"),
        (base().sampling(Sampling::mixed(&three(), [1.0, -2.0, 1.0])), "weight 1 is -2"),
        (
            builder(mixed(44)).sampling(Sampling::mixed(&three(), [1.0; 3])),
            "parts of 43 samples, but the source has 44",
        ),
        (in_blocks().sampling(Sampling::weighted(weights())), "weighted sampling reads in random order"),
        (in_blocks().sampling(Sampling::balanced()), "2 blocks that are read whole"),
        (
            in_blocks().sampling(Sampling::Mixed { ends: [43].into(), weights: vec![1.0], num_samples: None }),
            "pack the data into shards",
        ),
        (base().sampling(Sampling::balanced().num_samples(5)).shard(5, 6), "5 samples are spread over 6 ranks"),
        (base().sampling(Sampling::balanced().num_samples(7)).drop_last(true), "the 7 samples of an epoch"),
    ];
    for (builder, words) in cases {
        let error = builder.plan().err().unwrap_or_else(|| panic!("{words}"));
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let again = builder.build().expect_err(words);
        assert_eq!(again.to_string(), error.to_string());
    }
    assert_eq!(ids(in_blocks().build().unwrap().epoch(0)).len(), 43);
}

#[test]
fn classes_without_samples_are_skipped_with_a_note() {
    let classes = ["a", "b", "c", "d"].map(String::from).to_vec();
    let source = MemorySource::new(classes, (0..9).map(|i| (sample(i), if i < 7 { 1 } else { 3 })).collect()).unwrap();
    let loader = builder(source).sampling(Sampling::balanced()).build().unwrap();
    let note = "2 of 4 classes have no samples and no turn: a, c";
    assert!(loader.notes().iter().any(|other| other == note), "{:?}", loader.notes());
    let threes = ids(loader.epoch(0)).iter().filter(|&&id| id >= 7).count();
    assert!(threes == 4 || threes == 5, "{threes}");
}
