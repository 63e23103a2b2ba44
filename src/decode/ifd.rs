//! Tags of the first directory of a TIFF structure, which is also the layout of EXIF data. Nothing is allocated.
//!
//! Source: TIFF 6.0 (1992), section 2; "BigTIFF" for 64-bit offsets; CIPA DC-008 (Exif 2.32), 4.6.4 for orientation.

use super::bytes::{Order, array, u8_at, u16_at, u32_at, u64_at};

const ORIENTATION: u16 = 274;

/// The first directory of a TIFF structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ifd<'a> {
    data: &'a [u8],
    order: Order,
    big: bool,
    /// Offset of its entries.
    start: usize,
    entry_count: usize,
}

/// Values of one tag: type, count and offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    kind: u16,
    pub(super) count: u64,
    at: usize,
}

impl Entry {
    /// Bytes of one value.
    const fn value_bytes(self) -> u64 {
        match self.kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 | 17 | 18 => 8,
            _ => 1,
        }
    }
}

impl<'a> Ifd<'a> {
    /// Finds the first directory; `None` if the data is not a TIFF structure, or ends too early.
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let order = match &array::<2>(data, 0)? {
            b"II" => Order::Little,
            b"MM" => Order::Big,
            _ => return None,
        };
        let (big, offset) = match u16_at(data, 2, order)? {
            42 => (false, u64::from(u32_at(data, 4, order)?)),
            43 if u16_at(data, 4, order)? == 8 => (true, u64_at(data, 8, order)?),
            _ => return None,
        };
        let at = usize::try_from(offset).ok()?;
        let (entry_count, header_bytes) =
            if big { (u64_at(data, at, order)?, 8) } else { (u64::from(u16_at(data, at, order)?), 2) };
        let start = at.checked_add(header_bytes)?;
        let entry_count = usize::try_from(entry_count).ok()?;
        let ifd = Ifd { data, order, big, start, entry_count };
        // The directory has to be complete, which also bounds every walk over it by the file's size.
        data.get(start..start.checked_add(entry_count.checked_mul(ifd.entry_bytes())?)?)?;
        Some(ifd)
    }

    const fn entry_bytes(&self) -> usize {
        if self.big { 20 } else { 12 }
    }

    /// Returns all tags with their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u16, Entry)> {
        let ifd = *self;
        (0..ifd.entry_count).filter_map(move |index| {
            let at = ifd.start + index * ifd.entry_bytes();
            let tag = u16_at(ifd.data, at, ifd.order)?;
            let kind = u16_at(ifd.data, at + 2, ifd.order)?;
            let (count, value_at, inline_bytes) = if ifd.big {
                (u64_at(ifd.data, at + 4, ifd.order)?, at + 12, 8)
            } else {
                (u64::from(u32_at(ifd.data, at + 4, ifd.order)?), at + 8, 4)
            };
            let mut entry = Entry { kind, count, at: value_at };
            if count.checked_mul(entry.value_bytes()).is_none_or(|bytes| bytes > inline_bytes) {
                let offset = if ifd.big {
                    u64_at(ifd.data, value_at, ifd.order)?
                } else {
                    u64::from(u32_at(ifd.data, value_at, ifd.order)?)
                };
                entry.at = usize::try_from(offset).ok()?;
            }
            Some((tag, entry))
        })
    }

    /// Returns the entry of a tag.
    pub(super) fn entry(&self, tag: u16) -> Option<Entry> {
        self.entries().find(|(found, _)| *found == tag).map(|(_, entry)| entry)
    }

    /// Returns true if the data holds all values of the entry.
    pub(super) fn holds(&self, entry: Entry) -> bool {
        let bytes = entry.count.checked_mul(entry.value_bytes()).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.and_then(|bytes| entry.at.checked_add(bytes)).is_some_and(|end| end <= self.data.len())
    }

    /// Returns the integer at `index` of the entry's values.
    pub(super) fn value(&self, entry: Entry, index: u64) -> Option<u64> {
        if index >= entry.count {
            return None;
        }
        let at = entry.at.checked_add(usize::try_from(index.checked_mul(entry.value_bytes())?).ok()?)?;
        match entry.kind {
            1 | 7 => u8_at(self.data, at).map(u64::from),
            3 => u16_at(self.data, at, self.order).map(u64::from),
            4 | 13 => u32_at(self.data, at, self.order).map(u64::from),
            16 | 18 => u64_at(self.data, at, self.order),
            _ => None,
        }
    }

    /// Returns the first value of a tag.
    pub(super) fn first(&self, tag: u16) -> Option<u64> {
        self.value(self.entry(tag)?, 0)
    }

    /// EXIF orientation, 1..=8; 1 if the tag is absent or invalid.
    pub(super) fn orientation(&self) -> u8 {
        match self.first(ORIENTATION) {
            Some(value @ 1..=8) => value as u8,
            _ => 1,
        }
    }
}

/// EXIF orientation in EXIF data, with or without the `Exif\0\0` that JPEG puts before it.
pub(super) fn exif_orientation(exif: &[u8]) -> u8 {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Ifd::parse(tiff).map_or(1, |ifd| ifd.orientation())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exif(order: Order, kind: u16, value: u16) -> Vec<u8> {
        let u16b = |v: u16| if order == Order::Big { v.to_be_bytes() } else { v.to_le_bytes() };
        let u32b = |v: u32| if order == Order::Big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut data = if order == Order::Big { b"MM".to_vec() } else { b"II".to_vec() };
        data.extend(u16b(42));
        data.extend(u32b(8));
        data.extend(u16b(1));
        data.extend(u16b(274));
        data.extend(u16b(kind));
        data.extend(u32b(1));
        data.extend(u16b(value));
        data.extend([0; 6]);
        data
    }

    #[test]
    fn orientation_is_read_in_both_byte_orders() {
        for order in [Order::Big, Order::Little] {
            for value in 1..=8 {
                assert_eq!(exif_orientation(&exif(order, 3, value)), value as u8);
            }
            assert_eq!(exif_orientation(&exif(order, 3, 0)), 1);
            assert_eq!(exif_orientation(&exif(order, 3, 9)), 1);
            assert_eq!(exif_orientation(&exif(order, 2, 6)), 1, "text is no orientation");
        }
        let mut with_prefix = b"Exif\0\0".to_vec();
        with_prefix.extend(exif(Order::Big, 3, 6));
        assert_eq!(exif_orientation(&with_prefix), 6);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut data in proptest::collection::vec(any::<u8>(), 0..80), big in any::<bool>()) {
            for (at, byte) in [b'I', b'I', if big { 43 } else { 42 }, 0, 8, 0].into_iter().enumerate() {
                if let Some(place) = data.get_mut(at) {
                    *place = byte;
                }
            }
            prop_assert!((1..=8).contains(&exif_orientation(&data)));
        }
    }
}
