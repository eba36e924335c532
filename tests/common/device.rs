//! The device that tests of the CUDA backend run on: the kernels compiled for the host, or with
//! `UMASERVE_TEST_GPU=1` the first GPU of this machine, without which they fail then.

use std::sync::{Arc, OnceLock};
use umaserve::backend::cuda::CudaError;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::driver::DriverDevice;
use umaserve::backend::cuda::host::{HostDevice, ThreadOrder};

/// Opened once: closing it would take the context from other tests.
static GPU: OnceLock<Arc<DriverDevice>> = OnceLock::new();

/// A device that works.
pub fn device() -> Arc<dyn Device> {
    device_with(ThreadOrder::Ascending)
}

/// The same; on the host, the threads of a block run in this order.
pub fn device_with(order: ThreadOrder) -> Arc<dyn Device> {
    if std::env::var_os("UMASERVE_TEST_GPU").is_none_or(|value| value.is_empty()) {
        return Arc::new(HostDevice::new(order));
    }
    let open = || Arc::new(DriverDevice::open(0).unwrap_or_else(|error| panic!("{error}")));
    let gpu: Arc<dyn Device> = GPU.get_or_init(open).clone();
    if gpu.unhealthy().is_some() {
        gpu.recreate().unwrap();
    }
    gpu
}

/// What a GPU says after a kernel that wrote where it should not: the context is lost.
pub fn illegal_address() -> CudaError {
    CudaError::Driver {
        call: "cuStreamSynchronize (the last kernel launched was a graph)".into(),
        name: "CUDA_ERROR_ILLEGAL_ADDRESS".into(),
        text: "an illegal memory access was encountered".into(),
        sticky: true,
    }
}
