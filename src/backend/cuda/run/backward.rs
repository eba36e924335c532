//! The backward pass: the launches of [`Runner`](super::Runner) in the reverse order.

use super::*;

impl Runner<'_> {
    pub(super) fn backward(&self, s: usize) -> Done {
        for buf in self.plan.gradients.zeroed(s) {
            self.zero(AtomKey::Gradient(buf), self.program.width(buf))?;
        }
        match &self.plan.stages[s] {
            Stage::Atoms(i) => self.backward_atoms(*i),
            Stage::Edges(stage) => self.backward_stage(s, stage),
        }
    }

    /// Zeros in what no operation on edges writes.
    pub(super) fn edge_sums(&self) -> Done {
        let p = &self.pass.places;
        let zero = |place: usize, width: usize| {
            let bytes = 4 * width * self.pass.capacity.edges;
            self.device.fill_bytes(self.at(place), 0, bytes)
        };
        if self.last_scatter().is_none() {
            zero(p.d_envelope, 1)?;
            zero(p.torque, 3)?;
        }
        match self.last_gather() {
            None => zero(p.source_torque, 3),
            Some(_) => Ok(()),
        }
    }

    /// The last sum over edges: first in the backward pass, it stores what others add to.
    fn last_scatter(&self) -> Option<usize> {
        let ops = &self.program.ops;
        ops.iter()
            .rposition(|op| matches!(op, Op::RotateScatter { .. } | Op::ScatterRadial { .. }))
    }

    /// The last operation that gathers.
    fn last_gather(&self) -> Option<usize> {
        let ops = &self.program.ops;
        ops.iter()
            .rposition(|op| matches!(op, Op::GatherRotateScale { .. }))
    }

    /// The gradient of an output as that of an input of the operation, unless they are the same memory.
    fn pass_on(&self, i: usize, from: Buf, to: Buf) -> Done {
        let width = self.program.width(from);
        let (x, y) = (self.gradient(from), self.gradient(to));
        match self.plan.gradients.stores(to, i) {
            _ if x == y => Ok(()),
            true => self.device.copy(y, x, 4 * width * self.atoms()),
            false => self.add(x, y, width),
        }
    }

    fn backward_atoms(&self, i: usize) -> Done {
        let chunk = self.pass.whole();
        let (channels, lmax) = (self.channels(), self.lmax());
        let gradients = &self.plan.gradients;
        let accumulate = |x: Buf| u32::from(!gradients.stores(x, i));
        let flags = |x: Buf| match gradients.stores(x, i) {
            true => 0,
            false => gemm::ACCUMULATE,
        };
        match &self.program.ops[i] {
            Op::RmsNorm { x, weight, out, .. } => {
                let params = RmsNormBackwardParams {
                    chunk,
                    x: self.value(*x),
                    weight: self.weights.plain(*weight),
                    gradient: self.gradient(*out),
                    second_gradient: match gradients.gather_of(*out) {
                        Some(gather) => self.atom(AtomKey::Source(gather)),
                        None => DevicePtr::NULL,
                    },
                    x_gradient: self.gradient(*x),
                    channels,
                    lmax,
                    accumulate: accumulate(*x),
                    pad: 0,
                };
                self.launch(self.shapes.rms_norm_backward(self.atoms()), &params)
            }
            Op::Linear {
                x,
                weight,
                silu,
                pre,
                out,
                ..
            } => {
                let width = self.program.width(*out);
                if *silu && gradients.before_gates(*out).is_none() {
                    let params = SiluRowsBackwardParams {
                        chunk,
                        x: self.value(*pre),
                        gradient: self.gradient(*out),
                        x_gradient: self.gradient(*pre),
                        width: width as u32,
                        accumulate: 0,
                    };
                    self.launch(self.shapes.silu_rows_backward(self.atoms(), width), &params)?;
                }
                let (span, matrix) = self.matrix(*weight);
                let params = GemmParams {
                    a: self.gradient(*pre),
                    a_stride: width as u64,
                    out: self.gradient(*x),
                    out_stride: self.program.width(*x) as u64,
                    flags: flags(*x),
                    ..GemmParams::default()
                };
                let span = gemm::transposed(&span, matrix.backward);
                self.atom_product(matrix.pool, &[span], params)
            }
            Op::So3Linear {
                x,
                weight,
                residual,
                out,
                ..
            } => {
                if let Some(residual) = residual {
                    self.pass_on(i, *out, *residual)?;
                }
                let (_, spans, pool) = self.so3_spans(*weight);
                let params = GemmParams {
                    a: self.gradient(*out),
                    a_stride: self.program.width(*out) as u64,
                    out: self.gradient(*x),
                    out_stride: self.program.width(*x) as u64,
                    flags: flags(*x),
                    ..GemmParams::default()
                };
                self.atom_product(pool, &spans, params)
            }
            Op::GateAtoms {
                x,
                gates,
                channels,
                out,
            } => {
                let pre = gradients.before_gates(*gates);
                let params = GateAtomsBackwardParams {
                    chunk,
                    x: self.value(*x),
                    gates: self.value(*gates),
                    gradient: self.gradient(*out),
                    x_gradient: self.gradient(*x),
                    gates_gradient: self.gradient(pre.unwrap_or(*gates)),
                    gates_pre: pre.map_or(DevicePtr::NULL, |pre| self.value(pre)),
                    channels: *channels as u32,
                    lmax,
                    accumulate: accumulate(*x),
                    pad: 0,
                };
                self.launch(self.shapes.gate_atoms_backward(self.atoms()), &params)
            }
            // Done with the one after.
            Op::Balance { .. } if gradients.balanced_with(i).is_some() => Ok(()),
            Op::Balance { x, out, .. } => {
                let first = (i > 0 && gradients.balanced_before(i)).then(|| i - 1);
                let ops: Vec<usize> = std::iter::once(i).chain(first).collect();
                self.balance(self.gradient(*out), &ops, false)?;
                self.pass_on(i, *out, *x)
            }
            _ => Ok(()),
        }
    }

    fn backward_stage(&self, s: usize, stage: &EdgeStage) -> Done {
        let again = self.plan.again(self.program, stage);
        for chunk in 0..self.pass.chunking.count {
            let at = Edges {
                chunk,
                stage: s,
                backward: true,
            };
            self.forward_edges(stage, &again, at)?;
            for &i in stage.ops.iter().rev() {
                self.backward_edges(i, at)?;
            }
        }
        for &i in &stage.ops {
            match self.program.ops[i] {
                Op::RotateScatter { x, out, .. } | Op::ScatterRadial { x, out, .. } => {
                    self.pass_on(i, out, x)?;
                }
                Op::GatherRotateScale { x, .. } if self.plan.gradients.gather_of(x) != Some(i) => {
                    let source = self.atom(AtomKey::Source(i));
                    self.add(source, self.gradient(x), self.program.width(x))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The factor of each edge's gradients in an edge stage, where there is one.
    pub(super) fn gradient_scale(&self, edge_stage: usize) -> DevicePtr {
        let all = self.at(self.pass.places.gradient_scale);
        match self.plan.numbers.scaled() {
            true => all.at::<f32>(edge_stage * self.pass.capacity.edges),
            false => DevicePtr::NULL,
        }
    }

    fn backward_edges(&self, i: usize, at: Edges) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        match &self.program.ops[i] {
            Op::Radial { mlp, .. } => self.radial_backward(i, mlp, at),
            Op::GatherRotateScale { x, radial, out, .. } => {
                let params = GatherBackwardParams {
                    chunk,
                    batch: self.pass.whole(),
                    target_start: self.at(p.target_start),
                    source_start: self.at(p.source_start),
                    by_source: self.at(p.by_source),
                    wigner: self.at(p.wigner),
                    x: self.value(*x),
                    radial: self.edge(at, EdgeKey::Value(*radial)),
                    gradient: self.edge(at, EdgeKey::Gradient(*out)),
                    gradient_scale: self.gradient_scale(self.plan.edge_stage(at.stage)),
                    radial_gradient: self.edge(at, EdgeKey::Gradient(*radial)),
                    target_gradient: self.atom(AtomKey::Gradient(*x)),
                    source_gradient: self.atom(AtomKey::Source(i)),
                    torque: self.at(p.torque),
                    source_torque: self.at(p.source_torque),
                    channels: self.channels(),
                    store: u32::from(self.plan.gradients.stores(*x, i))
                        | u32::from(at.chunk == 0) << 1
                        | u32::from(self.last_gather() == Some(i)) << 2,
                };
                self.launch(self.shapes.gather_backward(self.atoms()), &params)
            }
            Op::So2Linear {
                x,
                weights,
                channels_in,
                channels_out,
                gates,
                out,
            } => {
                let (_, spans, pool) =
                    self.so2_spans(weights, (*channels_in, *channels_out), *gates);
                let params = GemmParams {
                    a: self.edge(at, EdgeKey::Gradient(*out)),
                    a_stride: self.program.width(*out) as u64,
                    out: self.edge(at, EdgeKey::Gradient(*x)),
                    out_stride: self.program.width(*x) as u64,
                    ..GemmParams::default()
                };
                let arithmetic =
                    self.arithmetic(self.gradient_number(*out), self.gradient_number(*x));
                self.edge_product(at, arithmetic, Beside::Nothing, pool, &spans, params)
            }
            Op::GateEdges { x, channels, out } => {
                let params = GateEdgesBackwardParams {
                    chunk,
                    x: self.edge(at, EdgeKey::Value(*x)),
                    gradient: self.edge(at, EdgeKey::Gradient(*out)),
                    x_gradient: self.edge(at, EdgeKey::Gradient(*x)),
                    channels: *channels as u32,
                    lmax: self.lmax(),
                    mmax: self.mmax(),
                    pad: 0,
                };
                let written = self.gradient_number(*x);
                self.launch(self.shapes.gate_edges_backward(rows, written), &params)
            }
            Op::RotateScatter { message, out, .. } => {
                let size = self
                    .shapes
                    .rotate_scatter_backward(self.atoms(), self.gradient_number(*message));
                self.scatter_backward(i, size, (*message, *out), 1.0, at)
            }
            Op::ScatterRadial {
                radial, scale, out, ..
            } => {
                let size = self.shapes.scatter_radial_backward(self.atoms());
                self.scatter_backward(i, size, (*radial, *out), *scale as f32, at)
            }
            _ => unreachable!("not part of an edge stage"),
        }
    }

    fn scatter_backward(
        &self,
        i: usize,
        size: (Kernel, LaunchSize),
        (message, out): (Buf, Buf),
        scale: f32,
        at: Edges,
    ) -> Done {
        let p = &self.pass.places;
        let params = RotateScatterBackwardParams {
            chunk: self.pass.chunk(at.chunk),
            target_start: self.at(p.target_start),
            wigner: self.at(p.wigner),
            envelope: self.at(p.envelope),
            message: self.edge(at, EdgeKey::Value(message)),
            gradient: self.gradient(out),
            message_gradient: self.edge(at, EdgeKey::Gradient(message)),
            gradient_scale: self.gradient_scale(self.plan.edge_stage(at.stage)),
            d_envelope: self.at(p.d_envelope),
            torque: self.at(p.torque),
            channels: self.channels(),
            scale,
            store: u32::from(self.last_scatter() == Some(i)),
            pad: 0,
        };
        self.launch(size, &params)
    }
}
