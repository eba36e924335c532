//! How each kernel of `cuda/{geometry,radial,rotate,gate,node}.cu` is launched: its name for the
//! layout, the number types and the alignment of a program, and its grid, block and shared memory
//! for a capacity. The constants are those of the sources.

use super::device::{Kernel, LaunchSize};
use super::error::CudaError;
use super::params::RadialRow;
use super::precision::{EdgeNumbers, Number, Precision};
use crate::nn::{Op, Program};
use crate::so3::Layout;

/// A kernel and with how many threads it is launched.
pub type Launch = (Kernel, LaunchSize);

/// Most channels of an atom or a gate.
pub const MOST_CHANNELS: usize = 512;
/// The same where they are no multiple of 4.
pub const MOST_ODD_CHANNELS: usize = 256;
/// Most values of a hidden layer of the radial networks.
pub const MOST_RADIAL_WIDTH: usize = 1024;

const WARP: usize = 32;
/// Most rows of a pass, unless one degree has more.
const PASS_ROWS: usize = 9;
const GATHER_RUN: usize = 4;
const RADIAL_THREADS: usize = 128;
const NORM_THREADS: u32 = 128;
const BALANCE_THREADS: u32 = 1024;
const SUM_THREADS: u32 = 256;

/// What a kernel reads and writes of edge values.
#[derive(Clone, Copy, PartialEq)]
enum Variant {
    F32,
    F16,
    /// Reads f32 values, writes fp16 operands.
    Mix,
}

impl From<Number> for Variant {
    fn from(number: Number) -> Variant {
        match number {
            Number::F32 => Variant::F32,
            Number::F16 => Variant::F16,
        }
    }
}

/// One name for each layout, number type and alignment.
macro_rules! layout_kernel {
    ($shapes:expr, $name:literal, $variant:expr) => {
        layout_kernel!(@layouts $shapes, $name, $variant,
            (1, 1) (2, 1) (2, 2) (3, 2) (3, 3) (4, 2) (4, 4) (6, 2))
    };
    (@layouts $shapes:expr, $name:literal, $variant:expr, $(($l:literal, $m:literal))*) => {
        match ($shapes.lmax, $shapes.mmax) {
            $(($l, $m) => edge_kernel!(
                concat!($name, "_", $l, "_", $m), $variant, $shapes.channels.is_multiple_of(4)
            ),)*
            (l, m) => unreachable!("layout {l}, {m} is refused before"),
        }
    };
}

macro_rules! edge_kernel {
    ($name:expr, $variant:expr, $aligned:expr) => {
        match ($variant, $aligned) {
            (Variant::F32, true) => Kernel(concat!($name, "_f32_v4")),
            (Variant::F32, false) => Kernel(concat!($name, "_f32_v1")),
            (Variant::F16, true) => Kernel(concat!($name, "_f16_v4")),
            (Variant::F16, false) => Kernel(concat!($name, "_f16_v1")),
            (Variant::Mix, true) => Kernel(concat!($name, "_mix_v4")),
            (Variant::Mix, false) => Kernel(concat!($name, "_mix_v1")),
        }
    };
}

macro_rules! radial_kernel {
    ($name:literal, $variant:expr, $width:expr) => {
        match ($variant, radial_variant($width)) {
            (Variant::F32, RadialVariant::To128) => Kernel(concat!($name, "_f32_128")),
            (Variant::F32, RadialVariant::To512) => Kernel(concat!($name, "_f32_512")),
            (Variant::F32, RadialVariant::Any) => Kernel(concat!($name, "_f32_any")),
            (Variant::F16, RadialVariant::To128) => Kernel(concat!($name, "_f16_128")),
            (Variant::F16, RadialVariant::To512) => Kernel(concat!($name, "_f16_512")),
            (Variant::F16, RadialVariant::Any) => Kernel(concat!($name, "_f16_any")),
            (Variant::Mix, RadialVariant::To128) => Kernel(concat!($name, "_mix_128")),
            (Variant::Mix, RadialVariant::To512) => Kernel(concat!($name, "_mix_512")),
            (Variant::Mix, RadialVariant::Any) => Kernel(concat!($name, "_mix_any")),
        }
    };
}

#[derive(Clone, Copy, PartialEq)]
enum RadialVariant {
    To128,
    To512,
    Any,
}

fn radial_variant(width: usize) -> RadialVariant {
    match (width % 4, width) {
        (0, ..=128) => RadialVariant::To128,
        (0, ..=512) => RadialVariant::To512,
        _ => RadialVariant::Any,
    }
}

/// What the launches of a program depend on, beside capacities.
#[derive(Clone, Debug)]
pub struct Shapes {
    lmax: usize,
    mmax: usize,
    wigner_len: usize,
    channels: usize,
    numbers: EdgeNumbers,
    /// Most channels of a gated edge row and of a gated atom row.
    edge_gate_channels: usize,
    atom_gate_channels: usize,
    /// Whether all of them are multiples of 4.
    edge_gates_aligned: bool,
}

fn blocks(items: usize, per_block: usize) -> u32 {
    u32::try_from(items.div_ceil(per_block).max(1)).unwrap_or(u32::MAX)
}

/// Threads that share an edge.
fn lanes(groups: usize) -> usize {
    if groups > WARP {
        groups.next_multiple_of(WARP)
    } else {
        groups.next_power_of_two()
    }
}

/// Most rows of a pass.
fn most_pass_rows(lmax: usize) -> usize {
    let (mut first, mut most) = (0, 0);
    while first <= lmax {
        let mut end = first;
        while end < lmax && (end + 2).pow(2) - first * first <= PASS_ROWS {
            end += 1;
        }
        most = most.max((end + 1).pow(2) - first * first);
        first = end + 1;
    }
    most
}

impl Shapes {
    /// The launches of a program.
    pub fn new(program: &Program, precision: Precision) -> Shapes {
        let channels_of = |edges: bool| {
            program.ops.iter().filter_map(move |op| match *op {
                Op::GateEdges { channels, .. } if edges => Some(channels),
                Op::GateAtoms { channels, .. } if !edges => Some(channels),
                _ => None,
            })
        };
        Shapes {
            lmax: program.layout.lmax,
            mmax: program.layout.mmax,
            wigner_len: program.layout.wigner_len,
            channels: program.channels,
            numbers: EdgeNumbers::of(precision),
            edge_gate_channels: channels_of(true).max().unwrap_or(1),
            atom_gate_channels: channels_of(false).max().unwrap_or(1),
            edge_gates_aligned: channels_of(true).all(|c| c % 4 == 0),
        }
    }

    /// Refuses programs with rows that are too long for the kernels.
    ///
    /// # Errors
    /// Names the number and the limit.
    pub fn check(program: &Program) -> Result<(), CudaError> {
        let refuse = |what: &str, found: usize, most: usize| match found > most {
            true => Err(CudaError::Unsupported(format!(
                "{found} {what}; the kernels are made for at most {most}"
            ))),
            false => Ok(()),
        };
        refuse("channels", program.channels, MOST_CHANNELS)?;
        if !program.channels.is_multiple_of(4) {
            let what = "channels, not a multiple of 4";
            refuse(what, program.channels, MOST_ODD_CHANNELS)?;
        }
        for op in &program.ops {
            match op {
                Op::GateEdges { channels, .. } | Op::GateAtoms { channels, .. } => {
                    refuse("gated channels", *channels, MOST_CHANNELS)?;
                }
                Op::Radial { hidden_1, .. } => {
                    let width = program.width(*hidden_1);
                    refuse("values in a radial layer", width, MOST_RADIAL_WIDTH)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Of a kernel that reads values and writes what lies in memory as `written`.
    fn variant(&self, written: Number) -> Variant {
        match (self.numbers.values, written) {
            (Number::F32, Number::F32) => Variant::F32,
            (Number::F32, Number::F16) => Variant::Mix,
            (Number::F16, _) => Variant::F16,
        }
    }

    /// Channels of a thread.
    fn vector(&self) -> usize {
        if self.channels.is_multiple_of(4) {
            4
        } else {
            1
        }
    }

    fn lanes(&self) -> usize {
        lanes(self.channels / self.vector())
    }

    /// Block of a kernel that works for one atom: threads, edges at a time, warps of an edge.
    fn atom_block(&self) -> (usize, usize, usize) {
        let lanes = self.lanes();
        let threads = lanes.max(128);
        (threads, threads / lanes, lanes.div_ceil(WARP))
    }

    /// Geometry of edges.
    pub fn edge_geometry(&self, edges: usize) -> Launch {
        let bytes_of_one = 4 * self.wigner_len;
        let threads = (40 * 1024 / bytes_of_one / WARP * WARP).clamp(WARP, 128);
        let size = LaunchSize::new(blocks(edges, threads), threads as u32);
        (Kernel("edge_geometry"), size.shared(threads * bytes_of_one))
    }

    /// Gradients of edge vectors.
    pub fn edge_force(&self, edges: usize) -> Launch {
        (Kernel("edge_force"), LaunchSize::cover(edges, 128))
    }

    /// Forces and virials of atoms.
    pub fn atom_force(&self, atoms: usize) -> Launch {
        (Kernel("atom_force"), LaunchSize::new(blocks(atoms, 4), 128))
    }

    /// Sums over systems.
    pub fn system_sums(&self, systems: usize) -> Launch {
        let size = LaunchSize::new(blocks(systems, 1), SUM_THREADS);
        (Kernel("system_sums"), size)
    }

    /// First layers of so many radial networks. `rows` edges, `width` values.
    pub fn radial_first(&self, rows: usize, width: usize, networks: usize) -> Launch {
        let edges = match radial_variant(width) {
            RadialVariant::To128 => 8,
            RadialVariant::To512 => 2,
            RadialVariant::Any => 1,
        };
        let kernel = radial_kernel!("radial_first", self.numbers.operands.into(), width);
        (kernel, networks_size(rows, edges, networks))
    }

    /// Gradient of the first layers of so many radial networks.
    pub fn radial_first_backward(&self, rows: usize, width: usize, networks: usize) -> Launch {
        let edges = match radial_variant(width) {
            RadialVariant::To128 => 4,
            RadialVariant::To512 | RadialVariant::Any => 1,
        };
        let kernel = radial_kernel!("radial_first_backward", self.numbers.values.into(), width);
        (kernel, networks_size(rows, edges, networks))
    }

    /// LayerNorm and SiLU.
    pub fn layer_norm_silu(&self, rows: usize, width: usize) -> Launch {
        let kernel = radial_kernel!("layer_norm_silu", self.numbers.operands.into(), width);
        (kernel, radial_size(rows, 1))
    }

    /// Gradient of LayerNorm and SiLU.
    pub fn layer_norm_silu_backward(&self, rows: usize, width: usize) -> Launch {
        let variant = self.variant(self.numbers.operands);
        let kernel = radial_kernel!("layer_norm_silu_backward", variant, width);
        (kernel, radial_size(rows, 1))
    }

    /// Gather, rotate and scale `rows` edges; `written`: how the result lies in memory.
    pub fn gather_rotate_scale(&self, rows: usize, written: Number) -> Launch {
        let lanes = self.lanes();
        let threads = (2 * lanes).max(256);
        let edges = threads / (2 * lanes) * GATHER_RUN;
        let kernel = layout_kernel!(self, "gather_rotate_scale", self.variant(written));
        (kernel, LaunchSize::new(blocks(rows, edges), threads as u32))
    }

    /// Gradient of gathering; `atoms` of the batch.
    pub fn gather_backward(&self, atoms: usize) -> Launch {
        let (threads, slots, parts) = self.atom_block();
        let rows = most_pass_rows(self.lmax) * self.channels;
        let mut size = LaunchSize::new(blocks(atoms, 1), threads as u32);
        size.grid[1] = 2;
        let size = size.shared(4 * ((1 + slots) * rows + 3 * slots * parts));
        let variant = self.variant(self.numbers.operands);
        (layout_kernel!(self, "gather_backward", variant), size)
    }

    fn scatter(&self, atoms: usize) -> LaunchSize {
        let (threads, slots, _) = self.atom_block();
        let rows = most_pass_rows(self.lmax) * self.channels;
        LaunchSize::new(blocks(atoms, 1), threads as u32).shared(4 * slots * rows)
    }

    fn scatter_backward(&self, atoms: usize) -> LaunchSize {
        let (threads, slots, parts) = self.atom_block();
        LaunchSize::new(blocks(atoms, 1), threads as u32)
            .shared(4 * (threads / WARP + 4 * slots * parts))
    }

    /// Rotate and scatter to `atoms`.
    pub fn rotate_scatter(&self, atoms: usize) -> Launch {
        let variant: Variant = self.numbers.values.into();
        let kernel = layout_kernel!(self, "rotate_scatter", variant);
        (kernel, self.scatter(atoms))
    }

    /// Scatter m = 0 rows to `atoms`.
    pub fn scatter_radial(&self, atoms: usize) -> Launch {
        let variant: Variant = self.numbers.values.into();
        let kernel = layout_kernel!(self, "scatter_radial", variant);
        (kernel, self.scatter(atoms))
    }

    /// Gradient of `rotate_scatter`; `written`: how the gradient of the messages lies in memory.
    pub fn rotate_scatter_backward(&self, atoms: usize, written: Number) -> Launch {
        let kernel = layout_kernel!(self, "rotate_scatter_backward", self.variant(written));
        (kernel, self.scatter_backward(atoms))
    }

    /// Gradient of `scatter_radial`.
    pub fn scatter_radial_backward(&self, atoms: usize) -> Launch {
        let variant = self.variant(self.numbers.operands);
        let kernel = layout_kernel!(self, "scatter_radial_backward", variant);
        (kernel, self.scatter_backward(atoms))
    }

    /// Gates of `rows` edges; `written`: how the result lies in memory.
    pub fn gate_edges(&self, rows: usize, written: Number) -> Launch {
        let kernel = edge_kernel!("gate_edges", self.variant(written), self.edge_gates_aligned);
        (kernel, self.gate_edges_size(rows))
    }

    /// Gradient of the gates of `rows` edges; `written`: how the gradient of what enters the gates lies
    /// in memory.
    pub fn gate_edges_backward(&self, rows: usize, written: Number) -> Launch {
        let (variant, aligned) = (self.variant(written), self.edge_gates_aligned);
        let kernel = edge_kernel!("gate_edges_backward", variant, aligned);
        (kernel, self.gate_edges_size(rows))
    }

    fn gate_edges_size(&self, rows: usize) -> LaunchSize {
        let vector = if self.edge_gates_aligned { 4 } else { 1 };
        gate_size(rows, self.edge_gate_channels / vector)
    }

    fn gate_atoms_size(&self, atoms: usize) -> LaunchSize {
        // Narrower rows of other operations only need fewer blocks.
        gate_size(atoms, self.atom_gate_channels)
    }

    /// Gates of `atoms`.
    pub fn gate_atoms(&self, atoms: usize) -> Launch {
        (Kernel("gate_atoms"), self.gate_atoms_size(atoms))
    }

    /// Gradient of the gates of `atoms`.
    pub fn gate_atoms_backward(&self, atoms: usize) -> Launch {
        (Kernel("gate_atoms_backward"), self.gate_atoms_size(atoms))
    }

    /// First rows of `atoms`.
    pub fn embed_atoms(&self, atoms: usize) -> Launch {
        (
            Kernel("embed_atoms"),
            LaunchSize::new(blocks(atoms, 1), 128),
        )
    }

    /// Norm of `atoms`.
    pub fn rms_norm(&self, atoms: usize) -> Launch {
        let size = LaunchSize::new(blocks(atoms, 1), NORM_THREADS);
        (Kernel("rms_norm"), size)
    }

    /// Gradient of the norm of `atoms`.
    pub fn rms_norm_backward(&self, atoms: usize) -> Launch {
        let size = LaunchSize::new(blocks(atoms, 1), NORM_THREADS);
        (Kernel("rms_norm_backward"), size)
    }

    /// Balances channels of `systems`.
    pub fn balance(&self, systems: usize) -> Launch {
        let size = LaunchSize::new(blocks(systems, 1), BALANCE_THREADS);
        (Kernel("balance"), size)
    }

    /// SiLU of rows of `atoms`.
    pub fn silu_rows(&self, atoms: usize, width: usize) -> Launch {
        (Kernel("silu_rows"), elementwise(atoms, width))
    }

    /// Gradient of SiLU of rows of `atoms`.
    pub fn silu_rows_backward(&self, atoms: usize, width: usize) -> Launch {
        (Kernel("silu_rows_backward"), elementwise(atoms, width))
    }

    /// Adds rows of `atoms`.
    pub fn add_nodes(&self, atoms: usize, width: usize) -> Launch {
        (Kernel("add_nodes"), elementwise(atoms, width))
    }
}

/// What each radial row scales.
pub fn radial_rows(layout: &Layout) -> Vec<RadialRow> {
    let mut rows = vec![RadialRow::default(); layout.radial_width(1)];
    for (l, edge_rows) in layout.degree_rows.iter().enumerate() {
        // Orders -m..=m.
        let zero = edge_rows.len() / 2;
        for m in 0..=zero {
            let (plus, minus) = (edge_rows[zero + m], edge_rows[zero - m]);
            let wigner = |row: usize| (layout.wigner_offset[l] + row * (2 * l + 1)) as u32;
            rows[layout.radial_row[plus]] = RadialRow {
                degree: l as u32,
                order: m as u32,
                wigner: wigner(zero + m),
                minus_wigner: wigner(zero - m),
                row: plus as u32,
                minus_row: minus as u32,
            };
        }
    }
    rows
}

fn radial_size(rows: usize, edges: usize) -> LaunchSize {
    let per_block = RADIAL_THREADS / WARP * edges;
    LaunchSize::new(blocks(rows, per_block), RADIAL_THREADS as u32)
}

fn networks_size(rows: usize, edges: usize, networks: usize) -> LaunchSize {
    let mut size = radial_size(rows, edges);
    size.grid[1] = networks as u32;
    size
}

fn gate_size(items: usize, groups: usize) -> LaunchSize {
    let per_block = (256 / groups.max(1)).max(1);
    LaunchSize::new(blocks(items, per_block), 256)
}

/// Elementwise kernels stride over the grid.
fn elementwise(atoms: usize, width: usize) -> LaunchSize {
    LaunchSize::cover((atoms * width).div_ceil(4), 256)
}
