//! Generates the wire types from `proto/session.proto` (with a protobuf compiler written in
//! Rust, so that no `protoc` is needed), and compiles the kernels of `cuda/`: with nvcc where there is
//! one, and for the host with feature `host-kernels`.

#[cfg(feature = "host-kernels")]
#[path = "build/host.rs"]
mod host;

#[path = "build/nvcc.rs"]
mod nvcc;

#[path = "build/queue.rs"]
mod queue;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/session.proto");
    // The page (`make page`) is embedded if it has been built. Without it the directory of its sources
    // is watched: a change there is the page being built for the first time.
    let page = std::path::Path::new("viewer/dist");
    let watched = if page.exists() {
        "viewer/dist"
    } else {
        "viewer"
    };
    println!("cargo:rerun-if-changed={watched}");
    let descriptors = protox::compile(["proto/session.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=cuda");
    nvcc::compile()?;
    #[cfg(feature = "host-kernels")]
    host::compile()?;
    Ok(())
}
