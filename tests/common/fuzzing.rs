//! Entry functions of the fuzz targets (`fuzz/`) and of the short run in CI (`tests/fuzz.rs`): properties that hold for
//! any input.
#![allow(clippy::expect_used, reason = "a panic is how a finding is reported")]
#![allow(unreachable_pub, dead_code, reason = "each user has its own crate, and uses a part of it")]

use feedstock::decode::{DecodeError, DecodeRequest, Limits, Options, Quality, begin, probe, working_set};
use feedstock::rng::Seed;
use feedstock::transform::{RandomCrop, RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
use feedstock::{Preprocessor, SampleId};

/// Small images only: a size from a mutation must not make a case slow.
const LIMITS: Limits = Limits { pixels_max: 1 << 18, side_max: 65_535 };

/// Number of bytes in front of an encoded image that choose the transform and the options.
pub const CHOICES: usize = 4;

/// An image that is decoded correctly after any other.
const GOOD: &[u8] = include_bytes!("../fixtures/decode/420.jpg");

/// Checks that a header is read the same way twice and respects its limits, and that decoding gives the same result
/// twice.
pub fn any_header(encoded: &[u8]) {
    let first = probe(encoded, &LIMITS);
    assert_eq!(first, probe(encoded, &LIMITS), "read again");
    let Ok(header) = first else { return };
    assert!(header.width > 0 && header.height > 0 && (1..=8).contains(&header.orientation), "{header:?}");
    assert!(u64::from(header.width) * u64::from(header.height) <= LIMITS.pixels_max, "{header:?}");
    let mut buffer = working_set(&header, 1).allocate().expect("memory");
    let mut whole = |filling| -> Result<Vec<u8>, DecodeError> {
        // Memory that another image has been in must not show.
        buffer.fill(filling);
        let mut pixels = vec![filling; header.width as usize * header.height as usize * 3];
        let mut decoder = begin(encoded, &header, &DecodeRequest::whole(&header), &mut buffer)?;
        for row in pixels.chunks_exact_mut(header.width as usize * 3) {
            assert!(decoder.next_row(row)?, "a row is missing: {header:?}");
        }
        Ok(pixels)
    };
    assert!(whole(0) == whole(0xA5), "decoded again: {header:?}");
}

/// Checks that any bytes give the same sample twice, all of it written, or the same error twice, and that a good image
/// between the two gives the same sample as always. The first [`CHOICES`] bytes choose the transform and the options.
pub fn any_sample(input: &[u8]) {
    let Some((&[transform, how, side, id], encoded)) = input.split_first_chunk::<CHOICES>() else { return };
    let side = u32::from(side) + 1;
    let flip = f64::from(how >> 6) / 3.0;
    let mut options = Options::default();
    options.quality = if how & 1 == 0 { Quality::Exact } else { Quality::Fast };
    options.apply_exif_orientation = how & 2 == 0;
    options.accept_truncated = how & 4 != 0;
    match transform % 4 {
        0 => same_twice(RandomResizedCrop::new(side).flip(flip), options, encoded, id),
        1 => same_twice(ResizeCenterCrop::new(side + u32::from(transform >> 2), side), options, encoded, id),
        2 => same_twice(
            RandomCrop::new(side).padding(u32::from(transform >> 2).min(side - 1)).flip(flip),
            options,
            encoded,
            id,
        ),
        _ => same_twice(Resize::exact(side, u32::from(transform >> 2) + 1), options, encoded, id),
    }
}

fn same_twice(transform: impl Transform + Copy, options: Options, encoded: &[u8], id: u8) {
    let bytes = transform.out_spec().elements();
    let maker = || Preprocessor::new(transform).options(options).limits(LIMITS);
    let make = |maker: &mut Preprocessor, encoded: &[u8], filling: u8| -> Result<Vec<u8>, String> {
        let mut out = vec![filling; bytes];
        maker
            .process_as(encoded, Seed(7), 3, SampleId(id.into()), &mut out)
            .map(|()| out)
            .map_err(|error| format!("{error:?}"))
    };
    let mut used = maker();
    let first = make(&mut used, encoded, 0x00);
    let good = make(&mut used, GOOD, 0x5A);
    assert!(good.is_ok() && good == make(&mut maker(), GOOD, 0xA5), "a good image afterwards: {options:?}");
    let second = make(&mut used, encoded, 0xFF);
    assert!(first == second, "made again: {options:?}, {:?}, {:?}", first.err(), second.err());
}
