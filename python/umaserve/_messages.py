"""What the user says, checked and put into the messages of the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
import numpy.typing as npt
from ase import Atoms

from . import session_pb2 as pb
from .frame import Array

MD = pb.ClientAction.Start.MD
RELAX = pb.ClientAction.Start.RELAX
DYNAMICS = {
    None: pb.INTEGRATOR_DEFAULT,
    "langevin": pb.INTEGRATOR_LANGEVIN,
    "velocity_verlet": pb.INTEGRATOR_VELOCITY_VERLET,
}
OPTIMIZERS = {
    None: pb.INTEGRATOR_DEFAULT,
    "bfgs": pb.INTEGRATOR_BFGS,
    "lbfgs": pb.INTEGRATOR_LBFGS,
    "fire": pb.INTEGRATOR_FIRE,
}
#: Vectors of all atoms, or of some by index.
Vectors = npt.ArrayLike | Mapping[int, npt.ArrayLike]


def whole(name: str, value: SupportsFloat) -> int:
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{name} = {value}: a whole number is needed")
    return int(number)


def said(atoms: Atoms, name: str, value: SupportsFloat | None) -> int | None:
    """Charge or spin multiplicity: the argument, else that of `atoms.info`, else None."""
    value = atoms.info.get(name) if value is None else value
    return None if value is None else whole(name, value)


def structure(
    atoms: Atoms, velocities: Array, charge: int | None, spin: int | None, task: str | None
) -> pb.UserInteractionSparse:
    """A full update: the whole structure anew."""
    if len(atoms) == 0:
        raise ValueError("a structure without atoms")
    if atoms.numbers.min() < 1:
        raise ValueError(f"atom {int(atoms.numbers.argmin())} is of no element")
    if not np.isfinite(atoms.positions).all():
        raise ValueError("positions that are not finite")
    edit = pb.UserInteractionSparse(natoms=len(atoms), full_update=True)
    indices = range(len(atoms))
    edit.atomic_numbers.indices.extend(indices)
    edit.atomic_numbers.values.extend(atoms.numbers.tolist())
    edit.positions.indices.extend(indices)
    edit.positions.coords.extend(atoms.positions.ravel().tolist())
    if velocities.any():
        edit.velocities.indices.extend(indices)
        edit.velocities.coords.extend(velocities.ravel().tolist())
    if atoms.pbc.any():
        if not all(atoms.cell.array[axis].any() for axis in np.flatnonzero(atoms.pbc)):
            raise ValueError(f"pbc = {atoms.pbc.tolist()} without a cell in these directions")
        edit.cell.m.extend(atoms.cell.array.ravel().tolist())
        edit.periodicity.a, edit.periodicity.b, edit.periodicity.c = (bool(p) for p in atoms.pbc)
    if charge is not None:
        edit.charge = charge
    if spin is not None:
        edit.spin_multiplicity = spin
    if task is not None:
        edit.task = task
    return edit


def change(
    natoms: int, positions: Vectors | None, velocities: Vectors | None, cell: npt.ArrayLike | None
) -> pb.UserInteractionSparse:
    """An edit of a structure of `natoms` atoms."""
    edit = pb.UserInteractionSparse(full_update=False)
    for name, values in (("positions", positions), ("velocities", velocities)):
        if values is None:
            continue
        if isinstance(values, Mapping):
            indices = [int(i) for i in values]
            array = np.array([np.asarray(v, dtype=float).reshape(3) for v in values.values()], dtype=float)
        else:
            array = np.asarray(values, dtype=float)
            if array.shape != (natoms, 3):
                raise ValueError(f"{name} of shape {array.shape}: ({natoms}, 3) is needed, or a mapping by index")
            indices = list(range(natoms))
        wrong = [i for i in indices if not 0 <= i < natoms]
        if wrong:
            raise ValueError(f"{name} of atom {wrong[0]}: the structure has atoms 0 to {natoms - 1}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} that are not finite")
        delta = edit.positions if name == "positions" else edit.velocities
        delta.indices.extend(indices)
        delta.coords.extend(array.ravel().tolist())
    if cell is not None:
        edit.cell.m.extend(np.asarray(cell, dtype=float).reshape(9).tolist())
    return edit


def applied(edit: pb.UserInteractionSparse, positions: Array, velocities: Array) -> tuple[Array, Array]:
    """Positions and velocities once a sparse edit is applied."""
    positions, velocities = positions.copy(), velocities.copy()
    for array, delta in ((positions, edit.positions), (velocities, edit.velocities)):
        array[list(delta.indices)] = np.reshape(delta.coords, (-1, 3))
    return positions, velocities


def parameters(
    integrator: pb.Integrator | None,
    steps_per_frame: int,
    record: bool | None,
    label: str | None,
    *,
    temperature: float = 0.0,
    timestep_fs: float = 0.0,
    friction: float = 0.0,
    max_step: float = 0.0,
    seed: int | None = None,
    frame_interval_ms: int = 0,
) -> pb.SimulationParams:
    """The parameters of a start."""
    if steps_per_frame < 1:
        raise ValueError(f"{steps_per_frame} steps per frame: at least one")
    numbers = {"temperature": temperature, "timestep_fs": timestep_fs, "friction": friction, "max_step": max_step}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} = {number}: a finite number is needed")
    message = pb.SimulationParams(
        calculator="uma",
        temperature=temperature,
        timestep_fs=timestep_fs,
        friction=friction,
        max_step=max_step,
        steps_per_frame=steps_per_frame,
        frame_interval_ms=frame_interval_ms,
    )
    if integrator is not None:
        message.integrator = integrator
    if seed is not None:
        message.seed = seed
    if record is not None:
        message.record = record
    if label is not None:
        message.record_label = label
    return message


def choose(name: str | None, known: Mapping[str | None, pb.Integrator], what: str) -> pb.Integrator:
    """The integrator or optimiser called `name`."""
    if name not in known:
        raise ValueError(f"{what} {name!r} is none of {', '.join(k for k in known if k)}")
    return known[name]
