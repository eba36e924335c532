//! The backward pass: the launches of [`Runner`](super::Runner) in the reverse order.

use super::*;

impl Runner<'_> {
    pub(super) fn backward(&self, s: usize) -> Done {
        for &(buf, stage) in &self.plan.gradients_begin {
            if stage == s {
                self.zero(AtomKey::Gradient(buf), self.program.width(buf))?;
            }
        }
        match &self.plan.stages[s] {
            Stage::Atoms(i) => self.backward_atoms(&self.program.ops[*i]),
            Stage::Edges(stage) => self.backward_stage(s, stage),
        }
    }

    fn backward_atoms(&self, op: &Op) -> Done {
        let chunk = self.pass.whole();
        let (channels, lmax) = (self.channels(), self.lmax());
        match op {
            Op::RmsNorm { x, weight, out, .. } => {
                let params = RmsNormBackwardParams {
                    chunk,
                    x: self.value(*x),
                    weight: self.weights.plain(*weight),
                    gradient: self.gradient(*out),
                    x_gradient: self.gradient(*x),
                    channels,
                    lmax,
                    accumulate: 1,
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
                if *silu {
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
                    flags: gemm::ACCUMULATE,
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
                let width = self.program.width(*out);
                if let Some(residual) = residual {
                    self.add(self.gradient(*out), self.gradient(*residual), width)?;
                }
                let (_, spans, pool) = self.so3_spans(*weight);
                let params = GemmParams {
                    a: self.gradient(*out),
                    a_stride: width as u64,
                    out: self.gradient(*x),
                    out_stride: self.program.width(*x) as u64,
                    flags: gemm::ACCUMULATE,
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
                let params = GateAtomsBackwardParams {
                    chunk,
                    x: self.value(*x),
                    gates: self.value(*gates),
                    gradient: self.gradient(*out),
                    x_gradient: self.gradient(*x),
                    gates_gradient: self.gradient(*gates),
                    channels: *channels as u32,
                    lmax,
                    accumulate: 1,
                    pad: 0,
                };
                self.launch(self.shapes.gate_atoms_backward(self.atoms()), &params)
            }
            Op::Balance {
                x, channels, out, ..
            } => {
                let (from, to) = (self.gradient(*out), self.gradient(*x));
                self.balance(from, to, channels, DevicePtr::NULL, 1)
            }
            _ => Ok(()),
        }
    }

    fn backward_stage(&self, s: usize, stage: &EdgeStage) -> Done {
        let again = self.plan.again(self.program, stage);
        for &i in &stage.ops {
            if let Op::GatherRotateScale { x, .. } = self.program.ops[i] {
                self.zero(AtomKey::Source(i), self.program.width(x))?;
            }
        }
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
                    self.add(
                        self.gradient(out),
                        self.gradient(x),
                        self.program.width(out),
                    )?;
                }
                Op::GatherRotateScale { x, .. } => {
                    let source = self.atom(AtomKey::Source(i));
                    self.add(source, self.gradient(x), self.program.width(x))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The factor of each edge's gradients, where there is one.
    pub(super) fn gradient_scale(&self) -> DevicePtr {
        match self.plan.numbers.scaled() {
            true => self.at(self.pass.places.gradient_scale),
            false => DevicePtr::NULL,
        }
    }

    fn backward_edges(&self, i: usize, at: Edges) -> Done {
        let p = &self.pass.places;
        let rows = self.pass.chunking.rows;
        let chunk = self.pass.chunk(at.chunk);
        match &self.program.ops[i] {
            Op::Radial {
                mlp, hidden_2, out, ..
            } => self.radial_backward(i, mlp, *hidden_2, *out, at),
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
                    gradient_scale: self.gradient_scale(),
                    radial_gradient: self.edge(at, EdgeKey::Gradient(*radial)),
                    target_gradient: self.atom(AtomKey::Gradient(*x)),
                    source_gradient: self.atom(AtomKey::Source(i)),
                    torque: self.at(p.torque),
                    source_torque: self.at(p.source_torque),
                    channels: self.channels(),
                    pad: 0,
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
                self.scatter_backward(size, *message, *out, 1.0, at)
            }
            Op::ScatterRadial {
                radial, scale, out, ..
            } => {
                let size = self.shapes.scatter_radial_backward(self.atoms());
                self.scatter_backward(size, *radial, *out, *scale as f32, at)
            }
            _ => unreachable!("not part of an edge stage"),
        }
    }

    fn scatter_backward(
        &self,
        size: (Kernel, LaunchSize),
        message: Buf,
        out: Buf,
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
            gradient_scale: self.gradient_scale(),
            d_envelope: self.at(p.d_envelope),
            torque: self.at(p.torque),
            channels: self.channels(),
            scale,
        };
        self.launch(size, &params)
    }
}
