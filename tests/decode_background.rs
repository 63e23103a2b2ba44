//! Transparent pixels show the configured background, black by default, in every format that has transparency.

use std::io::Cursor;

use feedstock::Preprocessor;
use feedstock::decode::Options;
use feedstock::transform::Resize;
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, ImageFormat, RgbaImage};

const WIDTH: u32 = 13;
const HEIGHT: u32 = 9;
const BACKGROUND: [u8; 3] = [255, 100, 7];

fn rgba() -> RgbaImage {
    RgbaImage::from_fn(WIDTH, HEIGHT, |x, y| {
        image::Rgba([x * 19, y * 28, x * y * 2, (x * 21 + y) % 256].map(|v| v as u8))
    })
}

/// Makes the sample that shows the whole image, pixel for pixel.
fn made(encoded: &[u8], background: Option<[u8; 3]>) -> Vec<u8> {
    let mut options = Options::default();
    options.background = background.unwrap_or(options.background);
    let mut maker = Preprocessor::new(Resize::exact(HEIGHT, WIDTH)).options(options);
    let mut out = vec![0; (WIDTH * HEIGHT * 3) as usize];
    maker.process(encoded, &mut out).expect("made");
    out
}

/// Composites each pixel on the background, in floats.
fn expected(pixels: &[[f64; 4]], background: [u8; 3]) -> Vec<u8> {
    let over = |[r, g, b, a]: &[f64; 4]| {
        let [red, green, blue] = background.map(f64::from);
        [r * a + red * (1.0 - a), g * a + green * (1.0 - a), b * a + blue * (1.0 - a)].map(|v| v.round() as u8)
    };
    pixels.iter().flat_map(over).collect()
}

fn check(name: &str, encoded: &[u8], pixels: &[[f64; 4]]) {
    assert_eq!(made(encoded, None), expected(pixels, [0; 3]), "{name} on black");
    for background in [BACKGROUND, [255; 3], [0, 0, 1]] {
        assert_eq!(made(encoded, Some(background)), expected(pixels, background), "{name} on {background:?}");
    }
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).expect("encoder");
    out.into_inner()
}

#[test]
fn alpha_of_eight_and_sixteen_bits_is_composited() {
    let image = DynamicImage::from(rgba());
    let of8 = |image: &DynamicImage| -> Vec<[f64; 4]> {
        let level = |p: &image::Rgba<u8>| [p[0], p[1], p[2], p[3]].map(f64::from);
        image.to_rgba8().pixels().map(level).map(|[r, g, b, a]| [r, g, b, a / 255.0]).collect()
    };
    let gray = DynamicImage::from(image.to_luma_alpha8());
    for (format, has_gray) in [(ImageFormat::Png, true), (ImageFormat::WebP, false), (ImageFormat::Tiff, false)] {
        check(&format!("{format:?} RGBA"), &encode(&image, format), &of8(&image));
        if has_gray {
            check(&format!("{format:?} LA"), &encode(&gray, format), &of8(&gray));
        }
    }
    for format in [ImageFormat::Qoi, ImageFormat::Tga, ImageFormat::Pnm] {
        check(&format!("{format:?} RGBA"), &encode(&image, format), &of8(&image));
    }

    // Levels between those of 8 bits.
    let mut deep = image.to_rgba16();
    for (at, pixel) in deep.pixels_mut().enumerate() {
        pixel.0 = pixel.0.map(|v| v.wrapping_mul(255).wrapping_add(at as u16 * 7));
    }
    let of16 = |image: &DynamicImage| -> Vec<[f64; 4]> {
        let level = |p: &image::Rgba<u16>| p.0.map(|v| f64::from(v) / 257.0);
        image.to_rgba16().pixels().map(level).map(|[r, g, b, a]| [r, g, b, a / 255.0]).collect()
    };
    let deep = DynamicImage::from(deep);
    check("PNG RGBA of 16 bits", &encode(&deep, ImageFormat::Png), &of16(&deep));
    check("TIFF RGBA of 16 bits", &encode(&deep, ImageFormat::Tiff), &of16(&deep));
    let gray = DynamicImage::from(deep.to_luma_alpha16());
    check("PNG LA of 16 bits", &encode(&gray, ImageFormat::Png), &of16(&gray));
}

#[test]
fn transparent_palette_entries_are_composited() {
    let palette: Vec<u8> = (0..16 * 3).map(|v| (v * 5) as u8).collect();
    let alpha: Vec<u8> = (0..10).map(|v| (v * 28) as u8).collect();
    let indices: Vec<u8> = (0..WIDTH * HEIGHT).map(|v| (v % 16) as u8).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.clone());
    encoder.set_trns(alpha.clone());
    let mut writer = encoder.write_header().expect("header");
    writer.write_image_data(&indices).expect("pixels");
    writer.finish().expect("end");
    let color = |&index: &u8| {
        let [r, g, b] = [0, 1, 2].map(|c| f64::from(palette[usize::from(index) * 3 + c]));
        [r, g, b, alpha.get(usize::from(index)).map_or(1.0, |&a| f64::from(a) / 255.0)]
    };
    check("palette", &file, &indices.iter().map(color).collect::<Vec<_>>());
}

#[test]
fn transparent_gif_pixels_are_composited() {
    // Few colors, each opaque or fully transparent, so that the palette holds them unchanged.
    let image = RgbaImage::from_fn(WIDTH, HEIGHT, |x, y| match (x + y) % 3 {
        0 => image::Rgba([0; 4]),
        1 => image::Rgba([250, 20, 30, 255]),
        _ => image::Rgba([10, 220, 130, 255]),
    });
    let mut file = Vec::new();
    let mut encoder = GifEncoder::new(&mut file);
    encoder.encode(&image, WIDTH, HEIGHT, image::ExtendedColorType::Rgba8).expect("encoder");
    drop(encoder);
    let pixels = image.pixels().map(|p| {
        let [r, g, b, a] = p.0.map(f64::from);
        [r, g, b, a / 255.0]
    });
    check("GIF", &file, &pixels.collect::<Vec<_>>());
}
