//! Matrix products on the device: which kernel, which grid (`cuda/gemm.cu`).

use super::device::{Kernel, LaunchSize};
use super::params::{GemmParams, GemmSpan};
use super::precision::Number;

/// Rows of one tile of the batch: edges or atoms of one system.
pub const TILE_ROWS: usize = 128;
const MAX_SPANS: usize = 8;
/// Mark of a span without bias.
pub const NO_BIAS: u32 = u32::MAX;
/// `out` = SiLU(value), `pre` = value.
pub const SILU: u32 = 1;
/// out += value.
pub const ACCUMULATE: u32 = 2;

/// Numbers in memory, in the operands and in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 throughout.
    F32,
    /// fp16 operands and result.
    F16,
    /// fp16 operands, f32 result.
    F16ToF32,
    /// fp16 operands, `a` of which is f32 in memory and rounded while it is read; f32 result.
    F32AsF16,
}

impl Arithmetic {
    /// Of a product of edge values: as they lie in memory, as the matrices are, as the result is to be.
    pub fn of_edges(memory: Number, operands: Number, result: Number) -> Arithmetic {
        match (memory, operands, result) {
            (Number::F32, Number::F32, Number::F32) => Arithmetic::F32,
            (Number::F16, Number::F16, Number::F16) => Arithmetic::F16,
            (Number::F16, Number::F16, Number::F32) => Arithmetic::F16ToF32,
            (Number::F32, Number::F16, Number::F32) => Arithmetic::F32AsF16,
            other => unreachable!("no precision has products of {other:?}"),
        }
    }

    /// Elements of an operand in 16 bytes.
    fn piece(self) -> u64 {
        match self {
            Arithmetic::F32 => 4,
            Arithmetic::F16 | Arithmetic::F16ToF32 | Arithmetic::F32AsF16 => 8,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Wide,
    Large,
    Small,
    Odd,
}

impl Size {
    /// Rows and columns of a block of threads.
    fn tile(self) -> (u32, u32) {
        match self {
            Size::Wide => (128, 256),
            Size::Large => (128, 128),
            Size::Small | Size::Odd => (32, 64),
        }
    }

    /// Operands of all stages: rows of 32 words, 4 apart.
    fn shared_bytes(self) -> usize {
        let (rows, columns) = self.tile();
        ((rows + columns) * 36 * 4 * self.stages()) as usize
    }

    fn stages(self) -> u32 {
        match self {
            Size::Wide | Size::Large => 3,
            Size::Small => 4,
            Size::Odd => 2,
        }
    }
}

/// What else the kernel of a product does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// The result passes the gate too.
    Gate,
    /// The result scales gathered and rotated rows: parameters are those of `GatherGemmParams`.
    Gather,
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

/// Blocks of threads that keep a large device busy, two of them on a multiprocessor: below, smaller tiles
/// are quicker.
const BUSY_BLOCKS: usize = 264;

/// Lays a product over the grid. `tiles`: most tiles of the batch; `shared_bytes`: what a block may have on the
/// device. `params.span` is set from `spans`.
///
/// # Panics
/// With more spans than the kernel takes: the layouts that are supported have fewer.
pub fn launch(
    arithmetic: Arithmetic,
    beside: Beside,
    (tiles, shared_bytes): (usize, usize),
    spans: &[GemmSpan],
    mut params: GemmParams,
) -> GemmLaunch {
    assert!(spans.len() <= MAX_SPANS, "{} spans", spans.len());
    let piece = arithmetic.piece();
    let whole = |x: u64| x.is_multiple_of(piece);
    let aligned = whole(params.a_stride)
        && spans
            .iter()
            .all(|s| whole(s.a_offset.into()) && whole(s.k.into()) && whole(s.weight_offset));
    let blocks = |size: Size| -> usize {
        spans.iter().map(|s| blocks_of(s, size)).sum::<u32>() as usize * tiles
    };
    let tensor = arithmetic != Arithmetic::F32;
    // One wide block has a multiprocessor for itself.
    let wide = matches!(arithmetic, Arithmetic::F16 | Arithmetic::F16ToF32)
        && beside != Beside::Gather
        && spans.iter().all(|s| s.n >= 256)
        && blocks(Size::Wide) >= BUSY_BLOCKS / 2;
    let large = blocks(Size::Large) >= BUSY_BLOCKS && !(tensor && beside == Beside::Gate);
    // Consumer GPUs have less shared memory.
    let has_room = |size: Size| size.shared_bytes() <= shared_bytes;
    let size = match aligned {
        false => Size::Odd,
        true if wide && has_room(Size::Wide) => Size::Wide,
        true if large && has_room(Size::Large) => Size::Large,
        true => Size::Small,
    };
    let (_, columns) = size.tile();
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
        (Arithmetic::F32, _) | (_, Size::Wide | Size::Large) => 256,
        _ => 128,
    };
    GemmLaunch {
        kernel: Kernel(kernel(arithmetic, size, beside)),
        size: LaunchSize {
            grid: [first.max(1), (tiles as u32).max(1), 1],
            block: [block, 1, 1],
            shared_bytes: size.shared_bytes() as u32,
        },
        params,
    }
}

fn blocks_of(span: &GemmSpan, size: Size) -> u32 {
    let (rows, columns) = size.tile();
    span.n.div_ceil(columns) * (TILE_ROWS as u32 * span.rows).div_ceil(rows)
}

fn kernel(arithmetic: Arithmetic, size: Size, beside: Beside) -> &'static str {
    // That a size has no kernel is excluded where it is chosen; the test of the products launches all.
    macro_rules! of {
        ($name:literal, $suffix:literal) => {
            match size {
                Size::Wide => concat!($name, "_wide", $suffix),
                Size::Large => concat!($name, "_large", $suffix),
                Size::Small => concat!($name, "_small", $suffix),
                Size::Odd => concat!($name, "_odd", $suffix),
            }
        };
    }
    match (arithmetic, beside) {
        (Arithmetic::F32, Beside::Nothing) => of!("gemm_f32", ""),
        (Arithmetic::F32, Beside::Gate) => of!("gemm_f32", "_gate"),
        (Arithmetic::F32, Beside::Gather) => of!("gather_gemm_f32", ""),
        (Arithmetic::F16, Beside::Nothing) => of!("gemm_f16", ""),
        (Arithmetic::F16, Beside::Gate) => of!("gemm_f16", "_gate"),
        (Arithmetic::F16, Beside::Gather) => of!("gather_gemm_f16", ""),
        (Arithmetic::F16ToF32, Beside::Nothing) => of!("gemm_f16_f32", ""),
        (Arithmetic::F16ToF32, Beside::Gate) => of!("gemm_f16_f32", "_gate"),
        (Arithmetic::F16ToF32, Beside::Gather) => of!("gather_gemm_f16_f32", ""),
        (Arithmetic::F32AsF16, Beside::Nothing) => of!("gemm_f32_as_f16", ""),
        (other, _) => unreachable!("{other:?} is not launched {beside:?}"),
    }
}

/// The first `n` columns of a span, and the others.
pub fn split(span: &GemmSpan, n: u32) -> [GemmSpan; 2] {
    let first = GemmSpan { n, ..*span };
    let bias_offset = match span.bias_offset {
        NO_BIAS => NO_BIAS,
        offset => offset + n,
    };
    let others = GemmSpan {
        out_offset: span.out_offset + n,
        n: span.n - n,
        bias_offset,
        weight_offset: span.weight_offset + u64::from(n) * u64::from(span.k),
        ..*span
    };
    [first, others]
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
