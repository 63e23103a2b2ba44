//! Statistics of the C library's allocator: memory taken from the system, memory in use, and the free pieces between.
//!
//! Format: malloc_info(3), as the GNU C Library writes it ("version 1").

use crate::units::ByteCount;

/// Memory of the C library's allocator, for the Rust code of this process and for libraries in C alike.
///
/// `reserved - in_use` is freed memory that the allocator keeps: pieces between blocks in use and, up to a limit, the
/// ends of its arenas. Growth there without growth of `in_use` is fragmentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MallocInfo {
    /// Taken from the system: all arenas, and the blocks that have a mapping of their own.
    pub reserved: ByteCount,
    /// In use, each block with its header and padding. Blocks in the caches of threads (tcache, up to some hundred KiB
    /// each) count as in use.
    pub in_use: ByteCount,
    /// The largest free piece within the arenas. A block that does not fit is taken from the system, so this limits
    /// nothing: much smaller than `reserved - in_use`, it means that free memory is fragmented.
    pub largest_free: ByteCount,
    /// Number of free pieces.
    pub free_pieces: u64,
}

/// Reads the statistics of the C library's allocator; `None` if that is not the GNU one.
///
/// It locks one arena after the other and walks over the free pieces: some ten microseconds in a program that has just
/// started, milliseconds with a hundred thousand pieces. For a report, or once in many steps.
///
/// ```
/// if let Some(info) = feedstock::host::malloc_info() {
///     println!("{} of {} in use, largest free piece {}", info.in_use, info.reserved, info.largest_free);
/// }
/// ```
#[must_use]
pub fn malloc_info() -> Option<MallocInfo> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        parse(&gnu::written()?)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod gnu {
    #![allow(unsafe_code, reason = "functions of the C library are declared by hand")]

    use std::ffi::{c_char, c_int, c_void};
    use std::ptr::{self, NonNull};

    // SAFETY: these are their declarations in stdio.h, malloc.h and stdlib.h, `FILE *` being a pointer to nothing
    // known.
    unsafe extern "C" {
        fn open_memstream(text: *mut *mut c_char, len: *mut usize) -> *mut c_void;
        fn malloc_info(options: c_int, stream: *mut c_void) -> c_int;
        fn fclose(stream: *mut c_void) -> c_int;
        fn free(block: *mut c_void);
    }

    /// Output of malloc_info(3).
    pub(super) fn written() -> Option<String> {
        let (mut text, mut len): (*mut c_char, usize) = (ptr::null_mut(), 0);
        // SAFETY: both places outlive the stream, which is closed below.
        let stream = NonNull::new(unsafe { open_memstream(&raw mut text, &raw mut len) })?;
        // SAFETY: the stream is open; no option but 0 is defined.
        let failed = unsafe { malloc_info(0, stream.as_ptr()) } != 0;
        // SAFETY: it is closed once. From here on the two variables hold the text.
        let failed = unsafe { fclose(stream.as_ptr()) } != 0 || failed;
        let text = NonNull::new(text)?;
        // SAFETY: the library has written this many bytes there, and nothing else refers to them.
        let bytes = unsafe { std::slice::from_raw_parts(text.as_ptr().cast::<u8>(), len) };
        let copy = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: the block is the library's, to be freed by the caller; the copy is not in it.
        unsafe { free(text.as_ptr().cast()) };
        (!failed).then_some(copy)
    }
}

/// Reads the XML: for each arena its free pieces by size, and sums for all of them at the end.
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), allow(dead_code, reason = "its tests run everywhere"))]
fn parse(text: &str) -> Option<MallocInfo> {
    if !text.trim_start().starts_with("<malloc version=\"1\">") {
        return None;
    }
    let (mut largest, mut system, mut mapped, mut fast, mut rest) = (0, None, 0, None, None);
    let mut pieces = 0;
    // Free bytes of an arena that are in lists; the rest is the piece at its end.
    let mut listed = 0;
    let mut within = false;
    for line in text.lines().map(str::trim) {
        let number = |name: &str| attribute(line, name);
        if line.starts_with("<heap ") {
            (within, listed) = (true, 0);
        } else if line.starts_with("</heap>") {
            within = false;
        } else if line.starts_with("<size ") || line.starts_with("<unsorted ") {
            largest = largest.max(number("to")?);
            listed += number("total")?;
        } else if line.starts_with("<total type=\"rest\"") {
            let bytes: u64 = number("size")?;
            if within {
                largest = largest.max(bytes.saturating_sub(listed));
            } else {
                rest = Some(bytes);
                pieces += number("count")?;
            }
        } else if line.starts_with("<total type=\"fast\"") {
            if within {
                // These pieces are in the lists, and not in the total named "rest".
                listed = listed.checked_sub(number("size")?)?;
            } else {
                fast = Some(number("size")?);
                pieces += number("count")?;
            }
        } else if line.starts_with("<total type=\"mmap\"") && !within {
            mapped = number("size")?;
        } else if line.starts_with("<system type=\"current\"") && !within {
            system = Some(number("size")?);
        }
    }
    let (system, free): (u64, u64) = (system?, fast? + rest?);
    Some(MallocInfo {
        reserved: ByteCount(system + mapped),
        in_use: ByteCount(system.checked_sub(free)? + mapped),
        largest_free: ByteCount(largest),
        free_pieces: pieces,
    })
}

/// The number in `name="..."`.
fn attribute(line: &str, name: &str) -> Option<u64> {
    let (_, value) = line.split_once(&format!(" {name}=\""))?;
    value.split('"').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_ARENAS: &str = r#"<malloc version="1">
<heap nr="0">
<sizes>
  <size from="33" to="48" total="96" count="2"/>
  <size from="1201" to="1201" total="1201" count="1"/>
  <unsorted from="50001" to="50001" total="50001" count="1"/>
</sizes>
<total type="fast" count="2" size="96"/>
<total type="rest" count="3" size="151202"/>
<system type="current" size="1000000"/>
<system type="max" size="1000000"/>
<aspace type="total" size="1000000"/>
</heap>
<heap nr="1">
<sizes>
</sizes>
<total type="fast" count="0" size="0"/>
<total type="rest" count="1" size="130000"/>
<system type="current" size="135168"/>
</heap>
<total type="fast" count="2" size="96"/>
<total type="rest" count="4" size="281202"/>
<total type="mmap" count="1" size="4096000"/>
<system type="current" size="1135168"/>
<system type="max" size="1135168"/>
</malloc>
"#;

    #[test]
    fn arenas_are_summed_and_the_largest_piece_is_found() {
        let arena = parse(TWO_ARENAS).expect("it is well-formed");
        assert_eq!(arena.reserved, ByteCount(1_135_168 + 4_096_000));
        assert_eq!(arena.in_use, ByteCount(1_135_168 + 4_096_000 - 281_202 - 96));
        // At the end of the second arena; that of the first has 151202 less what is listed, which is 100000.
        assert_eq!(arena.largest_free, ByteCount(130_000));
        assert_eq!(arena.free_pieces, 6);
        let without_the_second = TWO_ARENAS.replace("\"130000\"", "\"1300\"");
        assert_eq!(parse(&without_the_second).expect("it is well-formed").largest_free, ByteCount(100_000));
    }

    #[test]
    fn what_is_something_else_is_none() {
        for text in ["", "<malloc version=\"2\">", "<malloc version=\"1\">", "garbage"] {
            assert_eq!(parse(text), None, "{text}");
        }
        for (good, bad) in [("size=\"281202\"", "size=\"-1\""), ("to=\"1201\"", "to=\"\""), ("281202", "9281202")] {
            assert_eq!(parse(&TWO_ARENAS.replace(good, bad)), None, "{bad}");
        }
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn a_large_block_and_a_hole_show() {
        use super::super::fixture::{alone, run_alone};
        // Tests that run beside this one would take and give back memory of the same process.
        if alone().is_none() {
            print!("{}", run_alone("host::malloc_info::tests::a_large_block_and_a_hole_show", ""));
            return;
        }
        const BYTES: u64 = 64 << 20;
        let before = malloc_info().expect("this is the GNU C Library");
        assert!(before.in_use <= before.reserved, "{before:?}");
        let block = std::hint::black_box(vec![1u8; BYTES as usize]);
        let during = malloc_info().expect("this is the GNU C Library");
        assert!(during.in_use.0 >= before.in_use.0 + BYTES, "{before:?} {during:?}");
        assert!(during.reserved.0 >= before.reserved.0 + BYTES, "{before:?} {during:?}");
        drop(block);
        // Every second of many small blocks is given back: what is free then is much, in pieces that are small.
        const SMALL: usize = 4000;
        let mut blocks: Vec<Option<Vec<u8>>> = (0..2000).map(|_| Some(vec![1u8; SMALL])).collect();
        let full = malloc_info().expect("this is the GNU C Library");
        blocks.iter_mut().step_by(2).for_each(|block| drop(block.take()));
        let holed = malloc_info().expect("this is the GNU C Library");
        let free = |arena: MallocInfo| arena.reserved.0 - arena.in_use.0;
        assert!(free(holed) >= free(full) + 900 * SMALL as u64, "{full:?} {holed:?}");
        assert!(holed.free_pieces >= full.free_pieces + 900, "{full:?} {holed:?}");
        assert!(holed.largest_free.0 < free(holed) / 4, "{holed:?}");
    }
}
