//! Owns the calls into `shim.c`. It must never hand the library memory that it does not hold borrowed.

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

// The library itself: without a mention of the crate it is not linked.
use turbojpeg_sys as _;

/// The state in the arena, of which only its address is known here.
#[repr(C)]
struct Jpeg {
    _opaque: [u8; 0],
}

/// What is asked for; columns and rows count in the scaled picture. `shim.c` has the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) component_count: u32,
    pub(super) denominator: u32,
    pub(super) x: u32,
    pub(super) columns: u32,
    pub(super) y: u32,
    pub(super) scans_max: u32,
    pub(super) accept_truncated: u32,
    pub(super) own_codes: u32,
}

#[allow(unsafe_code, reason = "the shim is in C, so that the library's long jumps stay there")]
unsafe extern "C" {
    fn feedstock_jpeg_start(
        out: *mut *mut Jpeg,
        arena: *mut u8,
        arena_bytes: usize,
        encoded: *const u8,
        encoded_bytes: usize,
        ask: *const Ask,
        first_column: *mut u32,
        columns: *mut u32,
    ) -> c_int;
    fn feedstock_jpeg_read(jpeg: *mut Jpeg, out: *mut u8, count: usize) -> c_int;
    fn feedstock_jpeg_warnings(jpeg: *const Jpeg) -> u32;
    fn feedstock_jpeg_text(jpeg: *const Jpeg) -> *const c_char;
    #[cfg(test)]
    fn feedstock_jpeg_used(jpeg: *const Jpeg) -> usize;
    #[cfg(test)]
    fn feedstock_jpeg_own_mcus(jpeg: *const Jpeg) -> u32;
}

/// Why the library stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// In the library's words.
    Damaged(String),
    EndsEarly,
    NoRoom,
    TooManyScans,
    OtherPicture,
}

/// A picture that is being decoded, in memory that is borrowed as long as it lives. There is nothing to free: whether it
/// is dropped or forgotten, the arena is then the caller's again.
#[derive(Debug)]
pub(super) struct Picture<'a> {
    jpeg: NonNull<Jpeg>,
    columns: u32,
    borrowed: PhantomData<(&'a mut [u8], &'a [u8])>,
}

impl<'a> Picture<'a> {
    /// Reads the header and gets ready for the first row. Returns also in which column each row begins, and how many it
    /// has.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn start(encoded: &'a [u8], ask: &Ask, arena: &'a mut [u8]) -> Result<(Self, u32, u32), Stop> {
        let mut jpeg = ptr::null_mut();
        let (mut first_column, mut columns) = (0, 0);
        // SAFETY: the pointers are those of slices that stay borrowed for 'a and of variables that outlive the call.
        // The shim stays within the lengths, writes nothing but the arena and the three variables, and returns here by
        // itself on every error.
        let code = unsafe {
            feedstock_jpeg_start(
                &raw mut jpeg,
                arena.as_mut_ptr(),
                arena.len(),
                encoded.as_ptr(),
                encoded.len(),
                ask,
                &raw mut first_column,
                &raw mut columns,
            )
        };
        let Some(jpeg) = NonNull::new(jpeg) else { return Err(Stop::NoRoom) };
        let picture = Picture { jpeg, columns, borrowed: PhantomData };
        picture.outcome(code)?;
        Ok((picture, first_column, columns))
    }

    /// Fills `out` with the next rows. The caller knows how many there are.
    ///
    /// # Panics
    /// Panics unless `out` has whole rows.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<(), Stop> {
        let row_bytes = self.columns as usize * crate::tensor::CHANNELS;
        assert!(out.len().is_multiple_of(row_bytes), "{} bytes are no rows of {row_bytes}", out.len());
        // SAFETY: `jpeg` lies in the arena, which is borrowed for 'a, and `start` has made it. The shim writes
        // `count` rows of `columns` pixels of three bytes, which is all of `out`.
        let code = unsafe { feedstock_jpeg_read(self.jpeg.as_ptr(), out.as_mut_ptr(), out.len() / row_bytes) };
        self.outcome(code)
    }

    /// How often the library has met damage so far, and gone on.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn warnings(&self) -> u32 {
        // SAFETY: as for `read`; it is only looked at.
        unsafe { feedstock_jpeg_warnings(self.jpeg.as_ptr()) }
    }

    /// The library's words for the first damage, or for the error.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn text(&self) -> String {
        // SAFETY: as for `warnings`.
        let text = unsafe { feedstock_jpeg_text(self.jpeg.as_ptr()) };
        // SAFETY: it is a string in the state that ends with a zero, and nobody writes to it while it is copied.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// How many bytes of the arena are in use, but for its alignment.
    #[cfg(test)]
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn used_bytes(&self) -> usize {
        // SAFETY: as for `warnings`.
        unsafe { feedstock_jpeg_used(self.jpeg.as_ptr()) }
    }

    /// How many MCUs were decoded by our own Huffman decoder so far.
    #[cfg(test)]
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn own_mcus(&self) -> u32 {
        // SAFETY: as for `warnings`.
        unsafe { feedstock_jpeg_own_mcus(self.jpeg.as_ptr()) }
    }

    fn outcome(&self, code: c_int) -> Result<(), Stop> {
        match code {
            0 => Ok(()),
            2 => Err(Stop::EndsEarly),
            3 => Err(Stop::NoRoom),
            4 => Err(Stop::TooManyScans),
            5 => Err(Stop::OtherPicture),
            _ => Err(Stop::Damaged(self.text())),
        }
    }
}
