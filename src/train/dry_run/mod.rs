//! A backend that computes nothing and keeps count of bytes: the very code of a training step, run on it, tells how
//! much memory the step will need before a byte of it is there. It does to memory what burn's flex backend does,
//! operation by operation: which tensors share a storage, which are written in place, what a kernel needs besides.
//!
//! Owns the backend [`MetaBackend`] and the count of a [`DryRun`].
//! It must never hold a number of a tensor, nor know of models, optimizers or data.

mod fused;
mod kernel;
mod layers;
mod meta_tensor;
mod tensors;

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use burn::backend::ir::{OperationIr, TensorId, TensorIr};
use burn::backend::router::{
    BackendRouter, MultiBackendBridge, RouterTensor, RunnerChannel, RunnerClient, TensorHandle,
};
use burn::tensor::backend::{DTypeUsageSet, ExecutionError};
use burn::tensor::{DType, Shape, TensorData};
use burn_flex::FlexDevice;

use self::tensors::TensorTable;
use super::memory::MemorySample;
use crate::ByteCount;

/// The backend without numbers. Whatever is read from it is zero.
///
/// Its tensors belong to the [`DryRun`] that they were made in.
pub(super) type MetaBackend = BackendRouter<MetaChannel>;

/// A run on [`MetaBackend`], counted from zero. There is one at a time: others wait for it to be dropped.
///
/// A dry_run inside another one, on the same thread, would wait for ever.
pub(super) struct DryRun {
    _stage: MutexGuard<'static, ()>,
}

impl DryRun {
    /// Waits for the dry_run before, and forgets it.
    pub(super) fn begin() -> DryRun {
        static STAGE: Mutex<()> = Mutex::new(());
        // A dry_run that panicked leaves nothing behind that the next one reads.
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        *tensors() = TensorTable::default();
        DryRun { _stage: stage }
    }

    /// What is in use, and what was at most.
    #[allow(clippy::unused_self, reason = "there is nothing to read without a dry_run")]
    pub(super) fn reading(&self) -> MemorySample {
        let mut table = tensors();
        let counter = table.counter();
        MemorySample { in_use: ByteCount(counter.in_use()), peak: ByteCount(counter.peak()) }
    }

    /// Starts the peak anew, from what is in use.
    #[allow(clippy::unused_self, reason = "there is nothing to reset without a dry_run")]
    pub(super) fn reset_peak(&self) {
        tensors().counter().reset_peak();
    }
}

fn tensors() -> MutexGuard<'static, TensorTable> {
    static TENSORS: LazyLock<Mutex<TensorTable>> = LazyLock::new(Mutex::default);
    TENSORS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> TensorId {
    // Unique across dry runs: what is dropped late is nobody else's.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    TensorId::new(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where operations on [`MetaBackend`] go: to the one book.
#[derive(Clone, Debug)]
pub(in crate::train) struct MetaClient;

impl RunnerClient for MetaClient {
    type Device = FlexDevice;

    fn register_op(&self, op: OperationIr) {
        tensors().register(op);
    }

    fn read_tensor_async(
        &self,
        tensor: TensorIr,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>> + Send>> {
        tensors().read(&tensor);
        let zeros = vec![0; tensor.shape.num_elements() * tensor.dtype.size()];
        Box::pin(ready(Ok(TensorData::from_bytes_vec(zeros, tensor.shape, tensor.dtype))))
    }

    fn sync(&self) -> Result<(), ExecutionError> {
        Ok(())
    }

    fn create_empty_handle(&self) -> TensorId {
        new_id()
    }

    fn register_tensor_data(&self, data: TensorData) -> RouterTensor<Self> {
        let (id, shape, dtype) = (new_id(), data.shape, data.dtype);
        tensors().write(id, shape.clone(), dtype);
        RouterTensor::new(id, shape, dtype, self.clone())
    }

    fn device(&self) -> FlexDevice {
        FlexDevice
    }

    fn seed(&self, _seed: u64) {}

    fn dtype_usage(&self, dtype: DType) -> DTypeUsageSet {
        <burn_flex::Flex as burn::tensor::backend::Backend>::dtype_usage(&FlexDevice, dtype)
    }
}

/// What makes [`MetaBackend`] of burn's router: flex's device and kinds of numbers, and the one client.
#[derive(Clone, Debug)]
pub(in crate::train) struct MetaChannel;

impl RunnerChannel for MetaChannel {
    type Device = FlexDevice;
    type Bridge = MetaBridge;
    type Client = MetaClient;
    type FloatElem = f32;
    type IntElem = i32;
    type BoolElem = bool;

    fn name(_device: &FlexDevice) -> String {
        "meta".to_owned()
    }

    fn init_client(_device: &FlexDevice) -> MetaClient {
        MetaClient
    }

    fn get_tensor_handle(tensor: &TensorIr, _client: &MetaClient) -> TensorHandle<MetaBridge> {
        tensor.id
    }

    fn register_tensor(client: &MetaClient, id: TensorId, shape: Shape, dtype: DType) -> RouterTensor<MetaClient> {
        RouterTensor::new(id, shape, dtype, client.clone())
    }
}

/// There is one device, so nothing has to cross.
#[derive(Debug)]
pub(in crate::train) struct MetaBridge;

impl MultiBackendBridge for MetaBridge {
    type TensorHandle = TensorId;
    type Device = FlexDevice;

    fn change_backend_float(tensor: TensorId, _shape: Shape, _device: &FlexDevice) -> TensorId {
        tensor
    }

    fn change_backend_int(tensor: TensorId, _shape: Shape, _device: &FlexDevice) -> TensorId {
        tensor
    }

    fn change_backend_bool(tensor: TensorId, _shape: Shape, _device: &FlexDevice) -> TensorId {
        tensor
    }
}

#[cfg(test)]
mod tests;
