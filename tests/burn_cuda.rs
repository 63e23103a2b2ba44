//! Batches as tensors of burn's CUDA backend, on the stand-in for the driver: a tensor holds its batch as long as it
//! lives, and no byte is copied through the host.
#![cfg(feature = "burn-cuda")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod standin;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Once};

use burn::backend::cuda::CudaDevice as BurnDevice;
use burn::backend::{Autodiff, Cuda};
use burn::data::dataloader::DataLoader;
use burn::tensor::Tensor;
use feedstock::adapt::burn::{BurnLoader, ImageBatch, cuda_device};
use feedstock::source::MemorySource;
use feedstock::transform::Resize;
use feedstock::{ByteCount, DType, Loader};

/// Loads the stand-in for the driver, and an empty library in the place of the run-time compiler, which burn loads and
/// does not use as long as nothing is computed.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        standin::load();
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnvrtc.so");
        let built = Command::new("cc")
            .args(["-shared", "-Wl,-soname,libnvrtc.so", "-x", "c", "/dev/null", "-o"])
            .arg(&library)
            .status();
        assert!(built.unwrap().success());
        load(&library);
    });
}

#[allow(unsafe_code, reason = "a library is loaded")]
fn load(library: &Path) {
    // SAFETY: it is empty.
    let loaded = unsafe { libloading::os::unix::Library::new(library) };
    std::mem::forget(loaded.unwrap());
}

/// Images of one color each.
fn source(samples: u32) -> MemorySource {
    let sample = |n: u32| {
        let image = image::RgbImage::from_pixel(8, 8, image::Rgb([n as u8, 255 - n as u8, (n * 7) as u8]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        (bytes.into_inner(), n % 3)
    };
    MemorySource::new(vec!["a".into(), "b".into(), "c".into()], (0..samples).map(sample).collect()).unwrap()
}

fn builder(source: MemorySource) -> feedstock::LoaderBuilder {
    Loader::builder(source)
        .transform(Resize::exact(8, 8))
        .batch_size(5)
        .max_workers(2)
        .ram_budget(ByteCount(1 << 30))
        .dtype(DType::F32)
        .seed(3)
}

fn values<const D: usize>(tensor: &Tensor<Cuda, D>) -> Vec<f32> {
    tensor.clone().into_data().to_vec().unwrap()
}

#[test]
fn tensors_are_the_batches_in_place_as_long_as_they_live() {
    prepare();
    let number = 50;
    let device = cuda_device(number).unwrap();
    let build = |device| builder(source(23)).device(device).batches_held(3).build().unwrap();
    let expected = builder(source(23)).build().unwrap();
    let data: Arc<dyn DataLoader<Cuda, ImageBatch<Cuda>>> =
        Arc::new(BurnLoader::<Cuda>::new(build(device.clone()), BurnDevice::new(number as usize)));
    let before = standin::Standin::shared(number).report();
    for epoch in 0..6 {
        let mut kept: Vec<(Tensor<Cuda, 4>, Vec<f32>)> = Vec::new();
        let mut expected = expected.epoch(epoch);
        for batch in data.iter() {
            let right = expected.next().unwrap().unwrap();
            assert_eq!(batch.images.dims(), right.shape());
            let labels: Vec<i32> = batch.labels.clone().into_data().to_vec().unwrap();
            assert_eq!(labels, right.labels().iter().map(|&label| label as i32).collect::<Vec<_>>());
            assert_eq!(values(&batch.images), right.as_f32().unwrap());
            // The tensor before the last two still has its values.
            kept.push((batch.images, right.as_f32().unwrap().to_vec()));
            if kept.len() > 2 {
                let (images, right) = kept.remove(0);
                assert_eq!(values(&images), right);
            }
        }
        assert!(expected.next().is_none());
    }
    let after = standin::Standin::shared(number).report();
    assert_eq!(after.number("device_allocs_ever"), before.number("device_allocs_ever"), "all memory is burn's");
    standin::Standin::shared(number).assert_lawful();
}

#[test]
fn a_training_backend_gets_the_same_tensors() {
    prepare();
    let number = 51;
    let loader = builder(source(10)).device(cuda_device(number).unwrap()).build().unwrap();
    let right = builder(source(10)).build().unwrap();
    let data = BurnLoader::<Autodiff<Cuda>>::new(loader, BurnDevice::new(number as usize));
    for (batch, right) in data.iter().zip(right.epoch(0)) {
        assert_eq!(values(&batch.images.inner()), right.unwrap().as_f32().unwrap());
    }
    standin::Standin::shared(number).assert_lawful();
}

#[test]
fn a_missing_gpu_is_refused_in_one_line() {
    prepare();
    let error = cuda_device(64).unwrap_err().to_string();
    assert_eq!(error, "there is no cuda:64: the NVIDIA driver finds 64 devices, from cuda:0 on");
}
