//! Generates the wire types from `proto/session.proto` (with a protobuf compiler written in
//! Rust, so that no `protoc` is needed) and stamps the build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/session.proto");
    let descriptors = protox::compile(["proto/session.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
