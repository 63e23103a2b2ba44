//! Device memory of burn's CUDA backend, and recovery when it runs out.
//!
//! Operations in burn 0.21 (cubecl 0.10) are enqueued; a thread of the device (`DSD-0-N`) allocates their memory and
//! launches them. If CUDA refuses memory, that thread panics in the task, catches the panic and continues: the tensor
//! exists without memory, so every operation on it panics there too, each with a message on standard error. Other
//! threads notice only when they read a result: then the reading thread panics (`CallError`), or gets an error that
//! was left on the stream. **A step whose results are not read fails silently**, and its results are missing. The
//! device itself stays usable.

use std::any::Any;
use std::fmt;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use ::burn::backend::{Autodiff, Cuda};
use ::burn::module::{Module, ModuleVisitor, Param};
use ::burn::tensor::Tensor;
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::future::block_on;
use cudarc::driver::result::mem_get_info;

use super::cuda::client;
use crate::device::DeviceError;
use crate::{ByteCount, Error};

/// Device memory, as reported by burn's allocator and the driver.
///
/// `reserved - in_use` is memory that burn keeps for later. Its largest free piece is unknown: cubecl reports only
/// sums over its pages. burn refuses a tensor of more than a quarter of `driver_total`, however much is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuMemory {
    /// Bytes of burn's tensors, including those in a loader's device ring.
    pub in_use: ByteCount,
    /// Bytes that burn has allocated from the driver.
    pub reserved: ByteCount,
    /// Bytes that are free on the device.
    pub driver_free: ByteCount,
    /// Bytes of the device.
    pub driver_total: ByteCount,
}

/// Reads the memory of burn on the CUDA device of this number, and the free memory of the device.
///
/// burn keeps memory for each stream, and so for each thread; the first two numbers are those of the calling thread. It
/// waits until the device's thread has launched the enqueued operations, but not until they are done.
///
/// # Errors
/// [`Error::Device`] with the message of burn or the driver, for example if an earlier operation has failed.
pub fn gpu_memory(number: u32) -> Result<GpuMemory, Error> {
    let failed = |cause: String| {
        let what = format!("reading the memory of burn's cuda:{number}");
        Error::Device(DeviceError::Failed { what, cause })
    };
    let read = catch_unwind(AssertUnwindSafe(|| {
        let client = client(number);
        // The driver answers on the device's own thread, where its context is current.
        (client.memory_usage(), client.exclusive(mem_get_info))
    }));
    let (usage, driver) = read.map_err(|_| failed("burn panicked; its message is on standard error".to_owned()))?;
    let usage = usage.map_err(|error| failed(error.to_string()))?;
    let (free, total) = driver
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(format!("cuMemGetInfo: {error:?}")))?;
    Ok(GpuMemory {
        in_use: ByteCount(usage.bytes_in_use),
        reserved: ByteCount(usage.bytes_reserved),
        driver_free: ByteCount(free as u64),
        driver_total: ByteCount(total as u64),
    })
}

/// Device memory ran out. The failed step was cleaned up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfDeviceMemory {
    /// Number of the CUDA device.
    pub number: u32,
    /// Bytes that the driver refused, if burn reports them: a page of its allocator, not a tensor.
    pub asked: Option<ByteCount>,
    /// Bytes that are free on the device after the cleanup, and bytes of the device.
    pub left: Option<(ByteCount, ByteCount)>,
}

impl fmt::Display for OutOfDeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory on cuda:{}", self.number)?;
        if let Some(asked) = self.asked {
            write!(f, ": {asked} more were requested")?;
        }
        if let Some((free, total)) = self.left {
            write!(f, "; without this step {free} of {total} are free")?;
        }
        f.write_str("; use a smaller batch")
    }
}

impl std::error::Error for OutOfDeviceMemory {}

/// Runs a step of training on burn's CUDA device of this number. If its memory runs out, it returns an error instead of
/// panicking, and cleans up, so that a smaller step can be tried.
///
/// The step must not change state that is needed after a failure: compute a loss and its gradients in it, and apply
/// them afterwards in a step of its own whose inputs are kept. State that a forward pass changes (the running mean of
/// a batch norm) is lost if the operation failed: clone such a model before, which copies nothing, and use the clone
/// after a failure. One caller at a time is allowed for each device; failures of other threads that train on it
/// meanwhile would count as failures of this step.
///
/// `model` is the model that the step trains: burn's graph keeps the nodes of a failed step until the next backward
/// pass through its parameters, which runs here. A step in which only a trial of the autotuner was refused memory
/// counts as failed too.
///
/// It waits until the device's thread has launched the whole step, but not until it is done. The messages of
/// resulting panics are suppressed; for that the first call wraps the panic hook of the program.
///
/// ```no_run
/// # use burn::backend::{Autodiff, Cuda};
/// # fn example(model: burn::nn::Linear<Autodiff<Cuda>>, gradients: impl Fn(usize)) {
/// let mut samples = 512;
/// let gradients = loop {
///     match feedstock::adapt::burn::survive(0, &model, || gradients(samples)) {
///         Ok(gradients) => break gradients,
///         Err(error) if samples > 1 => {
///             eprintln!("{error}");
///             samples /= 2;
///         }
///         Err(error) => panic!("{error}"),
///     }
/// };
/// # }
/// ```
///
/// # Errors
/// [`OutOfDeviceMemory`].
///
/// # Panics
/// Panics if the step panics for another reason than memory, if one of its operations fails otherwise, and if a
/// second thread is in this function for the same device.
pub fn survive<T, M: Module<Autodiff<Cuda>>>(
    number: u32,
    model: &M,
    step: impl FnOnce() -> T,
) -> Result<T, OutOfDeviceMemory> {
    let client = client(number);
    let watch = Watch::begin(number);
    let result = catch_unwind(AssertUnwindSafe(step));
    // Allocation errors show only once all operations are launched.
    let launched = catch_unwind(AssertUnwindSafe(|| client.memory_usage().map(drop)));
    let mut seen = watch.end();
    let left_on_stream = match launched {
        Ok(Ok(())) => None,
        // The stream holds an error: the next wait returns and clears it.
        Ok(Err(_)) => block_on(client.sync()).err().map(|error| format!("{error:?}")),
        Err(panic) => Some(message_of(&*panic).to_owned()),
    };
    if let Some(text) = &left_on_stream {
        seen.record(text);
    }
    if seen.refused.is_some() {
        // Any other panic is the step's own.
        let result = match result {
            Err(panic) if !is_of_burn(message_of(&*panic)) => resume_unwind(panic),
            result => result,
        };
        drop(result);
        clean_up(number, &client, model);
        let left = gpu_memory(number).ok().map(|memory| (memory.driver_free, memory.driver_total));
        return Err(OutOfDeviceMemory { number, asked: seen.refused.flatten(), left });
    }
    match (result, left_on_stream) {
        (Err(panic), _) => resume_unwind(panic),
        (Ok(_), Some(text)) => panic!("an operation of a step on cuda:{number} has failed: {text}"),
        (Ok(value), None) => Ok(value),
    }
}

/// Frees what the failed step has left behind: nodes of burn's graph, errors on the stream, pages without a tensor.
fn clean_up<M: Module<Autodiff<Cuda>>>(number: u32, client: &ComputeClient<CudaRuntime>, model: &M) {
    // Panics in here follow from the first one.
    let watch = Watch::begin(number);
    let _ = catch_unwind(AssertUnwindSafe(|| model.visit(&mut Sweep)));
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // The first wait clears the errors, and memory that is freed afterwards must not be in use.
        let _ = block_on(client.sync());
        client.memory_cleanup();
        let _ = client.flush();
        // Memory that was allocated in stream order is free once the stream has got there.
        let _ = block_on(client.sync());
    }));
    let _: Seen = watch.end();
}

/// Runs a minimal backward pass through each parameter, after which burn's graph drops every unreachable node.
struct Sweep;

impl ModuleVisitor<Autodiff<Cuda>> for Sweep {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<Autodiff<Cuda>, D>>) {
        let value = parameter.val();
        if value.is_require_grad() {
            let elements = value.shape().num_elements();
            drop(value.reshape([elements]).backward());
        }
    }
}

/// Observations of a device's thread, and of the thread that waits for it.
#[derive(Debug, Default)]
struct Seen {
    /// Set if memory was refused; the inner value is the number of bytes, if known.
    refused: Option<Option<ByteCount>>,
}

impl Seen {
    /// Records a message of burn, if it reports that memory was refused.
    fn record(&mut self, message: &str) {
        if let Some(bytes) = refusal(message) {
            self.refused = Some(self.refused.flatten().or(bytes));
        }
    }
}

/// Number of bytes in a message that memory was refused, if it has one; `None` for any other message.
fn refusal(message: &str) -> Option<Option<ByteCount>> {
    const WORDS: [&str; 2] = ["BufferTooBig", "can't allocate buffer of size"];
    let at = WORDS.iter().find_map(|words| message.find(words).map(|at| at + words.len()));
    let Some(at) = at else { return message.contains("CUDA_ERROR_OUT_OF_MEMORY").then_some(None) };
    let digits: String =
        message[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Some(digits.parse().ok().map(ByteCount))
}

/// Returns true if a panic of the stepping thread may follow from one of the device's thread: a panic of burn's
/// readers or callers.
fn is_of_burn(message: &str) -> bool {
    const WORDS: [&str; 5] =
        ["CallError", "Error while reading data", "ServerUnhealthy", "in an error state", "Failed to read tensor data"];
    refusal(message).is_some() || WORDS.iter().any(|words| message.contains(words))
}

/// Message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Observed device, by the name of its thread.
struct Watched {
    name: String,
    caller: ThreadId,
    seen: Seen,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// Observes the panics of a device's thread while it lives.
struct Watch {
    name: String,
}

impl Watch {
    fn begin(number: u32) -> Watch {
        static HOOK: OnceLock<()> = OnceLock::new();
        HOOK.get_or_init(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if !note(info) {
                    before(info);
                }
            }));
        });
        // Name in cubecl: downstream, kind of device, number.
        let name = format!("DSD-0-{number}");
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(watched.iter().all(|other| other.name != name), "two steps at once on cuda:{number}");
        watched.push(Watched { name: name.clone(), caller: thread::current().id(), seen: Seen::default() });
        Watch { name }
    }

    fn end(self) -> Seen {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        let at = watched.iter().position(|watched| watched.name == self.name);
        at.map(|at| watched.swap_remove(at).seen).unwrap_or_default()
    }
}

/// Records a panic that follows from refused memory. Returns true if its message is to be suppressed.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let text = info.payload_as_str().unwrap_or_default();
    let thread = thread::current();
    // A panic under the lock is one of this file: it is shown.
    let Ok(mut watched) = WATCHED.try_lock() else { return false };
    watched.iter_mut().any(|watched| {
        let of_device = thread.name() == Some(watched.name.as_str());
        if of_device {
            watched.seen.record(text);
        }
        // Panics of the device's thread after a refusal follow from it: there is a tensor without memory.
        watched.seen.refused.is_some() && (of_device || thread.id() == watched.caller && is_of_burn(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_recognized_and_their_bytes_parsed() {
        let unwrapped =
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 4096\nNo backtrace";
        assert_eq!(refusal(unwrapped), Some(Some(ByteCount(4096))));
        assert_eq!(refusal("Io(BufferTooBig { size: 77, backtrace: .. })"), Some(Some(ByteCount(77))));
        assert_eq!(refusal("BufferTooBig"), Some(None));
        assert_eq!(refusal("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), Some(None));
        for other in ["", "index out of bounds", "a buffer too big", "CUDA_ERROR_ILLEGAL_ADDRESS"] {
            assert_eq!(refusal(other), None, "{other}");
            assert!(!is_of_burn(other), "{other}");
        }
        assert!(is_of_burn("called `Result::unwrap()` on an `Err` value: CallError"));
    }

    #[test]
    fn the_first_size_is_kept() {
        let mut seen = Seen::default();
        seen.record("CallError");
        assert_eq!(seen.refused, None);
        for message in ["CUDA_ERROR_OUT_OF_MEMORY", "BufferTooBig { size: 5 }", "BufferTooBig { size: 6 }"] {
            seen.record(message);
        }
        assert_eq!(seen.refused, Some(Some(ByteCount(5))));
    }

    #[test]
    fn the_error_has_the_numbers_and_advice() {
        let mut error = OutOfDeviceMemory {
            number: 3,
            asked: Some(ByteCount(1 << 30)),
            left: Some((ByteCount(2 << 30), ByteCount(8 << 30))),
        };
        let text = "out of memory on cuda:3: 1.00 GiB more were requested; without this step 2.00 GiB of 8.00 GiB are \
                    free; use a smaller batch";
        assert_eq!(error.to_string(), text);
        (error.asked, error.left) = (None, None);
        assert_eq!(error.to_string(), "out of memory on cuda:3; use a smaller batch");
    }
}
