//! The products: every kernel against plain loops, and the bits of one size of tile against another.

use super::*;
use umaserve::backend::cuda::gemm::{self, Arithmetic, Beside, GemmLaunch, TILE_ROWS};
use umaserve::backend::cuda::host::SHARED_BYTES;
use umaserve::backend::cuda::params::{GemmParams, GemmSpan, Tile};

/// How numbers lie in memory: of `a`, of the operands, of the result.
const NUMBERS: [(Number, Number, Number); 4] = [
    (Number::F32, Number::F32, Number::F32),
    (Number::F16, Number::F16, Number::F16),
    (Number::F16, Number::F16, Number::F32),
    (Number::F32, Number::F16, Number::F32),
];

fn rounded(number: Number, x: f64) -> f64 {
    match number {
        Number::F16 => f16::from_f64(x).to_f64(),
        Number::F32 => f64::from(x as f32),
    }
}

/// A product with all that it reads.
struct Product<'a> {
    bench: &'a Bench,
    numbers: (Number, Number, Number),
    beside: Beside,
    spans: Vec<GemmSpan>,
    params: GemmParams,
    /// Items of each system.
    items: Vec<usize>,
    /// Elements of the result.
    len: usize,
    a: Vec<f64>,
    /// Of each system.
    weights: Vec<Vec<f64>>,
    bias: Vec<f64>,
    residual: Vec<f64>,
    before: Vec<f64>,
    tiles: usize,
    row_degree: Vec<u32>,
}

impl<'a> Product<'a> {
    /// Spans of (k, n) one after the other in rows of memory; `rows` of each for every item. Where the
    /// result passes the gate, its columns are rows of the edge layout, and gates stand before them.
    fn new(
        bench: &'a Bench,
        numbers: (Number, Number, Number),
        beside: Beside,
        shapes: &[(usize, usize, usize)],
        flags: u32,
    ) -> Product<'a> {
        let random = &mut Random::new(5);
        let items = vec![131, 0, 150];
        let count: usize = items.iter().sum();
        let (lmax, channels) = (bench.layout.lmax, bench.channels);
        let gates = lmax * channels;
        // A place before the spans, which they leave alone.
        let before = if beside == Beside::Gate { gates } else { 8 };
        let (mut spans, mut read, mut written, mut size, mut biases) = (vec![], 0, before, 0, 0);
        for (i, &(k, n, rows)) in shapes.iter().enumerate() {
            spans.push(GemmSpan {
                a_offset: read as u32,
                out_offset: written as u32,
                k: k as u32,
                n: n as u32,
                rows: rows as u32,
                // Those of every other span.
                bias_offset: if i % 2 == 0 {
                    biases as u32
                } else {
                    gemm::NO_BIAS
                },
                weight_offset: size as u64,
                ..GemmSpan::default()
            });
            read += rows * k;
            written += rows * n;
            size += k * n;
            biases += n;
        }
        let a_stride = read;
        let mut values = |count: usize, number| -> Vec<f64> {
            let all = random.values(count).into_iter();
            all.map(|x| rounded(number, x)).collect()
        };
        let a = values(count * a_stride, numbers.0);
        let weights: Vec<Vec<f64>> = (0..items.len()).map(|_| values(size, numbers.1)).collect();
        let bias = values(biases, Number::F32);
        let residual = values(count * written, Number::F32);
        let before = values(count * written, numbers.2);
        let mut tiles = Vec::new();
        let mut first = 0;
        for (system, &items) in items.iter().enumerate() {
            for begin in (0..items).step_by(TILE_ROWS) {
                tiles.push(Tile {
                    begin: (first + begin) as u32,
                    end: (first + items.min(begin + TILE_ROWS)) as u32,
                    system: system as u32,
                    ..Tile::default()
                });
            }
            first += items;
        }
        let bases: Vec<u64> = weights
            .iter()
            .map(|w| bench.numbers(w, numbers.1).0)
            .collect();
        let row_degree: Vec<u32> = bench
            .layout
            .edge_row_degree
            .iter()
            .map(|&l| l as u32)
            .collect();
        let params = GemmParams {
            a: bench.numbers(&a, numbers.0),
            a_stride: a_stride as u64,
            weight_table: bench.put(&bases),
            bias: bench.floats(&bias),
            tiles: bench.put(&tiles),
            tile_count: bench.put(&[tiles.len() as u32]),
            out_stride: written as u64,
            residual_stride: written as u64,
            residual: match (numbers.1, beside) {
                (Number::F32, Beside::Nothing) => bench.floats(&residual),
                _ => DevicePtr::NULL,
            },
            flags,
            gate_channels: channels as u32,
            gate_values: gates as u32,
            row_degree: bench.put(&row_degree),
            ..GemmParams::default()
        };
        Product {
            bench,
            numbers,
            beside,
            spans,
            params,
            items,
            len: count * written,
            a,
            weights,
            bias,
            residual,
            before,
            tiles: tiles.len(),
            row_degree,
        }
    }

    /// With room for so many tiles, by which the size of a tile is chosen.
    fn launch(&self, room: usize) -> GemmLaunch {
        let (memory, operands, result) = self.numbers;
        let arithmetic = Arithmetic::of_edges(memory, operands, result);
        let room = (room, SHARED_BYTES);
        gemm::launch(arithmetic, self.beside, room, &self.spans, self.params)
    }

    /// Numbers of a row behind the gate.
    fn gated_width(&self) -> usize {
        match self.beside {
            Beside::Gate => (self.params.out_stride - u64::from(self.params.gate_values)) as usize,
            _ => 0,
        }
    }

    /// The result, what SiLU was applied to, and what has passed the gate.
    fn run(&self, launch: &GemmLaunch) -> [Vec<f64>; 3] {
        let bench = self.bench;
        let out = bench.numbers(&self.before, self.numbers.2);
        let pre = bench.zeros(self.len);
        let silu = launch.params.flags & gemm::SILU != 0;
        let width = self.gated_width();
        let gated_len = self.items.iter().sum::<usize>() * width;
        let gated = bench.number_space(gated_len, self.numbers.1);
        let params = GemmParams {
            out,
            pre: if silu { pre } else { DevicePtr::NULL },
            gated,
            gated_stride: width as u64,
            ..launch.params
        };
        bench.launch((launch.kernel, launch.size), &params);
        [
            bench.get_numbers(out, self.len, self.numbers.2),
            bench.get(pre, self.len),
            bench.get_numbers(gated, gated_len, self.numbers.1),
        ]
    }

    /// Number `at` of a row through the gate.
    fn gate(&self, row: &[f64], at: usize) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let channels = self.bench.channels;
        let value = row[self.params.gate_values as usize + at];
        match self.row_degree[at / channels] as usize {
            0 => value * sigmoid(value),
            l => value * sigmoid(row[(l - 1) * channels + at % channels]),
        }
    }

    /// The same in f64: `a` W^T, rounded inputs.
    fn expected(&self) -> [Vec<f64>; 3] {
        let stride = self.params.out_stride as usize;
        let a_stride = self.params.a_stride as usize;
        let mut out = self.before.clone();
        let mut pre = vec![0.0; self.len];
        let mut item = 0;
        for (items, weights) in self.items.iter().zip(&self.weights) {
            for item in item..item + items {
                for span in &self.spans {
                    let (k, n) = (span.k as usize, span.n as usize);
                    for (row, column) in
                        (0..span.rows as usize).flat_map(|r| (0..n).map(move |c| (r, c)))
                    {
                        let w = &weights[span.weight_offset as usize + column * k..][..k];
                        let from = span.a_offset as usize + row * k;
                        let inputs = &self.a[item * a_stride + from..];
                        let products = w.iter().zip(inputs);
                        let products = products.map(|(w, x)| w * rounded(self.numbers.1, *x));
                        let mut sum: f64 = products.sum();
                        if span.bias_offset != gemm::NO_BIAS && row == 0 {
                            sum += self.bias[span.bias_offset as usize + column];
                        }
                        let at = item * stride + span.out_offset as usize + row * n + column;
                        if self.params.residual != DevicePtr::NULL {
                            sum += self.residual[at];
                        }
                        if self.params.flags & gemm::SILU != 0 {
                            pre[at] = sum;
                            sum /= 1.0 + (-sum).exp();
                        }
                        match self.params.flags & gemm::ACCUMULATE != 0 {
                            true => out[at] += sum,
                            false => out[at] = sum,
                        }
                    }
                }
            }
            item += items;
        }
        let rows = out.chunks_exact(stride);
        let width = self.gated_width();
        let gated = rows.flat_map(|row| (0..width).map(|at| self.gate(row, at)));
        let gated = gated.collect();
        [out, pre, gated]
    }

    /// Kernels of all sizes give the numbers of plain loops and one another's bits. Which these are.
    fn check(&self) -> Vec<&'static str> {
        let expected = self.expected();
        let tolerance = |number| match number {
            Number::F16 => 6e-4,
            Number::F32 => 3e-6,
        };
        let tolerances = [self.numbers.2, Number::F32, self.numbers.1].map(tolerance);
        let mut kernels = Vec::new();
        let mut bits: Option<[Vec<f64>; 3]> = None;
        for room in [self.tiles, self.tiles + 70, 300] {
            let launch = self.launch(room);
            let what = launch.kernel.0;
            if kernels.contains(&what) {
                continue;
            }
            kernels.push(what);
            let found = self.run(&launch);
            for (i, tolerance) in tolerances.into_iter().enumerate() {
                assert_close(what, &found[i], &expected[i], tolerance);
            }
            match &bits {
                Some(bits) => assert!(*bits == found, "{what}: other bits than {}", kernels[0]),
                None => bits = Some(found),
            }
        }
        kernels
    }
}

fn bench(channels: usize) -> Bench {
    Bench::new((2, 2), channels, Precision::F32, ThreadOrder::Shuffled(2))
}

#[test]
fn products_of_every_kernel_are_those_of_plain_loops_with_the_bits_of_any_tile() {
    let mut kernels = Vec::new();
    let bench = bench(8);
    for numbers in NUMBERS {
        // By 16 bytes and not, with columns for one tile, for one and a half, and for some.
        for shapes in [
            &[(40, 256, 1), (136, 300, 1)][..],
            &[(72, 130, 1), (16, 8, 1), (8, 24, 1)],
            &[(13, 70, 1), (5, 9, 1)],
        ] {
            let product = Product::new(&bench, numbers, Beside::Nothing, shapes, 0);
            kernels.extend(product.check());
        }
    }
    for name in ["f32", "f16", "f16_f32", "f32_as_f16"] {
        for size in ["large", "small", "odd"] {
            let kernel = format!("gemm_{name}_{size}");
            assert!(kernels.contains(&&*kernel), "{kernel} did not run");
        }
    }
    for kernel in ["gemm_f16_wide", "gemm_f16_f32_wide"] {
        assert!(kernels.contains(&kernel), "{kernel} did not run");
    }
}

#[test]
fn results_pass_the_gate_as_in_plain_loops_with_the_bits_of_any_tile() {
    let mut kernels = Vec::new();
    // By 16 bytes and pairs, with columns for a wide tile and not; odd.
    for (channels, width) in [(132, 24), (8, 24), (5, 7)] {
        let bench = bench(channels);
        // Rows of order 0, 1 and 2.
        let shapes = [3, 4, 2].map(|rows| (width, rows * channels, 1));
        for (memory, operands, result) in NUMBERS {
            if memory != operands {
                continue; // What is read lies ready.
            }
            let numbers = (memory, operands, result);
            let product = Product::new(&bench, numbers, Beside::Gate, &shapes, 0);
            kernels.extend(product.check());
        }
    }
    for name in ["f32", "f16", "f16_f32"] {
        for size in ["large", "wide", "small", "odd"] {
            let kernel = format!("gemm_{name}_{size}_gate");
            let there = !matches!((name, size), ("f32", "wide") | ("f16" | "f16_f32", "large"));
            assert_eq!(kernels.contains(&&*kernel), there, "{kernel}");
        }
    }
}

#[test]
fn products_of_atoms_take_several_rows_of_an_item_and_end_as_they_are_told() {
    let bench = bench(8);
    let f32s = (Number::F32, Number::F32, Number::F32);
    for flags in [gemm::SILU, gemm::ACCUMULATE, gemm::SILU | gemm::ACCUMULATE] {
        for shapes in [
            [(12, 132, 1), (12, 20, 3), (12, 20, 5)],
            [(7, 9, 1), (7, 9, 3), (7, 9, 5)],
        ] {
            Product::new(&bench, f32s, Beside::Nothing, &shapes, flags).check();
        }
    }
}
