//! Owns the unit tests' way to a GPU: the stand-in for the driver (`tests/standin`), loaded before anybody looks for the real
//! one, and one of its devices for each test.
//! It must never be part of anything but tests.

use std::ffi::{CString, c_char, c_int};
use std::ptr;

use libloading::os::unix::Library;

use super::CudaDevice;
use crate::sync::{AtomicU32, OnceLock, Ordering};

#[path = "../../../tests/standin/mod.rs"]
mod build;

/// Loads the stand-in, so that the driver's name means it from here on: a library that is loaded is found by its name.
pub(crate) fn load() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = build::folder().join("libcuda.so");
        #[allow(unsafe_code, reason = "a library is loaded")]
        // SAFETY: its initialiser only reads the environment.
        unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

/// A device of the stand-in's, for one test.
#[derive(Debug)]
pub(crate) struct Standin {
    number: u32,
}

impl Standin {
    /// The next device that no other test has had, set up as `settings` say (`tests/standin/README.md`).
    pub(crate) fn new(settings: &str) -> Self {
        // The first belongs to those who ask for it by name.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < 64, "the stand-in has no device left for this test");
        let standin = Standin { number };
        standin.set(settings);
        standin
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn open(&self) -> CudaDevice {
        CudaDevice::open(self.number).unwrap_or_else(|error| panic!("the stand-in opens: {error}"))
    }

    /// Changes settings.
    pub(crate) fn set(&self, settings: &str) {
        let text = CString::new(settings).expect("no zero");
        type Configure = unsafe extern "C" fn(c_int, *const c_char) -> c_int;
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: it has a function of this name and type.
        let configure = unsafe { load().get::<Configure>(b"standin_configure\0") }.expect("a stand-in");
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: the text ends with a zero.
        let refused = unsafe { configure(self.number as c_int, text.as_ptr()) };
        assert_eq!(refused, 0, "'{settings}'");
    }

    pub(crate) fn report(&self) -> build::Report {
        type Report = unsafe extern "C" fn(c_int, *mut c_char, usize) -> usize;
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: it has a function of this name and type.
        let report = unsafe { load().get::<Report>(b"standin_report\0") }.expect("a stand-in");
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: null and 0 ask for the length.
        let len = unsafe { report(self.number as c_int, ptr::null_mut(), 0) };
        // Room for what is added between the two calls.
        let mut text = vec![0u8; len + 4096];
        #[allow(unsafe_code, reason = "the stand-in is a C library")]
        // SAFETY: the buffer is as long as it says.
        unsafe {
            report(self.number as c_int, text.as_mut_ptr().cast(), text.len());
        }
        let end = text.iter().position(|&byte| byte == 0).expect("it ends");
        build::Report::parse(std::str::from_utf8(&text[..end]).expect("text"))
    }

    /// Nothing has gone against the rules so far.
    #[track_caller]
    pub(crate) fn assert_lawful(&self) {
        assert_eq!(self.report().violations, Vec::<String>::new());
    }

    /// As above, and everything was given back.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        self.assert_lawful();
        let report = self.report();
        for key in ["device_bytes", "pinned_bytes", "streams", "events", "modules", "contexts"] {
            assert_eq!(report.number(key), 0, "{key}: {report:?}");
        }
    }
}
