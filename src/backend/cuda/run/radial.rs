//! Radial networks, forwards and backwards.

use super::super::plan::KEPT_ALIGN;
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

    /// The hidden buffers and the result of a radial network.
    fn buffers(&self, i: usize) -> [Buf; 3] {
        match self.program.ops[i] {
            Op::Radial {
                hidden_1,
                hidden_2,
                out,
                ..
            } => [hidden_1, hidden_2, out],
            _ => unreachable!("a radial network"),
        }
    }

    /// Values of the hidden layers of a radial network.
    fn radial_width(&self, i: usize) -> usize {
        match &self.program.ops[i] {
            Op::Radial { mlp, .. } => self.shape(mlp.first_bias)[0],
            _ => unreachable!("a radial network"),
        }
    }

    /// Numbers of this type from one kept hidden buffer to that of the next network.
    fn kept_stride(&self, i: usize, lie: Number, number: Number) -> u64 {
        let bytes = (self.radial_width(i) * lie.bytes()).next_multiple_of(KEPT_ALIGN);
        (bytes / number.bytes() * self.pass.chunking.rows) as u64
    }

    /// First layers of so many networks from one on.
    fn first_layer(&self, chunk: usize, i: usize, networks: usize, out: DevicePtr) -> Done {
        let p = &self.pass.places;
        let width = self.radial_width(i);
        let (spacing, exponent) = self.gaussians();
        let operands = self.plan.numbers.operands;
        let params = RadialFirstParams {
            chunk: self.pass.chunk(chunk),
            distance: self.at(p.distance),
            source: self.at(p.source),
            target: self.at(p.target),
            numbers: self.at(p.numbers),
            networks: self.weights.networks(self.plan.network(i)),
            out,
            out_stride: self.kept_stride(i, operands, operands),
            basis: self.program.basis as u32,
            width: width as u32,
            spacing,
            exponent,
        };
        let rows = self.pass.chunking.rows;
        self.launch(self.shapes.radial_first(rows, width, networks), &params)
    }

    /// The same backwards: dE/d(distance) through so many networks from one on, of edge stages from
    /// this one on.
    fn first_layer_backward(
        &self,
        chunk: usize,
        (i, stage): (usize, usize),
        networks: usize,
        gradient: DevicePtr,
    ) -> Done {
        let p = &self.pass.places;
        let (width, network) = (self.radial_width(i), self.plan.network(i));
        let edges = self.pass.capacity.edges;
        let (spacing, exponent) = self.gaussians();
        let params = RadialFirstBackwardParams {
            chunk: self.pass.chunk(chunk),
            distance: self.at(p.distance),
            source: self.at(p.source),
            target: self.at(p.target),
            numbers: self.at(p.numbers),
            networks: self.weights.networks(network),
            gradient,
            gradient_stride: self.kept_stride(i, Number::F32, self.plan.numbers.values),
            gradient_scale: self.gradient_scale(stage),
            d_distance: self.at(p.d_distance).at::<f32>(network * edges),
            edge_stride: edges as u64,
            basis: self.program.basis as u32,
            width: width as u32,
            spacing,
            exponent,
        };
        let rows = self.pass.chunking.rows;
        let size = self.shapes.radial_first_backward(rows, width, networks);
        self.launch(size, &params)
    }

    /// Where the values of the first layer of a network lie, if they are kept, or where a kept second
    /// layer does.
    fn kept(&self, chunk: usize, buf: Buf) -> Option<DevicePtr> {
        let offset = self.plan.kept_at(buf)?;
        Some(self.pass.kept(offset, chunk, self.plan.kept_bytes))
    }

    /// The first layers of all networks at once, where they are kept.
    pub(super) fn first_layers(&self) -> Done {
        let (Some(buf), _) = self.plan.first_layers(self.program) else {
            return Ok(());
        };
        let networks = &self.plan.networks;
        for chunk in 0..self.pass.chunking.count {
            let out = self.kept(chunk, buf).expect("it is kept");
            self.first_layer(chunk, networks[0], networks.len(), out)?;
        }
        Ok(())
    }

    /// Their gradients at once, where they have been kept until the end.
    pub(super) fn first_layers_backward(&self) -> Done {
        let (_, Some(buf)) = self.plan.first_layers(self.program) else {
            return Ok(());
        };
        let networks = &self.plan.networks;
        for chunk in 0..self.pass.chunking.count {
            let gradient = self.kept(chunk, buf).expect("it is kept");
            self.first_layer_backward(chunk, (networks[0], 0), networks.len(), gradient)?;
        }
        Ok(())
    }

    /// A radial network, and the gather that uses its numbers where its last product does that too.
    pub(super) fn radial(
        &self,
        i: usize,
        mlp: &RadialMlp,
        gather: Option<usize>,
        at: Edges,
    ) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        let [hidden_1, hidden_2, out] = self.buffers(i);
        let width = self.radial_width(i);
        let first = match self.kept(at.chunk, hidden_1) {
            Some(first) => first,
            None => {
                let first = self.edge(at, EdgeKey::Activation(i, 1));
                self.first_layer(at.chunk, i, 1, first)?;
                first
            }
        };
        let second = self.layer(mlp.second, first, self.edge(at, EdgeKey::Value(hidden_2)));
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

    pub(super) fn radial_backward(&self, i: usize, mlp: &RadialMlp, at: Edges) -> Done {
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        let [hidden_1, hidden_2, out] = self.buffers(i);
        let width = self.radial_width(i);
        let [second, hidden] = [2, 3].map(|k| self.edge(at, EdgeKey::ActivationGradient(i, k)));
        // Where both hidden layers are kept, the gradient of the first takes the place of the second, which
        // is read for the last time here, and waits for those of the other networks.
        let waits = self
            .kept(at.chunk, hidden_1)
            .and(self.kept(at.chunk, hidden_2));
        let first = waits.unwrap_or_else(|| self.edge(at, EdgeKey::ActivationGradient(i, 1)));
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

        if waits.is_some() {
            return Ok(());
        }
        let stage = self.plan.edge_stage(at.stage);
        self.first_layer_backward(at.chunk, (i, stage), 1, first)
    }
}
