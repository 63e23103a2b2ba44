//! Owns what is asked of any bytes whatever: the entry functions of the fuzz targets (`fuzz/`) and of the short run in CI
//! (`tests/fuzz.rs`). It must never ask for more than holds of every input, however hostile.
#![allow(clippy::expect_used, reason = "a panic is how a finding is reported")]
#![allow(unreachable_pub, dead_code, reason = "each user has its own crate, and uses a part of it")]

use feedstock::decode::{DecodeError, Limits, Options, Quality, Slab, decode_into, probe, working_set};
use feedstock::transform::{RandomCrop, RandomResizedCrop, Resize, ResizeCenterCrop, Transform};
use feedstock::{Preprocessor, SampleId, Seed};

/// Small pictures only: a size that was made up by a mutation must not make one case slow.
const LIMITS: Limits = Limits { pixels_max: 1 << 18, side_max: 65_535 };

/// Bytes in front of an encoded picture that choose what is done with it.
pub const CHOICES: usize = 4;

/// A picture that has to come out right, whatever was decoded before it.
const GOOD: &[u8] = include_bytes!("../fixtures/decode/420.jpg");

/// A header is read the same way twice, and says nothing that its limits forbid; decoding stays within what it said.
pub fn any_header(encoded: &[u8]) {
    let first = probe(encoded, &LIMITS);
    assert_eq!(first, probe(encoded, &LIMITS), "read again");
    let Ok(header) = first else { return };
    assert!(header.width > 0 && header.height > 0 && (1..=8).contains(&header.orientation), "{header:?}");
    assert!(u64::from(header.width) * u64::from(header.height) <= LIMITS.pixels_max, "{header:?}");
    let needed = working_set(&header);
    let whole = |slab: &mut Slab| -> Result<Vec<u8>, DecodeError> {
        let pixels = decode_into(encoded, &header, slab).map(|image| image.data().to_vec());
        assert!(slab.capacity_bytes() as u64 <= needed.pixel_bytes, "{} of {needed:?}", slab.capacity_bytes());
        pixels
    };
    // Memory that another picture has been in must not show.
    let mut slab = Slab::new();
    let first = whole(&mut slab);
    if let Ok(pixels) = &first {
        assert_eq!(pixels.len(), header.width as usize * header.height as usize * 3, "{header:?}");
    }
    assert!(first == whole(&mut slab), "decoded again: {header:?}");
}

/// A sample of any bytes, cut as the first [`CHOICES`] of them say, is the same twice, all of it written, or the same
/// error twice; and a good picture between the two is what it always is.
pub fn any_sample(input: &[u8]) {
    let Some((&[cut, how, side, id], encoded)) = input.split_first_chunk::<CHOICES>() else { return };
    let side = u32::from(side) + 1;
    let flip = f64::from(how >> 6) / 3.0;
    let mut options = Options::default();
    options.quality = if how & 1 == 0 { Quality::Exact } else { Quality::Fast };
    options.orient = how & 2 == 0;
    options.accept_truncated = how & 4 != 0;
    match cut % 4 {
        0 => same_twice(RandomResizedCrop::new(side).flip(flip), options, encoded, id),
        1 => same_twice(ResizeCenterCrop::new(side + u32::from(cut >> 2), side), options, encoded, id),
        2 => same_twice(
            RandomCrop::new(side).padding(u32::from(cut >> 2).min(side - 1)).flip(flip),
            options,
            encoded,
            id,
        ),
        _ => same_twice(Resize::exact(side, u32::from(cut >> 2) + 1), options, encoded, id),
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
    assert!(good.is_ok() && good == make(&mut maker(), GOOD, 0xA5), "a good picture afterwards: {options:?}");
    let second = make(&mut used, encoded, 0xFF);
    assert!(first == second, "made again: {options:?}, {:?}, {:?}", first.err(), second.err());
}
