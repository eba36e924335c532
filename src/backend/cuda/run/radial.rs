//! Radial networks, forwards and backwards.

use super::*;

/// One product: where its matrix lies, its only span, what it reads and writes.
type Layer = (Pool, GemmSpan, GemmParams);

/// From rows of a span's inputs to rows of its results, both without gaps.
fn between(span: &GemmSpan, a: DevicePtr, out: DevicePtr) -> GemmParams {
    GemmParams {
        a,
        a_stride: span.k.into(),
        out,
        out_stride: span.n.into(),
        ..GemmParams::default()
    }
}

impl Runner<'_> {
    /// Centres of the Gaussians: their distance, and the exponent's factor.
    fn gaussians(&self) -> (f32, f32) {
        let spacing = self.program.cutoff / (self.program.basis as f64 - 1.0);
        // Width of the Gaussians: twice the distance of their centres.
        (spacing as f32, (-0.5 / (2.0 * spacing).powi(2)) as f32)
    }

    /// A layer of a radial network, with its bias.
    fn layer(&self, (weight, bias): (Weight, Weight), a: DevicePtr, out: DevicePtr) -> Layer {
        let (span, matrix) = self.matrix(weight);
        let span = GemmSpan {
            bias_offset: 0,
            ..span
        };
        let params = GemmParams {
            bias: self.weights.plain(bias),
            ..between(&span, a, out)
        };
        (matrix.pool, span, params)
    }

    /// The gradient of its inputs from that of its results.
    fn layer_backward(&self, weight: Weight, a: DevicePtr, out: DevicePtr) -> Layer {
        let (span, matrix) = self.matrix(weight);
        let span = gemm::transposed(&span, matrix.backward);
        (matrix.pool, span, between(&span, a, out))
    }

    fn radial_product(
        &self,
        at: Edges,
        arithmetic: Arithmetic,
        (pool, span, params): Layer,
    ) -> Done {
        self.edge_product(at, arithmetic, Beside::Nothing, pool, &[span], params)
    }

    /// A radial network, and the gather that uses its numbers where its last product does that too.
    pub(super) fn radial(
        &self,
        i: usize,
        mlp: &RadialMlp,
        (hidden_2, out): (Buf, Buf),
        gather: Option<usize>,
        at: Edges,
    ) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        let tables = self.weights.radial(i);
        let width = self.shape(mlp.first_bias)[0];
        let (spacing, exponent) = self.gaussians();
        let params = RadialFirstParams {
            chunk,
            distance: self.at(p.distance),
            source: self.at(p.source),
            target: self.at(p.target),
            numbers: self.at(p.numbers),
            weight: tables.gaussians,
            source_table: tables.source,
            target_table: tables.target,
            norm_weight: self.weights.plain(mlp.norm_1.0),
            norm_bias: self.weights.plain(mlp.norm_1.1),
            out: self.edge(at, EdgeKey::Activation(i, 1)),
            basis: self.program.basis as u32,
            width: width as u32,
            spacing,
            exponent,
        };
        self.launch(
            self.shapes.radial_first(rows, width, self.program.basis),
            &params,
        )?;

        let second = self.layer(
            mlp.second,
            self.edge(at, EdgeKey::Activation(i, 1)),
            self.edge(at, EdgeKey::Value(hidden_2)),
        );
        let arithmetic = self.arithmetic(self.plan.numbers.operands, Number::F32);
        self.radial_product(at, arithmetic, second)?;

        let params = LayerNormSiluParams {
            chunk,
            x: self.edge(at, EdgeKey::Value(hidden_2)),
            weight: self.weights.plain(mlp.norm_2.0),
            bias: self.weights.plain(mlp.norm_2.1),
            out: self.edge(at, EdgeKey::Activation(i, 2)),
            width: width as u32,
            pad: 0,
        };
        self.launch(self.shapes.layer_norm_silu(rows, width), &params)?;

        // In the forward pass nobody else may want them.
        let wanted = gather.is_none() || at.backward || self.plan.kept_at(out).is_some();
        let third = self.layer(
            mlp.third,
            self.edge(at, EdgeKey::Activation(i, 2)),
            match wanted {
                true => self.edge(at, EdgeKey::Value(out)),
                false => DevicePtr::NULL,
            },
        );
        let numbers = self.plan.numbers;
        let arithmetic = self.arithmetic(numbers.operands, numbers.values);
        let gather = gather.map(|i| &self.program.ops[i]);
        let Some(Op::GatherRotateScale {
            x, out: gathered, ..
        }) = gather
        else {
            return self.radial_product(at, arithmetic, third);
        };
        let (pool, span, params) = third;
        let launch = self.edge_launch(at, arithmetic, Beside::Gather, pool, &[span], params);
        let layout = &self.program.layout;
        let params = GatherGemmParams {
            product: launch.params,
            source: self.at(p.source),
            target: self.at(p.target),
            wigner: self.at(p.wigner),
            x: self.value(*x),
            gathered: self.edge(at, EdgeKey::Value(*gathered)),
            rows: self.constants.radial_rows,
            channels: self.channels(),
            wigner_len: layout.wigner_len as u32,
            atom_rows: layout.rows as u32,
            edge_rows: layout.edge_rows as u32,
        };
        self.launch((launch.kernel, launch.size), &params)
    }

    pub(super) fn radial_backward(
        &self,
        i: usize,
        mlp: &RadialMlp,
        hidden_2: Buf,
        out: Buf,
        at: Edges,
    ) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        let tables = self.weights.radial(i);
        let width = self.shape(mlp.first_bias)[0];
        let [first, second, hidden] =
            [1, 2, 3].map(|k| self.edge(at, EdgeKey::ActivationGradient(i, k)));
        let numbers = self.plan.numbers;
        let arithmetic = self.arithmetic(numbers.operands, numbers.values);

        let gradient = self.edge(at, EdgeKey::Gradient(out));
        let third = self.layer_backward(mlp.third.0, gradient, second);
        self.radial_product(at, arithmetic, third)?;

        let params = LayerNormSiluBackwardParams {
            chunk,
            x: self.edge(at, EdgeKey::Value(hidden_2)),
            weight: self.weights.plain(mlp.norm_2.0),
            bias: self.weights.plain(mlp.norm_2.1),
            gradient: second,
            x_gradient: hidden,
            width: width as u32,
            pad: 0,
        };
        self.launch(self.shapes.layer_norm_silu_backward(rows, width), &params)?;

        self.radial_product(
            at,
            arithmetic,
            self.layer_backward(mlp.second.0, hidden, first),
        )?;

        let (spacing, exponent) = self.gaussians();
        let params = RadialFirstBackwardParams {
            chunk,
            distance: self.at(p.distance),
            source: self.at(p.source),
            target: self.at(p.target),
            numbers: self.at(p.numbers),
            weight: tables.gaussians,
            source_table: tables.source,
            target_table: tables.target,
            norm_weight: self.weights.plain(mlp.norm_1.0),
            norm_bias: self.weights.plain(mlp.norm_1.1),
            gradient: first,
            gradient_scale: self.gradient_scale(),
            d_distance: self.at(p.d_distance),
            basis: self.program.basis as u32,
            width: width as u32,
            spacing,
            exponent,
        };
        let size = self
            .shapes
            .radial_first_backward(rows, width, self.program.basis);
        self.launch(size, &params)
    }
}
