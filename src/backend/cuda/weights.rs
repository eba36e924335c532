//! Weights in device memory, and the mixing of experts there.
//!
//! Every matrix lies twice, as `[out][in]` for the forward product and transposed for the backward
//! one. Matrices live in pools: those of edge products in the number type of edge values, those of
//! atom products in f32; mixed and per-task matrices have one pool per system or task, so that one
//! launch finds the matrices of every system through a table of base addresses.

use super::Options;
use super::device::{Device, Kernel, LaunchSize};
use super::error::CudaError;
use super::params::{DevicePtr, MixParams, RadialNetwork};
use super::precision::{EdgeNumbers, Number};
use crate::backend::{Conditioning, WeightData, WeightSource};
use crate::nn::{Op, Program, RadialMlp, Weight, WeightKind, WeightSlot, WeightUse};
use std::collections::HashMap;
use std::sync::Arc;

/// Offsets are multiples of this many elements: 16-byte accesses for both number types.
const ALIGN: u64 = 8;

/// Where the matrices of a weight lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Edge products, the same for every system.
    Edge,
    /// Atom products, the same for every system.
    Atom,
    /// Edge products, mixed per system.
    Mixed,
    /// Atom products, one per task.
    Task,
}

/// One weight in its pool, elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Which pool.
    pub pool: Pool,
    /// `[out][in]`, or one such per degree.
    pub forward: u64,
    /// `[in][out]`, or one such per degree.
    pub backward: u64,
}

struct Mixed {
    base: DevicePtr,
    last_use: u64,
}

/// All weights of one program on one device.
pub struct Weights {
    program: Arc<Program>,
    source: Arc<dyn WeightSource>,
    /// Of the matrices of edge products.
    operands: Number,
    matrices: Vec<Option<Matrix>>,
    plain: Vec<Option<DevicePtr>>,
    /// First layers of the radial networks, with everything that depends on elements only worked out.
    networks: Vec<RadialNetwork>,
    /// The same on the device.
    network_table: DevicePtr,
    edge: DevicePtr,
    atom: DevicePtr,
    tasks: DevicePtr,
    task_bytes: u64,
    mixed_bytes: usize,
    mixed: HashMap<String, Mixed>,
    mixed_limit_bytes: usize,
    /// Experts that stay on the device, by weight.
    experts: HashMap<usize, DevicePtr>,
    experts_limit_bytes: usize,
    clock: u64,
}

/// Which pool the operations of a program want each weight in.
fn pools(program: &Program) -> Result<Vec<Option<Pool>>, CudaError> {
    let mut pools = vec![None; program.weights.len()];
    let mut set = |weight: Weight, edge: bool| -> Result<(), CudaError> {
        let slot = &program.weights[weight.0];
        let pool = match (edge, slot.kind) {
            (true, WeightKind::Fixed) => Pool::Edge,
            (true, WeightKind::Mixed) => Pool::Mixed,
            (false, WeightKind::Fixed) => Pool::Atom,
            (false, WeightKind::PerTask) => Pool::Task,
            (_, kind) => {
                return Err(CudaError::Unsupported(format!(
                    "weight {} of kind {kind:?} in this operation",
                    slot.name
                )));
            }
        };
        if pools[weight.0].is_some_and(|other| other != pool) {
            return Err(CudaError::Unsupported(format!(
                "weight {} is used for atoms and for edges",
                slot.name
            )));
        }
        pools[weight.0] = Some(pool);
        Ok(())
    };
    for op in &program.ops {
        match op {
            Op::Radial { mlp, .. } => {
                set(mlp.second.0, true)?;
                set(mlp.third.0, true)?;
            }
            Op::So2Linear { weights, .. } => {
                set(weights.m0, true)?;
                for &m in &weights.m {
                    set(m, true)?;
                }
            }
            Op::Linear { weight, .. } | Op::So3Linear { weight, .. } => set(*weight, false)?,
            _ => {}
        }
    }
    Ok(pools)
}

/// Numbers of one matrix (or stack of matrices) in the forward layout: a complex map becomes a
/// real one of twice the size.
fn laid_out(slot: &WeightSlot) -> u64 {
    let size: usize = slot.shape.iter().product();
    match slot.usage {
        WeightUse::Complex => 2 * size as u64,
        _ => size as u64,
    }
}

fn values(data: &WeightData) -> Vec<f64> {
    match data {
        WeightData::F32(w) => w.iter().map(|&x| f64::from(x)).collect(),
        WeightData::F64(w) => w.to_vec(),
    }
}

/// Forward layout and transpose of one weight.
fn lay_out(slot: &WeightSlot, w: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let &[.., rows, columns] = slot.shape.as_slice() else {
        unreachable!("a matrix has two dimensions: {}", slot.name)
    };
    let transpose = |w: &[f64], rows: usize, columns: usize| -> Vec<f64> {
        let mut out = Vec::with_capacity(w.len());
        for column in 0..columns {
            out.extend((0..rows).map(|row| w[row * columns + column]));
        }
        out
    };
    match slot.usage {
        WeightUse::Complex => {
            let (a, b) = w.split_at(w.len() / 2);
            let mut forward = Vec::with_capacity(2 * w.len());
            for (first, second, sign) in [(a, b, -1.0), (b, a, 1.0)] {
                for (x, y) in first
                    .chunks_exact(columns)
                    .zip(second.chunks_exact(columns))
                {
                    forward.extend(x);
                    forward.extend(y.iter().map(|y| sign * y));
                }
            }
            let backward = transpose(&forward, rows, 2 * columns);
            (forward, backward)
        }
        _ => {
            let backward = w
                .chunks_exact(rows * columns)
                .flat_map(|w| transpose(w, rows, columns))
                .collect();
            (w.to_vec(), backward)
        }
    }
}

/// Numbers as they lie in device memory.
fn encode(values: &[f64], number: Number) -> Vec<u8> {
    let floats = values.iter().map(|&x| x as f32);
    match number {
        Number::F32 => bytemuck::cast_slice(&floats.collect::<Vec<f32>>()).to_vec(),
        Number::F16 => {
            let halves: Vec<u16> = floats.map(|x| half::f16::from_f32(x).to_bits()).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }
}

fn store(device: &dyn Device, bytes: &[u8]) -> Result<DevicePtr, CudaError> {
    let pointer = device.alloc(bytes.len().max(16))?;
    device.upload_bytes(pointer, bytes)?;
    Ok(pointer)
}

impl Weights {
    /// Uploads everything that does not depend on the system.
    ///
    /// # Errors
    /// Unsupported programs by name, and those of the device.
    pub fn new(
        device: &dyn Device,
        program: Arc<Program>,
        source: Arc<dyn WeightSource>,
        options: &Options,
    ) -> Result<Weights, CudaError> {
        let operands = EdgeNumbers::of(options.precision).operands;
        let pools = pools(&program)?;
        let mut matrices = vec![None; program.weights.len()];
        let mut plain = vec![None; program.weights.len()];
        let mut sizes: HashMap<u8, u64> = HashMap::new();
        for (i, pool) in pools.iter().enumerate() {
            let Some(pool) = *pool else { continue };
            let size = laid_out(&program.weights[i]).next_multiple_of(ALIGN);
            let at = sizes.entry(pool as u8).or_default();
            matrices[i] = Some(Matrix {
                pool,
                forward: *at,
                backward: *at + size,
            });
            *at += 2 * size;
        }
        let size = |pool: Pool| sizes.get(&(pool as u8)).copied().unwrap_or(0) as usize;

        let mut edge = vec![0.0; size(Pool::Edge)];
        let mut atom = vec![0.0; size(Pool::Atom)];
        let task_count = program
            .weights
            .iter()
            .filter(|slot| slot.kind == WeightKind::PerTask)
            .map(|slot| {
                let all = values(&source.weight(&slot.name)).len();
                all / slot.shape.iter().product::<usize>().max(1)
            })
            .min()
            .unwrap_or(0);
        let mut tasks = vec![0.0; size(Pool::Task) * task_count];
        for (i, slot) in program.weights.iter().enumerate() {
            match matrices[i] {
                None if pools[i].is_none() && slot.usage == WeightUse::Plain => {
                    let bytes = encode(&values(&source.weight(&slot.name)), Number::F32);
                    plain[i] = Some(store(device, &bytes)?);
                }
                None => {}
                Some(Matrix {
                    pool: Pool::Mixed, ..
                }) => {}
                Some(matrix) => {
                    let all = values(&source.weight(&slot.name));
                    let one = slot.shape.iter().product::<usize>();
                    let put = |pool: &mut [f64], w: &[f64]| {
                        let (forward, backward) = lay_out(slot, w);
                        pool[matrix.forward as usize..][..forward.len()].copy_from_slice(&forward);
                        pool[matrix.backward as usize..][..backward.len()]
                            .copy_from_slice(&backward);
                    };
                    match matrix.pool {
                        Pool::Edge => put(&mut edge, &all),
                        Pool::Atom => put(&mut atom, &all),
                        Pool::Task => {
                            let stride = size(Pool::Task);
                            for (pool, w) in
                                tasks.chunks_exact_mut(stride).zip(all.chunks_exact(one))
                            {
                                put(pool, w);
                            }
                        }
                        Pool::Mixed => unreachable!("mixed weights are made per system"),
                    }
                }
            }
        }
        let of_plain = |weight: Weight| plain[weight.0].expect("uploaded just now");
        let mut networks = Vec::new();
        for op in &program.ops {
            let Op::Radial { mlp, .. } = op else { continue };
            let [gaussians, source_table, target_table] = radial_tables(&program, &*source, mlp);
            let put = |values: &[f64]| store(device, &encode(values, Number::F32));
            networks.push(RadialNetwork {
                weight: put(&gaussians)?,
                source_table: put(&source_table)?,
                target_table: put(&target_table)?,
                norm_weight: of_plain(mlp.norm_1.0),
                norm_bias: of_plain(mlp.norm_1.1),
            });
        }
        Ok(Weights {
            edge: store(device, &encode(&edge, operands))?,
            atom: store(device, &encode(&atom, Number::F32))?,
            tasks: store(device, &encode(&tasks, Number::F32))?,
            task_bytes: size(Pool::Task) as u64 * 4,
            mixed_bytes: size(Pool::Mixed) * operands.bytes(),
            mixed: HashMap::new(),
            mixed_limit_bytes: options.mixed_bytes,
            experts: HashMap::new(),
            experts_limit_bytes: options.experts_bytes,
            operands,
            clock: 0,
            program,
            source,
            matrices,
            plain,
            network_table: store(device, bytemuck::cast_slice(&networks))?,
            networks,
        })
    }

    /// Gives all of its memory back.
    pub fn release(self, device: &dyn Device) {
        let networks = self.networks.iter();
        let held = [self.edge, self.atom, self.tasks, self.network_table]
            .into_iter()
            .chain(self.plain.into_iter().flatten())
            .chain(networks.flat_map(|n| [n.weight, n.source_table, n.target_table]))
            .chain(self.mixed.into_values().map(|mixed| mixed.base))
            .chain(self.experts.into_values());
        for pointer in held {
            // A device that fails has lost the memory with its context.
            let _ = device.free(pointer);
        }
    }

    /// Where the matrices of a weight lie.
    pub fn matrix(&self, weight: Weight) -> Matrix {
        self.matrices[weight.0].expect("the program's matrices are placed when it is prepared")
    }

    /// Base of a pool that all systems share.
    pub fn base(&self, pool: Pool) -> DevicePtr {
        match pool {
            Pool::Edge => self.edge,
            Pool::Atom => self.atom,
            Pool::Mixed | Pool::Task => DevicePtr::default(),
        }
    }

    /// A vector or table in f32.
    pub fn plain(&self, weight: Weight) -> DevicePtr {
        self.plain[weight.0].expect("plain weights are uploaded when the program is prepared")
    }

    /// First layers of the radial networks from this one on, [`RadialNetwork`].
    pub fn networks(&self, first: usize) -> DevicePtr {
        self.network_table.at::<RadialNetwork>(first)
    }

    /// Base address of the matrices of a task.
    pub fn task_base(&self, task: usize) -> u64 {
        self.tasks.0 + task as u64 * self.task_bytes
    }

    /// Memory of the mixed weights of one conditioning, bytes.
    pub fn mixed_bytes(&self) -> usize {
        self.mixed_bytes
    }

    /// Base addresses of the mixed weights of each conditioning, mixing those that are not there.
    /// Least recently used ones make room.
    pub fn mixed(
        &mut self,
        device: &dyn Device,
        batch: &[&Conditioning],
    ) -> Result<Vec<u64>, CudaError> {
        if self.mixed_bytes == 0 {
            return Ok(vec![0; batch.len()]);
        }
        self.clock += 1;
        let mut missing: Vec<&Conditioning> = Vec::new();
        for &conditioning in batch {
            match self.mixed.get_mut(&conditioning.key) {
                Some(entry) => entry.last_use = self.clock,
                None if missing.iter().any(|c| c.key == conditioning.key) => {}
                None => missing.push(conditioning),
            }
        }
        if !missing.is_empty() {
            self.make_room(device, missing.len())?;
            self.mix(device, &missing)?;
        }
        Ok(batch.iter().map(|c| self.mixed[&c.key].base.0).collect())
    }

    /// Drops what was not used in this call until so many more fit under the limit.
    fn make_room(&mut self, device: &dyn Device, more: usize) -> Result<(), CudaError> {
        while (self.mixed.len() + more) * self.mixed_bytes > self.mixed_limit_bytes {
            let oldest = self
                .mixed
                .iter()
                .filter(|(_, entry)| entry.last_use < self.clock)
                .min_by_key(|(key, entry)| (entry.last_use, (*key).clone()))
                .map(|(key, _)| key.clone());
            let Some(entry) = oldest.and_then(|key| self.mixed.remove(&key)) else {
                break;
            };
            device.free(entry.base)?;
        }
        Ok(())
    }

    fn mix(&mut self, device: &dyn Device, missing: &[&Conditioning]) -> Result<(), CudaError> {
        let mut bases = Vec::new();
        let mixed = missing
            .iter()
            .try_for_each(|_| {
                bases.push(device.alloc(self.mixed_bytes)?);
                Ok(())
            })
            .and_then(|()| self.mix_into(device, missing, &bases));
        if mixed.is_err() {
            for &base in &bases {
                let _ = device.free(base);
            }
        }
        mixed?;
        for (conditioning, base) in missing.iter().zip(bases) {
            let entry = Mixed {
                base,
                last_use: self.clock,
            };
            self.mixed.insert(conditioning.key.clone(), entry);
        }
        Ok(())
    }

    fn mix_into(
        &mut self,
        device: &dyn Device,
        missing: &[&Conditioning],
        bases: &[DevicePtr],
    ) -> Result<(), CudaError> {
        let coefficients: Vec<f64> = missing.iter().flat_map(|c| c.experts.clone()).collect();
        let expert_count = missing[0].experts.len();
        let coefficients = store(device, bytemuck::cast_slice(&coefficients))?;
        let table = store(device, bytemuck::cast_slice(bases))?;
        let kernel = Kernel(match self.operands {
            Number::F32 => "mix_f32",
            Number::F16 => "mix_f16",
        });
        for i in 0..self.program.weights.len() {
            let Some(Matrix {
                pool: Pool::Mixed,
                forward,
                backward,
            }) = self.matrices[i]
            else {
                continue;
            };
            let (experts, stays) = self.experts(device, i)?;
            let slot = &self.program.weights[i];
            let [rows, columns] = [slot.shape[0], slot.shape[1]];
            let params = MixParams {
                experts,
                coefficients,
                bases: table,
                forward_offset: forward,
                backward_offset: backward,
                expert_count: expert_count as u32,
                systems: missing.len() as u32,
                rows: rows as u32,
                columns: columns as u32,
                complex_map: u32::from(slot.usage == WeightUse::Complex),
                pad: 0,
            };
            let mut size = LaunchSize::cover(rows * columns, 256);
            size.grid[1] = missing.len() as u32;
            device.launch(kernel, size, &params)?;
            if !stays {
                device.free(experts)?;
            }
        }
        device.free(coefficients)?;
        device.free(table)
    }

    /// The experts of a weight on the device, and whether they stay there. A single composition
    /// is mixed once and its experts are let go; from the second on they stay if they may.
    fn experts(
        &mut self,
        device: &dyn Device,
        weight: usize,
    ) -> Result<(DevicePtr, bool), CudaError> {
        if let Some(&pointer) = self.experts.get(&weight) {
            return Ok((pointer, true));
        }
        let data = self.source.weight(&self.program.weights[weight].name);
        let pointer = match &data {
            WeightData::F32(w) => store(device, bytemuck::cast_slice(w))?,
            WeightData::F64(_) => store(device, &encode(&values(&data), Number::F32))?,
        };
        let stays = !self.mixed.is_empty() && self.all_experts_bytes() <= self.experts_limit_bytes;
        if stays {
            self.experts.insert(weight, pointer);
        }
        Ok((pointer, stays))
    }

    fn all_experts_bytes(&self) -> usize {
        let mixed = self
            .program
            .weights
            .iter()
            .filter(|s| s.kind == WeightKind::Mixed);
        mixed
            .map(|slot| match self.source.weight(&slot.name) {
                WeightData::F32(w) => 4 * w.len(),
                WeightData::F64(w) => 4 * w.len(),
            })
            .sum()
    }
}

/// Columns of the first radial layer that multiply the Gaussians, transposed, and what each element adds as
/// source and (with the bias) as target.
fn radial_tables(program: &Program, source: &dyn WeightSource, mlp: &RadialMlp) -> [Vec<f64>; 3] {
    let of = |w: Weight| values(&source.weight(&program.weights[w.0].name));
    let hidden = program.weights[mlp.first_bias.0].shape[0];
    let basis = program.basis;
    let columns = basis + 2 * hidden;
    let (first, bias) = (of(mlp.first), of(mlp.first_bias));
    let table = |embedding: Weight, offset: usize, bias: Option<&[f64]>| -> Vec<f64> {
        let mut out = Vec::new();
        for element in of(embedding).chunks_exact(hidden) {
            for o in 0..hidden {
                let row = &first[o * columns + offset..][..hidden];
                let product: f64 = row.iter().zip(element).map(|(w, x)| w * x).sum();
                out.push(product + bias.map_or(0.0, |b| b[o]));
            }
        }
        out
    };
    let gaussians = (0..basis)
        .flat_map(|k| first.chunks_exact(columns).map(move |row| row[k]))
        .collect();
    [
        gaussians,
        table(mlp.source_embedding, basis, None),
        table(mlp.target_embedding, basis + hidden, Some(&bias)),
    ]
}
