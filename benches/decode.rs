//! Compares decoding and transforming on one core with other libraries: the same files in memory, the same crops, one
//! thread, every method in turn and, for each file, the best of some rounds. It prints the tables of
//! `docs/BENCHMARKS.md`. Compare numbers of one run only, since machines drift.
//!
//! `FEEDSTOCK_IMAGENET` and `FEEDSTOCK_CIFAR` name folders of files (searched two levels deep); without them, synthetic
//! images of the same sizes are used, and the table says so. `FEEDSTOCK_ROUNDS` is the number of rounds.
//!
//! ```text
//! cargo bench --no-default-features --features turbo --bench decode            # or `... --bench decode CIFAR`
//! ```
//!
//! The other methods reuse their memory, as a worker would; only the plain `image` crate allocates where its interface
//! leaves no choice.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

use std::ffi::c_int;
use std::fs;
use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fast_image_resize::images::{Image as FirImage, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use feedstock::decode::{Format, Limits, Options, Quality, probe};
use feedstock::rng::Seed;
use feedstock::tensor::SampleSpec;
use feedstock::transform::{Geometry, KeyedRng, RandomCrop, RandomResizedCrop, Region, ResizeCenterCrop, Transform};
use feedstock::{Preprocessor, SampleId};
use image::codecs::{png::PngEncoder, webp::WebPEncoder};
use image::{ImageReader, RgbImage, imageops};
use turbojpeg::{Compressor, Decompressor, PixelFormat, ScalingFactor, Subsamp, raw};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

/// An encoded image and, known to all methods beforehand, its sides and the geometry of its sample.
struct File {
    encoded: Vec<u8>,
    width: u32,
    height: u32,
    geometry: Geometry,
}

/// Files of a data set.
struct Files {
    encoded: Vec<Vec<u8>>,
    synthetic: bool,
}

/// Reads at most `most` files of a folder, in order; without a folder, makes synthetic ones of `width` x `height`.
fn files(variable: &str, below: &str, most: usize, (width, height): (u32, u32)) -> Files {
    fn collect(folder: &Path, deeper: usize, found: &mut Vec<std::path::PathBuf>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if !path.is_dir() {
                found.push(path);
            } else if deeper > 0 {
                collect(&path, deeper - 1, found);
            }
        }
    }
    let mut paths = Vec::new();
    if let Some(folder) = std::env::var_os(variable) {
        let (folder, part) = (Path::new(&folder), Path::new(&folder).join(below));
        collect(if part.is_dir() { &part } else { folder }, 2, &mut paths);
    }
    // Spread over all classes, which differ.
    let stride = (paths.len() / most).max(1);
    let read = paths.iter().step_by(stride).filter_map(|path| fs::read(path).ok());
    let jpegs = read.filter(|file| Format::of(file) == Some(Format::Jpeg) && probe(file, &Limits::default()).is_ok());
    let encoded: Vec<_> = jpegs.take(most).collect();
    if encoded.is_empty() {
        let encoded = (0..most.min(50) as u32).map(|seed| jpeg(&synthetic(seed, width, height))).collect();
        return Files { encoded, synthetic: true };
    }
    Files { encoded, synthetic: false }
}

fn synthetic(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ seed).wrapping_mul(2_654_435_761) >> 28;
        image::Rgb([x / 3, y / 2 + seed, (x + y) / 4].map(|v| (v + grain) as u8))
    })
}

/// Encodes at quality 90 with 4:2:0 subsampling, as most cameras and phones do.
fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_quality(90).expect("quality");
    compressor.set_subsamp(Subsamp::Sub2x2).expect("sampling");
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = image.as_raw().as_slice();
    let image = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
    compressor.compress_to_vec(image).expect("encodes")
}

/// Photos of 12 megapixels: 4 x 4 smaller ones, each enlarged to 1000 x 750, so that their detail lies between that of
/// a blurred enlargement and that of a mosaic.
fn large(from: &[Vec<u8>], count: usize) -> Vec<Vec<u8>> {
    let mut next = from.iter().cycle();
    let mut one = || {
        let mut mosaic = RgbImage::new(4000, 3000);
        for tile in 0..16 {
            let part = imageops::resize(&rgb(next.next().expect("an image")), 1000, 750, imageops::CatmullRom);
            imageops::replace(&mut mosaic, &part, tile % 4 * 1000, tile / 4 * 750);
        }
        jpeg(&mosaic)
    };
    (0..count).map(|_| one()).collect()
}

/// Encodes the same images in another format.
fn reencoded(from: &[Vec<u8>], count: usize, encode: impl Fn(&RgbImage, &mut Vec<u8>)) -> Vec<Vec<u8>> {
    let one = |file: &Vec<u8>| {
        let mut encoded = Vec::new();
        encode(&rgb(file), &mut encoded);
        encoded
    };
    from.iter().take(count).map(one).collect()
}

/// Decodes with the `image` crate.
fn rgb(file: &[u8]) -> RgbImage {
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format().expect("format");
    reader.decode().expect("image").into_rgb8()
}

/// Records the geometry that another transform chooses, so that the other methods take the same.
struct Recording<T> {
    inner: T,
    last: Arc<Mutex<Option<Geometry>>>,
}

impl<T: Transform> Transform for Recording<T> {
    fn out_spec(&self) -> SampleSpec {
        self.inner.out_spec()
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        let geometry = self.inner.geometry(width, height, rng);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(geometry);
        geometry
    }
}

/// Copies a crop pixel by pixel, which measures decoding alone.
struct CropOnly(Arc<Mutex<Region>>);

impl CropOnly {
    fn crop(&self) -> Region {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transform for CropOnly {
    fn out_spec(&self) -> SampleSpec {
        let Region { width, height, .. } = self.crop();
        SampleSpec { height, width }
    }

    fn geometry(&self, _width: u32, _height: u32, _rng: &mut KeyedRng) -> Geometry {
        Geometry::stretch(self.crop(), self.out_spec(), false)
    }
}

fn maker(transform: impl Transform, quality: Quality) -> Preprocessor {
    let mut options = Options::default();
    options.quality = quality;
    Preprocessor::new(transform).options(options)
}

/// Returns true if pixels are copied unchanged.
fn is_copy(Geometry { source_box: [left, top, width, height], target, .. }: &Geometry) -> bool {
    [*left, *top, *width, *height] == [0.0, 0.0, target.width.into(), target.height.into()]
}

/// The plain `image` crate: crop, scale and flip of a decoded image.
fn with_image(image: &RgbImage, geometry: &Geometry, spec: SampleSpec) -> RgbImage {
    let Geometry { crop, source_box: [left, top, width, height], target, flip } = *geometry;
    let mut sample = if is_copy(geometry) {
        let cropped = imageops::crop_imm(image, crop.x, crop.y, crop.width, crop.height);
        let mut sample = RgbImage::new(spec.width, spec.height);
        imageops::replace(&mut sample, &*cropped, target.x.into(), target.y.into());
        sample
    } else {
        let whole = f64::from(crop.width) == width && f64::from(crop.height) == height;
        if whole {
            let cropped = imageops::crop_imm(image, crop.x, crop.y, crop.width, crop.height);
            imageops::resize(&*cropped, spec.width, spec.height, imageops::Triangle)
        } else {
            // A source box between pixels: the whole image is scaled first, then cropped, as its users write it.
            let (across, down) = (f64::from(spec.width) / width, f64::from(spec.height) / height);
            let side = |length: u32, scale: f64| (f64::from(length) * scale).round() as u32;
            let (scaled_width, scaled_height) = (side(image.width(), across), side(image.height(), down));
            let scaled = imageops::resize(image, scaled_width, scaled_height, imageops::Triangle);
            let offset = |first: u32, start: f64, scale: f64| ((f64::from(first) + start) * scale).round() as u32;
            let (x, y) = (offset(crop.x, left, across), offset(crop.y, top, down));
            imageops::crop_imm(&scaled, x, y, spec.width, spec.height).to_image()
        }
    };
    if flip {
        imageops::flip_horizontal_in_place(&mut sample);
    }
    sample
}

/// `fast_image_resize` of a decoded image, with reused memory.
struct Fir {
    resizer: Resizer,
    out: Vec<u8>,
}

impl Fir {
    fn new(spec: SampleSpec) -> Self {
        Fir { resizer: Resizer::new(), out: vec![0; spec.elements()] }
    }

    fn apply(&mut self, pixels: &[u8], (width, height): (u32, u32), geometry: &Geometry, spec: SampleSpec) {
        let Geometry { crop, source_box: [left, top, across, down], target, flip } = *geometry;
        let row_bytes = spec.width as usize * 3;
        if is_copy(geometry) {
            self.out.fill(0);
            let rows = pixels.chunks_exact(width as usize * 3).skip(crop.y as usize).take(crop.height as usize);
            let bytes = crop.width as usize * 3;
            for (to, from) in self.out.chunks_exact_mut(row_bytes).skip(target.y as usize).zip(rows) {
                to[target.x as usize * 3..][..bytes].copy_from_slice(&from[crop.x as usize * 3..][..bytes]);
            }
        } else {
            let image = ImageRef::new(width, height, pixels, PixelType::U8x3).expect("image");
            let mut sample = FirImage::from_slice_u8(spec.width, spec.height, &mut self.out, PixelType::U8x3);
            let options = ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
                .use_alpha(false)
                .crop(f64::from(crop.x) + left, f64::from(crop.y) + top, across, down);
            self.resizer.resize(&image, sample.as_mut().expect("sample"), &options).expect("resizes");
        }
        if flip {
            for row in self.out.chunks_exact_mut(row_bytes) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
        black_box(&self.out);
    }
}

/// libjpeg-turbo through its own simple interface.
struct Turbo {
    decompressor: Decompressor,
    pixels: Vec<u8>,
    factor: ScalingFactor,
}

/// Bytes of the vectors that libjpeg-turbo writes.
const VECTOR: usize = 32;

impl Turbo {
    fn new(factor: ScalingFactor) -> Self {
        let mut decompressor = Decompressor::new().expect("a decompressor");
        decompressor.set_scaling_factor(factor).expect("a scale");
        Turbo { decompressor, pixels: Vec::new(), factor }
    }

    fn decode(&mut self, file: &File) -> &[u8] {
        let (width, height) = (self.factor.scale(file.width as usize), self.factor.scale(file.height as usize));
        let bytes = width * height * 3;
        if self.pixels.len() < bytes + VECTOR {
            self.pixels.resize(bytes + VECTOR, 0);
        }
        // Rows at a vector's alignment are written past the cache, which is slower for small images; the allocator's
        // choice is chance. The faster alignment is always taken.
        let skew = (VECTOR + VECTOR / 2 - self.pixels.as_ptr() as usize % VECTOR) % VECTOR;
        let pixels = &mut self.pixels[skew..][..bytes];
        let image = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        self.decompressor.decompress(&file.encoded, image).expect("decodes");
        black_box(&self.pixels[skew..][..bytes])
    }
}

/// libjpeg-turbo's entropy decoder alone: a lossless transform that writes no file.
struct Coefficients(raw::tjhandle);

#[allow(unsafe_code, reason = "the safe interface has no such transform")]
impl Coefficients {
    fn new() -> Self {
        // SAFETY: a constructor without conditions.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_TRANSFORM as c_int) };
        assert!(!handle.is_null(), "a transformer");
        Coefficients(handle)
    }

    fn decode(&mut self, file: &File) {
        let transform = raw::tjtransform {
            r: raw::tjregion { x: 0, y: 0, w: 0, h: 0 },
            op: raw::TJXOP_TJXOP_NONE as c_int,
            options: raw::TJXOPT_NOOUTPUT as c_int,
            data: ptr::null_mut(),
            customFilter: None,
        };
        let (bytes, len) = (file.encoded.as_ptr(), file.encoded.len());
        let (mut out, mut out_len) = (ptr::null_mut(), 0);
        // SAFETY: the handle is a transformer's, the file is borrowed for the call, and one output is described, into
        // which nothing is written.
        let code = unsafe {
            raw::tj3Transform(
                self.0,
                bytes,
                len as raw::size_t,
                1,
                &raw mut out,
                &raw mut out_len,
                &raw const transform,
            )
        };
        assert!(code == 0 && out.is_null(), "coefficients");
    }
}

#[allow(unsafe_code, reason = "as above")]
impl Drop for Coefficients {
    fn drop(&mut self) {
        // SAFETY: the handle is one of `tj3Init`, and this is its last use.
        unsafe { raw::tj3Destroy(self.0) }
    }
}

fn zune<'p>(file: &File, pixels: &'p mut Vec<u8>) -> &'p [u8] {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let bytes = file.width as usize * file.height as usize * 3;
    if pixels.len() < bytes {
        pixels.resize(bytes, 0);
    }
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&file.encoded), options);
    decoder.decode_into(&mut pixels[..bytes]).expect("decodes");
    &pixels[..bytes]
}

/// Processes the file of this number.
type Work<'w> = Box<dyn FnMut(usize, &File) + 'w>;

/// A method of making samples: a row of the table.
struct Method<'w> {
    name: &'static str,
    work: Work<'w>,
}

fn method<'w>(name: &'static str, work: impl FnMut(usize, &File) + 'w) -> Method<'w> {
    Method { name, work: Box::new(work) }
}

const IMAGE: &str = "`image`: decode, crop, resize, flip";
const TURBO: &str = "libjpeg-turbo, full decode, and fast_image_resize";
const OTHER: &str = "`image`, full decode, and fast_image_resize";
const BARE: &str = "floor: libjpeg-turbo, bare full decode";

/// Returns true if the command line names a part of this title, or nothing.
fn is_selected(title: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|word| title.contains(&word))
}

/// Measures all methods of making samples of these files, and prints their table.
fn table<T: Transform + Copy>(title: &str, Files { encoded, synthetic }: Files, passes: usize, transform: T) {
    let spec = transform.out_spec();
    let last = Arc::default();
    let mut recording = Preprocessor::new(Recording { inner: transform, last: Arc::clone(&last) });
    let mut out = vec![0; spec.elements()];
    let is_jpeg = encoded.iter().all(|file| Format::of(file) == Some(Format::Jpeg));
    let mut files = Vec::new();
    let (mut worst, mut plain_fir) = (f64::INFINITY, Fir::new(spec));
    for (at, encoded) in encoded.into_iter().enumerate() {
        recording.process_as(&encoded, Seed(0), 0, SampleId(at as u64), &mut out).expect("a good file");
        let geometry = last.lock().unwrap_or_else(PoisonError::into_inner).expect("a geometry");
        let header = probe(&encoded, &Limits::default()).expect("header");
        let file = File { width: header.width, height: header.height, encoded, geometry };
        // All methods have to make the same sample.
        let image = rgb(&file.encoded);
        worst = worst.min(psnr(with_image(&image, &geometry, spec).as_raw(), &out));
        plain_fir.apply(image.as_raw(), image.dimensions(), &geometry, spec);
        worst = worst.min(psnr(&plain_fir.out, &out));
        files.push(file);
    }
    assert!(worst > 24.0, "{title}: the methods differ by as much as {worst:.1} dB");

    let (mut zune_pixels, mut zune_fir, mut turbo_fir, mut other_fir) =
        (Vec::new(), Fir::new(spec), Fir::new(spec), Fir::new(spec));
    let (mut turbo, mut bare, mut eighth) =
        (Turbo::new(ScalingFactor::ONE), Turbo::new(ScalingFactor::ONE), Turbo::new(ScalingFactor::ONE_EIGHTH));
    let mut coefficients = Coefficients::new();
    let crop_only = Arc::new(Mutex::new(Region::whole(1, 1)));
    let (mut exact, mut fast) = (maker(transform, Quality::Exact), maker(transform, Quality::Fast));
    let mut decode_only = maker(CropOnly(Arc::clone(&crop_only)), Quality::Exact);
    let (mut exact_out, mut fast_out, mut crop_out) = (out.clone(), out.clone(), Vec::new());
    let made = |maker: &mut Preprocessor, at: usize, file: &File, out: &mut [u8]| {
        maker.process_as(&file.encoded, Seed(0), 0, SampleId(at as u64), out).expect("a good file");
        black_box(out);
    };
    let mut methods = vec![method(IMAGE, |_, file| {
        black_box(with_image(&rgb(&file.encoded), &file.geometry, spec));
    })];
    if is_jpeg {
        methods.push(method("zune-jpeg, full decode, and fast_image_resize", |_, file| {
            zune_fir.apply(zune(file, &mut zune_pixels), (file.width, file.height), &file.geometry, spec);
        }));
        methods.push(method(TURBO, |_, file| {
            turbo_fir.apply(turbo.decode(file), (file.width, file.height), &file.geometry, spec);
        }));
    } else {
        methods.push(method(OTHER, |_, file| {
            other_fir.apply(rgb(&file.encoded).as_raw(), (file.width, file.height), &file.geometry, spec);
        }));
    }
    methods.push(method("**feedstock, `Exact`**", |at, file| made(&mut exact, at, file, &mut exact_out)));
    if is_jpeg {
        methods.push(method("**feedstock, `Fast`**", |at, file| made(&mut fast, at, file, &mut fast_out)));
        methods.push(method(BARE, |_, file| {
            bare.decode(file);
        }));
        methods.push(method("floor: libjpeg-turbo at 1/8", |_, file| {
            eighth.decode(file);
        }));
        methods.push(method("floor: libjpeg-turbo, coefficients only, kept", |_, file| {
            coefficients.decode(file);
        }));
        methods.push(method("floor: feedstock, the crop, not resampled", |at, file| {
            *crop_only.lock().unwrap_or_else(PoisonError::into_inner) = file.geometry.crop;
            crop_out.resize(file.geometry.crop.width as usize * file.geometry.crop.height as usize * 3, 0);
            made(&mut decode_only, at, file, &mut crop_out);
        }));
    }

    // The best of each file, so that other load of the machine affects a file's time and not a round's.
    let mut best_each = vec![vec![f64::INFINITY; files.len()]; methods.len()];
    for _ in 0..rounds() * passes {
        for (Method { work, .. }, best) in methods.iter_mut().zip(&mut best_each) {
            for ((at, file), best) in files.iter().enumerate().zip(best) {
                let began = Instant::now();
                work(at, file);
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
    }
    let best: Vec<f64> = best_each.iter().map(|best| best.iter().sum()).collect();
    let bytes: usize = files.iter().map(|file| file.encoded.len()).sum();
    let of = |name: &str| methods.iter().position(|method| method.name == name).map(|at| best[at]);
    let second = if is_jpeg { TURBO } else { OTHER };
    let source = if synthetic { "synthetic images" } else { "files" };
    println!("\n**{title}**: {} {source}, {:.1} KB each\n", files.len(), bytes as f64 / files.len() as f64 / 1e3);
    println!("| method | images/s | of `image` alone | of {second} | of bare libjpeg-turbo |\n|---|---|---|---|---|");
    for (Method { name, .. }, seconds) in methods.iter().zip(&best) {
        let ratio = |of: Option<f64>| of.map_or("-".into(), |of| format!("{:.2}", of / seconds));
        let rate = files.len() as f64 / seconds;
        println!("| {name} | {rate:.0} | {} | {} | {} |", ratio(of(IMAGE)), ratio(of(second)), ratio(of(BARE)));
    }
}

fn rounds() -> usize {
    std::env::var("FEEDSTOCK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let squares: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares as f64).log10()
}

fn main() {
    let photos = || files("FEEDSTOCK_IMAGENET", "train", 500, (500, 375));
    let crop = RandomResizedCrop::new(224).flip(0.5);
    let title = "ImageNet sample, RandomResizedCrop 224, flip";
    if is_selected(title) {
        table(title, photos(), 1, crop);
    }
    let title = "ImageNet sample, Resize 256, CenterCrop 224";
    if is_selected(title) {
        table(title, photos(), 1, ResizeCenterCrop::new(256, 224));
    }
    let Files { encoded: few, synthetic } = photos();
    let derived = |encoded: Vec<Vec<u8>>| Files { encoded, synthetic };
    let title = "12 megapixels, RandomResizedCrop 224, flip";
    if is_selected(title) {
        table(title, derived(large(&few, 10)), 1, crop);
    }
    let title = "CIFAR-10, RandomCrop 32 padded by 4, flip";
    if is_selected(title) {
        let cifar = files("FEEDSTOCK_CIFAR", "train", 5000, (32, 32));
        table(title, cifar, 2, RandomCrop::new(32).padding(4).flip(0.5));
    }
    let title = "PNG, RandomResizedCrop 224, flip";
    if is_selected(title) {
        let encode = |image: &RgbImage, to: &mut Vec<u8>| image.write_with_encoder(PngEncoder::new(to));
        table(title, derived(reencoded(&few, 60, |image, to| encode(image, to).expect("encodes"))), 1, crop);
    }
    let title = "WebP, lossless, RandomResizedCrop 224, flip";
    if is_selected(title) {
        let encode = |image: &RgbImage, to: &mut Vec<u8>| image.write_with_encoder(WebPEncoder::new_lossless(to));
        table(title, derived(reencoded(&few, 60, |image, to| encode(image, to).expect("encodes"))), 1, crop);
    }
}
