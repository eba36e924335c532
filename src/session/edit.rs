//! Changes of the structure by the user: checked, merged, applied.

use std::collections::HashMap;

use super::message::{ClientMessage, Delta, Edit, Payload};
use super::settings::SessionSettings;
use crate::dynamics::State;
use crate::system::Cell;

/// Largest absolute value of a coordinate, velocity component or cell entry.
const LARGEST_COORDINATE: f64 = 1e6;
/// Charges and spin multiplicities that UMA has embeddings for.
const LARGEST_CHARGE: i32 = 100;
const LARGEST_SPIN: u32 = 100;
/// A cell whose entries add up to less than this is no cell, Angstrom.
const NO_CELL: f64 = 1e-6;
/// Least length, area or volume that the repeating lattice vectors must span, Angstrom^k.
const LEAST_SPAN: f64 = 1e-3;

/// The structure as the user has defined it so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Structure {
    /// Atoms, velocities, and what the dynamics remembers.
    pub state: State,
    /// Whether each atom has ever been given a position.
    pub placed: Vec<bool>,
    /// Which directions of a cell repeat, also while there is no cell.
    pub periodic: [bool; 3],
}

impl Structure {
    /// No atoms, no cell, the defaults of the server.
    pub fn new(settings: &SessionSettings) -> Self {
        let mut structure = Structure {
            periodic: [true; 3],
            ..Structure::default()
        };
        let system = &mut structure.state.system;
        system.task = settings.default_task.clone();
        system.spin = default_spin(&system.task);
        structure
    }

    /// Whether every atom has an element and a position, and there are atoms.
    pub fn is_complete(&self) -> bool {
        let numbers = &self.state.system.numbers;
        !numbers.is_empty() && numbers.iter().all(|&z| z > 0) && self.placed.iter().all(|&p| p)
    }

    /// Atoms after the edit.
    pub fn natoms_after(&self, edit: &Edit) -> usize {
        match (edit.full_update, edit.natoms) {
            (Some(true), natoms) => natoms as usize,
            (_, 0) => self
                .state
                .system
                .len()
                .max(edit.largest_index().map_or(0, |i| i as usize + 1)),
            (_, natoms) => natoms as usize,
        }
    }

    /// Whether the edit adds, removes or transmutes atoms.
    pub fn is_restructured_by(&self, edit: &Edit) -> bool {
        let numbers = &self.state.system.numbers;
        self.natoms_after(edit) != numbers.len()
            || edit
                .atomic_numbers
                .indices
                .iter()
                .zip(&edit.atomic_numbers.values)
                .any(|(&i, &z)| {
                    numbers
                        .get(i as usize)
                        .is_none_or(|&old| u32::from(old) != z)
                })
    }

    /// Why the edit cannot be applied here, in words. An edit that passes cannot fail.
    pub fn check(&self, edit: &Edit, settings: &SessionSettings) -> Result<(), String> {
        edit.check(settings)?;
        if edit.full_update == Some(true)
            && let Some(index) = edit.largest_index().filter(|&i| i >= edit.natoms)
        {
            return Err(format!(
                "atom index {index} of a full update with natoms = {}",
                edit.natoms
            ));
        }
        let cell = self.cell_after(edit);
        if !spans(&cell) {
            return Err(
                "the cell has no volume: its repeating lattice vectors are zero or parallel".into(),
            );
        }
        if edit.periodic.is_some_and(|p| p.contains(&true)) && !has_vectors(&cell) {
            return Err("periodicity without a cell".into());
        }
        Ok(())
    }

    /// The cell once the edit is applied.
    fn cell_after(&self, edit: &Edit) -> Cell {
        let full = edit.full_update == Some(true);
        let periodic = match edit.periodic {
            Some(periodic) => periodic,
            None if full => [true; 3],
            None => self.periodic,
        };
        let vectors = match edit.cell.as_deref() {
            Some(&[a, b, c, d, e, f, g, h, i]) => [[a, b, c], [d, e, f], [g, h, i]],
            _ if full => return Cell::NONE,
            _ => self.state.system.cell.vectors,
        };
        let cell = Cell { vectors, periodic };
        if has_vectors(&cell) { cell } else { Cell::NONE }
    }

    /// Applies a checked edit. What was computed or remembered for the old structure is dropped.
    pub fn apply(&mut self, edit: &Edit, settings: &SessionSettings) {
        let natoms = self.natoms_after(edit);
        let cell = self.cell_after(edit);
        let full = edit.full_update == Some(true);
        let state = &mut self.state;
        let system = &mut state.system;
        state.evaluation = None;
        state.history = Default::default();
        system.numbers.resize(natoms, 0);
        system.positions.resize(natoms, [0.0; 3]);
        state.velocities.resize(natoms, [0.0; 3]);
        self.placed.resize(natoms, false);
        if full && edit.velocities.indices.is_empty() {
            state.velocities.fill([0.0; 3]);
        }
        for (&i, &z) in edit
            .atomic_numbers
            .indices
            .iter()
            .zip(&edit.atomic_numbers.values)
        {
            system.numbers[i as usize] = z as u8;
        }
        for (i, position) in edit.positions.vectors() {
            system.positions[i] = position;
            self.placed[i] = true;
        }
        for (i, velocity) in edit.velocities.vectors() {
            state.velocities[i] = velocity;
        }
        system.cell = cell;
        if let Some(periodic) = edit.periodic {
            self.periodic = periodic;
        } else if full {
            self.periodic = [true; 3];
        }
        if let Some(task) = &edit.task {
            if *task != system.task
                && edit.spin.is_none()
                && system.spin == default_spin(&system.task)
            {
                system.spin = default_spin(task);
            }
            system.task.clone_from(task);
        } else if full {
            system.task.clone_from(&settings.default_task);
        }
        match edit.charge {
            Some(charge) => system.charge = charge,
            None if full => system.charge = 0,
            None => {}
        }
        match edit.spin {
            Some(spin) => system.spin = spin as i32,
            None if full => system.spin = default_spin(&system.task),
            None => {}
        }
    }
}

/// Spin multiplicity of a client that says nothing, as fairchem's calculator has it.
fn default_spin(task: &str) -> i32 {
    i32::from(task == "omol")
}

/// Whether there is a cell at all.
pub(super) fn has_vectors(cell: &Cell) -> bool {
    cell.vectors.iter().flatten().map(|x| x.abs()).sum::<f64>() >= NO_CELL
}

/// Whether the repeating lattice vectors are linearly independent.
fn spans(cell: &Cell) -> bool {
    let repeating: Vec<[f64; 3]> = (0..3)
        .filter(|&k| cell.periodic[k])
        .map(|k| cell.vectors[k])
        .collect();
    let cross = |a: [f64; 3], b: [f64; 3]| {
        [
            a[1] * b[2] - a[2] * b[1],
            a[2] * b[0] - a[0] * b[2],
            a[0] * b[1] - a[1] * b[0],
        ]
    };
    let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    let span = match repeating[..] {
        [] => return true,
        [a] => dot(a, a).sqrt(),
        [a, b] => dot(cross(a, b), cross(a, b)).sqrt(),
        [a, b, c, ..] => dot(a, cross(b, c)).abs(),
    };
    span >= LEAST_SPAN
}

impl Delta<f64> {
    /// (atom, vector) of a checked delta.
    fn vectors(&self) -> impl Iterator<Item = (usize, [f64; 3])> + '_ {
        let (vectors, _) = self.values.as_chunks::<3>();
        self.indices
            .iter()
            .zip(vectors)
            .map(|(&i, &vector)| (i as usize, vector))
    }

    fn check_vectors(&self, name: &str) -> Result<(), String> {
        let (atoms, values) = (self.indices.len(), self.values.len());
        if values != 3 * atoms {
            return Err(format!(
                "{name} carry {values} coordinates for {atoms} indices, {} expected",
                3 * atoms
            ));
        }
        check_values(name, &self.values)
    }
}

fn check_values(name: &str, values: &[f64]) -> Result<(), String> {
    match values
        .iter()
        .find(|x| !x.is_finite() || x.abs() > LARGEST_COORDINATE)
    {
        Some(x) if x.is_finite() => Err(format!(
            "{name} contain {x:e}, the limit is {LARGEST_COORDINATE:e}"
        )),
        Some(x) => Err(format!("{name} contain {x}, which is not finite")),
        None => Ok(()),
    }
}

impl Edit {
    /// Largest atom index that the edit names.
    fn largest_index(&self) -> Option<u32> {
        [
            &self.atomic_numbers.indices,
            &self.positions.indices,
            &self.velocities.indices,
        ]
        .into_iter()
        .flatten()
        .copied()
        .max()
    }

    /// Checks everything that does not depend on the present structure, in words.
    fn check(&self, settings: &SessionSettings) -> Result<(), String> {
        let limit = settings.max_atoms;
        if self.natoms as usize > limit {
            return Err(format!("natoms = {}, the limit is {limit}", self.natoms));
        }
        let (atoms, values) = (
            self.atomic_numbers.indices.len(),
            self.atomic_numbers.values.len(),
        );
        if values != atoms {
            return Err(format!(
                "atomic_numbers carry {values} values for {atoms} indices"
            ));
        }
        self.positions.check_vectors("positions")?;
        self.velocities.check_vectors("velocities")?;
        if let Some(index) = self.largest_index() {
            if index as usize >= limit {
                return Err(format!("atom index {index}, the limit is {limit} atoms"));
            }
            if self.full_update != Some(true) && self.natoms > 0 && index >= self.natoms {
                return Err(format!("atom index {index} with natoms = {}", self.natoms));
            }
        }
        let heaviest = u32::from(settings.max_atomic_number);
        if let Some((i, z)) = self
            .atomic_numbers
            .indices
            .iter()
            .zip(&self.atomic_numbers.values)
            .find(|&(_, &z)| z > heaviest)
        {
            return Err(format!(
                "atomic number {z} of atom {i}, the model knows 1 to {heaviest}"
            ));
        }
        if let Some(cell) = &self.cell {
            if cell.len() != 9 {
                return Err(format!("cell carries {} numbers, 9 expected", cell.len()));
            }
            check_values("cell vectors", cell)?;
        }
        if let Some(charge) = self
            .charge
            .filter(|c| !(-LARGEST_CHARGE..=LARGEST_CHARGE).contains(c))
        {
            return Err(format!(
                "charge {charge}, the limits are -{LARGEST_CHARGE} and {LARGEST_CHARGE}"
            ));
        }
        if let Some(spin) = self.spin.filter(|&s| s > LARGEST_SPIN) {
            return Err(format!(
                "spin multiplicity {spin}, the limit is {LARGEST_SPIN}"
            ));
        }
        if let Some(task) = self.task.as_ref().filter(|t| !settings.tasks.contains(t)) {
            let task: String = task.chars().take(64).collect();
            return Err(format!(
                "task {task:?} is not one of the model: {}",
                settings.tasks.join(", ")
            ));
        }
        Ok(())
    }

    /// Adds a following checked sparse edit: the last write wins, atom by atom.
    pub(super) fn absorb(&mut self, next: Edit) {
        self.natoms = self.natoms.max(next.natoms);
        merge_delta(&mut self.atomic_numbers, next.atomic_numbers, 1);
        merge_delta(&mut self.positions, next.positions, 3);
        merge_delta(&mut self.velocities, next.velocities, 3);
        self.cell = next.cell.or(self.cell.take());
        self.full_update = next.full_update.or(self.full_update);
        self.charge = next.charge.or(self.charge);
        self.spin = next.spin.or(self.spin);
        self.task = next.task.or(self.task.take());
        self.periodic = next.periodic.or(self.periodic);
    }

    /// What the edit changes, in a few words for the recording.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        let mut atoms = |what: &str, indices: &[u32]| match indices {
            [] => {}
            few if few.len() <= 8 => {
                let list: Vec<String> = few.iter().map(u32::to_string).collect();
                parts.push(format!("{what} of atoms {}", list.join(" ")));
            }
            many => parts.push(format!("{what} of {} atoms", many.len())),
        };
        atoms("atomic numbers", &self.atomic_numbers.indices);
        atoms("positions", &self.positions.indices);
        atoms("velocities", &self.velocities.indices);
        if self.cell.is_some() {
            parts.push("cell".into());
        }
        if self.periodic.is_some() {
            parts.push("periodicity".into());
        }
        if let Some(charge) = self.charge {
            parts.push(format!("charge {charge}"));
        }
        if let Some(spin) = self.spin {
            parts.push(format!("spin multiplicity {spin}"));
        }
        if let Some(task) = &self.task {
            parts.push(format!("task {task}"));
        }
        if parts.is_empty() {
            parts.push("nothing".into());
        }
        parts.join(", ")
    }
}

impl ClientMessage {
    /// Merges a following message into this one if both are sparse edits that can be checked by
    /// themselves and whose order does not matter beyond "the last write wins"; gives it back
    /// otherwise.
    ///
    /// Everything that is not an edit is a barrier, and so is a full update. The size of a merged
    /// edit is bounded by the number of atoms, however many messages went into it.
    pub fn merge(
        &mut self,
        next: ClientMessage,
        settings: &SessionSettings,
    ) -> Option<ClientMessage> {
        let (Payload::Edit(mine), Payload::Edit(other)) = (&self.payload, &next.payload) else {
            return Some(next);
        };
        let about_session =
            |m: &ClientMessage| m.attach.is_some() || m.detached.is_some() || m.end_session;
        if about_session(self) || about_session(&next) {
            return Some(next);
        }
        let sparse = |e: &Edit| e.full_update != Some(true) && e.check(settings).is_ok();
        let natoms = mine.natoms.max(other.natoms);
        let same_size = mine.natoms == 0 || other.natoms == 0 || mine.natoms == other.natoms;
        let inside = |e: &Edit| natoms == 0 || e.largest_index().is_none_or(|i| i < natoms);
        if !(sparse(mine) && sparse(other) && same_size && inside(mine) && inside(other)) {
            return Some(next);
        }
        if let (Payload::Edit(mine), Payload::Edit(other)) = (&mut self.payload, next.payload) {
            mine.absorb(other);
        }
        self.seq = self.seq.max(next.seq);
        self.ack = self.ack.max(next.ack);
        let nonzero = |x: Option<u64>| x.filter(|&x| x > 0);
        self.user_interaction_count =
            nonzero(next.user_interaction_count).or(self.user_interaction_count);
        self.sim_step = nonzero(next.sim_step).or(self.sim_step);
        None
    }
}

/// Appends `next`, `width` values per index; of two writes to an index the last one stays.
fn merge_delta<T: Copy>(into: &mut Delta<T>, next: Delta<T>, width: usize) {
    if next.indices.is_empty() {
        return;
    }
    if into.indices.is_empty() || into.indices == next.indices {
        *into = next;
        return;
    }
    let mut slot: HashMap<u32, usize> = HashMap::with_capacity(into.indices.len());
    for (k, &i) in into.indices.iter().enumerate() {
        slot.insert(i, k); // of duplicates the last one counts
    }
    for (k, &i) in next.indices.iter().enumerate() {
        let values = &next.values[width * k..width * (k + 1)];
        if let Some(&k) = slot.get(&i) {
            into.values[width * k..width * (k + 1)].copy_from_slice(values);
        } else {
            slot.insert(i, into.indices.len());
            into.indices.push(i);
            into.values.extend_from_slice(values);
        }
    }
}
