//! Integers at an offset of a byte slice; `None` past its end.

/// Byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

/// Returns the `N` bytes at `at`.
pub(super) fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u8_at(data: &[u8], at: usize) -> Option<u8> {
    data.get(at).copied()
}

/// Defines the reader of an unsigned integer in either byte order.
macro_rules! reader {
    ($name:ident, $integer:ty) => {
        pub(super) fn $name(data: &[u8], at: usize, order: Order) -> Option<$integer> {
            let bytes = array(data, at)?;
            Some(if order == Order::Big { <$integer>::from_be_bytes(bytes) } else { <$integer>::from_le_bytes(bytes) })
        }
    };
}

reader!(u16_at, u16);
reader!(u32_at, u32);
reader!(u64_at, u64);

pub(super) fn u24_le(data: &[u8], at: usize) -> Option<u32> {
    let [low, middle, high] = array(data, at)?;
    Some(u32::from_le_bytes([low, middle, high, 0]))
}
