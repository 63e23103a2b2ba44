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

pub(super) fn u16_at(data: &[u8], at: usize, order: Order) -> Option<u16> {
    let bytes = array(data, at)?;
    Some(match order {
        Order::Big => u16::from_be_bytes(bytes),
        Order::Little => u16::from_le_bytes(bytes),
    })
}

pub(super) fn u24_le(data: &[u8], at: usize) -> Option<u32> {
    let [low, middle, high] = array(data, at)?;
    Some(u32::from_le_bytes([low, middle, high, 0]))
}

pub(super) fn u32_at(data: &[u8], at: usize, order: Order) -> Option<u32> {
    let bytes = array(data, at)?;
    Some(match order {
        Order::Big => u32::from_be_bytes(bytes),
        Order::Little => u32::from_le_bytes(bytes),
    })
}

pub(super) fn u64_at(data: &[u8], at: usize, order: Order) -> Option<u64> {
    let bytes = array(data, at)?;
    Some(match order {
        Order::Big => u64::from_be_bytes(bytes),
        Order::Little => u64::from_le_bytes(bytes),
    })
}
