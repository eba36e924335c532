"""An ASE calculator that evaluates on a server."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from .session import Session


class UmaServe(Calculator):
    """
    Energy, forces and, for periodic cells, stress from an umaserve server:

        atoms.calc = UmaServe("http://127.0.0.1:8000/", charge=1, spin=1, task="omol")

    Every calculator has a session of its own, so that the calculators of several threads or images (NEB)
    do not get into each other's way. `charge` and `spin` (2S+1) default to `atoms.info`, then to the
    server's defaults; `task` to the server's.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, server, token: str | None = None, *, charge: int | None = None, spin: int | None = None, task: str | None = None, **options):  # fmt: skip
        super().__init__()
        self.session = server if isinstance(server, Session) else Session(server, token, **options)
        self.charge, self.spin, self.task = charge, spin, task
        self._loaded = None

    def check_state(self, atoms, tol=1e-15):
        changes = super().check_state(atoms, tol)
        if self._loaded is not None and self._loaded != self._identity(atoms) and not changes:
            changes = ["numbers"]  # charge or spin in atoms.info have changed
        return changes

    def _identity(self, atoms):
        def said(value, name):
            return atoms.info.get(name) if value is None else value

        return (tuple(atoms.numbers), tuple(atoms.pbc), tuple(atoms.cell.array.ravel()), said(self.charge, "charge"), said(self.spin, "spin"))  # fmt: skip

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        identity = self._identity(self.atoms)
        if identity == self._loaded:
            frame = self.session.edit(positions=self.atoms.positions)
        else:
            self._loaded = None
            bare = self.atoms.copy()
            bare.set_velocities(np.zeros((len(bare), 3)))
            frame = self.session.load(bare, charge=identity[3], spin=identity[4], task=self.task)
            self._loaded = identity
        self.results = {"energy": frame.energy, "free_energy": frame.energy, "forces": frame.forces}
        if frame.stress is not None:
            s = frame.stress
            self.results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])

    def close(self) -> None:
        """Ends the calculator's session on the server."""
        self.session.end()
