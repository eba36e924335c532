//! stub
use super::Precision;
use super::device::{Kernel, LaunchSize};
use crate::nn::Program;
pub struct Shapes;
impl Shapes {
    pub fn new(_: &Program, _: Precision) -> Shapes { Shapes }
    pub fn add_nodes(&self, _a0: usize, _a1: usize) -> (Kernel, LaunchSize) { (Kernel("add_nodes"), LaunchSize::new(1,1)) }
    pub fn edge_geometry(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("edge_geometry"), LaunchSize::new(1,1)) }
    pub fn edge_force(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("edge_force"), LaunchSize::new(1,1)) }
    pub fn atom_force(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("atom_force"), LaunchSize::new(1,1)) }
    pub fn system_sums(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("system_sums"), LaunchSize::new(1,1)) }
    pub fn embed_atoms(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("embed_atoms"), LaunchSize::new(1,1)) }
    pub fn rms_norm(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("rms_norm"), LaunchSize::new(1,1)) }
    pub fn gate_atoms(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gate_atoms"), LaunchSize::new(1,1)) }
    pub fn balance_shift(&self, _a0: usize, _a1: usize) -> (Kernel, LaunchSize) { (Kernel("balance_shift"), LaunchSize::new(1,1)) }
    pub fn balance(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("balance"), LaunchSize::new(1,1)) }
    pub fn gather_rotate_scale(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gather_rotate_scale"), LaunchSize::new(1,1)) }
    pub fn gate_edges(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gate_edges"), LaunchSize::new(1,1)) }
    pub fn rotate_scatter(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("rotate_scatter"), LaunchSize::new(1,1)) }
    pub fn scatter_radial(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("scatter_radial"), LaunchSize::new(1,1)) }
    pub fn radial_first(&self, _a0: usize, _a1: usize, _a2: usize) -> (Kernel, LaunchSize) { (Kernel("radial_first"), LaunchSize::new(1,1)) }
    pub fn layer_norm_silu(&self, _a0: usize, _a1: usize) -> (Kernel, LaunchSize) { (Kernel("layer_norm_silu"), LaunchSize::new(1,1)) }
    pub fn rms_norm_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("rms_norm_backward"), LaunchSize::new(1,1)) }
    pub fn silu_rows_backward(&self, _a0: usize, _a1: usize) -> (Kernel, LaunchSize) { (Kernel("silu_rows_backward"), LaunchSize::new(1,1)) }
    pub fn gate_atoms_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gate_atoms_backward"), LaunchSize::new(1,1)) }
    pub fn gather_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gather_backward"), LaunchSize::new(1,1)) }
    pub fn gate_edges_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("gate_edges_backward"), LaunchSize::new(1,1)) }
    pub fn rotate_scatter_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("rotate_scatter_backward"), LaunchSize::new(1,1)) }
    pub fn scatter_radial_backward(&self, _a0: usize) -> (Kernel, LaunchSize) { (Kernel("scatter_radial_backward"), LaunchSize::new(1,1)) }
    pub fn layer_norm_silu_backward(&self, _a0: usize, _a1: usize) -> (Kernel, LaunchSize) { (Kernel("layer_norm_silu_backward"), LaunchSize::new(1,1)) }
    pub fn radial_first_backward(&self, _a0: usize, _a1: usize, _a2: usize) -> (Kernel, LaunchSize) { (Kernel("radial_first_backward"), LaunchSize::new(1,1)) }
}
