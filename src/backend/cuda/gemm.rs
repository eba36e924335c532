//! Matrix products on the device: which kernel, which grid (`cuda/gemm.cu`).

use super::Precision;
use super::device::{Kernel, LaunchSize};
use super::params::{GemmParams, GemmSpan};

/// Rows of one tile of the batch: edges or atoms of one system.
pub const TILE_ROWS: usize = 128;
const MAX_SPANS: usize = 8;
/// Mark of a span without bias.
pub const NO_BIAS: u32 = u32::MAX;
/// `out` = SiLU(value), `pre` = value.
pub const SILU: u32 = 1;
/// out += value.
pub const ACCUMULATE: u32 = 2;

/// Numbers in the operands and in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 throughout.
    F32,
    /// tf32 operands, rounded by whoever wrote them.
    Tf32,
    /// tf32 operands, `a` of which is f32 in memory and rounded while it is read.
    F32AsTf32,
    /// fp16 operands and result.
    F16,
    /// fp16 operands, f32 result.
    F16ToF32,
}

impl Arithmetic {
    /// Of a product of edge values whose result is an edge value again. They are ready: written
    /// by a kernel that rounds what a product reads.
    pub fn of_edges(precision: Precision) -> Arithmetic {
        match precision {
            Precision::F32 => Arithmetic::F32,
            Precision::Tf32 => Arithmetic::Tf32,
            Precision::F16 => Arithmetic::F16,
        }
    }

    /// Of a product of edge values whose result is f32.
    pub fn of_edges_to_f32(precision: Precision) -> Arithmetic {
        match precision {
            Precision::F16 => Arithmetic::F16ToF32,
            other => Arithmetic::of_edges(other),
        }
    }

    /// Of a product of atom values.
    pub fn of_atoms(precision: Precision) -> Arithmetic {
        match precision {
            Precision::F32 => Arithmetic::F32,
            Precision::Tf32 | Precision::F16 => Arithmetic::F32AsTf32,
        }
    }

    /// Elements of an operand in 16 bytes.
    fn piece(self) -> u64 {
        match self {
            Arithmetic::F32 | Arithmetic::Tf32 | Arithmetic::F32AsTf32 => 4,
            Arithmetic::F16 | Arithmetic::F16ToF32 => 8,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Large,
    Small,
    Odd,
}

impl Size {
    /// Rows and columns of a block of threads.
    fn tile(self) -> (u32, u32) {
        match self {
            Size::Large => (128, 128),
            Size::Small | Size::Odd => (32, 64),
        }
    }

    fn stages(self) -> u32 {
        match self {
            Size::Large => 3,
            Size::Small => 4,
            Size::Odd => 2,
        }
    }
}

/// A launch of one product.
#[derive(Clone, Copy, Debug)]
pub struct GemmLaunch {
    /// Which kernel.
    pub kernel: Kernel,
    /// Its grid.
    pub size: LaunchSize,
    /// Parameters with the spans laid over the grid.
    pub params: GemmParams,
}

/// Blocks of threads that keep a large device busy: below, smaller tiles are quicker.
const BUSY_BLOCKS: usize = 264;

/// Lays a product over the grid. `tiles`: most tiles of the batch; `gated`: the operand passes the
/// gate while it is read. `params.span` is set from `spans`.
///
/// # Panics
/// With more spans than the kernel takes: the layouts that are supported have fewer.
pub fn launch(
    arithmetic: Arithmetic,
    gated: bool,
    tiles: usize,
    spans: &[GemmSpan],
    mut params: GemmParams,
) -> GemmLaunch {
    assert!(spans.len() <= MAX_SPANS, "{} spans", spans.len());
    assert!(!gated || arithmetic != Arithmetic::F32AsTf32);
    let piece = arithmetic.piece();
    let whole = |x: u64| x.is_multiple_of(piece);
    let aligned = whole(params.a_stride)
        && spans
            .iter()
            .all(|s| whole(s.a_offset.into()) && whole(s.k.into()) && whole(s.weight_offset))
        && (!gated || whole(params.gate_channels.into()) && whole(params.gate_values.into()));
    let blocks = |size: Size| -> usize {
        spans.iter().map(|s| blocks_of(s, size)).sum::<u32>() as usize * tiles
    };
    let size = match aligned {
        false => Size::Odd,
        true if blocks(Size::Large) < BUSY_BLOCKS => Size::Small,
        true => Size::Large,
    };
    let (rows, columns) = size.tile();
    let mut first = 0;
    for (to, span) in params.span.iter_mut().zip(spans) {
        *to = GemmSpan {
            first_block: first,
            column_tiles: span.n.div_ceil(columns),
            ..*span
        };
        first += blocks_of(span, size);
    }
    params.spans = spans.len() as u32;
    let block = match (arithmetic, size) {
        (Arithmetic::F32, _) | (_, Size::Large) => 256,
        _ => 128,
    };
    GemmLaunch {
        kernel: Kernel(kernel(arithmetic, size, gated)),
        size: LaunchSize {
            grid: [first.max(1), (tiles as u32).max(1), 1],
            block: [block, 1, 1],
            shared_bytes: (rows + columns) * 36 * 4 * size.stages(),
        },
        params,
    }
}

fn blocks_of(span: &GemmSpan, size: Size) -> u32 {
    let (rows, columns) = size.tile();
    span.n.div_ceil(columns) * (TILE_ROWS as u32 * span.rows).div_ceil(rows)
}

fn kernel(arithmetic: Arithmetic, size: Size, gated: bool) -> &'static str {
    macro_rules! of {
        ($name:literal) => {
            match (size, gated) {
                (Size::Large, false) => concat!("gemm_", $name, "_large"),
                (Size::Small, false) => concat!("gemm_", $name, "_small"),
                (Size::Odd, false) => concat!("gemm_", $name, "_odd"),
                (Size::Large, true) => concat!("gemm_", $name, "_large_gated"),
                (Size::Small, true) => concat!("gemm_", $name, "_small_gated"),
                (Size::Odd, true) => concat!("gemm_", $name, "_odd_gated"),
            }
        };
    }
    match arithmetic {
        Arithmetic::F32 => of!("f32"),
        Arithmetic::Tf32 => of!("tf32"),
        Arithmetic::F32AsTf32 => match size {
            Size::Large => "gemm_f32_as_tf32_large",
            Size::Small => "gemm_f32_as_tf32_small",
            Size::Odd => "gemm_f32_as_tf32_odd",
        },
        Arithmetic::F16 => of!("f16"),
        Arithmetic::F16ToF32 => of!("f16_f32"),
    }
}

/// The same product backwards: results become operands. The matrix is the transpose, which lies
/// at `weight_offset` of its own.
pub fn transposed(span: &GemmSpan, weight_offset: u64) -> GemmSpan {
    GemmSpan {
        a_offset: span.out_offset,
        out_offset: span.a_offset,
        k: span.n,
        n: span.k,
        bias_offset: NO_BIAS,
        weight_offset,
        ..*span
    }
}
