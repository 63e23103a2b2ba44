//! A backend that computes nothing and counts bytes: the code of a training step, run on it, tells how much memory
//! the step will need. It allocates what burn's flex backend allocates, operation by operation: which tensors share a
//! storage, which are written in place, which workspace a kernel needs.
//!
//! The backend is burn's router with a client that puts every operation into one [`TensorTable`].

mod fused;
mod kernel;
mod meta_tensor;
mod modules;
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

/// Backend of tensors without data. Every value that is read from it is zero.
///
/// Its tensors belong to the [`DryRun`] that they were created in.
pub(super) type MetaBackend = BackendRouter<MetaChannel>;

/// A run on [`MetaBackend`], counted from zero. There is one at a time: others wait until it is dropped, and a second
/// one on the same thread would wait for ever.
pub(super) struct DryRun {
    _only: MutexGuard<'static, ()>,
}

impl DryRun {
    /// Waits for the dry run before, and forgets its tensors.
    pub(super) fn begin() -> DryRun {
        static ONLY: Mutex<()> = Mutex::new(());
        // A dry run that panicked leaves nothing behind that the next one reads.
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        *tensors() = TensorTable::default();
        DryRun { _only: only }
    }

    /// Bytes in use, and their peak.
    #[allow(clippy::unused_self, reason = "there is nothing to read without a dry run")]
    pub(super) fn sample(&self) -> MemorySample {
        let mut table = tensors();
        let counter = table.counter();
        MemorySample { in_use: ByteCount(counter.in_use()), peak: ByteCount(counter.peak()) }
    }

    /// Resets the peak to the bytes in use.
    #[allow(clippy::unused_self, reason = "there is nothing to reset without a dry run")]
    pub(super) fn reset_peak(&self) {
        tensors().counter().reset_peak();
    }
}

fn tensors() -> MutexGuard<'static, TensorTable> {
    static TENSORS: LazyLock<Mutex<TensorTable>> = LazyLock::new(Mutex::default);
    TENSORS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> TensorId {
    // Unique across dry runs: a tensor that is dropped late has the id of no other.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    TensorId::new(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Client that passes the operations on to the table of tensors.
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

/// Channel of burn's router: the device and element types of flex, and the one client.
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

/// Bridge between devices: there is one device only.
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
