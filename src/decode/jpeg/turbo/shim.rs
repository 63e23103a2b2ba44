//! Safe calls into `shim.c`. All memory that the library gets stays borrowed as long as the [`Image`] lives.

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use crate::tensor::CHANNELS;

// The library itself: without a mention of the crate it is not linked.
use turbojpeg_sys as _;

/// State in the arena, opaque here.
#[repr(C)]
struct Jpeg {
    _opaque: [u8; 0],
}

/// Parameters of one image; columns and rows count in the scaled image. `shim.c` has the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Params {
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
        params: *const Params,
        first_column: *mut u32,
        columns: *mut u32,
    ) -> c_int;
    fn feedstock_jpeg_read_row(jpeg: *mut Jpeg, out: *mut u8) -> c_int;
    fn feedstock_jpeg_warnings(jpeg: *const Jpeg) -> u32;
    fn feedstock_jpeg_text(jpeg: *const Jpeg) -> *const c_char;
    #[cfg(test)]
    fn feedstock_jpeg_used(jpeg: *const Jpeg) -> usize;
    #[cfg(test)]
    fn feedstock_jpeg_own_mcus(jpeg: *const Jpeg) -> u32;
}

/// Reason for which the library stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// With the library's message.
    Damaged(String),
    Truncated,
    OutOfMemory,
    TooManyScans,
    HeaderMismatch,
}

/// An image that is being decoded, in memory that is borrowed as long as it lives. There is nothing to free: whether it
/// is dropped or forgotten, the arena is the caller's again.
#[derive(Debug)]
pub(super) struct Image<'a> {
    jpeg: NonNull<Jpeg>,
    columns: u32,
    borrowed: PhantomData<(&'a mut [u8], &'a [u8])>,
}

impl<'a> Image<'a> {
    /// Reads the header and prepares the first row. Returns also the first column of each row, and the number of
    /// columns.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn start(encoded: &'a [u8], params: &Params, arena: &'a mut [u8]) -> Result<(Self, u32, u32), Abort> {
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
                params,
                &raw mut first_column,
                &raw mut columns,
            )
        };
        let Some(jpeg) = NonNull::new(jpeg) else { return Err(Abort::OutOfMemory) };
        let image = Image { jpeg, columns, borrowed: PhantomData };
        image.outcome(code)?;
        Ok((image, first_column, columns))
    }

    /// Writes the next row. The caller counts rows.
    ///
    /// # Panics
    /// Panics unless `row` is as long as a row.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn read_row(&mut self, row: &mut [u8]) -> Result<(), Abort> {
        assert_eq!(row.len(), self.columns as usize * CHANNELS, "a row of {} pixels", self.columns);
        // SAFETY: `jpeg` lies in the arena, which is borrowed for 'a, and `start` has made it. The shim writes
        // `columns` pixels of three bytes, which is all of `row`.
        let code = unsafe { feedstock_jpeg_read_row(self.jpeg.as_ptr(), row.as_mut_ptr()) };
        self.outcome(code)
    }

    /// Number of damages that the library has passed over so far.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn warnings(&self) -> u32 {
        // SAFETY: as for `read_row`; it is only read.
        unsafe { feedstock_jpeg_warnings(self.jpeg.as_ptr()) }
    }

    /// The library's message for the first damage, or for the error.
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn text(&self) -> String {
        // SAFETY: as for `warnings`.
        let text = unsafe { feedstock_jpeg_text(self.jpeg.as_ptr()) };
        // SAFETY: it is a string in the state that ends with a zero, and nothing writes to it while it is copied.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// Bytes of the arena in use, without its alignment.
    #[cfg(test)]
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn used_bytes(&self) -> usize {
        // SAFETY: as for `warnings`.
        unsafe { feedstock_jpeg_used(self.jpeg.as_ptr()) }
    }

    /// Number of MCUs that were decoded by our own Huffman decoder so far.
    #[cfg(test)]
    #[allow(unsafe_code, reason = "calls the shim")]
    pub(super) fn own_mcus(&self) -> u32 {
        // SAFETY: as for `warnings`.
        unsafe { feedstock_jpeg_own_mcus(self.jpeg.as_ptr()) }
    }

    fn outcome(&self, code: c_int) -> Result<(), Abort> {
        match code {
            0 => Ok(()),
            2 => Err(Abort::Truncated),
            3 => Err(Abort::OutOfMemory),
            4 => Err(Abort::TooManyScans),
            5 => Err(Abort::HeaderMismatch),
            _ => Err(Abort::Damaged(self.text())),
        }
    }
}
