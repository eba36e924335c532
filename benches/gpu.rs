//! Time of one evaluation on a CUDA device, positions in, energy, forces and virial out, and the
//! energy conservation of long runs.
//!
//! ```text
//! cargo bench --bench gpu -- --precision tf32,f16,f32
//! cargo bench --bench gpu -- --model uma-s-1p2p1.pt --cases si-1000
//! cargo bench --bench gpu -- --model models/demo.pt --nve 10000 --nve-case ethanol
//! ```
//! Without `--model` the network has the sizes of uma-s-1p2p1 and random weights: the time does not
//! depend on their values. The atoms move a little before every evaluation, as in molecular
//! dynamics. Medians; the neighbour search is part of the time.

#[path = "gpu/predict.rs"]
mod predict;

use clap::Parser;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use umaserve::backend::cuda::device::{Device, DeviceInfo};
use umaserve::backend::cuda::driver::DriverDevice;
use umaserve::backend::cuda::{self, CudaBackend};
use umaserve::backend::{Backend, Conditioning, PositionedSystem, WeightData, WeightSource};
use umaserve::dynamics::{
    Method, State, begin_step, end_step, kinetic_energy, maxwell_boltzmann, stop_centre_of_mass,
};
use umaserve::neighbors::neighbor_list;
use umaserve::nn::{Program, WeightKind};
use umaserve::potential::evaluate;
use umaserve::potential::uma::{
    Checkpoint, Precision, UmaConfig, UmaOptions, UmaPotential, network,
};
use umaserve::structure_file::{Extra, write_frame};
use umaserve::system::{Cell, System};

#[derive(Parser)]
struct Arguments {
    /// Checkpoint; random weights of uma-s-1p2p1's sizes without.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Number types, each a table; with --nve also f64, on the CPU.
    #[arg(long, value_delimiter = ',', default_value = "tf32,f16,f32")]
    precision: Vec<String>,
    /// si-1000, cu-1000, cu-864, si-150, si-216, si-32768, molecules-25, ethanol, water, molecules-64,
    /// largest.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "si-1000,cu-1000,si-150,molecules-25,ethanol,molecules-64"
    )]
    cases: Vec<String>,
    /// Timed evaluations of each case.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Writes the structures of the cases into this folder, CASE.xyz each, for tools/gpu/peer.py, and needs no
    /// device.
    #[arg(long)]
    write_cases: Option<PathBuf>,
    /// Steps at constant energy instead of the table; needs --model.
    #[arg(long)]
    nve: Option<usize>,
    /// What moves then: si-128, or one of --cases.
    #[arg(long, default_value = "si-128")]
    nve_case: String,
    /// The length of its steps, fs.
    #[arg(long, default_value_t = 1.0)]
    nve_timestep: f64,
    /// Prints what the table should be at best by counting products and bytes, for an H100, and needs
    /// no device.
    #[arg(long)]
    predict: bool,
    /// Runs the kernels on the host (feature host-kernels), to try the bench itself: its times mean
    /// nothing.
    #[arg(long)]
    emulated: bool,
    /// Which CUDA device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Most memory for the evaluation of a batch, MiB; 70 % of what is free without.
    #[arg(long)]
    memory_mib: Option<usize>,
    /// Evaluate with as many edges at a time.
    #[arg(long)]
    chunk_edges: Option<usize>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A reproducible sequence in [0, 1): the bench needs no statistics, only variety.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

// --- structures ------------------------------------------------------------------------------------

/// Cells along each axis of a lattice with these primitive vectors.
fn crystal(number: u8, vectors: [[f64; 3]; 3], basis: &[[f64; 3]], n: [usize; 3]) -> System {
    let mut system = System {
        task: "omat".into(),
        cell: Cell {
            vectors: std::array::from_fn(|j| vectors[j].map(|x| x * n[j] as f64)),
            periodic: [true; 3],
        },
        ..System::default()
    };
    for i in 0..n[0] * n[1] * n[2] {
        let cell = [i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]];
        for b in basis {
            system.numbers.push(number);
            system.positions.push(std::array::from_fn(|k| {
                (0..3)
                    .map(|j| (cell[j] as f64 + b[j]) * vectors[j][k])
                    .sum()
            }));
        }
    }
    system
}

fn primitive(a: f64) -> [[f64; 3]; 3] {
    let h = a / 2.0;
    [[0.0, h, h], [h, 0.0, h], [h, h, 0.0]]
}

/// Diamond-structure silicon.
fn silicon(n: [usize; 3]) -> System {
    crystal(14, primitive(5.43), &[[0.0; 3], [0.25; 3]], n)
}

/// Face-centred cubic copper.
fn copper(n: [usize; 3]) -> System {
    crystal(29, primitive(3.61), &[[0.0; 3]], n)
}

/// A folded chain of `carbons` CH2 groups with ends, and `oxygens` of them replaced by oxygen: as
/// dense as a drug-like molecule, every number of groups another composition.
fn chain(carbons: usize, oxygens: usize) -> System {
    let mut system = System {
        task: "omol".into(),
        spin: 1,
        ..System::default()
    };
    let groups = carbons + oxygens;
    // Rows of six groups, one row above the other, to and fro.
    let place = |i: usize| {
        let (row, at) = (i / 6, i % 6);
        let along = if row % 2 == 0 { at } else { 5 - at };
        let (layer, row) = (
            row / 3,
            if row / 3 % 2 == 0 {
                row % 3
            } else {
                2 - row % 3
            },
        );
        [
            1.27 * along as f64,
            2.9 * row as f64 + 0.43 * (i % 2) as f64 * 2.0,
            3.4 * layer as f64,
        ]
    };
    for i in 0..groups {
        let at = place(i);
        let oxygen = i % 5 == 2 && i / 5 < oxygens;
        system.numbers.push(if oxygen { 8 } else { 6 });
        system.positions.push(at);
        let mut hydrogens = if oxygen { vec![] } else { vec![0.89, -0.89] };
        if i == 0 || i + 1 == groups {
            hydrogens.push(0.0);
        }
        for z in hydrogens {
            let y = if i % 2 == 0 { -0.63 } else { 0.63 };
            let x = if z == 0.0 { -1.0 } else { 0.0 };
            system.numbers.push(1);
            system.positions.push([at[0] + x, at[1] + y, at[2] + z]);
        }
    }
    system
}

/// 25 molecules of 25 compositions, 1,446 atoms in all.
fn molecules_25() -> Vec<System> {
    let mut systems: Vec<System> = (7..=30).map(|carbons| chain(carbons, 0)).collect();
    systems.push(chain(21, 1));
    systems
}

fn ethanol() -> System {
    System {
        numbers: vec![6, 6, 8, 1, 1, 1, 1, 1, 1],
        positions: vec![
            [1.168, -0.404, 0.0],
            [0.0, 0.553, 0.0],
            [-1.188, -0.213, 0.0],
            [-1.903, 0.413, 0.0],
            [2.11, 0.146, 0.0],
            [1.132, -1.042, 0.886],
            [1.132, -1.042, -0.886],
            [0.031, 1.199, 0.885],
            [0.031, 1.199, -0.885],
        ],
        task: "omol".into(),
        spin: 1,
        ..System::default()
    }
}

/// The smallest molecule that moves in all ways that molecules do.
fn water() -> System {
    System {
        numbers: vec![8, 1, 1],
        positions: vec![[0.0, 0.0, 0.0], [0.957, 0.0, 0.0], [-0.24, 0.927, 0.0]],
        task: "omol".into(),
        spin: 1,
        ..System::default()
    }
}

fn case(name: &str) -> Vec<System> {
    match name {
        "si-1000" => vec![silicon([10, 10, 5])],
        "cu-1000" => vec![copper([10, 10, 10])],
        "cu-864" => vec![copper([12, 9, 8])],
        "si-128" => vec![silicon([4, 4, 4])],
        "si-150" => vec![silicon([5, 5, 3])],
        "si-216" => vec![silicon([6, 6, 3])],
        "si-32768" => vec![silicon([32, 32, 16])],
        "molecules-25" => molecules_25(),
        "molecules-64" => (0..64).map(|i| chain(10 + i % 13, i % 3)).collect(),
        "ethanol" => vec![ethanol()],
        "water" => vec![water()],
        other => panic!("--cases {other}: see --help"),
    }
}

// --- what is timed ---------------------------------------------------------------------------------

/// Random weights, in f32, made in parallel.
struct RandomWeights(HashMap<String, Vec<f32>>);

impl RandomWeights {
    fn of(program: &Program, experts: usize, tasks: usize) -> RandomWeights {
        let slots = program.weights.par_iter().enumerate().map(|(i, slot)| {
            let copies = match slot.kind {
                WeightKind::Fixed => 1,
                WeightKind::Mixed => experts,
                WeightKind::PerTask => tasks,
            };
            let len = copies * slot.shape.iter().product::<usize>();
            // Outputs about as large as inputs, also after mixing.
            let scale = match slot.shape[..] {
                [.., input] if slot.shape.len() > 1 => (3.0 / input as f64).sqrt(),
                _ => 1.0,
            };
            let mut random = Sequence(i as u64);
            let values = (0..len).map(|_| (scale * (2.0 * random.next() - 1.0)) as f32);
            (slot.name.clone(), values.collect())
        });
        RandomWeights(slots.collect())
    }
}

impl WeightSource for RandomWeights {
    fn weight(&self, name: &str) -> WeightData<'_> {
        WeightData::F32(Cow::Borrowed(&self.0[name]))
    }
}

/// The configuration of a nano model with the sizes of uma-s-1p2p1.
fn full_size(config: &UmaConfig) -> UmaConfig {
    UmaConfig {
        sphere_channels: 128,
        hidden_channels: 128,
        edge_channels: 128,
        num_layers: 4,
        num_distance_basis: 32,
        num_experts: 64,
        ..config.clone()
    }
}

/// Energy, forces and virial of a batch.
enum Network {
    /// With a checkpoint: what a worker calls.
    Model(Box<UmaPotential>),
    /// Random weights: the backend alone.
    Random {
        backend: Box<CudaBackend>,
        channels: usize,
        experts: usize,
        known: HashMap<String, Arc<Conditioning>>,
    },
}

impl Network {
    fn evaluate(&mut self, systems: &[System]) -> Result<f64, String> {
        match self {
            Network::Model(potential) => {
                let batch: Vec<&System> = systems.iter().collect();
                let answers = evaluate(&**potential, &batch, usize::MAX >> 8);
                answers.into_iter().try_fold(0.0, |sum, answer| {
                    answer
                        .map(|a| sum + a.energy)
                        .map_err(|error| error.to_string())
                })
            }
            Network::Random {
                backend,
                channels,
                experts,
                known,
            } => {
                let batch: Vec<PositionedSystem> = systems
                    .iter()
                    .map(|system| {
                        let mut counts = [0u32; 128];
                        for &z in &system.numbers {
                            counts[usize::from(z)] += 1;
                        }
                        let key = format!("{counts:?} {}", system.task);
                        let conditioning = known
                            .entry(key.clone())
                            .or_insert_with(|| conditioning(key, *channels, *experts, system));
                        PositionedSystem {
                            system,
                            conditioning: conditioning.clone(),
                            max_neighbors: 300,
                            max_edges: usize::MAX >> 8,
                        }
                    })
                    .collect();
                let answers = backend
                    .run_positions(&batch)
                    .map_err(|error| error.to_string())?;
                answers
                    .into_iter()
                    .try_fold(0.0, |sum, answer| match answer {
                        Some(Ok(answer)) => Ok(sum + answer.energy),
                        Some(Err(error)) => Err(error.to_string()),
                        None => Err("does not fit, or has too many neighbours".into()),
                    })
            }
        }
    }
}

fn conditioning(
    key: String,
    channels: usize,
    experts: usize,
    system: &System,
) -> Arc<Conditioning> {
    let mut random = Sequence(key.bytes().map(u64::from).sum());
    // A softmax-like mixture: positive, sums to one.
    let raw: Vec<f64> = (0..experts).map(|_| 0.1 + random.next()).collect();
    let total: f64 = raw.iter().sum();
    Arc::new(Conditioning {
        vector: (0..channels).map(|_| random.next() - 0.5).collect(),
        experts: raw.iter().map(|x| x / total).collect(),
        task_index: usize::from(system.task == "omol"),
        charge: 0.0,
        unpaired_electrons: 0.0,
        key,
    })
}

/// Products per second at the top clock, by what the matrix units (tf32, f16) or the ordinary ones
/// (f32) of a multiprocessor do in a cycle.
fn peak(info: &DeviceInfo, precision: Precision) -> f64 {
    let per_cycle = match (precision, info.capability.0, info.capability.1) {
        (Precision::F32 | Precision::F64, 8, 0) => 128.0,
        (Precision::F32 | Precision::F64, ..) => 256.0,
        // Both multiply edge values in fp16.
        (Precision::Tf32 | Precision::F16, 8, 0) => 2048.0,
        (Precision::Tf32 | Precision::F16, 8, _) => 512.0,
        (Precision::Tf32 | Precision::F16, 9, _) => 4096.0,
        (Precision::Tf32 | Precision::F16, ..) => 8192.0,
    };
    per_cycle * f64::from(info.multiprocessors) * f64::from(info.clock_khz) * 1e3
}

fn number_type(name: &str) -> Precision {
    match name {
        "f32" => Precision::F32,
        "tf32" => Precision::Tf32,
        "f16" => Precision::F16,
        "f64" => Precision::F64,
        other => panic!("--precision {other}: f32, tf32, f16 and f64 are known"),
    }
}

fn of_backend(precision: Precision) -> cuda::Precision {
    precision
        .on_cuda()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn shift(systems: &mut [System], random: &mut Sequence) {
    for x in systems
        .iter_mut()
        .flat_map(|s| s.positions.iter_mut())
        .flatten()
    {
        *x += 0.01 * (random.next() - 0.5);
    }
}

/// One row of the table, or why there is none.
fn time(
    network: &mut Network,
    device: &dyn Device,
    program: &Program,
    mut systems: Vec<System>,
    precision: Precision,
    runs: usize,
) -> Result<String, String> {
    let mut random = Sequence(1);
    let mut times = Vec::new();
    // The first ones mix experts, capture the graph and measure how many edges there are.
    for run in 0..runs + 6 {
        shift(&mut systems, &mut random);
        let start = Instant::now();
        let energy = network.evaluate(&systems)?;
        if !energy.is_finite() {
            return Err(format!("energy {energy}"));
        }
        if run >= 6 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let edges = edges(&systems, program.cutoff);
    let atoms: usize = systems.iter().map(System::len).sum();
    let (per_edge, per_atom) = program.cost();
    // Forward, and once more for the gradient with respect to the inputs.
    let flop = 4.0 * (per_edge as f64 * edges as f64 + per_atom as f64 * atoms as f64);
    let memory = device.memory().map_err(|error| error.to_string())?;
    Ok(format!(
        "{:>7} {:>6} {:>9} {:>5} {:>9.3} {:>9.3} {:>9.2} {:>8.1} {:>6.1} {:>9.0}",
        systems.len(),
        atoms,
        edges,
        precision.to_string(),
        median * 1e3,
        best * 1e3,
        edges as f64 / median / 1e6,
        flop / median / 1e12,
        100.0 * flop / median / peak(device.info(), precision),
        memory.peak as f64 / (1 << 20) as f64,
    ))
}

fn device(arguments: &Arguments) -> Arc<dyn Device> {
    #[cfg(feature = "host-kernels")]
    if arguments.emulated {
        return Arc::new(cuda::host::HostDevice::default());
    }
    if arguments.emulated {
        eprintln!("gpu: --emulated: built without the feature host-kernels");
        std::process::exit(1);
    }
    let opened = DriverDevice::open(arguments.device).unwrap_or_else(|error| {
        eprintln!("gpu: {error}");
        std::process::exit(if arguments.bench { 0 } else { 1 })
    });
    Arc::new(opened)
}

/// The checkpoint of the command line, or one whose configuration is a start for random weights.
fn checkpoint(arguments: &Arguments) -> Arc<Checkpoint> {
    let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano-1p2.pt");
    let path = arguments
        .model
        .clone()
        .unwrap_or_else(|| match PathBuf::from(nano).exists() {
            true => nano.into(),
            false => "models/nano-1p2.pt".into(),
        });
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| {
        eprintln!("gpu: {}: {error}", path.display());
        std::process::exit(1)
    });
    Arc::new(checkpoint)
}

fn open(arguments: &Arguments, precision: Precision) -> (Arc<dyn Device>, Network, Program) {
    let device = device(arguments);
    let checkpoint = checkpoint(arguments);
    let memory_bytes = arguments.memory_mib.map_or(usize::MAX, |mib| mib << 20);
    if arguments.model.is_some() {
        let program = network::program(&checkpoint.config);
        let options = UmaOptions {
            precision,
            memory_bytes,
        };
        let potential = UmaPotential::on_cuda(checkpoint, options, device.clone()).unwrap();
        return (device, Network::Model(Box::new(potential)), program);
    }
    let config = full_size(&checkpoint.config);
    let program = network::program(&config);
    let tasks = config.head.experts.unwrap_or(1);
    let weights = Arc::new(RandomWeights::of(&program, config.num_experts, tasks));
    let free = device.memory().unwrap().free;
    let mut options = cuda::Options::new(of_backend(precision), free);
    options = options.limited_to(memory_bytes);
    if let Some(edges) = arguments.chunk_edges {
        options.chunk_edges = edges;
    }
    let program = Arc::new(program);
    let backend = CudaBackend::new(program.clone(), weights, device.clone(), options);
    let network = Network::Random {
        backend: Box::new(backend.unwrap()),
        channels: config.sphere_channels,
        experts: config.num_experts,
        known: HashMap::new(),
    };
    (device, network, (*program).clone())
}

/// Silicon cells of growing size until one does not fit.
fn largest(network: &mut Network, device: &dyn Device, program: &Program, precision: Precision) {
    for n in [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 32, 36, 40] {
        // Conventional cells: 8 n^3 atoms.
        let system = silicon([2 * n, 2 * n, n]);
        let atoms = system.len();
        match time(network, device, program, vec![system], precision, 3) {
            Ok(row) => println!("largest        {row}"),
            Err(reason) => {
                println!("largest        {atoms} atoms: {reason}");
                break;
            }
        }
    }
}

/// Drift of the total energy at constant energy, from 300 K.
fn nve(arguments: &Arguments, precision: Precision, steps: usize) {
    if arguments.model.is_none() {
        panic!("--nve needs --model: random weights hold nothing together");
    }
    let potential = match precision {
        Precision::F64 => {
            let options = UmaOptions {
                precision,
                ..UmaOptions::default()
            };
            Box::new(UmaPotential::on_cpu(checkpoint(arguments), options).unwrap())
        }
        _ => match open(arguments, precision) {
            (_, Network::Model(potential), _) => potential,
            _ => unreachable!("there is a model"),
        },
    };
    let method = Method::VelocityVerlet {
        timestep_fs: arguments.nve_timestep,
    };
    let system = case(&arguments.nve_case).remove(0);
    let mut velocities = maxwell_boltzmann(&system.numbers, 300.0, 1, 0);
    stop_centre_of_mass(&system.numbers, &mut velocities);
    let mut state = State {
        system,
        velocities,
        ..State::default()
    };
    let force = |state: &State| evaluate(&*potential, &[&state.system], usize::MAX >> 8).remove(0);
    state.evaluation = Some(force(&state).unwrap());
    let atoms = state.system.len() as f64;
    let total = |state: &State| {
        let potential = state.evaluation.as_ref().map_or(f64::NAN, |e| e.energy);
        potential + kinetic_energy(&state.system.numbers, &state.velocities)
    };
    let begin = total(&state);
    let (mut sums, start) = ([0.0; 4], Instant::now());
    for step in 0..steps {
        begin_step(&method, &mut state).unwrap();
        let evaluation = force(&state).unwrap();
        end_step(&method, &mut state, evaluation).unwrap();
        // Least squares of the error against time.
        let (t, e) = (step as f64 + 1.0, total(&state) - begin);
        for (sum, x) in sums.iter_mut().zip([t, e, t * t, t * e]) {
            *sum += x;
        }
    }
    let n = steps as f64;
    let slope = (n * sums[3] - sums[0] * sums[1]) / (n * sums[2] - sums[0] * sums[0]);
    println!(
        "{:<5} {} {:>6} atoms {:>7} steps  drift {:>10.3e} eV/atom/ns  last error {:>10.3e} eV/atom  \
         {:>7.3} ms/step",
        precision.to_string(),
        arguments.nve_case,
        atoms,
        steps,
        slope / atoms * 1e6 / arguments.nve_timestep,
        (total(&state) - begin) / atoms,
        start.elapsed().as_secs_f64() * 1e3 / n,
    );
}

/// What is best possible, case by case and operation by operation.
fn predicted(arguments: &Arguments, precisions: &[Precision]) {
    let config = match &arguments.model {
        Some(_) => checkpoint(arguments).config.clone(),
        None => full_size(&checkpoint(arguments).config),
    };
    let program = network::program(&config);
    for &precision in precisions {
        for name in arguments.cases.iter().filter(|name| *name != "largest") {
            let systems = case(name);
            let edges = edges(&systems, program.cutoff);
            let atoms = systems.iter().map(System::len).sum();
            let mut options = cuda::Options::new(of_backend(precision), usize::MAX);
            options.chunk_edges = arguments.chunk_edges.unwrap_or(options.chunk_edges);
            let size = predict::Size {
                atoms,
                edges,
                chunk_edges: options.chunk_edges,
            };
            let bytes = cuda::evaluation_bytes(&program, &options, atoms, edges)
                .expect("the network has kernels");
            print!("{}", predict::table(name, &program, precision, size, bytes));
        }
    }
}

/// One file of each case, with all of its structures, the task and what the model asks of charge and spin.
fn write_cases(folder: &Path, cases: &[String]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for name in cases {
        let mut text = Vec::new();
        for system in case(name) {
            write_frame(&mut text, &system, None, Extra::default())?;
        }
        std::fs::write(folder.join(format!("{name}.xyz")), text)?;
    }
    Ok(())
}

fn edges(systems: &[System], cutoff: f64) -> usize {
    let lists = systems.par_iter();
    lists
        .map(|s| neighbor_list(s, cutoff, 300, usize::MAX >> 8).map_or(0, |l| l.len()))
        .sum()
}

fn main() {
    let arguments = Arguments::parse();
    let precisions: Vec<Precision> = arguments.precision.iter().map(|p| number_type(p)).collect();
    if let Some(folder) = &arguments.write_cases {
        if let Err(error) = write_cases(folder, &arguments.cases) {
            eprintln!("gpu: {}: {error}", folder.display());
            std::process::exit(1);
        }
        return;
    }
    if arguments.predict {
        predicted(&arguments, &precisions);
        return;
    }
    if let Some(steps) = arguments.nve {
        for precision in precisions {
            nve(&arguments, precision, steps);
        }
        return;
    }
    let mut failed = false;
    for precision in precisions {
        let (device, mut network, program) = open(&arguments, precision);
        let info = device.info();
        let (major, minor) = info.capability;
        let what = match &arguments.model {
            Some(path) => path.display().to_string(),
            None => "random weights, sizes of uma-s-1p2p1".into(),
        };
        println!(
            "\n{} ({major}.{minor}, {} multiprocessors, {:.2} GHz), {what}; peak of {precision}: \
             {:.0} TFLOP/s\n\
             case            systems  atoms     edges  type        ms   best ms  Medges/s  TFLOP/s \
             % peak  peak MiB",
            info.name,
            info.multiprocessors,
            f64::from(info.clock_khz) / 1e6,
            peak(info, precision) / 1e12,
        );
        for name in &arguments.cases {
            if name == "largest" {
                largest(&mut network, &*device, &program, precision);
                continue;
            }
            match time(
                &mut network,
                &*device,
                &program,
                case(name),
                precision,
                arguments.runs,
            ) {
                Ok(row) => println!("{name:<14} {row}"),
                Err(reason) => {
                    println!("{name:<14} {reason}");
                    failed = true;
                }
            }
        }
    }
    if failed {
        std::process::exit(1);
    }
}
