//! Ranks of this process: their devices, backends and process group.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::backend::AutodiffBackend;

use feedstock::device::DeviceSpec;
use feedstock::host::DistributedEnv;
use feedstock::train::{
    Checkpointing, Cpu, CpuBalanced, ProcessGroup, TrainContext, TrainData, TrainError, TrainEvent, train,
};

use super::super::failure::{Failure, chain};
use super::TrainArgs;
use super::setup::Setup;

/// Process group of this process's ranks, and the device of each.
pub(super) fn of(args: &TrainArgs) -> Result<(ProcessGroup, Vec<DeviceSpec>), Failure> {
    let world = DistributedEnv::from_env().map_err(|error| Failure::Usage(chain(&error)))?;
    let devices = match (&args.devices, &args.device, &world) {
        (Some(list), ..) => list.split(',').map(device).collect::<Result<_, _>>()?,
        // One process per GPU: each takes its own.
        (None, DeviceSpec::Auto, Some(world)) if cfg!(feature = "burn-cuda") && world.local_world_size > 1 => {
            vec![DeviceSpec::Cuda(world.local_rank as u32)]
        }
        (None, device, _) => vec![device.clone()],
    };
    let group = ProcessGroup::new(world, devices.len()).map_err(|error| Failure::Usage(chain(&error)))?;
    Ok((group, devices))
}

fn device(name: &str) -> Result<DeviceSpec, Failure> {
    match name.trim().parse::<u32>() {
        Ok(number) => Ok(DeviceSpec::Cuda(number)),
        Err(_) => name.trim().parse().map_err(|error| Failure::Usage(format!("--devices: {error}"))),
    }
}

/// Trains as one rank, on the backend of its setup.
pub(super) fn train_rank(
    setup: &Setup,
    group: &ProcessGroup,
    thread: usize,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(TrainEvent<'_>),
) -> Result<(), TrainError> {
    let balanced = setup.config.checkpointing == Checkpointing::Balanced;
    #[cfg(feature = "burn-cuda")]
    if let Some(number) = setup.place.gpu {
        let device = burn::backend::cuda::CudaDevice::new(number as usize);
        return match balanced {
            true => train_on::<feedstock::train::GpuBalanced>(setup, group, thread, stop, observe, device),
            false => train_on::<feedstock::train::Gpu>(setup, group, thread, stop, observe, device),
        };
    }
    match balanced {
        true => train_on::<CpuBalanced>(setup, group, thread, stop, observe, Default::default()),
        false => train_on::<Cpu>(setup, group, thread, stop, observe, Default::default()),
    }
}

fn train_on<B: AutodiffBackend>(
    setup: &Setup,
    group: &ProcessGroup,
    thread: usize,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(TrainEvent<'_>),
    device: B::Device,
) -> Result<(), TrainError> {
    let communicator = match group.world_size() {
        1 => None,
        _ => Some(group.join(thread).map_err(TrainError::Collective)?),
    };
    let data = TrainData::<B>::from_loaders(setup.training.clone(), setup.validation.clone(), &device);
    // Threads of a process share one heap, so their memory cannot be told apart.
    let meter = (setup.rank_info.threads == 1).then(|| Arc::clone(&setup.meter));
    train(&setup.config, &data, TrainContext { device, meter, communicator }, stop, observe).map(drop)
}
