//! Header of PNM: PBM, PGM and PPM, text or binary, and PAM. Its length is limited, since the codec copies a PAM's
//! lines.
//!
//! Source: Netpbm's format specifications pbm(5), pgm(5), ppm(5), pam(5).

use super::bytes::u8_at;
use super::header::{ColorType, Format, Header, HeaderError};

/// Maximum length of a header, comments included.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// PAM's lines, each in a vector that doubles, and its type once more; the text of an error that shows one.
const FIXED_BYTES: u64 = 8 << 10;
const COPIES: u64 = 8;

/// Returns true if the bytes begin with a magic number: `P1` to `P6` and white space or a comment, or `P7` and a new
/// line. (A `P7` that continues in another way is a thumbnail of the program xv.)
pub(super) fn is_header(encoded: &[u8]) -> bool {
    match encoded {
        [b'P', b'1'..=b'6', next, ..] => is_space(*next) || *next == b'#',
        [b'P', b'7', b'\n', ..] => true,
        _ => false,
    }
}

/// Returns true if the samples are text that ends, or may end, in the middle of a number.
pub(super) fn ends_in_a_number(encoded: &[u8]) -> bool {
    matches!(encoded, [b'P', b'2' | b'3', .., b'0'..=b'9'])
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | 0x0B | 0x0C | b'\r' | b' ')
}

/// Reads the size and the range of samples.
pub(super) fn probe(encoded: &[u8]) -> Result<Header, HeaderError> {
    let kind = u8_at(encoded, 1).ok_or(HeaderError::Truncated)?;
    let header = &encoded[..encoded.len().min(HEADER_BYTES_MAX)];
    // A header as long as the maximum is too long, not truncated.
    let short = || match encoded.len() > HEADER_BYTES_MAX {
        true => HeaderError::invalid(format!("longer than {HEADER_BYTES_MAX} bytes")),
        false => HeaderError::Truncated,
    };
    let (width, height, channels, sample_max, header_bytes) = if kind == b'7' {
        arbitrary(header, short)?
    } else {
        let mut at = 2;
        let (width, height) = (number(header, &mut at, short)?, number(header, &mut at, short)?);
        let sample_max = if matches!(kind, b'1' | b'4') { 1 } else { number(header, &mut at, short)? };
        (width, height, if matches!(kind, b'3' | b'6') { 3 } else { 1 }, sample_max, at)
    };
    if !(1..=65_535).contains(&sample_max) {
        return Err(HeaderError::invalid(format!("maximum sample value {sample_max}: expected 1 to 65535")));
    }
    let sample_bytes = if sample_max > 255 { 2 } else { 1 };
    let color = ColorType::of_channels(channels);
    let header = Header::new(Format::Pnm, (width, height), color, channels * sample_bytes);
    Ok(Header { codec_bytes: FIXED_BYTES + COPIES * header_bytes as u64, ..header })
}

/// Reads the next number of a header of `P1` to `P6`, after white space and comments, and one byte of white space.
fn number(header: &[u8], at: &mut usize, short: impl Fn() -> HeaderError) -> Result<u32, HeaderError> {
    let mut value = None;
    let mut in_comment = false;
    loop {
        let byte = u8_at(header, *at).ok_or_else(&short)?;
        *at += 1;
        match byte {
            _ if in_comment => in_comment = !matches!(byte, b'\n' | b'\r'),
            b'#' => in_comment = true,
            b'0'..=b'9' => {
                let digit = u32::from(byte - b'0');
                let longer = value.unwrap_or(0u32).checked_mul(10).and_then(|value| value.checked_add(digit));
                value = Some(longer.ok_or_else(|| HeaderError::invalid("a number above 32 bits"))?);
            }
            _ if is_space(byte) => match value {
                Some(value) => return Ok(value),
                None => continue,
            },
            other => {
                return Err(HeaderError::invalid(format!("expected a number at byte {}, found {other:02x}", *at - 1)));
            }
        }
    }
}

/// Reads a header of `P7`: width, height, channels, maximum sample value, and its length.
fn arbitrary(header: &[u8], short: impl Fn() -> HeaderError) -> Result<(u32, u32, u8, u32, usize), HeaderError> {
    let mut at = 3;
    let (mut sides, mut depth, mut sample_max) = ([None; 2], None, None);
    let mut typed = false;
    loop {
        let rest = header.get(at..).ok_or_else(&short)?;
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or_else(&short)?;
        at += length + 1;
        let line = rest[..length].trim_ascii();
        let (word, value) = line.split_at(line.iter().position(|&byte| is_space(byte)).unwrap_or(line.len()));
        let value = || -> Result<Option<u32>, HeaderError> {
            let text = std::str::from_utf8(value).unwrap_or_default().trim();
            let wrong = |_| {
                HeaderError::invalid(format!(
                    "expected a number, found '{}'",
                    text.get(..text.len().min(20)).unwrap_or_default()
                ))
            };
            text.parse().map(Some).map_err(wrong)
        };
        match word {
            b"WIDTH" => sides[0] = value()?,
            b"HEIGHT" => sides[1] = value()?,
            b"DEPTH" => depth = value()?,
            b"MAXVAL" => sample_max = value()?,
            b"TUPLTYPE" => typed = true,
            b"ENDHDR" => break,
            _ if word.first() == Some(&b'#') => {}
            _ => {
                return Err(HeaderError::invalid(
                    "unknown line: expected WIDTH, HEIGHT, DEPTH, MAXVAL, TUPLTYPE or ENDHDR",
                ));
            }
        }
    }
    let ([Some(width), Some(height)], Some(depth), Some(sample_max)) = (sides, depth, sample_max) else {
        return Err(HeaderError::invalid("one of WIDTH, HEIGHT, DEPTH and MAXVAL is missing"));
    };
    if !(1..=4).contains(&depth) {
        return Err(HeaderError::Unsupported(format!("{depth} channels: expected 1 to 4")));
    }
    // The codec would read the two bytes of a sample as two samples.
    if !typed && sample_max > 255 {
        return Err(HeaderError::Unsupported(format!(
            "maximum sample value {sample_max} without a TUPLTYPE: expected at most 255"
        )));
    }
    Ok((width, height, depth as u8, sample_max, at))
}
