//! A backend that computes nothing and keeps count of bytes: the very code of a training step, run on it, tells how
//! much memory the step will need before a byte of it is there. It does to memory what burn's flex backend does,
//! operation by operation: which tensors share a storage, which are written in place, what a kernel needs besides.
//!
//! Owns the backend [`Paper`] and the count of a [`Rehearsal`].
//! It must never hold a number of a tensor, nor know of models, optimizers or data.

mod book;
mod fused;
mod kernel;
mod layers;
mod sheet;

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

use self::book::Book;
use super::memory::Reading;
use crate::ByteCount;

/// The backend without numbers. Whatever is read from it is zero.
///
/// Its tensors belong to the [`Rehearsal`] that they were made in.
pub(super) type Paper = BackendRouter<PaperChannel>;

/// A run on [`Paper`], counted from zero. There is one at a time: others wait for it to be dropped.
///
/// A rehearsal inside another one, on the same thread, would wait for ever.
pub(super) struct Rehearsal {
    _stage: MutexGuard<'static, ()>,
}

impl Rehearsal {
    /// Waits for the rehearsal before, and forgets it.
    pub(super) fn begin() -> Rehearsal {
        static STAGE: Mutex<()> = Mutex::new(());
        // A rehearsal that panicked leaves nothing behind that the next one reads.
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        *book() = Book::default();
        Rehearsal { _stage: stage }
    }

    /// What is in use, and what was at most.
    #[allow(clippy::unused_self, reason = "there is nothing to read without a rehearsal")]
    pub(super) fn reading(&self) -> Reading {
        let mut book = book();
        let meter = book.meter();
        Reading { in_use: ByteCount(meter.in_use()), peak: ByteCount(meter.peak()) }
    }

    /// Starts the peak anew, from what is in use.
    #[allow(clippy::unused_self, reason = "there is nothing to reset without a rehearsal")]
    pub(super) fn reset_peak(&self) {
        book().meter().reset_peak();
    }
}

fn book() -> MutexGuard<'static, Book> {
    static BOOK: LazyLock<Mutex<Book>> = LazyLock::new(Mutex::default);
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> TensorId {
    // Unique across rehearsals: what is dropped late is nobody else's.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    TensorId::new(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where operations on [`Paper`] go: to the one book.
#[derive(Clone, Debug)]
pub(in crate::train) struct PaperClient;

impl RunnerClient for PaperClient {
    type Device = FlexDevice;

    fn register_op(&self, op: OperationIr) {
        book().register(op);
    }

    fn read_tensor_async(
        &self,
        tensor: TensorIr,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>> + Send>> {
        book().read(&tensor);
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
        book().write(id, shape.clone(), dtype);
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

/// What makes [`Paper`] of burn's router: flex's device and kinds of numbers, and the one client.
#[derive(Clone, Debug)]
pub(in crate::train) struct PaperChannel;

impl RunnerChannel for PaperChannel {
    type Device = FlexDevice;
    type Bridge = PaperBridge;
    type Client = PaperClient;
    type FloatElem = f32;
    type IntElem = i32;
    type BoolElem = bool;

    fn name(_device: &FlexDevice) -> String {
        "paper".to_owned()
    }

    fn init_client(_device: &FlexDevice) -> PaperClient {
        PaperClient
    }

    fn get_tensor_handle(tensor: &TensorIr, _client: &PaperClient) -> TensorHandle<PaperBridge> {
        tensor.id
    }

    fn register_tensor(client: &PaperClient, id: TensorId, shape: Shape, dtype: DType) -> RouterTensor<PaperClient> {
        RouterTensor::new(id, shape, dtype, client.clone())
    }
}

/// There is one device, so nothing has to cross.
#[derive(Debug)]
pub(in crate::train) struct PaperBridge;

impl MultiBackendBridge for PaperBridge {
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
