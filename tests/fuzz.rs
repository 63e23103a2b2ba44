//! Runs the fuzz targets' entry functions over damaged fixtures: always the same few cases, so that CI runs them
//! without a fuzzer. By hand, `FEEDSTOCK_FUZZ_SECONDS=600 FEEDSTOCK_FUZZ_SEED=1 cargo test --release --test fuzz`
//! continues for as long.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "in a test a panic is the report")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use feedstock::rng::mix64;

#[path = "common/fuzzing.rs"]
mod fuzzing;

use fuzzing::{CHOICES, any_header, any_sample};

/// Number of cases in CI.
const CASES: u64 = 20_000;

/// Random numbers that depend only on the case, so that each can be run again by itself.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix64(self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// An offset in a file; every other time near its front, where headers are.
    fn offset(&mut self, length: usize) -> usize {
        let end = if self.next().is_multiple_of(2) { length.min(700) } else { length };
        self.below(end)
    }
}

fn fixtures() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let mut paths: Vec<_> = fs::read_dir(folder).expect("fixtures").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("fixture")).collect()
}

/// A damaged fixture, after the bytes that choose the transform and the options.
fn case(dice: &mut Dice, fixtures: &[Vec<u8>]) -> Vec<u8> {
    let mut file = fixtures[dice.below(fixtures.len())].clone();
    for _ in 0..dice.below(7) {
        if file.is_empty() {
            break;
        }
        let at = dice.offset(file.len());
        match dice.below(9) {
            0 => file[at] ^= 1 << dice.below(8),
            1 => file[at] = dice.next() as u8,
            2 => file[at] = [0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0xD8, 0xD9][dice.below(8)],
            3 => file.truncate(at),
            4 => {
                let end = (at + 1 + dice.below(40)).min(file.len());
                file.drain(at..end);
            }
            5 => {
                let part = file[at..(at + 1 + dice.below(200)).min(file.len())].to_vec();
                let to = dice.offset(file.len());
                file.splice(to..to, part);
            }
            6 => {
                let other = &fixtures[dice.below(fixtures.len())];
                let from = dice.offset(other.len());
                file.truncate(at);
                file.extend(&other[from..]);
            }
            7 => {
                let noise: Vec<u8> = (0..=dice.below(8)).map(|_| dice.next() as u8).collect();
                let end = (at + noise.len()).min(file.len());
                file[at..end].copy_from_slice(&noise[..end - at]);
            }
            // An extreme length or side, in either byte order.
            _ => {
                let value = [0u16, 1, 2, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF][dice.below(8)];
                let bytes = if dice.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                let end = (at + 2).min(file.len());
                file[at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
    }
    let mut input: Vec<u8> = (0..CHOICES).map(|_| dice.next() as u8).collect();
    input.append(&mut file);
    input
}

#[test]
fn damaged_fixtures_do_not_panic() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seed = number("FEEDSTOCK_FUZZ_SEED").unwrap_or(0);
    let until = number("FEEDSTOCK_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let fixtures = fixtures();
    // Codecs that panic are caught by the decoder, and would fill the screen.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut at = 0;
    while until.map_or(at < CASES, |until| Instant::now() < until) {
        let input = case(&mut Dice(mix64(seed) ^ mix64(at)), &fixtures);
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            any_header(&input[CHOICES..]);
            any_sample(&input);
        }));
        let seconds = began.elapsed().as_secs_f64();
        if seconds > 5.0 {
            println!("case {at} of seed {seed} took {seconds:.1} s");
        }
        if let Err(panic) = outcome {
            let kept = std::env::temp_dir().join(format!("feedstock-fuzz-{seed}-{at}"));
            let _ = fs::write(&kept, &input);
            println!("case {at} of seed {seed}, kept as {}", kept.display());
            std::panic::set_hook(hook);
            resume_unwind(panic);
        }
        at += 1;
    }
    std::panic::set_hook(hook);
    println!("{at} cases of seed {seed}");
}
