//! The kernels for the host: `cuda/*.cu` as C++ over `cuda/host/shim.h`, and a table of the layout
//! of all parameter structures, for the test that compares it with the Rust side.
//!
//! Objects are kept in `target/host-kernels` under a hash of everything they depend on, as the images
//! for devices are.

use super::{nvcc, queue};
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Compiles a static library and links it.
pub fn compile() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let layouts = out.join("layouts.cc");
    std::fs::write(&layouts, layout_table(Path::new("cuda"))?)?;
    let mut sources = vec![
        PathBuf::from("cuda/host/shim.cc"),
        // Only tests launch these.
        PathBuf::from("cuda/host/check.cu"),
        layouts,
    ];
    sources.extend(files(Path::new("cuda"), "cu")?);
    let kept = nvcc::target_directory(&out)?.join("host-kernels");
    let objects = objects(&sources, &kept)?;
    let mut library = cc::Build::new();
    library.cpp(true).objects(&objects);
    // Kernels are found by name, so that nothing refers to them.
    library.link_lib_modifier("+whole-archive");
    library.try_compile("umaserve_host_kernels")?;
    Ok(())
}

/// How every source is compiled.
fn build() -> Result<cc::Build, Box<dyn Error>> {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("gnu++17")
        .opt_level(2)
        .include("cuda")
        .warnings(true)
        .extra_warnings(true)
        // Fused multiply-adds where the source says so, as in the device build.
        .flag("-ffp-contract=off")
        // `#pragma unroll` is for the device.
        .flag("-Wno-unknown-pragmas")
        // Every kernel has its parameters, whether it reads them or not.
        .flag("-Wno-unused-parameter")
        .flag("-fno-strict-aliasing");
    // .cu means nothing to a C++ compiler; with this flag everything is C++.
    build.flag("-xc++");
    // The library serves the tests on this machine: its fused multiply-adds should be instructions.
    #[cfg(target_arch = "x86_64")]
    if std::env::var("HOST")? == std::env::var("TARGET")?
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("f16c")
    {
        build.flag("-mavx2").flag("-mfma").flag("-mf16c");
    }
    Ok(build)
}

/// The object of every source, compiled where it is not there already.
fn objects(sources: &[PathBuf], kept: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut wanted = Vec::new();
    let compiler = build()?.get_compiler();
    for source in sources {
        let mut hasher = DefaultHasher::new();
        // Not the environment of the command, which tells the profile that cargo builds.
        (compiler.path(), compiler.args()).hash(&mut hasher);
        for file in nvcc::dependencies(source)? {
            (file.file_name(), std::fs::read(&file)?).hash(&mut hasher);
        }
        let name = source.file_stem().expect("a file").to_string_lossy();
        let object = kept.join(format!("{name}-host-{:016x}.o", hasher.finish()));
        wanted.push((source.clone(), object));
    }
    std::fs::create_dir_all(kept)?;
    let missing = wanted.iter().filter(|(_, object)| !object.is_file());
    queue::run(missing, |(source, object)| {
        compile_one(source, object).map_err(|error| format!("{}: {error}", source.display()))
    })?;
    let objects: Vec<PathBuf> = wanted.into_iter().map(|(_, object)| object).collect();
    nvcc::forget_old(kept, &objects.iter().cloned().collect::<BTreeSet<_>>());
    Ok(objects)
}

fn compile_one(source: &Path, object: &Path) -> Result<(), Box<dyn Error>> {
    let own = object.with_extension(format!("{}.tmp", std::process::id()));
    let made = build()?
        .file(source)
        .out_dir(&own)
        .try_compile_intermediates()?;
    // Last, so that an object is always whole.
    std::fs::rename(&made[0], object)?;
    std::fs::remove_dir_all(&own)?;
    Ok(())
}

/// Files of a directory with this extension, sorted.
fn files(directory: &Path, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// C++ that tells name, offset and size of every field of the structures in the headers of
/// `directory`.
fn layout_table(directory: &Path) -> Result<String, Box<dyn Error>> {
    let mut code = String::from("// Made by build.rs.\n#include <stddef.h>\n");
    let mut rows = String::new();
    for header in files(directory, "h")? {
        let text = std::fs::read_to_string(&header)?;
        let name = header.file_name().expect("a file").to_string_lossy();
        writeln!(code, "#include \"{name}\"")?;
        for (structure, fields) in structures(&text) {
            for field in fields {
                writeln!(
                    rows,
                    "    {{\"{structure}\", \"{field}\", offsetof({structure}, {field}), \
                     sizeof({structure}::{field}), sizeof({structure})}},"
                )?;
            }
        }
    }
    code.push_str(
        "struct Row { const char* structure; const char* field; size_t offset, size, whole; };\n\
         static const Row ROWS[] = {\n",
    );
    code.push_str(&rows);
    code.push_str(
        "};\nextern \"C\" size_t umaserve_host_layout(const Row** rows) {\n    *rows = ROWS;\n    \
         return sizeof ROWS / sizeof ROWS[0];\n}\n",
    );
    Ok(code)
}

/// Structures and their fields, from lines `struct NAME {`, `TYPE NAME;` or `TYPE NAME[N];`, `};`.
fn structures(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("").trim();
        if let Some(name) = line
            .strip_prefix("struct ")
            .and_then(|rest| rest.strip_suffix('{'))
        {
            found.push((name.trim().to_owned(), Vec::new()));
            inside = true;
        } else if line.starts_with("};") {
            inside = false;
        } else if inside && let Some(declaration) = line.strip_suffix(';') {
            let mut names = declaration.split(',');
            let first = names.next().unwrap_or("");
            let first = first.rsplit([' ', '*', '&']).next().unwrap_or("");
            for name in std::iter::once(first).chain(names) {
                let name = name.trim().split('[').next().unwrap_or("").trim();
                let (_, fields) = found.last_mut().expect("inside a structure");
                fields.push(name.to_owned());
            }
        }
    }
    found
}
