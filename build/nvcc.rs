//! The kernels for devices: every `cuda/*.cu` compiled by nvcc for each architecture, and a table of
//! their registers, shared memory and spills.
//!
//! Compiled kernels are kept in `target/kernels` under a hash of everything they depend on, so that
//! they are compiled once for all profiles and features, and again only where a source changed.

use super::queue;
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is compiled: name of the image, and what nvcc is told. PTX of the oldest is there for
/// devices newer than all of these; the driver compiles it when it is loaded.
const TARGETS: [(&str, &str); 3] = [
    ("sm_80", "arch=compute_80,code=[sm_80,compute_80]"),
    ("sm_90a", "arch=compute_90a,code=sm_90a"),
    ("sm_100", "arch=compute_100,code=sm_100"),
];

const FLAGS: [&str; 6] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-Werror=all-warnings",
    "-Xptxas=-v",
    "--compress-mode=size",
];

/// For profilers and checkers: kernels know the lines of their sources.
const LINES: &str = "UMASERVE_KERNEL_LINES";

fn flags() -> Vec<&'static str> {
    let lines = std::env::var_os(LINES).is_some_and(|value| !value.is_empty());
    FLAGS
        .into_iter()
        .chain(lines.then_some("-lineinfo"))
        .collect()
}

/// Compiles what changed, and writes `kernels.rs` to the output directory: `NVCC`, the version of
/// the compiler if there is one, and `IMAGES`, (source, architecture, fatbin).
pub fn compile() -> Result<(), Box<dyn Error>> {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", LINES] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Touched when the compiler from PyPI arrives.
    println!("cargo:rerun-if-changed=tools/nvcc.sh");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let target = target_directory(&out)?;
    let Some((nvcc, version)) = find_nvcc(target) else {
        println!(
            "cargo:warning=no nvcc (NVCC, CUDA_HOME, PATH): built without CUDA kernels; \
             tools/nvcc.sh installs one"
        );
        let code = "pub const NVCC: Option<&str> = None;\n\
                    pub static IMAGES: &[(&str, &str, &[u8])] = &[];\n\
                    pub static RESOURCES: &str = \"\";\n";
        std::fs::write(out.join("kernels.rs"), code)?;
        return Ok(());
    };
    let kept = target.join("kernels");
    std::fs::create_dir_all(&kept)?;
    let mut jobs = Vec::new();
    let mut sources: Vec<PathBuf> = std::fs::read_dir("cuda")?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    for source in &sources {
        let name = source.file_stem().expect("a file").to_string_lossy();
        for (arch, gencode) in TARGETS {
            let mut hasher = DefaultHasher::new();
            (&version, gencode, flags()).hash(&mut hasher);
            for file in dependencies(source)? {
                (&file, std::fs::read(&file)?).hash(&mut hasher);
            }
            jobs.push(Job {
                name: name.to_string(),
                source: source.clone(),
                arch,
                gencode,
                image: kept.join(format!("{name}-{arch}-{:016x}.fatbin", hasher.finish())),
            });
        }
    }
    let missing = jobs
        .iter()
        .filter(|job| !job.image.is_file() || !job.report().is_file());
    queue::run(missing, |job| compile_one(&nvcc, job))?;
    let mut code = format!(
        "pub const NVCC: Option<&str> = Some({version:?});\n\
         pub static IMAGES: &[(&str, &str, &[u8])] = &[\n"
    );
    let mut table = String::from(
        "source        architecture  kernel                                  registers  shared  \
         stack  spill stores  spill loads\n",
    );
    let mut current = BTreeSet::new();
    for job in &jobs {
        // A copy, so that a later build with other sources cannot take it away.
        let image = out.join(format!("{}-{}.fatbin", job.name, job.arch));
        std::fs::copy(&job.image, &image)?;
        let path = image.display().to_string();
        writeln!(
            code,
            "    ({:?}, {:?}, include_bytes!({path:?})),",
            job.name, job.arch
        )?;
        resources(job, &std::fs::read_to_string(job.report())?, &mut table)?;
        current.insert(job.image.clone());
        current.insert(job.report());
    }
    writeln!(code, "];\npub static RESOURCES: &str = {table:?};")?;
    std::fs::write(out.join("kernels.rs"), code)?;
    std::fs::write(kept.join("table.txt"), table)?;
    forget_old(&kept, &current);
    Ok(())
}

/// The target directory that an output directory is in.
pub fn target_directory(out: &Path) -> Result<&Path, Box<dyn Error>> {
    out.ancestors()
        .find(|directory| directory.ends_with("build"))
        .and_then(|build| build.parent()?.parent())
        .ok_or_else(|| "the output directory is not in a target directory".into())
}

/// One source for one architecture.
struct Job {
    name: String,
    source: PathBuf,
    arch: &'static str,
    gencode: &'static str,
    image: PathBuf,
}

impl Job {
    /// What the assembler said.
    fn report(&self) -> PathBuf {
        self.image.with_extension("txt")
    }
}

/// The compiler and its version. `NVCC=none` means that there is to be none.
fn find_nvcc(target: &Path) -> Option<(PathBuf, String)> {
    let said = std::env::var("NVCC").unwrap_or_default();
    if said == "none" {
        return None;
    }
    let mut tried = vec![PathBuf::from(&said)];
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable) {
            tried.push(Path::new(&home).join("bin/nvcc"));
        }
    }
    tried.push("nvcc".into());
    // The wheels that tools/nvcc.sh installs.
    for tools in [Path::new("target/tools"), &target.join("tools")] {
        for python in children(&tools.join("nvcc/lib")) {
            for toolkit in children(&python.join("site-packages/nvidia")) {
                tried.push(toolkit.join("bin/nvcc"));
            }
        }
    }
    tried
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty())
        .find_map(|path| {
            let output = Command::new(&path).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // "Cuda compilation tools, release 13.0, V13.0.88"
            let version = text.split(" V").nth(1)?.split_whitespace().next()?;
            output.status.success().then(|| (path, version.to_owned()))
        })
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// A source with all headers of ours that it includes.
pub fn dependencies(source: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![source.to_owned()];
    while let Some(path) = waiting.pop() {
        if !found.insert(path.clone()) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        for line in text.lines() {
            let included = line.trim().strip_prefix("#include \"");
            if let Some(name) = included.and_then(|rest| rest.split('"').next()) {
                let header = path.parent().unwrap_or(Path::new("")).join(name);
                if header.is_file() {
                    waiting.push(header);
                }
            }
        }
    }
    Ok(found)
}

fn compile_one(nvcc: &Path, job: &Job) -> Result<(), String> {
    let unfinished = job
        .image
        .with_extension(format!("{}.tmp", std::process::id()));
    let failed = |what: String| format!("{} for {}: {what}", job.source.display(), job.arch);
    let output = Command::new(nvcc)
        .args(flags())
        .arg("-gencode")
        .arg(job.gencode)
        .arg("-Icuda")
        .arg("-o")
        .arg(&unfinished)
        .arg(&job.source)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(format!("nvcc failed\n{said}")));
    }
    std::fs::write(job.report(), said.as_bytes()).map_err(|error| failed(error.to_string()))?;
    // Last, so that an image is always whole.
    std::fs::rename(&unfinished, &job.image).map_err(|error| failed(error.to_string()))
}

/// One row per kernel from what `ptxas -v` says.
fn resources(job: &Job, report: &str, table: &mut String) -> std::fmt::Result {
    let mut kernel = String::new();
    let (mut stack, mut stores, mut loads) = (0, 0, 0);
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().unwrap_or("").to_owned();
        } else if line.contains("bytes stack frame") {
            stack = number_before(line, " bytes stack frame");
            stores = number_before(line, " bytes spill stores");
            loads = number_before(line, " bytes spill loads");
        } else if line.contains(" registers") && !kernel.is_empty() {
            writeln!(
                table,
                "{:<12}  {:<12}  {kernel:<38}  {:>9}  {:>6}  {stack:>5}  {stores:>12}  {loads:>11}",
                job.name,
                job.arch,
                number_before(line, " registers"),
                number_before(line, " bytes smem"),
            )?;
            kernel.clear();
        }
    }
    Ok(())
}

fn number_before(line: &str, what: &str) -> u64 {
    let before = line.split(what).next().filter(|b| b.len() < line.len());
    let digits = before.and_then(|b| b.rsplit(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|d| d.parse().ok()).unwrap_or(0)
}

/// Removes images that no source of now has made and that are older than a week.
pub fn forget_old(kept: &Path, current: &BTreeSet<PathBuf>) {
    for path in children(kept) {
        let age = std::fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        let old = age.is_some_and(|age| age.as_secs() > 7 * 24 * 3600);
        if old && !current.contains(&path) && !path.ends_with("table.txt") {
            let _ = std::fs::remove_file(path);
        }
    }
}
