//! The kernels, which ship as PTX that the driver compiles, and their launches. The callers order the streams.

use std::ffi::CStr;
use std::time::Duration;

use super::driver::{Argument, Context, Kernel, Module, Stream};
use crate::device::DeviceError;
use crate::sync::Arc;
use crate::tensor::{CHANNELS, DType, Layout, SampleSpec};

/// Compiled from `kernels.cu` by `scripts/kernels`.
const PTX: &str = include_str!("kernels.ptx");

/// Threads of a block; `BLOCK` in `kernels.cu`.
const BLOCK: u32 = 256;
/// Quads (4 pixels) of one thread if the batch is large enough, to pay for the block's load of the table.
const QUADS_PER_THREAD: u64 = 4;
/// Blocks that fill a multiprocessor.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 8;
/// Samples of one launch. A grid has fewer than 65536 rows, and each launch but the last has a multiple of 256 samples.
const SAMPLES_PER_LAUNCH: usize = 255 * 256;

/// The kernels, loaded.
#[derive(Debug)]
pub(super) struct Kernels {
    /// By element size (1, 2, 4 bytes) and layout (NHWC, NCHW).
    convert: [[Kernel; 2]; 3],
    step: Kernel,
    copy: Kernel,
    multiprocessors: u32,
    _module: Module,
}

/// Device addresses of one conversion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) output: u64,
    pub(super) pixels: u64,
    pub(super) table: u64,
}

impl Kernels {
    pub(super) fn load(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let module = context.module(PTX)?;
        let of = |name: &CStr| context.kernel(&module, name);
        Ok(Kernels {
            convert: [
                [of(c"feedstock_convert_b8_nhwc")?, of(c"feedstock_convert_b8_nchw")?],
                [of(c"feedstock_convert_b16_nhwc")?, of(c"feedstock_convert_b16_nchw")?],
                [of(c"feedstock_convert_b32_nhwc")?, of(c"feedstock_convert_b32_nchw")?],
            ],
            step: of(c"feedstock_step")?,
            copy: of(c"feedstock_copy")?,
            multiprocessors: context.multiprocessors()?,
            _module: module,
        })
    }

    /// Enqueues the conversion of a batch that is not empty.
    ///
    /// # Safety
    /// The addresses are valid for this many samples until the kernel is over, and every other use of them is ordered
    /// before or after it by events.
    #[allow(unsafe_code, reason = "a kernel gets addresses")]
    pub(super) unsafe fn convert(
        &self,
        stream: &Stream,
        at: Addresses,
        samples: usize,
        spec: SampleSpec,
        (dtype, layout): (DType, Layout),
    ) -> Result<(), DeviceError> {
        let by_size = match dtype {
            DType::U8 => 0,
            DType::Bf16 | DType::F16 => 1,
            DType::F32 => 2,
        };
        let kernel = self.convert[by_size][usize::from(layout == Layout::Nchw)];
        let plane = (spec.elements() / CHANNELS) as u32;
        let quads = u64::from(plane.div_ceil(4));
        let block = u64::from(BLOCK);
        // Few samples are spread thinner, so that they fill the device.
        let filling = (BLOCKS_PER_MULTIPROCESSOR * u64::from(self.multiprocessors)).div_ceil(samples as u64);
        let across = quads.div_ceil(block * QUADS_PER_THREAD).max(filling).min(quads.div_ceil(block)).max(1) as u32;
        let mut at = at;
        for first in (0..samples).step_by(SAMPLES_PER_LAUNCH) {
            let rows = (samples - first).min(SAMPLES_PER_LAUNCH);
            let arguments =
                [Argument::U64(at.output), Argument::U64(at.pixels), Argument::U64(at.table), Argument::U32(plane)];
            // SAFETY: the caller vouches for the addresses; these are the kernel's parameters.
            unsafe { stream.launch(kernel, [across, rows as u32], BLOCK, &arguments) }?;
            at.output += (rows * spec.size_bytes(dtype)) as u64;
            at.pixels += (rows * spec.elements()) as u64;
        }
        Ok(())
    }

    /// Enqueues a step that reads the byte at `at` and keeps the stream busy for this long.
    ///
    /// # Safety
    /// The byte is device memory, and every write of it is ordered before or after the step by events.
    #[allow(unsafe_code, reason = "a kernel gets an address")]
    pub(super) unsafe fn step(&self, stream: &Stream, at: u64, duration: Duration) -> Result<(), DeviceError> {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the caller vouches for the addresses; these are the kernel's parameters.
        unsafe { stream.launch(self.step, [1, 1], 1, &[Argument::U64(at), Argument::U64(nanoseconds)]) }
    }

    /// Enqueues a plain copy on the device, which conversion is measured against.
    ///
    /// # Safety
    /// `len` bytes at both addresses are device memory, and every other use of them is ordered by events.
    #[allow(unsafe_code, reason = "a kernel gets addresses")]
    pub(super) unsafe fn copy(&self, stream: &Stream, to: u64, from: u64, len: usize) -> Result<(), DeviceError> {
        let vectors = len as u64 / 16;
        let arguments = [Argument::U64(to), Argument::U64(from), Argument::U64(vectors)];
        let filling = BLOCKS_PER_MULTIPROCESSOR * u64::from(self.multiprocessors);
        let across = vectors.div_ceil(u64::from(BLOCK) * QUADS_PER_THREAD).clamp(1, filling) as u32;
        // SAFETY: the caller vouches for the addresses; these are the kernel's parameters.
        unsafe { stream.launch(self.copy, [across, 1], BLOCK, &arguments) }
    }
}
