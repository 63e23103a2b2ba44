//! What one core makes of encoded images, beside what others make of them: the same files, the same crops, files in
//! memory, one thread, every way in turn and, for each file, the best of some rounds. It owns the tables that
//! `docs/BENCHMARKS.md` shows; it must never compare numbers of two runs, since machines drift.
//!
//! `FEEDSTOCK_IMAGENET` and `FEEDSTOCK_CIFAR` name folders of files (searched two levels deep); where there are none,
//! pictures of the same sizes are made up, and the table says so. `FEEDSTOCK_ROUNDS` is how often each way is measured.
//!
//! ```text
//! cargo bench --no-default-features --features turbo --bench decode            # or `... --bench decode CIFAR`
//! ```
//!
//! The other ways keep their memory from picture to picture, as a worker would; only the plain `image` crate allocates
//! where its interface leaves no choice.
#![allow(clippy::print_stdout, clippy::expect_used, missing_docs, reason = "a bench prints its table")]

use std::ffi::c_int;
use std::fs;
use std::hint::black_box;
use std::io::Cursor;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fast_image_resize::images::{Image as Sheet, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use feedstock::decode::{Format, Limits, Options, Quality, probe};
use feedstock::tensor::SampleSpec;
use feedstock::transform::{Geometry, KeyedRng, RandomCrop, RandomResizedCrop, Region, ResizeCenterCrop, Transform};
use feedstock::{Preprocessor, SampleId, Seed};
use image::codecs::{png::PngEncoder, webp::WebPEncoder};
use image::{ImageReader, RgbImage, imageops};
use turbojpeg::{Compressor, Decompressor, PixelFormat, ScalingFactor, Subsamp, raw};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

/// An encoded picture and, known beforehand by all ways alike, its sides and what of it is shown.
struct File {
    encoded: Vec<u8>,
    width: u32,
    height: u32,
    geometry: Geometry,
}

/// Files of a data set, and whether they had to be made up.
struct Files {
    encoded: Vec<Vec<u8>>,
    made_up: bool,
}

/// Files of a folder, in order, at most `most`; made-up ones of `width` x `height` where there is no such folder.
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
        let encoded = (0..most.min(50) as u32).map(|seed| jpeg(&made_up(seed, width, height))).collect();
        return Files { encoded, made_up: true };
    }
    Files { encoded, made_up: false }
}

fn made_up(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let grain = (x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ seed).wrapping_mul(2_654_435_761) >> 28;
        image::Rgb([x / 3, y / 2 + seed, (x + y) / 4].map(|v| (v + grain) as u8))
    })
}

/// At quality 90, colour halved in both directions: as most cameras and phones store.
fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_quality(90).expect("quality");
    compressor.set_subsamp(Subsamp::Sub2x2).expect("sampling");
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels = picture.as_raw().as_slice();
    let picture = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
    compressor.compress_to_vec(picture).expect("encodes")
}

/// Photographs of 12 megapixels: 4 x 4 smaller ones, each enlarged to 1000 x 750, so that their detail lies between that
/// of a blurred enlargement and that of a mosaic.
fn large(from: &[Vec<u8>], count: usize) -> Vec<Vec<u8>> {
    let mut next = from.iter().cycle();
    let mut one = || {
        let mut sheet = RgbImage::new(4000, 3000);
        for tile in 0..16 {
            let part = imageops::resize(&rgb(next.next().expect("a picture")), 1000, 750, imageops::CatmullRom);
            imageops::replace(&mut sheet, &part, tile % 4 * 1000, tile / 4 * 750);
        }
        jpeg(&sheet)
    };
    (0..count).map(|_| one()).collect()
}

/// The same pictures in another format.
fn again(from: &[Vec<u8>], count: usize, encode: impl Fn(&RgbImage, &mut Vec<u8>)) -> Vec<Vec<u8>> {
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
    reader.decode().expect("picture").into_rgb8()
}

/// Asks another transform and remembers what it chose, so that the other ways cut the same.
struct Remembering<T> {
    inner: T,
    last: Arc<Mutex<Option<Geometry>>>,
}

impl<T: Transform> Transform for Remembering<T> {
    fn out_spec(&self) -> SampleSpec {
        self.inner.out_spec()
    }

    fn geometry(&self, width: u32, height: u32, rng: &mut KeyedRng) -> Geometry {
        let geometry = self.inner.geometry(width, height, rng);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(geometry);
        geometry
    }
}

/// Shows a region pixel by pixel, which is decoding it and no more.
struct Bare(Arc<Mutex<Region>>);

impl Bare {
    fn region(&self) -> Region {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transform for Bare {
    fn out_spec(&self) -> SampleSpec {
        let Region { width, height, .. } = self.region();
        SampleSpec { height, width }
    }

    fn geometry(&self, _width: u32, _height: u32, _rng: &mut KeyedRng) -> Geometry {
        Geometry::stretch(self.region(), self.out_spec(), false)
    }
}

fn maker(transform: impl Transform, quality: Quality) -> Preprocessor {
    let mut options = Options::default();
    options.quality = quality;
    Preprocessor::new(transform).options(options)
}

/// Whether pixels stay as they are.
fn is_copy(Geometry { window: [left, top, width, height], target, .. }: &Geometry) -> bool {
    [*left, *top, *width, *height] == [0.0, 0.0, target.width.into(), target.height.into()]
}

/// The plain `image` crate: crop, scale and flip of a decoded picture.
fn with_image(picture: &RgbImage, geometry: &Geometry, spec: SampleSpec) -> RgbImage {
    let Geometry { region, window: [left, top, width, height], target, flip } = *geometry;
    let mut sample = if is_copy(geometry) {
        let shown = imageops::crop_imm(picture, region.x, region.y, region.width, region.height);
        let mut sample = RgbImage::new(spec.width, spec.height);
        imageops::replace(&mut sample, &*shown, target.x.into(), target.y.into());
        sample
    } else {
        let whole = f64::from(region.width) == width && f64::from(region.height) == height;
        if whole {
            let shown = imageops::crop_imm(picture, region.x, region.y, region.width, region.height);
            imageops::resize(&*shown, spec.width, spec.height, imageops::Triangle)
        } else {
            // A window between pixels: the whole picture is scaled first, then cut, as its users write it.
            let (across, down) = (f64::from(spec.width) / width, f64::from(spec.height) / height);
            let side = |length: u32, scale: f64| (f64::from(length) * scale).round() as u32;
            let (scaled_width, scaled_height) = (side(picture.width(), across), side(picture.height(), down));
            let scaled = imageops::resize(picture, scaled_width, scaled_height, imageops::Triangle);
            let offset = |first: u32, start: f64, scale: f64| ((f64::from(first) + start) * scale).round() as u32;
            let (x, y) = (offset(region.x, left, across), offset(region.y, top, down));
            imageops::crop_imm(&scaled, x, y, spec.width, spec.height).to_image()
        }
    };
    if flip {
        imageops::flip_horizontal_in_place(&mut sample);
    }
    sample
}

/// `fast_image_resize` of a decoded picture, with memory that is kept.
struct Fir {
    resizer: Resizer,
    out: Vec<u8>,
}

impl Fir {
    fn new(spec: SampleSpec) -> Self {
        Fir { resizer: Resizer::new(), out: vec![0; spec.elements()] }
    }

    fn apply(&mut self, pixels: &[u8], (width, height): (u32, u32), geometry: &Geometry, spec: SampleSpec) {
        let Geometry { region, window: [left, top, across, down], target, flip } = *geometry;
        let row_bytes = spec.width as usize * 3;
        if is_copy(geometry) {
            self.out.fill(0);
            let rows = pixels.chunks_exact(width as usize * 3).skip(region.y as usize).take(region.height as usize);
            let bytes = region.width as usize * 3;
            for (to, from) in self.out.chunks_exact_mut(row_bytes).skip(target.y as usize).zip(rows) {
                to[target.x as usize * 3..][..bytes].copy_from_slice(&from[region.x as usize * 3..][..bytes]);
            }
        } else {
            let picture = ImageRef::new(width, height, pixels, PixelType::U8x3).expect("picture");
            let mut sample = Sheet::from_slice_u8(spec.width, spec.height, &mut self.out, PixelType::U8x3);
            let options = ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
                .use_alpha(false)
                .crop(f64::from(region.x) + left, f64::from(region.y) + top, across, down);
            self.resizer.resize(&picture, sample.as_mut().expect("sample"), &options).expect("resizes");
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
        // Where rows lie on a vector's alignment it writes past the cache, which is slower for small pictures; where the
        // allocator puts them is chance. Always the better for it.
        let skew = (VECTOR + VECTOR / 2 - self.pixels.as_ptr() as usize % VECTOR) % VECTOR;
        let pixels = &mut self.pixels[skew..][..bytes];
        let picture = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        self.decompressor.decompress(&file.encoded, picture).expect("decodes");
        black_box(&self.pixels[skew..][..bytes])
    }
}

/// libjpeg-turbo's entropy decoder and no more: what a lossless transform does that is told to write no file.
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
        // SAFETY: the handle is a transformer's, the file is borrowed for the call, and one output is described, into which
        // nothing is written.
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
        // SAFETY: the handle is one of `tj3Init`, and nobody uses it afterwards.
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

/// What a way does to the file of this number.
type Work<'w> = Box<dyn FnMut(usize, &File) + 'w>;

/// A row of a table: what is done to each file, by its number.
struct Way<'w> {
    name: &'static str,
    work: Work<'w>,
}

fn way<'w>(name: &'static str, work: impl FnMut(usize, &File) + 'w) -> Way<'w> {
    Way { name, work: Box::new(work) }
}

const IMAGE: &str = "`image`: decode, crop, resize, flip";
const TURBO: &str = "libjpeg-turbo, full decode, and fast_image_resize";
const OTHER: &str = "`image`, full decode, and fast_image_resize";
const BARE: &str = "floor: libjpeg-turbo, bare full decode";

/// Whether the command line names a part of this title, or nothing at all.
fn wanted(title: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|word| title.contains(&word))
}

/// Measures all ways of making samples of these files, and prints their table.
fn table<T: Transform + Copy>(title: &str, Files { encoded, made_up }: Files, passes: usize, transform: T) {
    let spec = transform.out_spec();
    let last = Arc::default();
    let mut remembering = Preprocessor::new(Remembering { inner: transform, last: Arc::clone(&last) });
    let mut out = vec![0; spec.elements()];
    let is_jpeg = encoded.iter().all(|file| Format::of(file) == Some(Format::Jpeg));
    let mut files = Vec::new();
    let (mut worst, mut plain_fir) = (f64::INFINITY, Fir::new(spec));
    for (at, encoded) in encoded.into_iter().enumerate() {
        remembering.process_as(&encoded, Seed(0), 0, SampleId(at as u64), &mut out).expect("a good file");
        let geometry = last.lock().unwrap_or_else(PoisonError::into_inner).expect("a geometry");
        let header = probe(&encoded, &Limits::default()).expect("header");
        let file = File { width: header.width, height: header.height, encoded, geometry };
        // A table of ways that do not make the same sample would be worth nothing.
        let picture = rgb(&file.encoded);
        worst = worst.min(psnr(with_image(&picture, &geometry, spec).as_raw(), &out));
        plain_fir.apply(picture.as_raw(), picture.dimensions(), &geometry, spec);
        worst = worst.min(psnr(&plain_fir.out, &out));
        files.push(file);
    }
    assert!(worst > 24.0, "{title}: the ways differ by as much as {worst:.1} dB");

    let (mut zune_pixels, mut zune_fir, mut turbo_fir, mut other_fir) =
        (Vec::new(), Fir::new(spec), Fir::new(spec), Fir::new(spec));
    let (mut turbo, mut bare, mut eighth) =
        (Turbo::new(ScalingFactor::ONE), Turbo::new(ScalingFactor::ONE), Turbo::new(ScalingFactor::ONE_EIGHTH));
    let mut coefficients = Coefficients::new();
    let region = Arc::new(Mutex::new(Region::whole(1, 1)));
    let (mut exact, mut fast) = (maker(transform, Quality::Exact), maker(transform, Quality::Fast));
    let mut cut = maker(Bare(Arc::clone(&region)), Quality::Exact);
    let (mut exact_out, mut fast_out, mut cut_out) = (out.clone(), out.clone(), Vec::new());
    let made = |maker: &mut Preprocessor, at: usize, file: &File, out: &mut [u8]| {
        maker.process_as(&file.encoded, Seed(0), 0, SampleId(at as u64), out).expect("a good file");
        black_box(out);
    };
    let mut ways = vec![way(IMAGE, |_, file| {
        black_box(with_image(&rgb(&file.encoded), &file.geometry, spec));
    })];
    if is_jpeg {
        ways.push(way("zune-jpeg, full decode, and fast_image_resize", |_, file| {
            zune_fir.apply(zune(file, &mut zune_pixels), (file.width, file.height), &file.geometry, spec);
        }));
        ways.push(way(TURBO, |_, file| {
            turbo_fir.apply(turbo.decode(file), (file.width, file.height), &file.geometry, spec);
        }));
    } else {
        ways.push(way(OTHER, |_, file| {
            other_fir.apply(rgb(&file.encoded).as_raw(), (file.width, file.height), &file.geometry, spec);
        }));
    }
    ways.push(way("**feedstock, `Exact`**", |at, file| made(&mut exact, at, file, &mut exact_out)));
    if is_jpeg {
        ways.push(way("**feedstock, `Fast`**", |at, file| made(&mut fast, at, file, &mut fast_out)));
        ways.push(way(BARE, |_, file| {
            bare.decode(file);
        }));
        ways.push(way("floor: libjpeg-turbo at 1/8", |_, file| {
            eighth.decode(file);
        }));
        ways.push(way("floor: libjpeg-turbo, coefficients only, kept", |_, file| {
            coefficients.decode(file);
        }));
        ways.push(way("floor: feedstock, the crop's region, not resampled", |at, file| {
            *region.lock().unwrap_or_else(PoisonError::into_inner) = file.geometry.region;
            cut_out.resize(file.geometry.region.width as usize * file.geometry.region.height as usize * 3, 0);
            made(&mut cut, at, file, &mut cut_out);
        }));
    }

    // The best of each file, so that what else runs on the machine strikes a file's time and not a round's.
    let mut best_each = vec![vec![f64::INFINITY; files.len()]; ways.len()];
    for _ in 0..rounds() * passes {
        for (Way { work, .. }, best) in ways.iter_mut().zip(&mut best_each) {
            for ((at, file), best) in files.iter().enumerate().zip(best) {
                let began = Instant::now();
                work(at, file);
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
    }
    let best: Vec<f64> = best_each.iter().map(|best| best.iter().sum()).collect();
    let bytes: usize = files.iter().map(|file| file.encoded.len()).sum();
    let of = |name: &str| ways.iter().position(|way| way.name == name).map(|at| best[at]);
    let second = if is_jpeg { TURBO } else { OTHER };
    let source = if made_up { "made-up pictures, there being no data" } else { "files" };
    println!("\n**{title}**: {} {source}, {:.1} KB each\n", files.len(), bytes as f64 / files.len() as f64 / 1e3);
    println!("| way | images/s | of `image` alone | of {second} | of bare libjpeg-turbo |\n|---|---|---|---|---|");
    for (Way { name, .. }, seconds) in ways.iter().zip(&best) {
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
    let photographs = || files("FEEDSTOCK_IMAGENET", "train", 500, (500, 375));
    let crop = RandomResizedCrop::new(224).flip(0.5);
    let title = "ImageNet sample, RandomResizedCrop 224, flip";
    if wanted(title) {
        table(title, photographs(), 1, crop);
    }
    let title = "ImageNet sample, Resize 256, CenterCrop 224";
    if wanted(title) {
        table(title, photographs(), 1, ResizeCenterCrop::new(256, 224));
    }
    let Files { encoded: few, made_up } = photographs();
    let derived = |encoded: Vec<Vec<u8>>| Files { encoded, made_up };
    let title = "12 megapixels, RandomResizedCrop 224, flip";
    if wanted(title) {
        table(title, derived(large(&few, 10)), 1, crop);
    }
    let title = "CIFAR-10, RandomCrop 32 padded by 4, flip";
    if wanted(title) {
        let cifar = files("FEEDSTOCK_CIFAR", "train", 5000, (32, 32));
        table(title, cifar, 2, RandomCrop::new(32).padding(4).flip(0.5));
    }
    let title = "PNG, RandomResizedCrop 224, flip";
    if wanted(title) {
        let encode = |picture: &RgbImage, to: &mut Vec<u8>| picture.write_with_encoder(PngEncoder::new(to));
        table(title, derived(again(&few, 60, |picture, to| encode(picture, to).expect("encodes"))), 1, crop);
    }
    let title = "WebP, lossless, RandomResizedCrop 224, flip";
    if wanted(title) {
        let encode = |picture: &RgbImage, to: &mut Vec<u8>| picture.write_with_encoder(WebPEncoder::new_lossless(to));
        table(title, derived(again(&few, 60, |picture, to| encode(picture, to).expect("encodes"))), 1, crop);
    }
}
