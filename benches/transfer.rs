//! Transfer of one batch on devices that need no GPU: the CPU, which converts it in the call, and the simulated one,
//! which converts on its copy stream. 64 samples of 224x224, pages touched, one after another.
#![allow(missing_docs, clippy::expect_used, reason = "a bench has no users, and a failure ends it")]

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use feedstock::device::{Device, DeviceSpec, Event, Transfer, open};
use feedstock::tensor::{DType, Layout, OutputFormat, SampleSpec};
use feedstock::transform::IMAGENET;

const SAMPLES: usize = 64;
const SPEC: SampleSpec = SampleSpec { height: 224, width: 224 };

fn transfers(c: &mut Criterion) {
    let mut group = c.benchmark_group("transfer 64 samples of 224x224");
    group.throughput(Throughput::Elements(SAMPLES as u64)).sample_size(30);
    let formats = [
        (DType::U8, Layout::Nchw),
        (DType::F32, Layout::Nchw),
        (DType::F32, Layout::Nhwc),
        (DType::Bf16, Layout::Nchw),
    ];
    for name in ["cpu", "sim:h2d=25GB/s"] {
        let device: Arc<dyn Device> = open(&name.parse::<DeviceSpec>().expect("a device")).expect("it opens");
        for (dtype, layout) in formats {
            let normalize = (dtype != DType::U8).then_some(IMAGENET);
            let format = OutputFormat { dtype, layout, normalize };
            let bytes = SAMPLES * SPEC.size_bytes(DType::U8);
            let mut slot = device.host_memory(bytes).expect("memory");
            slot.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
            let slot = Arc::new(slot);
            let mut to = device.memory(SAMPLES * SPEC.size_bytes(dtype), bytes).expect("memory");
            group.bench_function(format!("{name}, {dtype} {layout}"), |b| {
                b.iter_batched(
                    || slot.clone(),
                    |from| {
                        let (to, after) = (&mut to, Event::done());
                        let transfer = Transfer { from, samples: SAMPLES, spec: SPEC, format, to, after };
                        device.enqueue_batch(transfer).expect("enqueued").ready.wait().expect("ready");
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, transfers);
criterion_main!(benches);
