//! Compares the row decoder with the library's own simple interface, with itself in other memory, and with the bound of
//! its memory.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::fixtures::{Color, Kind, PLAIN, SAMPLINGS, crafted, encode, kinds, reference, rich, scan};
use super::*;
use crate::decode::{Limits, begin, probe};
use crate::tensor::Region;

/// Memory with guards before and behind it, which begins at an odd address.
struct Guarded {
    bytes: Vec<u8>,
    length: usize,
}

const GUARD: usize = 101;
const MARK: u8 = 0xC5;

impl Guarded {
    /// Filled with noise, as an earlier image may have left it.
    fn new(length: usize, filling: u8) -> Self {
        let mut bytes = vec![MARK; length + 2 * GUARD];
        let noise = |at: usize| (at as u8).wrapping_mul(31) ^ filling;
        bytes[GUARD..][..length].iter_mut().enumerate().for_each(|(at, byte)| *byte = noise(at));
        Guarded { bytes, length }
    }

    fn inside(&mut self) -> &mut [u8] {
        &mut self.bytes[GUARD..][..self.length]
    }

    fn check(&self) {
        assert!(self.bytes[..GUARD].iter().all(|&b| b == MARK), "written in front");
        assert!(self.bytes[GUARD + self.length..].iter().all(|&b| b == MARK), "written behind");
    }
}

/// Result of one request: the crop's pixels, the number of warnings, and the arena used, its alignment included.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    pixels: Vec<u8>,
    warnings: u32,
    used: usize,
}

/// Decodes row by row in an arena of exactly the size needed; with Huffman codes read by the library and by us, which
/// must give the same result.
fn rows(file: &[u8], header: &Header, request: &DecodeRequest, filling: u8) -> Result<Outcome, DecodeError> {
    let theirs = rows_with(file, header, request, filling, false);
    let ours = rows_with(file, header, request, filling, true);
    let told = |outcome: &Result<Outcome, DecodeError>| match outcome {
        Ok(outcome) => format!("{} warnings", outcome.warnings),
        Err(error) => error.to_string(),
    };
    // The library reports a few stray bytes before a restart marker depending on how far it has looked ahead. We look
    // as far as it ever does.
    let restarts = file.windows(4).any(|bytes| bytes == [0xFF, 0xDD, 0, 4]);
    let stray = |error: &DecodeError| restarts && error.to_string().contains("extraneous bytes before marker");
    let same = match (&theirs, &ours) {
        (Ok(theirs), Ok(ours)) => {
            theirs.pixels == ours.pixels
                && (theirs.warnings == ours.warnings || restarts && theirs.warnings > ours.warnings)
        }
        (Err(theirs), _) if stray(theirs) => true,
        (theirs, ours) => theirs == ours,
    };
    assert!(same, "{request:?}: {} by the library, {} by us", told(&theirs), told(&ours));
    ours
}

fn rows_with(
    file: &[u8],
    header: &Header,
    request: &DecodeRequest,
    filling: u8,
    own_codes: bool,
) -> Result<Outcome, DecodeError> {
    let mut arena = Guarded::new(arena_bytes(header, request.denominator) as usize, filling);
    let scaled = request.scaled_crop();
    let outcome = (|| {
        let mut rows = start_with(file, header, request, arena.inside(), own_codes)?;
        assert_eq!(rows.remaining, scaled.height);
        assert!(rows.left() + scaled.width <= rows.width(), "{request:?}: {rows:?}");
        let mut row = Guarded::new(rows.width() as usize * 3, filling);
        let mut pixels = Vec::new();
        while rows.next_row(row.inside())? {
            row.check();
            pixels.extend_from_slice(&row.inside()[rows.left() as usize * 3..][..scaled.width as usize * 3]);
        }
        assert_eq!(pixels.len(), scaled.width as usize * scaled.height as usize * 3);
        Ok(Outcome { pixels, warnings: rows.warnings(), used: rows.image.used_bytes() + 63 })
    })();
    arena.check();
    outcome
}

fn header_of(file: &[u8]) -> Header {
    probe(file, &Limits::default()).expect("header")
}

fn at(header: &Header, denominator: u32) -> DecodeRequest {
    DecodeRequest { denominator, ..DecodeRequest::whole(header) }
}

/// Returns the pixels of `crop` in an image of this width.
fn part(pixels: &[u8], width: u32, crop: Region) -> Vec<u8> {
    let row = |y| &pixels[((crop.y + y) * width + crop.x) as usize * 3..][..crop.width as usize * 3];
    (0..crop.height).flat_map(row).copied().collect()
}

#[test]
fn the_whole_image_matches_the_library() {
    for kind in kinds() {
        for (width, height) in [(1, 1), (2, 3), (9, 5), (16, 16), (33, 18), (70, 45)] {
            let file = encode(kind, width, height);
            let header = header_of(&file);
            for denominator in [1, 2, 4, 8] {
                let found = rows(&file, &header, &at(&header, denominator), 0).expect("good");
                assert_eq!(found.warnings, 0);
                if matches!(kind.color, Color::Cmyk | Color::Ycck) {
                    continue;
                }
                let expected = reference(&file, denominator);
                assert!(found.pixels == expected.0, "{kind:?} {width}x{height} at 1/{denominator}");
            }
        }
    }
}

/// Otherwise all of these tests would hold one decoder against itself.
#[test]
fn our_own_huffman_decoder_is_in_use() {
    for kind in kinds() {
        let file = encode(kind, 400, 300);
        let header = header_of(&file);
        let (across, down) = if kind.color == Color::Gray { (1, 1) } else { kind.sampling };
        let mcus = 400u32.div_ceil(8 * across) * 300u32.div_ceil(8 * down);
        for denominator in [1, 8] {
            let request = at(&header, denominator);
            let mut arena = vec![0; arena_bytes(&header, denominator) as usize];
            let mut rows = start_with(&file, &header, &request, &mut arena, true).expect("good");
            let mut row = vec![0; rows.width() as usize * 3];
            while rows.next_row(&mut row).expect("good") {}
            let done = rows.image.own_mcus();
            if kind.progressive || kind.arithmetic {
                assert_eq!(done, 0, "{kind:?}");
            } else {
                // Those next to a marker are left to the library: with restarts, the first of a row and a few at its
                // end.
                let most = if kind.restart_rows == 0 { mcus * 95 / 100 } else { mcus * 70 / 100 };
                assert!(done >= most && done <= mcus, "{kind:?} at 1/{denominator}: {done} of {mcus}");
            }
        }
    }
}

#[test]
fn cmyk_is_multiplied_out() {
    for (kind, tolerance) in [
        (Kind { color: Color::Cmyk, sampling: (1, 1), quality: 100, ..PLAIN }, 4),
        (Kind { color: Color::Ycck, sampling: (1, 1), quality: 100, ..PLAIN }, 6),
    ] {
        let file = encode(kind, 40, 30);
        let header = header_of(&file);
        let found = rows(&file, &header, &DecodeRequest::whole(&header), 0).expect("good").pixels;
        let ink = super::fixtures::image(40, 30, 4);
        for (rgb, ink) in found.chunks_exact(3).zip(ink.chunks_exact(4)) {
            for c in 0..3 {
                let expected = (u32::from(ink[c]) * u32::from(ink[3]) + 127) / 255;
                assert!(u32::from(rgb[c]).abs_diff(expected) <= tolerance, "{kind:?}: {rgb:?} of {ink:?}");
            }
        }
    }
}

#[test]
fn the_largest_header_fits() {
    for marker in [0xC0, 0xC1, 0xC2, 0xC9, 0xCA] {
        for size in [(1, 1), (64, 64), (300, 20)] {
            for transform in [0, 2] {
                for denominator in [1, 2, 4, 8] {
                    let file = rich(marker, size, (2, 2), transform);
                    let header = header_of(&file);
                    let request = DecodeRequest { accept_truncated: true, ..at(&header, denominator) };
                    let found = rows(&file, &header, &request, 2).expect("decoded");
                    let spare = arena_bytes(&header, denominator) as usize - found.used;
                    // Files with more than two tables of a kind are left to the library.
                    let own = if matches!(marker, 0xC0 | 0xC1) { 22 << 10 } else { 0 };
                    assert!(
                        spare < own + (16 << 10),
                        "ff {marker:02x} {size:?} {transform} 1/{denominator}: {spare} to spare"
                    );
                }
            }
        }
    }
}

/// Sides of images that end at each position of an MCU, and longer ones.
const SIDES: [(u16, u16); 10] =
    [(1, 1), (1, 9), (8, 8), (9, 1), (16, 16), (17, 33), (31, 32), (100, 75), (257, 19), (3, 300)];

#[test]
fn no_header_exceeds_its_bound() {
    let factors = || (1..=4).flat_map(|across| (1..=4).map(move |down| (across, down)));
    let mut layouts: Vec<Vec<(u8, u8)>> = factors().map(|sampling| vec![sampling]).collect();
    for first in factors() {
        for second in factors() {
            layouts.push(vec![first, second, second]);
            layouts.push(vec![first, second, (1, 1)]);
            layouts.push(vec![first, second, second, first]);
            layouts.push(vec![second, (1, 1), first, (1, 1)]);
            layouts.push(vec![first, second]);
        }
    }
    // The others are refused at the header.
    layouts.retain(|samplings| {
        let across = samplings.iter().map(|sampling| sampling.0).max().unwrap_or(1);
        let down = samplings.iter().map(|sampling| sampling.1).max().unwrap_or(1);
        samplings.iter().all(|sampling| across % sampling.0 == 0 && down % sampling.1 == 0)
    });
    let (mut good, mut loosest) = (0, 0);
    for samplings in &layouts {
        for marker in [0xC0, 0xC1, 0xC2, 0xC9, 0xCA] {
            let count = samplings.len() as u8;
            for scan_components in [1, count] {
                for size in SIDES {
                    let file = crafted(marker, size, samplings, scan_components, &[0x55; 40]);
                    let header = header_of(&file);
                    for denominator in [1, 2, 4, 8] {
                        let request = DecodeRequest { accept_truncated: true, ..at(&header, denominator) };
                        let name =
                            || format!("ff {marker:02x} {size:?} {samplings:?} {scan_components} 1/{denominator}");
                        match rows(&file, &header, &request, 9) {
                            Ok(found) => {
                                let spare = arena_bytes(&header, denominator) as usize - found.used;
                                // Tables that a header may bring and these do not, and what SIMD makes unnecessary.
                                assert!(spare < 26 << 10, "{}: {spare} bytes of {} to spare", name(), found.used);
                                (good, loosest) = (good + 1, loosest.max(spare));
                            }
                            Err(DecodeError::Damaged { .. }) => {}
                            Err(other) => panic!("{}: {other}", name()),
                        }
                    }
                }
            }
        }
    }
    println!("{good} decoded, at most {loosest} bytes to spare");
    assert!(good > 20_000, "{good}");
}

#[test]
fn the_bound_is_close_for_photos_and_independent_of_height() {
    for (width, height) in [(32, 32), (500, 375), (900, 700)] {
        for kind in kinds().into_iter().filter(|kind| kind.restart_rows == 0) {
            let file = encode(kind, width, height);
            let header = header_of(&file);
            for denominator in [1, 8] {
                let bound = arena_bytes(&header, denominator);
                let used = rows(&file, &header, &at(&header, denominator), 1).expect("good").used as u64;
                assert!(used <= bound && bound <= used + used * 15 / 100 + (16 << 10), "{kind:?}: {used} of {bound}");
            }
        }
    }
    for sampling in SAMPLINGS {
        let bound = |height| arena_bytes(&header_of(&encode(Kind { sampling, ..PLAIN }, 500, height)), 1);
        assert_eq!(bound(1), bound(2000));
    }
}

#[test]
fn an_arena_that_is_too_small_is_an_error() {
    for kind in [PLAIN, Kind { progressive: true, ..PLAIN }, Kind { color: Color::Ycck, ..PLAIN }] {
        let file = encode(kind, 60, 50);
        let header = header_of(&file);
        let needed = arena_bytes(&header, 1);
        let mut arena = vec![0; needed as usize - 1];
        let error = begin(&file, &header, &DecodeRequest::whole(&header), &mut arena).expect_err("one byte short");
        assert_eq!(error, DecodeError::OutOfMemory { bytes: needed });
        // Below the check: the shim itself, with every size there is.
        let params = Params {
            width: 60,
            height: 50,
            component_count: if kind.color == Color::Ycck { 4 } else { 3 },
            denominator: 1,
            x: 0,
            columns: 60,
            y: 3,
            scans_max: 64,
            accept_truncated: 0,
            own_codes: 1,
        };
        let mut refused = 0;
        for bytes in (0..needed as usize).step_by(37) {
            let mut arena = Guarded::new(bytes, 3);
            if let Err(abort) = Image::start(&file, &params, arena.inside()).map(|_| ()) {
                assert_eq!(abort, Abort::OutOfMemory);
                refused += 1;
            }
            arena.check();
        }
        assert!(refused > 100, "{refused}");
    }
}

#[test]
fn a_file_of_nothing_but_scans_is_refused() {
    for (marker, scan_components) in [(0xC0, 1), (0xCA, 3)] {
        let mut file = crafted(marker, (1000, 1000), &[(1, 1), (1, 1), (1, 1)], scan_components, &[]);
        file.truncate(file.len() - 2);
        for _ in 0..20_000 {
            scan(&mut file, scan_components, marker == 0xCA, &[]);
        }
        file.extend([0xFF, 0xD9]);
        let header = header_of(&file);
        let request = DecodeRequest { accept_truncated: true, ..DecodeRequest::whole(&header) };
        let error = rows(&file, &header, &request, 0).expect_err("too many");
        assert_eq!(error.to_string(), "jpeg: unsupported: 20001 scans: expected at most 64");
    }
}

#[test]
fn a_truncated_file_is_decoded_as_far_as_it_goes() {
    for kind in kinds() {
        let file = encode(kind, 80, 256);
        let header = header_of(&file);
        let whole = rows(&file, &header, &DecodeRequest::whole(&header), 0).expect("good").pixels;
        let data_at = header.jpeg.expect("a JPEG").data_at;
        let cut_at = data_at + (file.len() - data_at) / 2;
        let half = &file[..cut_at];
        let strict = rows(half, &header, &DecodeRequest::whole(&header), 0).expect_err("no end");
        assert_eq!(strict, DecodeError::Truncated { format: Format::Jpeg, encoded_bytes: cut_at });
        let lenient = DecodeRequest { accept_truncated: true, ..DecodeRequest::whole(&header) };
        let found = rows(half, &header, &lenient, 0).expect("half of it");
        assert!(kind.arithmetic || found.warnings > 0, "{kind:?}");
        if !kind.progressive {
            let kept = found.pixels.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            assert!(kept > whole.len() / 5, "{kind:?}: {kept} of {}", whole.len());
        }
        assert_eq!(rows(half, &header, &lenient, 77).expect("half of it"), found, "{kind:?}: what was left shows");
    }
}

#[test]
fn an_error_stays_an_error() {
    let file = encode(PLAIN, 64, 200);
    let header = header_of(&file);
    let mut damaged = file.clone();
    let at = file.len() - file.len() / 3;
    damaged[at..at + 8].fill(0xFF);
    let mut arena = vec![0; arena_bytes(&header, 1) as usize];
    let mut rows = start(&damaged, &header, &DecodeRequest::whole(&header), &mut arena).expect("the first row is good");
    let mut row = [0; 64 * 3];
    let first = loop {
        match rows.next_row(&mut row) {
            Ok(more) => assert!(more, "damage was passed over"),
            Err(error) => break error,
        }
    };
    assert!(first.to_string().starts_with("jpeg: damaged data: "), "{first}");
    assert_eq!(rows.next_row(&mut row), Err(first));
}

#[test]
fn damage_below_the_crop_is_not_found() {
    let file = encode(PLAIN, 64, 200);
    let header = header_of(&file);
    let mut damaged = file.clone();
    let at = file.len() - 40;
    damaged[at..at + 8].fill(0xFF);
    let top = DecodeRequest { crop: Region { x: 3, y: 5, width: 50, height: 60 }, ..DecodeRequest::whole(&header) };
    assert_eq!(rows(&damaged, &header, &top, 0), rows(&file, &header, &top, 0));
    assert!(rows(&damaged, &header, &DecodeRequest::whole(&header), 0).is_err());
}

#[test]
#[should_panic(expected = "is not inside 64x200")]
fn a_crop_outside_the_image_panics() {
    let file = encode(PLAIN, 64, 200);
    let header = header_of(&file);
    let request = DecodeRequest { crop: Region { x: 60, y: 0, width: 5, height: 1 }, ..DecodeRequest::whole(&header) };
    let _ = begin(&file, &header, &request, &mut []);
}

/// Returns a crop of the image, from four fractions.
fn crop_of(header: &Header, fractions: [u16; 4]) -> Region {
    let pick = |fraction: u16, of: u32| (u32::from(fraction) * of) >> 16;
    let (x, y) = (pick(fractions[0], header.width), pick(fractions[1], header.height));
    let (width, height) = (1 + pick(fractions[2], header.width - x), 1 + pick(fractions[3], header.height - y));
    Region { x, y, width, height }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn a_crop_has_the_pixels_of_the_whole(
        kind in any::<prop::sample::Index>(),
        (width, height) in (1u32..150, 1u32..120),
        fractions in any::<[u16; 4]>(),
        scale in 0u32..4,
        filling in any::<u8>(),
    ) {
        let kinds = kinds();
        let kind = kinds[kind.index(kinds.len())];
        let file = encode(kind, width, height);
        let header = header_of(&file);
        let whole = at(&header, 1 << scale);
        let request = DecodeRequest { crop: crop_of(&header, fractions), ..whole };
        let expected = rows(&file, &header, &whole, 0).expect("good").pixels;
        let expected = part(&expected, whole.scaled_crop().width, request.scaled_crop());
        let found = rows(&file, &header, &request, filling).expect("good");
        prop_assert!(found.pixels == expected, "{kind:?} {width}x{height} {request:?}");
    }
}

/// Runs damaged files through `rows`, and after each a good one. Returns how many were decoded all the same.
fn survive(cases: u64, seed: u64) -> u64 {
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below.max(1)
    };
    let kinds = kinds();
    let files: Vec<_> = kinds.iter().map(|&kind| encode(kind, 90, 70)).collect();
    let good: Vec<_> = files
        .iter()
        .map(|file| rows(file, &header_of(file), &DecodeRequest::whole(&header_of(file)), 0).expect("good"))
        .collect();
    let mut decoded = 0;
    for _ in 0..cases {
        let which = random(files.len());
        let mut file = files[which].clone();
        for _ in 0..=random(4) {
            let end = if random(3) == 0 { file.len().min(700) } else { file.len() };
            let at = random(end);
            match random(5) {
                0 => file[at] ^= 1 << random(8),
                1 => file[at] = random(256) as u8,
                2 => drop(file.drain(at..(at + random(40)).min(end))),
                3 => {
                    let other = &files[random(files.len())];
                    let from = random(other.len());
                    let piece = other[from..(from + random(60)).min(other.len())].to_vec();
                    file.splice(at..at, piece);
                }
                _ => drop(file.splice(at..at, [0xFF, 0xC0 + random(64) as u8])),
            }
            if file.len() < 4 {
                break;
            }
        }
        let Ok(header) = probe(&file, &Limits { pixels_max: 1 << 18, ..Limits::default() }) else { continue };
        if header.format != Format::Jpeg {
            continue;
        }
        let fractions = [0; 4].map(|_: u8| random(1 << 16) as u16);
        let crop = crop_of(&header, fractions);
        let request = DecodeRequest {
            crop,
            denominator: 1 << random(4),
            accept_truncated: random(2) == 0,
            ..DecodeRequest::whole(&header)
        };
        let first = rows(&file, &header, &request, random(256) as u8);
        let second = rows(&file, &header, &request, random(256) as u8);
        assert!(first == second, "{:?} at {request:?}: not the same twice", kinds[which]);
        decoded += u64::from(first.is_ok());
        let again = random(files.len());
        let header = header_of(&files[again]);
        assert!(rows(&files[again], &header, &DecodeRequest::whole(&header), 5).as_ref() == Ok(&good[again]));
    }
    decoded
}

#[test]
fn damage_stays_inside_the_arena() {
    let decoded = survive(3000, 11);
    println!("{decoded} of 3000 decoded");
    assert!(decoded > 300, "{decoded}");
}

#[test]
#[ignore = "by hand, under a memory checker or for long: FEEDSTOCK_CASES, FEEDSTOCK_SEED"]
fn damage_for_long() {
    let number = |name, default| std::env::var(name).map_or(default, |v| v.parse().expect("a number"));
    let (cases, seed) = (number("FEEDSTOCK_CASES", 100_000), number("FEEDSTOCK_SEED", 5));
    println!("{} of {cases} decoded", survive(cases, seed));
}
