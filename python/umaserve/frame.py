"""One geometry with what the model says about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def _vectors(values) -> np.ndarray | None:
    return np.array(values, dtype=float).reshape(-1, 3) if len(values) else None


@dataclass(frozen=True)
class Frame:
    """
    A frame of the server. Arrays are [N, 3]; what a kind of frame does not carry is None: `temperature`
    and `kinetic` come with dynamics only, `stress` with periodic cells only.
    """

    step: int  # simulation steps of the session so far
    positions: np.ndarray  # Angstrom, never wrapped
    velocities: np.ndarray | None  # Angstrom / (ASE time unit)
    forces: np.ndarray | None  # eV/Angstrom
    energy: float | None  # potential energy, eV
    fmax: float | None  # largest force on an atom, eV/Angstrom
    temperature: float | None  # K
    kinetic: float | None  # eV
    time_fs: float | None  # MD time simulated by the session so far
    cell: np.ndarray | None  # rows are lattice vectors, Angstrom
    stress: np.ndarray | None  # 3 x 3, eV/Angstrom^3, positive in tension

    @classmethod
    def of(cls, result) -> Frame:
        """From a `ServerResult` that carries a frame."""
        return cls.of_message(result.frame, result.sim_step)

    @classmethod
    def of_message(cls, message, step: int) -> Frame:
        def optional(name):
            return getattr(message, name) if message.HasField(name) else None

        forces = _vectors(message.forces)
        fmax = optional("fmax")
        if fmax is None and forces is not None:
            fmax = float(np.sqrt((forces**2).sum(1).max()))
        positions = _vectors(message.positions)
        return cls(
            step=step,
            positions=np.zeros((0, 3)) if positions is None else positions,
            velocities=_vectors(message.velocities),
            forces=forces,
            energy=optional("energy"),
            fmax=fmax,
            temperature=optional("temperature"),
            kinetic=optional("kinetic"),
            time_fs=optional("time_fs"),
            cell=_vectors(message.cell.m) if message.HasField("cell") else None,
            stress=_vectors(message.stress.m) if message.HasField("stress") else None,
        )
