//! The whole image, decoded at once: what tests compare.
#![allow(unreachable_pub, dead_code, reason = "each user has its own crate, and uses a part of it")]

use feedstock::decode::{DecodeError, DecodeRequest, Header, begin, working_set};

/// Decodes the whole image in `buffer`, which is used as it is, into `pixels`: RGB8, exactly as long as the image.
pub fn decode_into(encoded: &[u8], header: &Header, buffer: &mut [u8], pixels: &mut [u8]) -> Result<(), DecodeError> {
    let mut decoder = begin(encoded, header, &DecodeRequest::whole(header), buffer)?;
    for row in pixels.chunks_exact_mut(header.width as usize * 3) {
        assert!(decoder.next_row(row)?, "a row is missing");
    }
    assert_eq!(decoder.next_row(&mut []), Ok(false), "a row too many");
    Ok(())
}

/// Decodes the whole image as RGB8, in memory of its own that holds noise.
pub fn decode(encoded: &[u8], header: &Header) -> Result<Vec<u8>, DecodeError> {
    let mut buffer = working_set(header, 1).allocate()?;
    buffer.fill(0xA5);
    let mut pixels = vec![0xA5; header.width as usize * header.height as usize * 3];
    decode_into(encoded, header, &mut buffer, &mut pixels).map(|()| pixels)
}
