//! Conversion of a batch to its output format on the CPU: normalization, cast, and order of axes. The CPU device and
//! the simulated one use it, and every kernel has to equal it bit for bit.
//!
//! An element is one of 256 values a channel, so each is looked up in a table of results. That makes the result exact
//! by definition (no fused or reordered arithmetic), it is the fastest way without AVX2, and a kernel agrees because it
//! gets the same 768 floats.

use half::{bf16, f16};

use crate::tensor::{CHANNELS, DType, Layout, Normalize, OutputFormat, SampleSpec};

/// Result for each byte of each channel: `(v / 255 - mean) / std` with every operation rounded to f32, in that order
/// (as `torchvision`'s `ToTensor` and `Normalize` do), or `v / 255` without normalization.
///
/// For bf16 and f16 each result is then rounded to nearest, ties to even.
fn normalize_table(normalize: Option<&Normalize>) -> [[f32; 256]; CHANNELS] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|value| {
            let scaled = value as f32 / 255.0;
            normalize.map_or(scaled, |by| (scaled - by.mean[channel]) / by.std[channel])
        })
    })
}

/// Converts decoded samples: `pixels` are u8 NHWC, one sample after another; `out` becomes the batch, elements in the
/// byte order of this machine. u8 output is never normalized.
///
/// # Panics
/// Panics if `pixels` is not a whole number of samples, or if `out` is not exactly as long as the converted batch.
pub fn convert_into(pixels: &[u8], spec: SampleSpec, format: &OutputFormat, out: &mut [u8]) {
    assert_eq!(
        out.len(),
        pixels.len() * format.dtype.size_bytes(),
        "a {} batch of {} pixel bytes",
        format.dtype,
        pixels.len()
    );
    if pixels.is_empty() {
        return;
    }
    assert!(pixels.len().is_multiple_of(spec.elements()), "{} bytes are not a whole number of {spec}", pixels.len());
    let table = || normalize_table(format.normalize.as_ref());
    match (format.dtype, format.layout) {
        (DType::U8, Layout::Nhwc) => out.copy_from_slice(pixels),
        (DType::U8, Layout::Nchw) => planes_u8(pixels, spec, out),
        (DType::F32, layout) => {
            let table = table().map(|channel| channel.map(f32::to_ne_bytes));
            look_up(pixels, spec, layout, &table, out);
        }
        (DType::Bf16, layout) => {
            let table = table().map(|channel| channel.map(|value| bf16::from_f32(value).to_ne_bytes()));
            look_up(pixels, spec, layout, &table, out);
        }
        (DType::F16, layout) => {
            let table = table().map(|channel| channel.map(|value| f16::from_f32(value).to_ne_bytes()));
            look_up(pixels, spec, layout, &table, out);
        }
    }
}

/// The table of [`convert_into`] as bytes of the batch's elements: 3 x 256 of them, in the byte order of this machine.
/// Kernels get it.
#[cfg(feature = "cuda")]
pub(super) fn element_table(format: &OutputFormat) -> Vec<u8> {
    let floats = normalize_table(format.normalize.as_ref()).into_iter().flatten();
    match format.dtype {
        DType::U8 => (0..CHANNELS).flat_map(|_| 0..=255).collect(),
        DType::F32 => floats.flat_map(f32::to_ne_bytes).collect(),
        DType::Bf16 => floats.flat_map(|value| bf16::from_f32(value).to_ne_bytes()).collect(),
        DType::F16 => floats.flat_map(|value| f16::from_f32(value).to_ne_bytes()).collect(),
    }
}

/// `B` bytes for each value of each channel.
type Table<const B: usize> = [[[u8; B]; 256]; CHANNELS];

fn look_up<const B: usize>(pixels: &[u8], spec: SampleSpec, layout: Layout, table: &Table<B>, out: &mut [u8]) {
    let [red, green, blue] = table;
    match layout {
        Layout::Nhwc => {
            for (pixel, out) in pixels.chunks_exact(CHANNELS).zip(out.chunks_exact_mut(CHANNELS * B)) {
                let (r, rest) = out.split_at_mut(B);
                let (g, b) = rest.split_at_mut(B);
                r.copy_from_slice(&red[usize::from(pixel[0])]);
                g.copy_from_slice(&green[usize::from(pixel[1])]);
                b.copy_from_slice(&blue[usize::from(pixel[2])]);
            }
        }
        // One pass with three write streams: each plane is written in order, and each pixel read once.
        Layout::Nchw => each_sample::<B>(pixels, spec, out, |pixels, [r, g, b]| {
            let planes = r.chunks_exact_mut(B).zip(g.chunks_exact_mut(B)).zip(b.chunks_exact_mut(B));
            for (pixel, ((r, g), b)) in pixels.chunks_exact(CHANNELS).zip(planes) {
                r.copy_from_slice(&red[usize::from(pixel[0])]);
                g.copy_from_slice(&green[usize::from(pixel[1])]);
                b.copy_from_slice(&blue[usize::from(pixel[2])]);
            }
        }),
    }
}

/// Splits pixels into planes. This is pure shuffling, which the compiler turns into vector code three times as fast
/// with AVX2; the tables above gain nothing by it.
fn planes_u8(pixels: &[u8], spec: SampleSpec, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn planes_u8_avx2(pixels: &[u8], spec: SampleSpec, out: &mut [u8]) {
            planes_u8_any(pixels, spec, out);
        }
        #[allow(unsafe_code, reason = "a function compiled for AVX2 is called if the CPU has it")]
        // SAFETY: the CPU has AVX2, as just checked; nothing else is unsafe about the function.
        return unsafe { planes_u8_avx2(pixels, spec, out) };
    }
    planes_u8_any(pixels, spec, out);
}

#[inline(always)]
fn planes_u8_any(pixels: &[u8], spec: SampleSpec, out: &mut [u8]) {
    each_sample::<1>(pixels, spec, out, |pixels, [r, g, b]| {
        for (((pixel, r), g), b) in pixels.chunks_exact(CHANNELS).zip(r).zip(g).zip(b) {
            (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
        }
    });
}

/// Calls `body` with the pixels of each sample and its three planes of `B` bytes an element.
#[inline(always)]
fn each_sample<const B: usize>(
    pixels: &[u8],
    spec: SampleSpec,
    out: &mut [u8],
    body: impl Fn(&[u8], [&mut [u8]; CHANNELS]),
) {
    let elements = spec.elements();
    for (pixels, out) in pixels.chunks_exact(elements).zip(out.chunks_exact_mut(elements * B)) {
        let (r, rest) = out.split_at_mut(elements / CHANNELS * B);
        let (g, b) = rest.split_at_mut(elements / CHANNELS * B);
        body(pixels, [r, g, b]);
    }
}

/// The definition, one element at a time. The suites compare every device with it.
#[cfg(test)]
pub(super) fn convert_naive(pixels: &[u8], spec: SampleSpec, format: &OutputFormat) -> Vec<u8> {
    let (plane, elements) = (spec.elements() / CHANNELS, spec.elements());
    let mut out = vec![0; pixels.len() * format.dtype.size_bytes()];
    for (at, &value) in pixels.iter().enumerate() {
        let (sample, within) = (at / elements, at % elements);
        let (pixel, channel) = (within / CHANNELS, within % CHANNELS);
        let to = match format.layout {
            Layout::Nhwc => at,
            Layout::Nchw => sample * elements + channel * plane + pixel,
        };
        let scaled = f32::from(value) / 255.0;
        let float = format.normalize.map_or(scaled, |by| (scaled - by.mean[channel]) / by.std[channel]);
        let size = format.dtype.size_bytes();
        let out = &mut out[to * size..][..size];
        match format.dtype {
            DType::U8 => out[0] = value,
            DType::F32 => out.copy_from_slice(&float.to_ne_bytes()),
            DType::F16 => out.copy_from_slice(&f16::from_f32(float).to_ne_bytes()),
            DType::Bf16 => {
                // Nearest even on the upper 16 bits, by hand: no value here is infinite or NaN.
                let bits = float.to_bits();
                let rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
                out.copy_from_slice(&(rounded as u16).to_ne_bytes());
            }
        }
    }
    out
}

/// Every combination of dtype, layout and normalization.
#[cfg(test)]
pub(super) fn all_formats() -> Vec<OutputFormat> {
    let imagenet = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    let mut all = Vec::new();
    for layout in [Layout::Nhwc, Layout::Nchw] {
        all.push(OutputFormat { dtype: DType::U8, layout, normalize: None });
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for normalize in [None, Some(imagenet)] {
                all.push(OutputFormat { dtype, layout, normalize });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_is_the_formula() {
        let by = Normalize { mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 2.0] };
        let table = normalize_table(Some(&by));
        assert_eq!((table[0][0], table[0][255]), (-1.0, 1.0));
        assert_eq!((table[1][0], table[1][255]), (-1.0, 3.0));
        assert_eq!(table[2][51], 51.0f32 / 255.0 / 2.0);
        assert_eq!(normalize_table(None)[1][128], 128.0f32 / 255.0);
    }

    #[test]
    fn bytes_become_planes() {
        let spec = SampleSpec { height: 1, width: 2 };
        let pixels = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16];
        let mut out = [0; 12];
        convert_into(&pixels, spec, &OutputFormat::default(), &mut out);
        assert_eq!(out, [1, 4, 2, 5, 3, 6, 11, 14, 12, 15, 13, 16]);
    }

    #[test]
    fn every_value_of_every_channel_equals_the_definition() {
        let spec = SampleSpec { height: 16, width: 16 };
        let pixels: Vec<u8> = (0..=255).flat_map(|value: u8| [value, !value, value.wrapping_add(85)]).collect();
        for format in all_formats() {
            let mut out = vec![0xEE; pixels.len() * format.dtype.size_bytes()];
            convert_into(&pixels, spec, &format, &mut out);
            assert_eq!(out, convert_naive(&pixels, spec, &format), "{format:?}");
        }
    }

    proptest! {
        #[test]
        fn every_shape_equals_the_definition(
            height in 0u32..9,
            width in 0u32..40,
            samples in 0usize..4,
            seed in any::<u64>(),
            mean in prop::array::uniform3(-2.0f32..2.0),
            std in prop::array::uniform3(0.01f32..4.0),
        ) {
            let spec = SampleSpec { height, width };
            let mut state = seed | 1;
            let pixels: Vec<u8> = std::iter::repeat_with(|| {
                state = crate::rng::mix64(state);
                state as u8
            })
            .take(samples * spec.elements())
            .collect();
            for mut format in all_formats() {
                format.normalize = format.normalize.map(|_| Normalize { mean, std });
                let mut out = vec![0xEE; pixels.len() * format.dtype.size_bytes()];
                convert_into(&pixels, spec, &format, &mut out);
                prop_assert_eq!(&out, &convert_naive(&pixels, spec, &format), "{:?}", format);
            }
        }
    }

    #[test]
    fn the_path_without_avx2_does_the_same() {
        let spec = SampleSpec { height: 5, width: 13 };
        let pixels: Vec<u8> = (0..2 * spec.elements()).map(|at| (at * 7) as u8).collect();
        let (mut any, mut best) = (vec![0; pixels.len()], vec![0; pixels.len()]);
        planes_u8_any(&pixels, spec, &mut any);
        planes_u8(&pixels, spec, &mut best);
        assert_eq!(any, best);
    }

    #[test]
    #[should_panic(expected = "not a whole number of 2x2x3")]
    fn half_a_sample_is_refused() {
        convert_into(&[0; 18], SampleSpec { height: 2, width: 2 }, &OutputFormat::default(), &mut [0; 18]);
    }

    #[test]
    #[should_panic(expected = "a u8 batch of 12 pixel bytes")]
    fn an_output_of_another_size_is_refused() {
        convert_into(&[0; 12], SampleSpec { height: 2, width: 2 }, &OutputFormat::default(), &mut [0; 11]);
    }
}
