//! Owns the way of a batch on a CUDA device into burn's CUDA backend: burn lends the memory of the device ring, feedstock
//! writes finished batches there, and a tensor is a view of it. No byte is copied.
//! It must never write memory that burn may still read.
//!
//! Order, without a wait of the training thread: a batch is handed over when it is ready. It is burn's until no tensor holds
//! it any more (its handle is ours alone again, so nothing new can be enqueued that reads it) and what burn had enqueued on
//! the stream of the thread that took it is over; the transfer thread waits for that, just before it feeds the entry again.

#![allow(unsafe_code, reason = "burn's memory is lent by address, and its stream named by id")]

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

/// How long a wait for burn sleeps between two looks at whether a tensor still holds a batch.
const LOOK: Duration = Duration::from_micros(100);

/// Memory of burn's, lent to the device ring.
#[derive(Debug)]
struct Entry {
    handle: Handle,
    number: u32,
}

/// Opens the CUDA device of this number for a loader that feeds burn's CUDA backend: batches become tensors in place.
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
///     .output(DType::F32)
///     .build()?;
/// let data = BurnLoader::<Cuda>::new(loader, burn::backend::cuda::CudaDevice::new(0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Device`] in one line where there is no driver, no GPU of this number, or no run-time compiler (NVRTC), which burn
/// needs; whatever keeps the device from starting.
pub fn cuda_device(number: u32) -> Result<Arc<dyn Device>, Error> {
    // Asked first: burn panics where these are missing.
    let count = crate::device::cuda_devices()?;
    if number >= count {
        // Refused, with the numbers.
        CudaDevice::open(number)?;
    }
    if !nvrtc_is_present() {
        let why =
            "training on CUDA needs NVIDIA's run-time compiler, NVRTC (libnvrtc.so of CUDA 13), which is not found";
        return Err(Error::Device(DeviceError::Unsupported(why.to_owned())));
    }
    let allocate = move |bytes| lend(number, bytes);
    // SAFETY: `lend` gives memory of this device of that length, aligned to 512 bytes, that burn hands to nobody else while
    // its handle lives, and that only reads go to (`Entry` keeps burn from writing in place: the handle is never its alone).
    Ok(Arc::new(unsafe { CudaDevice::open_with(number, allocate) }?))
}

pub(super) fn client(number: u32) -> ComputeClient<CudaRuntime> {
    CudaRuntime::client(&BurnDevice::new(number as usize))
}

/// Memory of burn's, and what keeps it.
fn lend(number: u32, bytes: usize) -> Result<(u64, Box<dyn Any + Send + Sync>), DeviceError> {
    let failed = |cause: String| DeviceError::Failed {
        what: format!("lending {} of burn's memory on cuda:{number}", crate::ByteCount(bytes as u64)),
        cause,
    };
    // burn has no way to refuse.
    let lent = catch_unwind(AssertUnwindSafe(|| {
        let client = client(number);
        let handle = client.empty(bytes);
        let place = client.get_resource(handle.clone()).map(|resource| resource.resource().ptr);
        // The memory may have been something else's a moment ago, which burn's stream is not done with.
        (handle, place, block_on(client.sync()))
    }));
    match lent {
        Ok((handle, Ok(place), Ok(()))) => Ok((place, Box::new(Arc::new(Entry { handle, number })))),
        Ok((_, Err(error), _) | (_, _, Err(error))) => Err(failed(format!("{error:?}"))),
        Err(_) => Err(failed("burn gave up; its message is on standard error".to_owned())),
    }
}

/// The pixels of a batch as a tensor in place; the batch itself where burn has not lent its memory, or `B` is another
/// backend.
pub(super) fn images<B: Backend>(batch: Batch) -> Result<Result<Tensor<B, 4>, Batch>, Error> {
    let entry = batch.device_memory().and_then(CudaDevice::keep::<Arc<Entry>>).cloned();
    let ours = [TypeId::of::<Cuda>(), TypeId::of::<Autodiff<Cuda>>()].contains(&TypeId::of::<B>());
    let (Some(entry), true) = (entry, ours) else { return Ok(Err(batch)) };
    // While the loader keeps up it has passed long ago.
    batch.ready().wait()?;
    let shape = Shape::from(batch.shape().to_vec());
    let place = |dtype| {
        let device = BurnDevice::new(entry.number as usize);
        CubeTensor::new_contiguous(client(entry.number), device, shape.clone(), entry.handle.clone(), dtype)
    };
    let float = |dtype| Tensor::<Cuda, 4>::from_primitive(TensorPrimitive::Float(place(dtype)));
    let images = match batch.dtype() {
        DType::F32 => float(BurnType::F32),
        DType::Bf16 => float(BurnType::BF16).cast(BurnType::F32),
        DType::F16 => float(BurnType::F16).cast(BurnType::F32),
        DType::U8 => Tensor::<Cuda, 4, Int>::from_primitive(place(BurnType::U8)).float(),
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

/// Passes once burn has no use for an entry any more.
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
            std::thread::sleep(LOOK);
        }
        let mut client = client(self.entry.number);
        // SAFETY: nothing is done on the stream but to ask when what is enqueued now is over.
        unsafe { client.set_stream(self.stream) };
        block_on(client.sync()).map_err(|error| DeviceError::Failed {
            what: "burn's work on a batch".to_owned(),
            cause: format!("{error:?}"),
        })?;
        self.over.store(true, Ordering::Release);
        Ok(true)
    }
}
