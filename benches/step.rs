//! Time of one energy + forces + stress evaluation, beside the machine's own matrix-product peak.
//!
//! ```text
//! cargo bench --bench step -- models/nano-1p2.pt --system water --atoms 24,81 --runs 7
//! ```
//! `tools/reference/bench_ratio.py` runs it beside fairchem on the same structures (`--file`). The
//! atoms move a little before every evaluation, as in molecular dynamics.

use clap::Parser;
use std::f64::consts::{PI, TAU};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use umaserve::neighbors::neighbor_list;
use umaserve::potential::uma::{Checkpoint, Precision, UmaOptions, UmaPotential, network};
use umaserve::potential::{Potential, evaluate};
use umaserve::structure_file::read_frames;
use umaserve::system::{Cell, System};

#[derive(Parser)]
struct Arguments {
    /// Checkpoint.
    #[arg(default_value = "models/nano-1p2.pt")]
    model: PathBuf,
    /// Structures to time (extended XYZ, every frame with `task=`) instead of built ones.
    #[arg(long)]
    file: Option<PathBuf>,
    /// water, silicon or copper.
    #[arg(long, default_value = "water")]
    system: String,
    /// Sizes.
    #[arg(long, value_delimiter = ',', default_value = "24,81,192")]
    atoms: Vec<usize>,
    /// Timed evaluations.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Number type.
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A reproducible sequence in [0, 1): the bench needs no statistics, only variety.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn water(atoms: usize, random: &mut Sequence) -> System {
    let molecules = (atoms / 3).max(1);
    let side = (molecules as f64).cbrt().ceil() as usize;
    let a = 3.104;
    let mut system = System {
        task: "omc".into(),
        ..System::default()
    };
    let height = if molecules == side.pow(3) {
        a * side as f64 * molecules as f64 / side.pow(3) as f64
    } else {
        side as f64 * a
    };
    system.cell = Cell {
        vectors: [
            [side as f64 * a, 0.0, 0.0],
            [0.0, side as f64 * a, 0.0],
            [0.0, 0.0, height],
        ],
        periodic: [true; 3],
    };
    for i in 0..molecules {
        let origin = [i / (side * side), i / side % side, i % side].map(|k| k as f64 * a);
        let (t, p) = (random.next() * PI, random.next() * TAU);
        let e = [t.sin() * p.cos(), t.sin() * p.sin(), t.cos()];
        let f = [t.cos() * p.cos(), t.cos() * p.sin(), -t.sin()];
        for (z, along, across) in [(8, 0.0, 0.0), (1, 0.596, 0.763), (1, 0.596, -0.763)] {
            system.numbers.push(z);
            system.positions.push(std::array::from_fn(|k| {
                origin[k] + along * e[k] + across * f[k]
            }));
        }
    }
    system
}

fn crystal(number: u8, a: f64, basis: &[[f64; 3]], atoms: usize) -> System {
    let m = ((atoms as f64 / basis.len() as f64).cbrt().round() as usize).max(1);
    let mut system = System {
        task: "omat".into(),
        ..System::default()
    };
    let side = a * m as f64;
    system.cell = Cell {
        vectors: [[side, 0.0, 0.0], [0.0, side, 0.0], [0.0, 0.0, side]],
        periodic: [true; 3],
    };
    for i in 0..m * m * m {
        let cell = [i / (m * m), i / m % m, i % m];
        for b in basis {
            system.numbers.push(number);
            system
                .positions
                .push(std::array::from_fn(|k| a * (cell[k] as f64 + b[k])));
        }
    }
    system
}

const FCC: [[f64; 3]; 4] = [
    [0.0, 0.0, 0.0],
    [0.0, 0.5, 0.5],
    [0.5, 0.0, 0.5],
    [0.5, 0.5, 0.0],
];

fn structure(name: &str, atoms: usize, random: &mut Sequence) -> System {
    match name {
        "water" => water(atoms, random),
        "copper" => crystal(29, 3.61, &FCC, atoms),
        "silicon" => {
            let mut basis = FCC.to_vec();
            basis.extend(FCC.map(|p| p.map(|x| x + 0.25)));
            crystal(14, 5.43, &basis, atoms)
        }
        other => panic!("--system {other}: water, silicon and copper are known"),
    }
}

fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|l| l.starts_with("VmHWM"))
        .unwrap_or("VmHWM: 0 kB");
    line.split_whitespace()
        .nth(1)
        .and_then(|x| x.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

/// Time that the cores have spent on this process so far, s: what other programs take does not count.
/// Zero where the system does not tell.
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    1e-9 * nanoseconds.sum::<f64>()
}

/// Peak of large single-precision matrix products on all threads, FLOP/s.
fn sgemm_peak(threads: usize) -> f64 {
    let n = 1024;
    let best = (0..6)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let (a, b) = (vec![0.5f32; n * n], vec![0.25f32; n * n]);
                        let mut c = vec![0.0f32; n * n];
                        for _ in 0..8 {
                            // SAFETY: three n x n row-major matrices.
                            unsafe {
                                gemm::gemm(
                                    n,
                                    n,
                                    n,
                                    c.as_mut_ptr(),
                                    1,
                                    n as isize,
                                    false,
                                    a.as_ptr(),
                                    1,
                                    n as isize,
                                    b.as_ptr(),
                                    1,
                                    n as isize,
                                    0.0,
                                    1.0,
                                    false,
                                    false,
                                    false,
                                    gemm::Parallelism::None,
                                );
                            }
                        }
                        std::hint::black_box(c[0]);
                    });
                }
            });
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (n * n * n * 8 * threads) as f64 / best
}

fn main() {
    let arguments = Arguments::parse();
    let threads = arguments
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .unwrap();
    let precision = match arguments.precision.as_str() {
        "f32" => Precision::F32,
        "f64" => Precision::F64,
        other => panic!("--precision {other}: f32 or f64"),
    };
    // Before the network is made: that tells the library not to copy operands, which is right for
    // weights laid out in advance and wrong for plain matrices.
    let peak = sgemm_peak(threads);
    println!("sgemm peak {:.0} GFLOP/s on {threads} threads", peak / 1e9);
    let start = Instant::now();
    let checkpoint = Arc::new(Checkpoint::open(&arguments.model).unwrap());
    let program = network::program(&checkpoint.config);
    let (per_edge, per_atom) = program.cost();
    let potential = UmaPotential::on_cpu(
        checkpoint,
        UmaOptions {
            precision,
            ..Default::default()
        },
    )
    .unwrap();
    println!(
        "loaded in {:.2} s, {:.0} MiB",
        start.elapsed().as_secs_f64(),
        peak_mib()
    );

    let structures: Vec<System> = match &arguments.file {
        Some(path) => {
            let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
            read_frames(file, path.display().to_string(), 100_000)
                .map(|frame| frame.unwrap().system)
                .collect()
        }
        None => {
            let sizes = arguments.atoms.iter();
            sizes
                .map(|&atoms| structure(&arguments.system, atoms, &mut Sequence(atoms as u64)))
                .collect()
        }
    };
    for mut system in structures {
        let mut random = Sequence(system.len() as u64);
        let list =
            neighbor_list(&system, potential.cutoff_angstrom(), 300, usize::MAX >> 8).unwrap();
        let mut times = Vec::new();
        let mut cpu_times = Vec::new();
        let mut first = 0.0;
        for run in 0..arguments.runs + 3 {
            for x in system.positions.iter_mut().flatten() {
                *x += 0.01 * (random.next() - 0.5);
            }
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            let answer = evaluate(&potential, &[&system], usize::MAX >> 8);
            let ms = 1e3 * start.elapsed().as_secs_f64();
            let cpu_ms = 1e3 * (cpu_seconds() - cpu_start);
            answer[0].as_ref().unwrap();
            if run == 0 {
                first = ms;
            }
            if run >= 3 {
                times.push(ms);
                cpu_times.push(cpu_ms);
            }
        }
        times.sort_by(f64::total_cmp);
        cpu_times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        // Forward and backward: every product once for values and once for gradients. Complex
        // products count as four real ones, so that shares compare between implementations.
        let flop = 4.0 * (per_edge * list.len() as u64 + per_atom * system.len() as u64) as f64;
        println!(
            "umaserve cpu {} {} atoms={} edges={} median_ms={median:.2} best_ms={:.2} \
             cpu_ms={:.2} best_cpu_ms={:.2} first_ms={first:.1} edges_per_s={:.0} share_of_peak={:.2} peak_GiB={:.2}",
            arguments.precision,
            arguments.system,
            system.len(),
            list.len(),
            times[0],
            cpu_times[cpu_times.len() / 2],
            cpu_times[0],
            1e3 * list.len() as f64 / median,
            flop / median * 1e3 / peak,
            peak_mib() / 1024.0,
        );
    }
}
