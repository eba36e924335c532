//! What can go wrong with a CUDA device.

/// An error of the device, its driver or a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No CUDA on this machine, or none that this build can use. In words for the user.
    #[error("{0}")]
    Unavailable(String),
    /// A call of the driver failed.
    #[error("{call}: {name} ({text})")]
    Driver {
        /// What was called, with the kernel if one was launched.
        call: String,
        /// CUDA's name of the error, `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// CUDA's sentence about it.
        text: String,
        /// Whether the context is lost: every further call gives the same error until it is made
        /// anew.
        sticky: bool,
    },
    /// An allocation that the device has no room for.
    #[error(
        "the device has no room for {} MiB: {} of {} MiB are free",
        needed >> 20, free >> 20, total >> 20
    )]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// A kernel that ran on the host broke a rule: a barrier that not all threads reach, a write
    /// outside its memory, an assertion.
    #[error("kernel {kernel}: {reason}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// Which rule, where.
        reason: String,
    },
    /// A call that cannot be right: a range outside an allocation, parameters of the wrong size.
    #[error("{0}")]
    Invalid(String),
    /// The program or the checkpoint asks for what the kernels cannot do.
    #[error("not on CUDA: {0}")]
    Unsupported(String),
}

impl CudaError {
    /// Whether the device is of no use until its context is made anew.
    pub fn is_sticky(&self) -> bool {
        matches!(self, CudaError::Driver { sticky: true, .. })
    }
}
