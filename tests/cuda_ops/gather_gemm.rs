//! The last layer of a radial network that gathers, rotates and scales too: the bits of one after
//! the other.

use super::rotate::{Orders, Values};
use super::*;
use umaserve::backend::cuda::gemm::{self, Arithmetic, Beside, TILE_ROWS};
use umaserve::backend::cuda::host::SHARED_BYTES;
use umaserve::backend::cuda::params::{
    GatherGemmParams, GatherRotateScaleParams, GemmParams, GemmSpan, Tile,
};
use umaserve::backend::cuda::shapes::radial_rows;

/// A layer of `width` inputs for the edges of a chunk: what gather_gemm gathers, and the radial
/// numbers if it is to write them; then the same by a product and a gather.
fn both_ways(bench: &Bench, molecules: &[Molecule], width: usize, chunk: &Chunk, store: bool) {
    let batch = Batch::new(molecules);
    let seeds: Vec<u64> = (0..).take(molecules.len()).collect();
    let values = Values::new(bench, molecules, &seeds, Orders::All);
    let (c, layout, numbers) = (bench.channels, &bench.layout, bench.numbers);
    let (radial, gathered) = (layout.radial_width(2 * c), layout.edge_rows * 2 * c);
    let rows = (chunk.edge_end - chunk.edge_begin) as usize;
    let random = &mut Random::new((width * c) as u64);
    // As the model does: one system to a tile.
    let mut tiles = Vec::new();
    for (system, atoms) in batch.atom_start.windows(2).enumerate() {
        let edge = |atom: u32| batch.target_start[atom as usize];
        let begin = edge(atoms[0]).max(chunk.edge_begin);
        let end = edge(atoms[1]).min(chunk.edge_end);
        for begin in (begin..end).step_by(TILE_ROWS) {
            tiles.push(Tile {
                begin,
                end: end.min(begin + TILE_ROWS as u32),
                system: system as u32,
                ..Tile::default()
            });
        }
    }
    let out = bench.number_space(rows * radial, numbers.values);
    let params = GemmParams {
        a: bench.numbers(&random.values(rows * width), numbers.operands),
        weights: bench.numbers(&random.values(radial * width), numbers.operands),
        bias: bench.floats(&random.values(radial)),
        out,
        tiles: bench.put(&tiles),
        tile_count: bench.put(&[tiles.len() as u32]),
        first_item: bench.put(&[chunk.edge_begin]),
        a_stride: width as u64,
        out_stride: radial as u64,
        ..GemmParams::default()
    };
    let span = GemmSpan {
        k: width as u32,
        n: radial as u32,
        rows: 1,
        ..GemmSpan::default()
    };
    let arithmetic = Arithmetic::of_edges(numbers.operands, numbers.operands, numbers.values);
    // With and without tiles to spare: large and small kernels.
    for room in [tiles.len() + 3, 300] {
        let launch = |beside, params| {
            gemm::launch(arithmetic, beside, (room, SHARED_BYTES), &[span], params)
        };
        let one = launch(Beside::Nothing, params);
        bench.launch((one.kernel, one.size), &one.params);
        let rotated = bench.operand_space(rows * gathered);
        let gather = GatherRotateScaleParams {
            chunk: bench.put(&[*chunk]),
            source: bench.put(&batch.source),
            target: bench.put(&batch.target),
            wigner: bench.floats(&values.wigner),
            x: bench.floats(&values.x),
            radial: out,
            out: rotated,
            channels: c as u32,
            pad: 0,
        };
        let shape = bench.shapes.gather_rotate_scale(rows, numbers.operands);
        bench.launch(shape, &gather);
        let expected = bench.get_operands(rotated, rows * gathered);
        let scales = bench.get_numbers(out, rows * radial, numbers.values);

        let stored = bench.number_space(rows * radial, numbers.values);
        let again = bench.operand_space(rows * gathered);
        let product = GemmParams {
            out: if store { stored } else { DevicePtr::NULL },
            ..params
        };
        let fused = launch(Beside::Gather, product);
        let params = GatherGemmParams {
            product: fused.params,
            source: gather.source,
            target: gather.target,
            wigner: gather.wigner,
            x: gather.x,
            gathered: again,
            rows: bench.put(&radial_rows(layout)),
            channels: c as u32,
            wigner_len: layout.wigner_len as u32,
            atom_rows: layout.rows as u32,
            edge_rows: layout.edge_rows as u32,
        };
        bench.launch((fused.kernel, fused.size), &params);
        let what = format!("{}, width {width}, {}", bench.name(), fused.kernel);
        assert_eq!(
            bench.get_operands(again, rows * gathered),
            expected,
            "{what}"
        );
        assert!(
            expected.iter().any(|x| x.abs() > 0.1),
            "{what}: not all zero"
        );
        if store {
            let found = bench.get_numbers(stored, rows * radial, numbers.values);
            assert_eq!(found, scales, "{what}");
        }
    }
}

#[test]
fn gathering_in_the_last_radial_layer_gives_the_bits_of_gathering_after_it() {
    let molecules = molecules();
    let batch = Batch::new(&molecules);
    for (i, precision) in PRECISIONS.into_iter().enumerate() {
        for (k, layout) in LAYOUTS.into_iter().enumerate() {
            let sizes: &[(usize, usize)] = match k {
                2 => &[(128, 128), (1, 7), (5, 9), (12, 16), (40, 24)],
                _ => &[(3, 5), (8, 16)],
            };
            for &(channels, width) in sizes {
                let bench = Bench::new(layout, channels, precision, ORDERS[(i + k) % 2]);
                let chunk = match k % 2 {
                    0 => batch.whole(),
                    // Rows of memory are counted from its first edge.
                    _ => batch.chunks(9)[1],
                };
                both_ways(&bench, &molecules, width, &chunk, k % 3 != 0);
            }
        }
    }
}
