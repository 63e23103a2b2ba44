//! JPEG files for the tests: made by the library's own encoder, or put together from segments.
#![allow(unsafe_code, reason = "the encoder is in C")]

use std::ffi::{c_int, c_uint};
use std::ptr;

use turbojpeg_sys as tj;

/// Color space of the stored components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// Sampling of brightness against color: the columns and rows of pixels that share one.
pub(super) const SAMPLINGS: [(u32, u32); 6] = [(1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (1, 4)];

/// Parameters of the encoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) color: Color,
    pub(super) sampling: (u32, u32),
    pub(super) progressive: bool,
    pub(super) arithmetic: bool,
    pub(super) restart_rows: u32,
    pub(super) quality: u32,
}

pub(super) const PLAIN: Kind =
    Kind { color: Color::YCbCr, sampling: (2, 2), progressive: false, arithmetic: false, restart_rows: 0, quality: 85 };

/// All kinds that take different paths through the decoder.
pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (progressive, arithmetic) in [(false, false), (true, false), (false, true), (true, true)] {
        for restart_rows in [0, 1] {
            let kind = Kind { progressive, arithmetic, restart_rows, ..PLAIN };
            kinds.extend(SAMPLINGS.map(|sampling| Kind { sampling, ..kind }));
            for color in [Color::Gray, Color::Rgb, Color::Cmyk] {
                kinds.push(Kind { color, sampling: (1, 1), ..kind });
            }
            kinds.extend([(1, 1), (2, 2)].map(|sampling| Kind { color: Color::Ycck, sampling, ..kind }));
        }
    }
    kinds
}

/// An image of slopes, edges and grain: `channels` bytes per pixel.
pub(super) fn image(width: u32, height: u32, channels: u32) -> Vec<u8> {
    let level = |x: u32, y: u32, c: u32| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ (c + 1).wrapping_mul(83_492_791))
            .wrapping_mul(2_654_435_761)
            >> 27;
        let edge = if (x / 11 + y / 7).is_multiple_of(2) { 0 } else { 90 };
        ((x * (c + 1) + y * (3 + c)) % 120 + grain + edge) as u8
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..channels).map(move |c| level(x, y, c)))).collect()
}

/// A handle of the library.
struct Handle(tj::tjhandle);

impl Handle {
    fn new(init: tj::TJINIT) -> Self {
        // SAFETY: a constructor without conditions.
        Handle(unsafe { tj::tj3Init(init as c_int) })
    }

    fn set(&self, param: c_uint, value: u32) {
        // SAFETY: the handle is one of `tj3Init`.
        let code = unsafe { tj::tj3Set(self.0, param as c_int, value as c_int) };
        assert_eq!(code, 0, "parameter {param}: {value}");
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is one of `tj3Init`, and this is its last use.
        unsafe { tj::tj3Destroy(self.0) }
    }
}

/// Encodes [`image`] as this kind.
pub(super) fn encode(kind: Kind, width: u32, height: u32) -> Vec<u8> {
    let handle = Handle::new(tj::TJINIT_TJINIT_COMPRESS);
    let (space, format, channels) = match kind.color {
        Color::Gray => (tj::TJCS_TJCS_GRAY, tj::TJPF_TJPF_GRAY, 1),
        Color::YCbCr => (tj::TJCS_TJCS_YCbCr, tj::TJPF_TJPF_RGB, 3),
        Color::Rgb => (tj::TJCS_TJCS_RGB, tj::TJPF_TJPF_RGB, 3),
        Color::Cmyk => (tj::TJCS_TJCS_CMYK, tj::TJPF_TJPF_CMYK, 4),
        Color::Ycck => (tj::TJCS_TJCS_YCCK, tj::TJPF_TJPF_CMYK, 4),
    };
    let sampling = match kind.sampling {
        _ if kind.color == Color::Gray => tj::TJSAMP_TJSAMP_GRAY,
        (1, 1) => tj::TJSAMP_TJSAMP_444,
        (2, 1) => tj::TJSAMP_TJSAMP_422,
        (2, 2) => tj::TJSAMP_TJSAMP_420,
        (1, 2) => tj::TJSAMP_TJSAMP_440,
        (4, 1) => tj::TJSAMP_TJSAMP_411,
        (1, 4) => tj::TJSAMP_TJSAMP_441,
        other => panic!("{other:?}"),
    };
    handle.set(tj::TJPARAM_TJPARAM_SUBSAMP, sampling as u32);
    handle.set(tj::TJPARAM_TJPARAM_COLORSPACE, space);
    handle.set(tj::TJPARAM_TJPARAM_QUALITY, kind.quality);
    handle.set(tj::TJPARAM_TJPARAM_PROGRESSIVE, kind.progressive.into());
    handle.set(tj::TJPARAM_TJPARAM_ARITHMETIC, kind.arithmetic.into());
    handle.set(tj::TJPARAM_TJPARAM_RESTARTROWS, kind.restart_rows);
    let pixels = image(width, height, channels);
    let (mut out, mut bytes) = (ptr::null_mut(), 0);
    let (across, down) = (width as c_int, height as c_int);
    // SAFETY: `pixels` has `width * height` pixels of this format; with a null pointer the library allocates the
    // output.
    let code =
        unsafe { tj::tj3Compress8(handle.0, pixels.as_ptr(), across, 0, down, format, &raw mut out, &raw mut bytes) };
    assert_eq!(code, 0, "{kind:?} {width}x{height}");
    // SAFETY: the library says that its buffer has so many bytes.
    let file = unsafe { std::slice::from_raw_parts(out, bytes as usize) }.to_vec();
    // SAFETY: the buffer is the library's, and is not used any more.
    unsafe { tj::tj3Free(out.cast()) };
    file
}

/// Decodes a file (not CMYK) with the library's own simple interface: RGB at 1/`denominator`, and its size.
pub(super) fn reference(file: &[u8], denominator: u32) -> (Vec<u8>, u32, u32) {
    let handle = Handle::new(tj::TJINIT_TJINIT_DECOMPRESS);
    // SAFETY: the file is borrowed for the call.
    let code = unsafe { tj::tj3DecompressHeader(handle.0, file.as_ptr(), file.len() as u64) };
    assert_eq!(code, 0);
    let factor = tj::tjscalingfactor { num: 1, denom: denominator as c_int };
    // SAFETY: the handle has read a header.
    let code = unsafe { tj::tj3SetScalingFactor(handle.0, factor) };
    assert_eq!(code, 0);
    let side = |param: c_uint| {
        // SAFETY: the handle has read a header.
        let side = unsafe { tj::tj3Get(handle.0, param as c_int) };
        (side as u32).div_ceil(denominator)
    };
    let (width, height) = (side(tj::TJPARAM_TJPARAM_JPEGWIDTH), side(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
    let mut pixels = vec![0; width as usize * height as usize * 3];
    let format = tj::TJPF_TJPF_RGB;
    // SAFETY: `pixels` has room for the scaled image, rows without padding.
    let code =
        unsafe { tj::tj3Decompress8(handle.0, file.as_ptr(), file.len() as u64, pixels.as_mut_ptr(), 0, format) };
    assert_eq!(code, 0);
    (pixels, width, height)
}

/// Puts a file together by hand: a frame with this marker and these samplings, and a scan of the first
/// `scan_components` of them with this data. It has no Huffman tables (the library then takes those of the standard).
pub(super) fn crafted(
    marker: u8,
    (width, height): (u16, u16),
    samplings: &[(u8, u8)],
    scan_components: u8,
    data: &[u8],
) -> Vec<u8> {
    let mut file = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
    file.extend([7; 64]);
    let count = samplings.len() as u8;
    file.extend([0xFF, marker, 0, 8 + 3 * count, 8]);
    file.extend(height.to_be_bytes());
    file.extend(width.to_be_bytes());
    file.push(count);
    for (id, (across, down)) in (1..).zip(samplings) {
        file.extend([id, across << 4 | down, 0]);
    }
    scan(&mut file, scan_components, matches!(marker, 0xC2 | 0xCA), data);
    file.extend([0xFF, 0xD9]);
    file
}

/// Adds a scan of the first components: of their DC coefficients, where the file is progressive.
pub(super) fn scan(file: &mut Vec<u8>, scan_components: u8, progressive: bool, data: &[u8]) {
    file.extend([0xFF, 0xDA, 0, 6 + 2 * scan_components, scan_components]);
    for id in 1..=scan_components {
        file.extend([id, if id == 1 { 0x00 } else { 0x11 }]);
    }
    file.extend([0, if progressive { 0 } else { 63 }, 0]);
    file.extend(data);
}

/// The largest possible header: four components with tables of their own, four of every kind.
pub(super) fn rich(marker: u8, (width, height): (u16, u16), sampling: (u8, u8), transform: u8) -> Vec<u8> {
    let mut file = vec![0xFF, 0xD8];
    file.extend([0xFF, 0xEE, 0, 14]);
    file.extend(b"Adobe\0\x64\0\0\0\0");
    file.push(transform);
    for table in 0..4 {
        file.extend([0xFF, 0xDB, 0, 67, table]);
        file.extend([9; 64]);
        for class in [0x00, 0x10] {
            // One code, of one bit, for the value 0.
            file.extend([0xFF, 0xC4, 0, 20, class | table, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    file.extend([0xFF, marker, 0, 20, 8]);
    file.extend(height.to_be_bytes());
    file.extend(width.to_be_bytes());
    file.push(4);
    for (id, (across, down)) in (1..).zip([sampling, (1, 1), (1, 1), sampling]) {
        file.extend([id, across << 4 | down, id - 1]);
    }
    let progressive = matches!(marker, 0xC2 | 0xCA);
    file.extend([0xFF, 0xDA, 0, 14, 4, 1, 0x00, 2, 0x11, 3, 0x22, 4, 0x33]);
    file.extend([0, if progressive { 0 } else { 63 }, 0]);
    file.extend([0; 40]);
    if progressive {
        for id in 1..=4 {
            file.extend([0xFF, 0xDA, 0, 8, 1, id, id - 1, 1, 63, 0]);
            file.extend([0; 40]);
        }
    }
    file.extend([0xFF, 0xD9]);
    file
}
