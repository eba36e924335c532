"""
Paths of ASE's optimisers and of its Langevin integrator on an analytic potential.

    python make_dynamics.py ../../tests/data/dynamics-ase.json

The potential is a Morse pair potential without a cutoff, the same as in tests/dynamics.rs:
E = sum over pairs of D ((1 - exp(-a (r - r0)))^2 - 1), D = 0.8 eV, a = 1.4 /Angstrom, r0 = 1.9 Angstrom.

Needs: pip install ase==3.29.0
"""

from __future__ import annotations

import json
import sys

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.optimize import BFGS, FIRE, LBFGS

D, A, R0 = 0.8, 1.4, 1.9
STEPS = 50


class Morse(Calculator):
    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        energy, forces = 0.0, np.zeros_like(x)
        for i in range(len(x)):
            for j in range(i):
                d = x[i] - x[j]
                r = np.sqrt(d @ d)
                e = np.exp(-A * (r - R0))
                energy += D * ((1 - e) ** 2 - 1)
                f = -2 * D * A * (1 - e) * e * d / r
                forces[i] += f
                forces[j] -= f
        self.results = {"energy": energy, "forces": forces}


def cluster(stretch: float = 1.0) -> Atoms:
    rng = np.random.default_rng(5)
    base = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 0.0], [2, 0, 2.5]])
    atoms = Atoms("CONHPt" + "S", stretch * (base + rng.uniform(-0.35, 0.35, base.shape)))
    atoms.calc = Morse()
    return atoms


class Recorded:
    """A generator that remembers what it gave."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.drawn = []

    def standard_normal(self, size):
        self.drawn.append(self.rng.standard_normal(size))
        return self.drawn[-1].copy()


def rounded(x: np.ndarray) -> list:
    return np.round(x, 9).tolist()


def relaxation(name: str, optimiser, max_step: float, stretch: float = 1.0) -> dict:
    atoms = cluster(stretch)
    start = atoms.positions.tolist()
    with optimiser(atoms, maxstep=max_step, logfile=None) as opt:
        path, lowest = [], np.inf
        for _ in range(STEPS):
            opt.step()
            path.append(rounded(atoms.positions))
            if name == "bfgs":
                lowest = min(lowest, np.linalg.eigvalsh(opt.H)[0])
    print(name, max_step, "E", atoms.get_potential_energy(), "fmax", np.abs(atoms.get_forces()).max(), "lowest curvature", lowest)
    return {"method": name, "max_step": max_step, "start": start, "path": path}


def langevin(friction: float, temperature: float, steps: int) -> dict:
    atoms = cluster()
    rng = np.random.default_rng(9)
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * 0.05)
    entry = {
        "timestep_fs": 1.0,
        "friction": friction,
        "temperature": temperature,
        "positions": atoms.positions.tolist(),
        "velocities": atoms.get_velocities().tolist(),
        "steps": [],
    }
    recorded = Recorded(3)
    md = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=friction, rng=recorded)
    for _ in range(steps):
        md.run(1)
        xi, eta = recorded.drawn[-2:]
        entry["steps"].append(
            {
                "xi": xi.tolist(),
                "eta": eta.tolist(),
                "positions": atoms.positions.tolist(),
                "velocities": atoms.get_velocities().tolist(),
            }
        )
    return entry


def main() -> None:
    atoms = cluster()
    answer = {
        "numbers": atoms.numbers.tolist(),
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces().tolist(),
        "relaxations": [
            relaxation("bfgs", BFGS, 0.2),
            relaxation("bfgs", BFGS, 0.03),
            relaxation("bfgs", BFGS, 0.1, 1.5),  # through regions of negative curvature
            relaxation("lbfgs", LBFGS, 0.2),
            relaxation("lbfgs", LBFGS, 0.03),
            relaxation("fire", FIRE, 0.2),
            relaxation("fire", FIRE, 0.03),
        ],
        "langevin": [langevin(0.5, 1500.0, 5), langevin(0.02, 298.0, 3), langevin(0.5, 0.0, 2), langevin(0.0, 298.0, 3)],
    }
    with open(sys.argv[1], "w") as f:
        json.dump(answer, f)


if __name__ == "__main__":
    main()
