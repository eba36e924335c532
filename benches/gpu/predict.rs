//! What an evaluation takes at best: products over the rate of the units, bytes over the bandwidth of
//! the memory, operation by operation, and the launches. It says where time can be won, and
//! whether a measured time is as it should be.

use std::fmt::Write;
use umaserve::nn::{Op, Program};
use umaserve::potential::uma::Precision;

/// An H100 SXM. Products with `mma` instructions, which run at about 0.62 of what `wgmma` would
/// (Luo et al., "Benchmarking and Dissecting the NVIDIA Hopper GPU Architecture", 2024); memory as
/// a large copy moves it.
const TF32_PER_SECOND: f64 = 0.62 * 495e12;
const F16_PER_SECOND: f64 = 0.62 * 989e12;
const F32_PER_SECOND: f64 = 67e12;
const BYTES_PER_SECOND: f64 = 3.0e12;
/// From the end of one kernel of a graph to the first work of the next.
const LAUNCH_SECONDS: f64 = 1.5e-6;

/// Of a batch.
#[derive(Clone, Copy)]
pub struct Size {
    pub atoms: usize,
    pub edges: usize,
    pub chunk_edges: usize,
}

/// One kind of operation, forwards or backwards.
#[derive(Clone, Default)]
struct Cost {
    flop: f64,
    bytes: f64,
    launches: f64,
    seconds: f64,
}

impl Cost {
    fn add(&mut self, other: &Cost) {
        self.flop += other.flop;
        self.bytes += other.bytes;
        self.launches += other.launches;
        self.seconds += other.seconds;
    }
}

struct Rates {
    flop: f64,
    /// Bytes of an edge value.
    stored: f64,
}

/// One launch of each chunk: products of so many multiply-adds and so many bytes in all.
fn launch(rates: &Rates, chunks: f64, macs: f64, bytes: f64) -> Cost {
    let flop = 2.0 * macs;
    Cost {
        flop,
        bytes,
        launches: chunks,
        seconds: (flop / rates.flop).max(bytes / BYTES_PER_SECOND) + chunks * LAUNCH_SECONDS,
    }
}

fn all(costs: &[Cost]) -> Cost {
    let mut sum = Cost::default();
    costs.iter().for_each(|cost| sum.add(cost));
    sum
}

/// Name, forward, what runs again before the backward pass (if nothing is kept), backward.
fn costs(program: &Program, rates: &Rates, size: Size) -> Vec<(&'static str, [Cost; 3])> {
    let (n, e) = (size.atoms as f64, size.edges as f64);
    let chunks = size.edges.div_ceil(size.chunk_edges).max(1) as f64;
    let s = rates.stored;
    let c = program.channels as f64;
    let width = |buf| program.width(buf) as f64;
    let elements = |w: umaserve::nn::Weight| -> f64 {
        program.weights[w.0].shape.iter().product::<usize>() as f64
    };
    let node = program.layout.rows as f64 * c * 4.0;
    let wigner = 4.0 * program.layout.wigner_len as f64;
    let edge = |macs: f64, bytes: f64| launch(rates, chunks, e * macs, e * bytes);
    let atom = |macs: f64, bytes: f64| launch(rates, 1.0, n * macs, n * bytes);
    let none = Cost::default;
    let mut found = Vec::new();
    for op in &program.ops {
        found.push(match op {
            Op::Radial { mlp, out, .. } => {
                let a = program.weights[mlp.first_bias.0].shape[0] as f64;
                let (second, third) = (elements(mlp.second.0), elements(mlp.third.0));
                let out = width(*out);
                let forward = all(&[
                    edge(program.basis as f64 * a, 12.0 + a * s),
                    edge(second, a * s + a * 4.0),
                    edge(0.0, a * 4.0 + a * s),
                    edge(third, a * s + out * s),
                ]);
                let backward = all(&[
                    edge(third, out * s + a * s),
                    edge(0.0, a * 4.0 + 2.0 * a * s),
                    edge(second, 2.0 * a * s),
                    edge(2.0 * program.basis as f64 * a, 12.0 + a * s),
                ]);
                ("radial networks", [forward.clone(), forward, backward])
            }
            Op::GatherRotateScale { radial, out, .. } => {
                let (radial, out) = (width(*radial) * s, width(*out) * s);
                let macs = (program.layout.wigner_len * 2 * program.channels) as f64;
                let forward = edge(macs, radial + out + wigner);
                // Every number twice, of the source and of the target half apart.
                let backward = edge(2.0 * macs, 2.0 * radial + out + 2.0 * wigner);
                ("gather, rotate, scale", [forward, none(), backward])
            }
            Op::So2Linear {
                x, weights, out, ..
            } => {
                let complex: f64 = weights.m.iter().map(|w| elements(*w)).sum();
                let macs = elements(weights.m0) + 2.0 * complex;
                let product = edge(macs, width(*x) * s + width(*out) * s);
                ("SO(2) maps", [product.clone(), none(), product])
            }
            Op::GateEdges { x, out, .. } => {
                let backward = edge(0.0, 2.0 * width(*x) * s + width(*out) * s);
                ("gates of edges", [none(), none(), backward])
            }
            Op::RotateScatter { message, .. }
            | Op::ScatterRadial {
                radial: message, ..
            } => {
                let message = width(*message) * s;
                let macs = (program.layout.wigner_len * program.channels) as f64;
                let mut forward = edge(macs, message + wigner);
                forward.add(&atom(0.0, 2.0 * node));
                let backward = edge(2.0 * macs, 2.0 * message + wigner);
                ("rotate, scatter", [forward, none(), backward])
            }
            Op::Linear { weight, x, out, .. } => {
                let bytes = 4.0 * (width(*x) + width(*out));
                let product = atom(elements(*weight), bytes);
                ("atoms", [product.clone(), none(), product])
            }
            Op::So3Linear {
                channels_in,
                channels_out,
                ..
            } => {
                let rows = program.layout.rows as f64;
                let macs = rows * (channels_in * channels_out) as f64;
                let bytes = 4.0 * rows * (channels_in + 2 * channels_out) as f64;
                (
                    "atoms",
                    [atom(macs, bytes), none(), atom(macs, 2.0 * bytes)],
                )
            }
            _ => (
                "atoms",
                [atom(0.0, 2.0 * node), none(), atom(0.0, 3.0 * node)],
            ),
        });
    }
    found
}

/// The table of one case. `bytes`: memory of the pass by how much is kept.
pub fn table(
    name: &str,
    program: &Program,
    precision: Precision,
    size: Size,
    bytes: [usize; 4],
) -> String {
    let (flop, stored) = match precision {
        Precision::F16 => (F16_PER_SECOND, 2.0),
        Precision::Tf32 => (TF32_PER_SECOND, 4.0),
        Precision::F32 | Precision::F64 => (F32_PER_SECOND, 4.0),
    };
    let mut sums: Vec<(&str, [Cost; 3])> = Vec::new();
    for (what, costs) in costs(program, &Rates { flop, stored }, size) {
        match sums.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sum)) => sum.iter_mut().zip(&costs).for_each(|(a, b)| a.add(b)),
            None => sums.push((what, costs)),
        }
    }
    let mut text = format!(
        "\n{name} in {precision}: {} atoms, {} edges; at best on an H100\n\
         {:<22} {:>9} {:>9} {:>8} {:>9} {:>9} {:>9} {:>8}\n",
        size.atoms, size.edges, "", "TFLOP", "GB", "launches", "forward", "again", "backward", "ms"
    );
    let mut total = Cost::default();
    for (what, costs) in &sums {
        let sum = all(costs);
        let ms = costs.each_ref().map(|cost| 1e3 * cost.seconds);
        writeln!(
            text,
            "{what:<22} {:>9.3} {:>9.2} {:>8.0} {:>9.3} {:>9.3} {:>9.3} {:>8.3}",
            sum.flop / 1e12,
            sum.bytes / 1e9,
            sum.launches,
            ms[0],
            ms[1],
            ms[2],
            1e3 * sum.seconds
        )
        .expect("a string takes all");
        total.add(&sum);
    }
    let mib = bytes.map(|bytes| bytes >> 20);
    writeln!(
        text,
        "{:<22} {:>9.3} {:>9.2} {:>8.0} {:>29} {:>8.3}\n\
         memory without weights: {} MiB; {} MiB with radial networks computed again (the column \
         \"again\"), {} MiB with messages too, {} MiB with everything",
        "all",
        total.flop / 1e12,
        total.bytes / 1e9,
        total.launches,
        "",
        1e3 * total.seconds,
        mib[0],
        mib[1],
        mib[2],
        mib[3]
    )
    .expect("a string takes all");
    text
}
