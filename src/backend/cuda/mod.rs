//! The CUDA backend.

pub mod device;
pub mod error;
#[cfg(feature = "host-kernels")]
pub mod host;
pub mod images;
pub mod params;

pub use error::CudaError;
