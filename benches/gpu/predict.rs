//! What an evaluation takes at best: products over the rate of the units, bytes over the bandwidth of
//! the memory, operation by operation, and the launches. It says where time can be won, and
//! whether a measured time is as it should be.
//!
//! A second count adds what the products read from the second-level cache: a tile of 128 x 128, or 128 x
//! 256 where the kernels have that, reads both its operands from there, so that every operand is read once
//! for each tile that it meets.

use std::fmt::Write;
use umaserve::backend::cuda::{EdgeNumbers, Number};
use umaserve::nn::{Op, Program, So2Weights};
use umaserve::potential::uma::Precision;

/// An H100 SXM. Products with `mma` instructions, which run at about 0.62 of what `wgmma` would
/// (Luo et al., "Benchmarking and Dissecting the NVIDIA Hopper GPU Architecture", 2024); memory as
/// a large copy moves it.
const F16_PER_SECOND: f64 = 0.62 * 989e12;
const F32_PER_SECOND: f64 = 67e12;
const BYTES_PER_SECOND: f64 = 3.0e12;
/// From the second-level cache (an assumption: measurements of others lie around it).
const CACHE_BYTES_PER_SECOND: f64 = 5.5e12;
/// Rows of a tile, columns of an ordinary one and of a wide one.
const TILE: f64 = 128.0;
const WIDE_TILE: f64 = 256.0;
/// From the end of one kernel of a graph to the first work of the next (an assumption).
const LAUNCH_SECONDS: f64 = 1.5e-6;
/// What a kernel takes that has next to nothing to do: a few reads, each of which waits for the one before
/// it (an assumption).
const SHORTEST_SECONDS: f64 = 2.5e-6;

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
    /// With reads from the second-level cache.
    cached_seconds: f64,
}

impl Cost {
    fn add(&mut self, other: &Cost) {
        self.flop += other.flop;
        self.bytes += other.bytes;
        self.launches += other.launches;
        self.seconds += other.seconds;
        self.cached_seconds += other.cached_seconds;
    }
}

struct Rates {
    /// Of products of edge values and of atom values.
    edges: f64,
    atoms: f64,
    /// Bytes of an edge value that products write, and of one that they read.
    value: f64,
    operand: f64,
}

/// What one edge or atom costs in one kernel.
#[derive(Clone, Copy, Default)]
struct Work {
    /// Multiply-adds of products.
    macs: f64,
    /// The same outside of matrix units.
    plain_macs: f64,
    /// To and from memory.
    bytes: f64,
    /// From the second-level cache.
    cached: f64,
}

/// One launch of each chunk: `count` edges or atoms in all.
fn launch(rate: f64, chunks: f64, count: f64, work: Work) -> Cost {
    let arithmetic = 2.0 * (work.macs / rate + work.plain_macs / F32_PER_SECOND);
    let waiting = chunks * LAUNCH_SECONDS;
    let seconds = count * arithmetic.max(work.bytes / BYTES_PER_SECOND);
    let seconds = seconds.max(chunks * SHORTEST_SECONDS);
    Cost {
        flop: 2.0 * count * (work.macs + work.plain_macs),
        bytes: count * work.bytes,
        launches: chunks,
        seconds: seconds + waiting,
        cached_seconds: seconds.max(count * work.cached / CACHE_BYTES_PER_SECOND) + waiting,
    }
}

/// Reads of a product from the second-level cache: rows of `k` numbers of `bytes` each once for every
/// tile of `columns`, the matrix once for every tile of rows.
fn cached(k: f64, n: f64, bytes: f64, operand: f64, columns: f64) -> f64 {
    k * (n / columns).ceil() * bytes + k * n * operand / TILE
}

/// Columns of the tiles of an SO(2) map whose operands lie ready.
fn columns(outputs: impl Iterator<Item = f64>, operand: f64) -> f64 {
    match operand == 2.0 && outputs.fold(f64::INFINITY, f64::min) >= WIDE_TILE {
        true => WIDE_TILE,
        false => TILE,
    }
}

/// The blocks (k, n) of an SO(2) map.
fn blocks(program: &Program, weights: &So2Weights) -> Vec<(f64, f64)> {
    let shape = |w: umaserve::nn::Weight| {
        let shape = &program.weights[w.0].shape;
        (shape[shape.len() - 1] as f64, shape[shape.len() - 2] as f64)
    };
    let complex = weights.m.iter().map(|&w| shape(w));
    // Real and imaginary rows of both sides.
    let complex = complex.map(|(k, n)| (2.0 * k, n));
    std::iter::once(shape(weights.m0)).chain(complex).collect()
}

fn all(costs: &[Cost]) -> Cost {
    let mut sum = Cost::default();
    costs.iter().for_each(|cost| sum.add(cost));
    sum
}

/// Name, forward and backward with everything kept, and what is added where the radial networks run
/// again before the backward pass.
fn costs(program: &Program, rates: &Rates, size: Size) -> Vec<(&'static str, [Cost; 3])> {
    let (n, e) = (size.atoms as f64, size.edges as f64);
    let chunks = size.edges.div_ceil(size.chunk_edges).max(1) as f64;
    let (v, o) = (rates.value, rates.operand);
    let c = program.channels as f64;
    let width = |buf| program.width(buf) as f64;
    let elements = |w: umaserve::nn::Weight| -> f64 {
        program.weights[w.0].shape.iter().product::<usize>() as f64
    };
    let node = program.layout.rows as f64 * c * 4.0;
    let wigner = 4.0 * program.layout.wigner_len as f64;
    let edge = |work: Work| launch(rates.edges, chunks, e, work);
    let atom = |macs: f64, bytes: f64| {
        let work = Work {
            macs,
            bytes,
            ..Work::default()
        };
        launch(rates.atoms, 1.0, n, work)
    };
    let moved = |bytes: f64| Work {
        bytes,
        ..Work::default()
    };
    let product = |k: f64, n: f64, read: f64, bytes: f64| Work {
        macs: k * n,
        bytes,
        cached: cached(k, n, read, o, TILE),
        ..Work::default()
    };
    let none = Cost::default;
    let mut found = Vec::new();
    let is_network = |op: &Op| matches!(op, Op::Radial { .. });
    let networks = program.ops.iter().filter(|op| is_network(op)).count() as f64;
    for (i, op) in program.ops.iter().enumerate() {
        found.push(match op {
            Op::Radial { mlp, out, .. } => {
                let a = program.weights[mlp.first_bias.0].shape[0] as f64;
                let out = width(*out);
                // The first layers of all networks are one launch, counted with the first network.
                let first_layers =
                    |passes: f64, number: f64| match program.ops.iter().position(is_network) {
                        Some(first) if first == i => edge(Work {
                            plain_macs: networks * passes * program.basis as f64 * a,
                            bytes: 12.0 + networks * a * number,
                            ..Work::default()
                        }),
                        _ => none(),
                    };
                let two = [
                    first_layers(1.0, o),
                    edge(product(a, a, o, a * o + a * 4.0)),
                    edge(moved(a * 4.0 + a * o)),
                ];
                let third = edge(product(a, out, o, a * o + out * v));
                // Counted with the gather that it does too.
                let gathers = matches!(program.ops[i + 1], Op::GatherRotateScale { .. });
                let forward = match gathers {
                    true => all(&two),
                    false => all(&[all(&two), third.clone()]),
                };
                let backward = all(&[
                    edge(product(out, a, o, out * o + a * v)),
                    edge(moved(a * 4.0 + a * v + a * o)),
                    edge(product(a, a, o, a * o + a * v)),
                    first_layers(2.0, v),
                ]);
                // Their values are there.
                let [_, second, norm] = two;
                (
                    "radial networks",
                    [forward, backward, all(&[second, norm, third])],
                )
            }
            Op::GatherRotateScale { radial, out, .. } => {
                let macs = (program.layout.wigner_len * 2 * program.channels) as f64;
                let numbers = width(*radial);
                // The last radial layer is in it.
                let a = match &program.ops[i - 1] {
                    Op::Radial { mlp, .. } => program.weights[mlp.first_bias.0].shape[0] as f64,
                    _ => 0.0,
                };
                let bytes = a * o + numbers * v + width(*out) * o + wigner;
                let forward = Work {
                    plain_macs: macs,
                    ..product(a, numbers, o, bytes)
                };
                // Every number twice, of the source and of the target half apart.
                let backward = Work {
                    plain_macs: 2.0 * macs,
                    bytes: numbers * (v + o) + width(*out) * v + 2.0 * wigner,
                    ..Work::default()
                };
                (
                    "gather, rotate, scale",
                    [edge(forward), edge(backward), none()],
                )
            }
            Op::So2Linear {
                x,
                weights,
                gates,
                out,
                ..
            } => {
                let blocks = blocks(program, weights);
                let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                    blocks.iter().map(|&(k, n)| f(k, n)).sum()
                };
                let across = columns(blocks.iter().map(|b| b.1), o);
                let back = columns(blocks.iter().map(|b| b.0), o);
                let macs = sum(&|k, n| k * n);
                let work = |macs: f64, bytes: f64, cached: f64| Work {
                    macs,
                    bytes,
                    cached,
                    ..Work::default()
                };
                // What passes the gate is made after the gates, and stored for the next product too.
                let gated = program.ops.get(i + 1).and_then(|op| match op {
                    Op::GateEdges { x, out: rows, .. } if x == out => Some(width(*rows)),
                    _ => None,
                });
                let read = width(*x) * o;
                let forward = match gated {
                    None => vec![edge(work(
                        macs,
                        read + width(*out) * v,
                        sum(&|k, n| cached(k, n, o, o, across)),
                    ))],
                    Some(gated) => {
                        let (k, gates) = (blocks[0].0, *gates as f64);
                        let of_gates =
                            work(k * gates, k * o + gates * v, cached(k, gates, o, o, across));
                        let mut rows = blocks.clone();
                        rows[0].1 -= gates;
                        let reads = rows.iter().map(|&(k, n)| cached(k, n, o, o, across));
                        let bytes = read + gates * v + gated * (v + o);
                        let of_rows = work(macs - k * gates, bytes, reads.sum());
                        vec![edge(of_gates), edge(of_rows)]
                    }
                };
                let backward = work(
                    macs,
                    width(*out) * o + width(*x) * v,
                    sum(&|k, n| cached(n, k, o, o, back)),
                );
                ("SO(2) maps", [all(&forward), edge(backward), none()])
            }
            Op::GateEdges { x, out, .. } => {
                let backward = moved(width(*x) * (v + o) + width(*out) * v);
                ("gates of edges", [none(), edge(backward), none()])
            }
            Op::RotateScatter { message, .. }
            | Op::ScatterRadial {
                radial: message, ..
            } => {
                let message = width(*message);
                let macs = (program.layout.wigner_len * program.channels) as f64;
                let work = |macs: f64, bytes: f64| Work {
                    plain_macs: macs,
                    bytes,
                    ..Work::default()
                };
                let mut forward = edge(work(macs, message * v + wigner));
                forward.bytes += n * 2.0 * node;
                forward.seconds += n * 2.0 * node / BYTES_PER_SECOND;
                forward.cached_seconds += n * 2.0 * node / BYTES_PER_SECOND;
                let backward = edge(work(2.0 * macs, message * (v + o) + wigner));
                ("rotate, scatter", [forward, backward, none()])
            }
            Op::Linear { weight, x, out, .. } => {
                let bytes = 4.0 * (width(*x) + width(*out));
                let product = atom(elements(*weight), bytes);
                ("atoms", [product.clone(), product, none()])
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
                    [atom(macs, bytes), atom(macs, 2.0 * bytes), none()],
                )
            }
            // In place, in a few channels; two of them are one launch.
            Op::Balance { .. } => {
                let second = matches!(program.ops[i - 1], Op::Balance { .. });
                let one = if second { none() } else { atom(0.0, 0.0) };
                ("atoms", [one.clone(), one, none()])
            }
            _ => (
                "atoms",
                [atom(0.0, 2.0 * node), atom(0.0, 3.0 * node), none()],
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
    let numbers = EdgeNumbers::of(precision.on_cuda().expect("a number type of a device"));
    let edges = match numbers.operands {
        Number::F16 => F16_PER_SECOND,
        Number::F32 => F32_PER_SECOND,
    };
    let rates = Rates {
        edges,
        atoms: F32_PER_SECOND,
        value: numbers.values.bytes() as f64,
        operand: numbers.operands.bytes() as f64,
    };
    let mut sums: Vec<(&str, [Cost; 3])> = Vec::new();
    for (what, costs) in costs(program, &rates, size) {
        match sums.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sum)) => sum.iter_mut().zip(&costs).for_each(|(a, b)| a.add(b)),
            None => sums.push((what, costs)),
        }
    }
    let mut text = format!(
        "\n{name} in {precision}: {} atoms, {} edges; at best on an H100\n\
         {:<22} {:>9} {:>9} {:>8} {:>9} {:>9} {:>8} {:>12} {:>9}\n",
        size.atoms,
        size.edges,
        "",
        "TFLOP",
        "GB",
        "launches",
        "forward",
        "backward",
        "ms",
        "ms, with L2",
        "again"
    );
    let (mut total, mut again) = (Cost::default(), 0.0);
    for (what, [forward, backward, more]) in &sums {
        let sum = all(&[forward.clone(), backward.clone()]);
        writeln!(
            text,
            "{what:<22} {:>9.3} {:>9.2} {:>8.0} {:>9.3} {:>9.3} {:>8.3} {:>12.3} {:>9.3}",
            sum.flop / 1e12,
            sum.bytes / 1e9,
            sum.launches,
            1e3 * forward.seconds,
            1e3 * backward.seconds,
            1e3 * sum.seconds,
            1e3 * sum.cached_seconds,
            1e3 * more.seconds,
        )
        .expect("a string takes all");
        total.add(&sum);
        again += more.seconds;
    }
    let mib = bytes.map(|bytes| bytes >> 20);
    writeln!(
        text,
        "{:<22} {:>9.3} {:>9.2} {:>8.0} {:>19} {:>8.3} {:>12.3} {:>9.3}\n\
         memory without weights: {} MiB; {} MiB with radial networks computed again (the column \
         \"again\" comes on top), {} MiB with messages too, {} MiB with everything",
        "all",
        total.flop / 1e12,
        total.bytes / 1e9,
        total.launches,
        "",
        1e3 * total.seconds,
        1e3 * total.cached_seconds,
        1e3 * again,
        mib[0],
        mib[1],
        mib[2],
        mib[3]
    )
    .expect("a string takes all");
    text
}
