//! Batches on a CUDA device as tensors of burn's CUDA backend, without a copy: burn allocates the memory of the
//! device ring, feedstock writes finished batches there, and a tensor is a view of it.
//!
//! The training thread never waits. A batch becomes a tensor when it is ready. Its memory is written again when no
//! tensor holds it (its handle has one owner, so no new work can read it) and the work that burn had enqueued on the
//! stream of the consuming thread is done; the transfer thread waits for both, just before it reuses the entry.

#![allow(unsafe_code, reason = "memory of burn is passed by address, and its stream by id")]

use std::any::{Any, TypeId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::burn::backend::cuda::CudaDevice as BurnDevice;
use ::burn::backend::{Autodiff, Cuda};
use ::burn::tensor::backend::Backend;
use ::burn::tensor::{DType as BurnType, Int, Shape, Tensor, TensorPrimitive};
use burn_cubecl::cubecl::Runtime;
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::future::block_on;
use burn_cubecl::cubecl::server::Handle;
use burn_cubecl::cubecl::stream_id::StreamId;
use burn_cubecl::tensor::CubeTensor;

use crate::device::{CudaDevice, Device, DeviceError, Event, Signal, nvrtc_is_present};
use crate::{Batch, DType, Error};

/// Pause between two checks of whether a tensor still holds a batch.
const POLL: Duration = Duration::from_micros(100);

/// Memory of burn in the device ring.
#[derive(Debug)]
struct Entry {
    handle: Handle,
    number: u32,
}

/// Opens the CUDA device of this number for a loader whose batches become tensors of burn's CUDA backend in place.
///
/// ```no_run
/// # fn example(source: feedstock::ImageFolder) -> Result<(), Box<dyn std::error::Error>> {
/// use burn::backend::Cuda;
/// use feedstock::adapt::burn::{BurnLoader, cuda_device};
/// use feedstock::{DType, Loader, transform::RandomResizedCrop};
///
/// let loader = Loader::builder(source)
///     .device(cuda_device(0)?)
///     .transform(RandomResizedCrop::new(224).flip(0.5))
///     .dtype(DType::F32)
///     .build()?;
/// let data = BurnLoader::<Cuda>::new(loader, burn::backend::cuda::CudaDevice::new(0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Device`] without a driver, a GPU of this number, or the run-time compiler that burn needs (NVRTC), and if
/// the device cannot start.
pub fn cuda_device(number: u32) -> Result<Arc<dyn Device>, Error> {
    // Checked first: burn panics without them.
    let count = crate::device::cuda_devices()?;
    if number >= count {
        // Returns the error with the numbers.
        CudaDevice::open(number)?;
    }
    if !nvrtc_is_present() {
        let why = "training on CUDA needs NVIDIA's run-time compiler: install NVRTC (libnvrtc.so) of CUDA 13";
        return Err(Error::Device(DeviceError::Unsupported(why.to_owned())));
    }
    let allocate = move |bytes| allocate(number, bytes);
    // SAFETY: `allocate` returns memory of this device of that length, aligned to 512 bytes, which burn gives to no
    // other tensor while its handle lives, and only reads: it never writes in place, since `Entry` is a second owner
    // of the handle.
    Ok(Arc::new(unsafe { CudaDevice::open_with(number, allocate) }?))
}

pub(super) fn client(number: u32) -> ComputeClient<CudaRuntime> {
    CudaRuntime::client(&BurnDevice::new(number as usize))
}

/// Allocates memory with burn. Returns its address and its owner.
fn allocate(number: u32, bytes: usize) -> Result<(u64, Box<dyn Any + Send + Sync>), DeviceError> {
    let failed = |cause: String| DeviceError::Failed {
        what: format!("allocating {} with burn on cuda:{number}", crate::ByteCount(bytes as u64)),
        cause,
    };
    // burn panics where it cannot allocate.
    let allocated = catch_unwind(AssertUnwindSafe(|| {
        let client = client(number);
        let handle = client.empty(bytes);
        let address = client.get_resource(handle.clone()).map(|resource| resource.resource().ptr);
        // Work on burn's stream may still use this memory for an earlier tensor.
        (handle, address, block_on(client.sync()))
    }));
    match allocated {
        Ok((handle, Ok(address), Ok(()))) => Ok((address, Box::new(Arc::new(Entry { handle, number })))),
        Ok((_, Err(error), _) | (_, _, Err(error))) => Err(failed(format!("{error:?}"))),
        Err(_) => Err(failed("burn panicked; its message is on standard error".to_owned())),
    }
}

/// Converts a batch into a tensor in place. Returns the batch if its memory is not burn's, or `B` is another backend.
pub(super) fn images<B: Backend>(batch: Batch) -> Result<Result<Tensor<B, 4>, Batch>, Error> {
    let entry = batch.device_memory().and_then(CudaDevice::keep::<Arc<Entry>>).cloned();
    let ours = [TypeId::of::<Cuda>(), TypeId::of::<Autodiff<Cuda>>()].contains(&TypeId::of::<B>());
    let (Some(entry), true) = (entry, ours) else { return Ok(Err(batch)) };
    // Passed already, unless the loader is too slow.
    batch.ready().wait()?;
    let shape = Shape::from(batch.shape().to_vec());
    let view = |dtype| {
        let device = BurnDevice::new(entry.number as usize);
        CubeTensor::new_contiguous(client(entry.number), device, shape.clone(), entry.handle.clone(), dtype)
    };
    let float = |dtype| Tensor::<Cuda, 4>::from_primitive(TensorPrimitive::Float(view(dtype)));
    let images = match batch.dtype() {
        DType::F32 => float(BurnType::F32),
        DType::Bf16 => float(BurnType::BF16).cast(BurnType::F32),
        DType::F16 => float(BurnType::F16).cast(BurnType::F32),
        DType::U8 => Tensor::<Cuda, 4, Int>::from_primitive(view(BurnType::U8)).float(),
    };
    let released = Released { entry, stream: StreamId::current(), over: AtomicBool::new(false) };
    batch.release_after(Event::new(Arc::new(released)))?;
    let images: Box<dyn Any> = match TypeId::of::<B>() == TypeId::of::<Cuda>() {
        true => Box::new(images),
        false => Box::new(Tensor::<Autodiff<Cuda>, 4>::from_inner(images)),
    };
    match images.downcast::<Tensor<B, 4>>() {
        Ok(images) => Ok(Ok(*images)),
        Err(_) => unreachable!("`ours` is one of the two"),
    }
}

/// Signal that passes once burn no longer uses an entry.
#[derive(Debug)]
struct Released {
    entry: Arc<Entry>,
    stream: StreamId,
    over: AtomicBool,
}

impl Signal for Released {
    fn wait_for(&self, limit: Duration) -> Result<bool, DeviceError> {
        if self.over.load(Ordering::Acquire) {
            return Ok(true);
        }
        let began = Instant::now();
        while !self.entry.handle.can_mut() {
            if began.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
        let mut client = client(self.entry.number);
        // SAFETY: the stream is only waited for.
        unsafe { client.set_stream(self.stream) };
        block_on(client.sync()).map_err(|error| DeviceError::Failed {
            what: "burn's work on a batch".to_owned(),
            cause: format!("{error:?}"),
        })?;
        self.over.store(true, Ordering::Release);
        Ok(true)
    }
}
