//! Owns what is known of the device memory of burn's CUDA backend, and a way to survive its running out.
//! It must never take memory itself, and never make another failure look like this one.
//!
//! What happens in burn 0.21 (cubecl 0.10): operations are enqueued, and a thread of the device's (`DSD-0-N`) takes the
//! memory for them and launches them. Where CUDA refuses memory, that thread panics in the task that asked, catches it,
//! and goes on: the tensor exists and has no memory, so that every operation on it panics there as well, each with a
//! message on standard error. Nobody else learns of it before something is read; then the reading thread panics
//! (`CallError`), or gets an error that was left on the stream. **A step whose results are not read fails in silence**,
//! and what it should have computed is not there. The device itself is unharmed.

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

/// Device memory, as burn's allocator and the driver see it.
///
/// `reserved - in_use` is what burn keeps for later. The largest piece that is free in there cannot be had: cubecl sums
/// its pages up and shows none of them. A tensor of more than a quarter of `driver_total` is refused whatever is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuMemory {
    /// Bytes of burn's tensors, those lent to a loader included.
    pub in_use: ByteCount,
    /// Bytes that burn has taken from the driver.
    pub reserved: ByteCount,
    /// Bytes that the driver has left, for whoever asks.
    pub driver_free: ByteCount,
    /// Bytes that the device has.
    pub driver_total: ByteCount,
}

/// Reads how much device memory burn has on the CUDA device of this number, and how much the driver has left.
///
/// burn keeps memory for each stream, and so for each thread; the first two numbers are those of the thread that asks.
/// It waits until the device's thread has launched what is enqueued, and not until the device has done it.
///
/// # Errors
/// [`Error::Device`] with what burn or the driver says, such as that an operation before has failed.
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
    let (usage, driver) = read.map_err(|_| failed("burn gave up; its message is on standard error".to_owned()))?;
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

/// Device memory ran out, and has been cleared up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfDeviceMemory {
    /// Which CUDA device.
    pub number: u32,
    /// The memory that was asked of the driver and refused, where burn says so: a page of its own, not the tensor.
    pub asked: Option<ByteCount>,
    /// What is free on the device after it was cleared up, and all it has.
    pub left: Option<(ByteCount, ByteCount)>,
}

impl fmt::Display for OutOfDeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the memory of cuda:{} does not suffice", self.number)?;
        if let Some(asked) = self.asked {
            write!(f, ": {asked} more were asked for")?;
        }
        if let Some((free, total)) = self.left {
            write!(f, "; without this step {free} of {total} are free")?;
        }
        f.write_str(". Use a smaller batch")
    }
}

impl std::error::Error for OutOfDeviceMemory {}

/// Runs a step of training on burn's CUDA device of this number, and where its memory runs out says so in place of a
/// panic, and clears up, so that a smaller step can be tried.
///
/// The step must not change what is to survive it: compute a loss and its gradients in it and apply them afterwards, in
/// a step of its own whose inputs are kept. What a forward pass changes by itself (the running mean of a batch norm) is
/// lost where the operation failed, so that such a model has to be cloned before (which copies nothing) and its clone
/// be used after a failure. One caller at a time is served on a device; others that train on it meanwhile would be
/// blamed.
///
/// `model` is the one that the step trains: burn's graph keeps what a step has computed from its parameters until the
/// next backward pass through them, which is made here. A step that found another way when a trial of the autotuner was
/// refused memory is called failed as well.
///
/// It waits until the device's thread has launched the whole step, not until the device has done it. Messages of the
/// panics that come of it are not shown; to that end the first call wraps the program's panic hook.
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
/// As the step does, where that does not come of memory; where an operation of the step fails otherwise; and where a
/// second thread is in this function for the same device.
pub fn survive<T, M: Module<Autodiff<Cuda>>>(
    number: u32,
    model: &M,
    step: impl FnOnce() -> T,
) -> Result<T, OutOfDeviceMemory> {
    let client = client(number);
    let watch = Watch::begin(number);
    let result = catch_unwind(AssertUnwindSafe(step));
    // Whatever is enqueued has to be launched before it is known to have memory.
    let launched = catch_unwind(AssertUnwindSafe(|| client.memory_usage().map(drop)));
    let mut seen = watch.end();
    let left_on_stream = match launched {
        Ok(Ok(())) => None,
        // The stream is not healthy: what is wrong with it comes with the next wait, which takes it away.
        Ok(Err(_)) => block_on(client.sync()).err().map(|error| format!("{error:?}")),
        Err(panic) => Some(words(&*panic).to_owned()),
    };
    if let Some(text) = &left_on_stream {
        seen.look_at(text);
    }
    if seen.refused.is_some() {
        // Another panic, after memory ran out or not, is the step's own.
        let result = match result {
            Err(panic) if !is_of_burn(words(&*panic)) => resume_unwind(panic),
            result => result,
        };
        drop(result);
        clear_up(number, &client, model);
        let left = gpu_memory(number).ok().map(|memory| (memory.driver_free, memory.driver_total));
        return Err(OutOfDeviceMemory { number, asked: seen.refused.flatten(), left });
    }
    match (result, left_on_stream) {
        (Err(panic), _) => resume_unwind(panic),
        (Ok(_), Some(text)) => panic!("an operation of a step on cuda:{number} has failed: {text}"),
        (Ok(value), None) => Ok(value),
    }
}

/// Gives back what the failed step has left behind: nodes of burn's graph, errors on the stream, pages without a
/// tensor.
fn clear_up<M: Module<Autodiff<Cuda>>>(number: u32, client: &ComputeClient<CudaRuntime>, model: &M) {
    // What burn says in here has been said, or is a consequence of it.
    let watch = Watch::begin(number);
    let _ = catch_unwind(AssertUnwindSafe(|| model.visit(&mut Sweep)));
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // The first wait takes the errors away, and what is freed afterwards must not be in use.
        let _ = block_on(client.sync());
        client.memory_cleanup();
        let _ = client.flush();
        // Memory that was taken in the order of a stream is back with the driver once the stream has got there.
        let _ = block_on(client.sync());
    }));
    let _: Seen = watch.end();
}

/// Goes back through each parameter by the shortest way, at the end of which burn's graph drops every node that nobody
/// can go back through any more.
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

/// What was seen of a device's thread, and of the thread that waits for it.
#[derive(Debug, Default)]
struct Seen {
    /// Memory was refused, so many bytes where they are known.
    refused: Option<Option<ByteCount>>,
}

impl Seen {
    /// Notes what a message of burn's says of memory.
    fn look_at(&mut self, message: &str) {
        if let Some(bytes) = refusal(message) {
            self.refused = Some(self.refused.flatten().or(bytes));
        }
    }
}

/// The bytes in a message that memory was refused, where it says them; `None` for another message.
fn refusal(message: &str) -> Option<Option<ByteCount>> {
    const WORDS: [&str; 2] = ["BufferTooBig", "can't allocate buffer of size"];
    let at = WORDS.iter().find_map(|words| message.find(words).map(|at| at + words.len()));
    let Some(at) = at else { return message.contains("CUDA_ERROR_OUT_OF_MEMORY").then_some(None) };
    let digits: String =
        message[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Some(digits.parse().ok().map(ByteCount))
}

/// Whether a panic of the stepping thread may come of what happened on the device's: those of burn's readers and
/// callers.
fn is_of_burn(message: &str) -> bool {
    const WORDS: [&str; 5] =
        ["CallError", "Error while reading data", "ServerUnhealthy", "in an error state", "Failed to read tensor data"];
    refusal(message).is_some() || WORDS.iter().any(|words| message.contains(words))
}

/// The message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Who is being watched, by the name of the device's thread.
struct Watched {
    name: String,
    caller: ThreadId,
    seen: Seen,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// Watches the panics of a device's thread for as long as it lives.
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
        // As cubecl names it: downstream, kind of device, number.
        let name = format!("DSD-0-{number}");
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(watched.iter().all(|other| other.name != name), "two steps are watched on cuda:{number} at once");
        watched.push(Watched { name: name.clone(), caller: thread::current().id(), seen: Seen::default() });
        Watch { name }
    }

    fn end(self) -> Seen {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        let at = watched.iter().position(|watched| watched.name == self.name);
        at.map(|at| watched.swap_remove(at).seen).unwrap_or_default()
    }
}

/// Notes a panic that comes of memory; true if nobody needs to be told.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let text = info.payload_as_str().unwrap_or_default();
    let thread = thread::current();
    // A panic under the lock would be one of this file's: then it is shown.
    let Ok(mut watched) = WATCHED.try_lock() else { return false };
    watched.iter_mut().any(|watched| {
        let of_device = thread.name() == Some(watched.name.as_str());
        if of_device {
            watched.seen.look_at(text);
        }
        // What the device's thread says after a refusal comes of it: there is a tensor without memory.
        watched.seen.refused.is_some() && (of_device || thread.id() == watched.caller && is_of_burn(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_other_messages_and_its_bytes_are_read() {
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
    fn the_first_size_that_is_told_is_kept() {
        let mut seen = Seen::default();
        seen.look_at("CallError");
        assert_eq!(seen.refused, None);
        for message in ["CUDA_ERROR_OUT_OF_MEMORY", "BufferTooBig { size: 5 }", "BufferTooBig { size: 6 }"] {
            seen.look_at(message);
        }
        assert_eq!(seen.refused, Some(Some(ByteCount(5))));
    }

    #[test]
    fn the_error_tells_the_numbers_and_what_to_do() {
        let mut error = OutOfDeviceMemory {
            number: 3,
            asked: Some(ByteCount(1 << 30)),
            left: Some((ByteCount(2 << 30), ByteCount(8 << 30))),
        };
        let text = "the memory of cuda:3 does not suffice: 1.00 GiB more were asked for; without this step 2.00 GiB of \
                    8.00 GiB are free. Use a smaller batch";
        assert_eq!(error.to_string(), text);
        (error.asked, error.left) = (None, None);
        assert_eq!(error.to_string(), "the memory of cuda:3 does not suffice. Use a smaller batch");
    }
}
