"""One geometry with what the model says about it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import session_pb2 as pb

Array = npt.NDArray[np.float64]


def _vectors(values: Collection[float]) -> Array:
    return np.fromiter(values, dtype=float, count=len(values)).reshape(-1, 3)


def voigt(stress: Array) -> Array:
    """xx, yy, zz, yz, xz, xy of a symmetric 3 x 3 matrix, as ASE orders them."""
    return np.array([stress[0, 0], stress[1, 1], stress[2, 2], stress[1, 2], stress[0, 2], stress[0, 1]])


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """
    A frame of the server. Arrays are [N, 3]. Energy, forces and stress are those of exactly these
    positions. Numbers that a frame does not carry are NaN: `temperature` and `kinetic` come with
    dynamics only, `time_fs` with simulations; `energy`, `fmax` and `forces` are unknown after a failed
    evaluation. `cell` comes with simulations of a system with a cell, `stress` with periodic cells.
    """

    step: int
    """Simulation steps since the structure was loaded."""
    positions: Array
    """Angstrom, never wrapped into the cell."""
    velocities: Array
    """Angstrom / (ASE time unit)."""
    forces: Array
    """eV/Angstrom."""
    energy: float = math.nan
    """Potential energy, eV."""
    fmax: float = math.nan
    """Length of the largest force on an atom, eV/Angstrom."""
    temperature: float = math.nan
    """2 Ekin / (3 N kB), K."""
    kinetic: float = math.nan
    """Kinetic energy, eV."""
    time_fs: float = math.nan
    """MD time simulated by the session so far, fs."""
    cell: Array | None = None
    """3 x 3, rows are lattice vectors, Angstrom."""
    stress: Array | None = None
    """3 x 3, eV/Angstrom^3, positive in tension."""

    def __repr__(self) -> str:
        warmth = "" if math.isnan(self.temperature) else f", {self.temperature:.0f} K"
        numbers = f"{self.energy:.4f} eV, fmax {self.fmax:.3f} eV/Angstrom{warmth}"
        return f"<Frame of {len(self.positions)} atoms at step {self.step}: {numbers}>"

    @property
    def is_evaluated(self) -> bool:
        """Whether energy and forces are known."""
        return not math.isnan(self.energy)

    @classmethod
    def of(cls, result: pb.ServerResult) -> Frame:
        """From a `ServerResult` that carries a frame."""
        return cls.of_message(result.frame, result.sim_step)

    @classmethod
    def of_message(cls, message: pb.ServerResult.Frame, step: int) -> Frame:
        """From the message of the wire and the step counter that came with it."""

        def number(name: str) -> float:
            return float(getattr(message, name)) if message.HasField(name) else math.nan

        positions, velocities, forces = (_vectors(v) for v in (message.positions, message.velocities, message.forces))
        return cls(
            step=step,
            positions=positions,
            velocities=velocities if len(velocities) else np.zeros_like(positions),
            forces=forces if len(forces) else np.full_like(positions, math.nan),
            energy=number("energy"),
            fmax=number("fmax"),
            temperature=number("temperature"),
            kinetic=number("kinetic"),
            time_fs=number("time_fs"),
            cell=_vectors(message.cell.m) if message.HasField("cell") else None,
            stress=_vectors(message.stress.m) if message.HasField("stress") else None,
        )

    @classmethod
    def unevaluated(cls, step: int, positions: Array, velocities: Array) -> Frame:
        """A geometry of which nothing else is known."""
        return cls(step, positions, velocities, np.full_like(positions, math.nan))
