//! Device memory that runs out under burn's CUDA backend, on the stand-in for the driver: a step that does not fit
//! returns an error, its memory is freed, and a smaller step succeeds.
//!
//! The stand-in for the run-time compiler (`standin/nvrtc.c`) makes kernels that do nothing. So each step runs burn's
//! code for forward pass, backward pass and optimizer, with every allocation, copy and launch (including the trials of
//! the autotuner), but without arithmetic: results are not checked here.
#![cfg(feature = "burn-cuda")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod standin;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;

use burn::backend::cuda::CudaDevice as BurnDevice;
use burn::backend::{Autodiff, Cuda};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use feedstock::ByteCount;
use feedstock::adapt::burn::{cuda_device, gpu_memory, survive};
use feedstock::device::Device;
use standin::Standin;

type Training = Autodiff<Cuda>;

const MIB: u64 = 1 << 20;

/// Runs a test in a process of its own: the environment names the places of burn's toolkit and of the results of its
/// autotuner, and panics write to the standard error of the process. Returns the device in that process, and its
/// standard error in the calling one.
fn alone(test: &str, number: u32) -> Result<(Standin, Arc<dyn Device>), String> {
    if std::env::var_os("FEEDSTOCK_ALONE").is_some() {
        let driver = standin::folder();
        standin::load();
        let compiler = driver.join("nvrtc/libnvrtc.so");
        #[allow(unsafe_code, reason = "a library is loaded")]
        // SAFETY: it has no initializer.
        let loaded = unsafe { libloading::os::unix::Library::new(compiler) };
        std::mem::forget(loaded.unwrap());
        let standin = Standin::shared(number);
        standin.set("blank_kernels=1;lazy_us=0;memory=268435456");
        // Makes the context of the device current on this thread, as a training thread does.
        return Ok((standin, cuda_device(number).unwrap()));
    }
    // Built here, where the home folder is the real one: compilers may be found through it.
    standin::folder();
    let home = tempfile::tempdir().unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("FEEDSTOCK_ALONE", "1")
        .env("CUDA_PATH", home.path())
        .env("HOME", home.path())
        .env("RUST_BACKTRACE", "0")
        .current_dir(home.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{}\n{said}", String::from_utf8_lossy(&done.stdout));
    Err(said)
}

#[derive(Module, Debug)]
struct Net<B: Backend> {
    first: Conv2d<B>,
    second: Conv2d<B>,
    last: Linear<B>,
}

impl<B: Backend> Net<B> {
    fn new(device: &B::Device) -> Self {
        Net {
            first: Conv2dConfig::new([3, 16], [3, 3]).init(device),
            second: Conv2dConfig::new([16, 16], [3, 3]).init(device),
            last: LinearConfig::new(16, 10).init(device),
        }
    }

    fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let images = relu(self.second.forward(relu(self.first.forward(images))));
        let [samples, channels, _, _] = images.dims();
        self.last.forward(images.mean_dim(3).mean_dim(2).reshape([samples, channels]))
    }
}

/// Gradients of a batch of this many images. Nothing is read back: a failure is detected without.
fn gradients(net: &Net<Training>, samples: usize, device: &BurnDevice) -> GradientsParams {
    let images = Tensor::<Training, 4>::zeros([samples, 3, 32, 32], device);
    let labels = Tensor::<Training, 1, Int>::zeros([samples], device);
    let loss = CrossEntropyLossConfig::new().init(device).forward(net.forward(images), labels);
    GradientsParams::from_grads(loss.backward(), net)
}

#[test]
fn a_smaller_step_succeeds_after_one_that_does_not_fit() {
    let number = 52;
    let (standin, _device) = match alone("a_smaller_step_succeeds_after_one_that_does_not_fit", number) {
        Ok(alone) => alone,
        Err(said) => {
            assert!(!said.contains("panicked"), "messages are shown:\n{said}");
            return;
        }
    };
    let device = BurnDevice::new(number as usize);
    let mut net = Net::<Training>::new(&device);
    let mut optimizer = SgdConfig::new().init();
    let mut after = Vec::new();
    for round in 0..4 {
        let error = survive(number, &net, || gradients(&net, 1024, &device)).map(drop).unwrap_err();
        println!("{round}: {error}; {:?}", gpu_memory(number));
        assert_eq!(error.number, number);
        assert!(error.asked.is_some_and(|asked| asked > ByteCount(MIB)), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("out of memory on cuda:52: "), "{text}");
        // The memory of the large batch is free again.
        let (free, total) = error.left.unwrap();
        assert_eq!(total, ByteCount(256 * MIB));
        assert!(free > ByteCount(220 * MIB), "{error:?}");
        let launches = standin.report().number("launches");
        let gradients = survive(number, &net, || gradients(&net, 8, &device)).unwrap();
        assert!(standin.report().number("launches") > launches + 10, "the smaller step is launched");
        net = survive(number, &net, || optimizer.step(0.1, net.clone(), gradients)).unwrap();
        let weights = survive(number, &net, || net.last.weight.val().into_data()).unwrap();
        assert_eq!(weights.shape.as_slice(), [16, 10]);
        let memory = gpu_memory(number).unwrap();
        assert!(memory.reserved < ByteCount(100 * MIB), "{memory:?}");
        after.push(memory.in_use);
    }
    assert!(after.iter().all(|&in_use| in_use == after[0]), "memory in use does not grow: {after:?}");
}

#[test]
fn a_tensor_above_the_limit_of_burn_is_refused_with_its_size() {
    let number = 53;
    let Ok(_alone) = alone("a_tensor_above_the_limit_of_burn_is_refused_with_its_size", number) else {
        return;
    };
    let device = BurnDevice::new(number as usize);
    let model = Net::<Training>::new(&device);
    let large = 80 * MIB as usize;
    let error =
        survive(number, &model, || Tensor::<Cuda, 1>::empty([large / 4], &device).into_data()).map(drop).unwrap_err();
    assert_eq!(error.asked, Some(ByteCount(large as u64)), "{error:?}");
    let small =
        survive(number, &model, || Tensor::<Cuda, 1>::from_floats([1.0, 2.0, 3.0], &device).into_data()).unwrap();
    assert_eq!(small.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0]);
}

#[test]
fn other_panics_are_the_steps_own_and_are_shown() {
    let number = 54;
    match alone("other_panics_are_the_steps_own_and_are_shown", number) {
        Err(said) => {
            assert!(said.contains("a mistake of mine") && said.contains("another mistake"), "{said}");
            return;
        }
        Ok(alone) => alone,
    };
    let device = BurnDevice::new(number as usize);
    let model = Net::<Training>::new(&device);
    let message = |step: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(|| survive(number, &model, step))).unwrap_err();
        panic.downcast_ref::<&str>().copied().unwrap_or_default().to_owned()
    };
    assert_eq!(message(&|| panic!("a mistake of mine")), "a mistake of mine");
    let after_memory = || {
        let lost = Tensor::<Cuda, 1>::empty([80 * MIB as usize], &device);
        drop(lost);
        panic!("another mistake");
    };
    assert_eq!(message(&after_memory), "another mistake");
    assert_eq!(survive(number, &model, || 7), Ok(7), "and then it goes on");
}

#[test]
fn memory_is_that_of_burn_and_of_the_driver() {
    let number = 55;
    let Ok((standin, _device)) = alone("memory_is_that_of_burn_and_of_the_driver", number) else { return };
    let device = BurnDevice::new(number as usize);
    let before = gpu_memory(number).unwrap();
    let held: Vec<_> = (0..10).map(|_| Tensor::<Cuda, 1>::empty([MIB as usize / 4], &device)).collect();
    let during = gpu_memory(number).unwrap();
    assert_eq!(during.in_use.0, before.in_use.0 + 10 * MIB);
    assert!(during.reserved >= during.in_use, "{during:?}");
    assert_eq!(during.driver_total, ByteCount(256 * MIB));
    assert_eq!(during.driver_free.0, 256 * MIB - standin.report().number("device_bytes"));
    drop(held);
    let after = gpu_memory(number).unwrap();
    assert_eq!((after.in_use, after.reserved), (before.in_use, during.reserved), "burn keeps it for later");
}
