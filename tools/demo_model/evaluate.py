"""
What the demo model can do and what not, against GFN2-xTB, through the server that ships it.

    python evaluate.py MODEL.pt --data DATA_DIR --server http://127.0.0.1:8000/ --umaserve PATH [--out DIR]

The server must serve MODEL.pt. Held-out molecules go through `umaserve predict`, everything else through
sessions on the server. Prints a table with the bar of every check, writes it to OUT/results.json, and
draws OUT/parity.png and OUT/drift.png. `--labels FILE` writes a few held-out frames with their labels as
extxyz (the test of the shipped file reads them). Exit status 1 if a bar is missed.

Needs: pip install numpy ase matplotlib tblite rdkit, and the client of this repository: pip install ./python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ase.units as units
import numpy as np
import umaserve
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from make_data import Xtb, conformer
from molecules import HELD_OUT, canonical

DIPEPTIDE = sorted(HELD_OUT)[0]


class XtbCalculator(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        charge, spin = self.atoms.info.get("charge", 0), self.atoms.info.get("spin", 1)
        energy, forces = Xtb(self.atoms.numbers, charge, spin)(self.atoms.positions)
        self.results = {"energy": energy, "forces": forces}


def build(smiles: str, charge=0, spin=1, seed=1) -> Atoms:
    numbers, positions = conformer(smiles, np.random.default_rng(seed))
    return Atoms(numbers=numbers, positions=positions, info={"charge": charge, "spin": spin})


def xtb_minimum(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = XtbCalculator()
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    return atoms


def water_cluster(count: int) -> Atoms:
    """A cluster relaxed by xTB from a random heap."""
    return xtb_minimum(build(".".join(["O"] * count), seed=3))


def held_out_frames(data: Path, per_molecule: int) -> list[Atoms]:
    from train import Frames

    frames = Frames(data)
    taken: dict[str, int] = {}
    out = []
    for i in frames.select("test"):
        name = str(frames.molecule[i])
        if taken.get(name, 0) >= per_molecule:
            continue
        taken[name] = taken.get(name, 0) + 1
        z, x, charge, spin = frames.system(i)
        atoms = Atoms(numbers=z, positions=x.astype(float), info={"charge": charge, "spin": spin, "smiles": name})
        atoms.calc = SinglePointCalculator(atoms, energy=float(frames.energy[i]), forces=frames.force(i).astype(float))
        out.append(atoms)
    return out


def predict(program: str, model: str, frames: list[Atoms]) -> list[Atoms]:
    with tempfile.TemporaryDirectory() as folder:
        bare = [Atoms(numbers=a.numbers, positions=a.positions, info={k: a.info[k] for k in ("charge", "spin")}) for a in frames]
        write(f"{folder}/in.extxyz", bare)
        subprocess.run([program, "predict", f"{folder}/in.extxyz", "-o", f"{folder}/out.extxyz", "--model", model], check=True, capture_output=True)  # fmt: skip
        return read(f"{folder}/out.extxyz", ":")


def bonds(atoms: Atoms, factor: float) -> set[tuple[int, int]]:
    from ase.data import covalent_radii

    radii = covalent_radii[atoms.numbers]
    distance = atoms.get_all_distances()
    near = distance < factor * (radii[:, None] + radii[None])
    return {(int(i), int(j)) for i, j in zip(*np.where(np.triu(near, 1)))}


class Report:
    def __init__(self):
        self.rows = []

    def add(self, what: str, value: float, bar: float, unit: str, note: str = "") -> None:
        ok = bool(value <= bar)
        self.rows.append(dict(check=what, value=float(value), bar=bar, unit=unit, ok=ok, note=note))
        print(f"{'ok  ' if ok else 'MISS'} {what:44s} {value:10.4g} (at most {bar:g} {unit}) {note}", flush=True)


def nve(server: str, name: str, start: Atoms, picoseconds: float, seed: int):
    """Dynamics at constant energy after 1 ps at 300 K; returns (drift in meV/atom/ps, broken bonds, ps, total energies, mean T)."""
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    times, totals, temperatures, broken = [], [], [], set()
    with umaserve.Session(server, timeout=600) as session:
        session.load(atoms)
        warm = session.run(2000, temperature=300, timestep_fs=0.5, friction=0.1, every=100, seed=seed)
        atoms.positions, velocities = warm.positions, warm.velocities
        atoms.set_velocities(velocities)
        Stationary(atoms)
        if len(atoms) > 3:
            ZeroRotation(atoms)
        session.load(atoms)
        known = bonds(start, 1.25)
        first = None
        for frame in session.frames(int(picoseconds * 2000), integrator="velocity_verlet", timestep_fs=0.5, steps_per_frame=40):
            first = frame.time_fs if first is None else first
            times.append((frame.time_fs - first) / 1000)
            totals.append(frame.energy + frame.kinetic)
            temperatures.append(frame.temperature)
            now = atoms.copy()
            now.positions = frame.positions
            broken |= known - bonds(now, 1.6)
        session.end()
    slope = np.polyfit(times, totals, 1)[0]
    return 1e3 * abs(slope) / len(start), len(broken), times, totals, float(np.mean(temperatures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--server", required=True)
    parser.add_argument("--umaserve", default="umaserve")
    parser.add_argument("--out", type=Path, default=Path("evaluation"))
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--ps", type=float, default=20.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    report = Report()

    # Held-out molecules.
    if args.data:
        frames = held_out_frames(args.data, 6)
        answers = predict(args.umaserve, args.model, frames)
        e_true = np.array([a.get_potential_energy() for a in frames])
        e_model = np.array([a.get_potential_energy() for a in answers])
        count = np.array([len(a) for a in frames])
        f_true = np.concatenate([a.get_forces().ravel() for a in frames])
        f_model = np.concatenate([a.get_forces().ravel() for a in answers])
        molecules = {a.info["smiles"] for a in frames}
        note = f"{len(frames)} frames of {len(molecules)} molecules, 200 to 1000 K"
        report.add("held-out molecules, force MAE", 1e3 * np.abs(f_model - f_true).mean(), 80, "meV/Angstrom", note)
        report.add("held-out molecules, energy MAE", 1e3 * np.abs((e_model - e_true) / count).mean(), 5, "meV/atom", note)
        cool = np.concatenate([np.full(3 * len(a), a.info["smiles"] == DIPEPTIDE) for a in frames])
        if cool.any():
            report.add("alanine dipeptide (held out), force MAE", 1e3 * np.abs(f_model - f_true)[cool].mean(), 80, "meV/Angstrom")
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), dpi=90)
        left.plot(f_true, f_model, ",", color="#1f5fa8")
        left.plot([-8, 8], [-8, 8], lw=0.6, color="grey")
        left.set(xlabel="GFN2-xTB force (eV/Å)", ylabel="demo model (eV/Å)", xlim=(-8, 8), ylim=(-8, 8))
        error = 1e3 * (e_model - e_true) / count
        right.hist(error, bins=40, color="#1f5fa8")
        right.set(xlabel="energy error (meV/atom)", ylabel="frames")
        figure.suptitle("Molecules never trained on", fontsize=10)
        figure.tight_layout()
        figure.savefig(args.out / "parity.png")
        if args.labels:
            seen, few = {}, []
            for a in frames:
                seen[a.info["smiles"]] = seen.get(a.info["smiles"], 0) + 1
                if seen[a.info["smiles"]] == 2:
                    few.append(a)
            write(args.labels, few[:48], format="extxyz")

    # Dynamics at constant energy.
    systems = {
        "water": build("O"),
        "ethanol": build("CCO"),
        "benzene": build("c1ccccc1"),
        "alanine dipeptide": build(canonical(DIPEPTIDE)),
        "10 waters": water_cluster(10),
    }
    figure, axis = plt.subplots(figsize=(7, 3.6), dpi=90)
    for number, (name, atoms) in enumerate(systems.items()):
        with umaserve.Session(args.server) as session:
            session.load(atoms)
            session.minimize(fmax=0.05, max_steps=200)
            atoms.positions = session.frame.positions
            session.end()
        drift, broken, times, totals, temperature = nve(args.server, name, atoms, args.ps, seed=11 + number)
        report.add(f"{name}: NVE drift over {args.ps:g} ps", drift, 1.0, "meV/atom/ps", f"mean {temperature:.0f} K")
        report.add(f"{name}: bonds broken", broken, 0, "bonds")
        axis.plot(times, 1e3 * (np.array(totals) - totals[0]) / len(atoms), lw=0.8, label=name)
    axis.set(xlabel="time (ps)", ylabel="total energy change (meV/atom)")
    axis.legend(fontsize=8, ncols=2)
    axis.set_title("Constant-energy dynamics, 0.5 fs steps, from 300 K", fontsize=10)
    figure.tight_layout()
    figure.savefig(args.out / "drift.png")

    # A distorted ethanol finds the minimum of xTB.
    minimum = xtb_minimum(build("CCO"))
    distorted = minimum.copy()
    distorted.positions += 0.12 * np.random.default_rng(5).normal(size=distorted.positions.shape)
    with umaserve.Session(args.server) as session:
        session.load(distorted)
        relaxed = session.minimize(fmax=0.01, max_steps=500)
        final = session.atoms
        session.end()
    minimize_rotation_and_translation(minimum, final)
    rmsd = float(np.sqrt(((final.positions - minimum.positions) ** 2).sum(1).mean()))
    report.add("distorted ethanol relaxed: RMSD to xTB", rmsd, 0.05, "Angstrom", f"fmax {relaxed.fmax:.3f} after {relaxed.step} steps")

    # Frequencies of water.
    wanted, found = [], []
    for calculator, into in ((XtbCalculator(), wanted), (umaserve.UmaServe(args.server), found)):
        water = build("O")
        water.calc = calculator
        BFGS(water, logfile=None).run(fmax=0.003, steps=200)
        with tempfile.TemporaryDirectory() as folder:
            vibrations = Vibrations(water, name=f"{folder}/vib")
            vibrations.run()
            into.extend(float(abs(f)) for f in vibrations.get_frequencies()[-3:])
    worst = max(abs(a / b - 1) for a, b in zip(found, wanted))
    report.add("water: worst frequency against xTB", 100 * worst, 10, "%", f"{[round(f) for f in found]} and {[round(f) for f in wanted]} 1/cm")

    # The proton of H3O+, and a stretched bond.
    energies = {}
    hydronium = xtb_minimum(build("[OH3+]", charge=1))
    calculators = {"xtb": XtbCalculator(), "demo": umaserve.UmaServe(args.server)}
    stretch = np.linspace(0.8, 1.8, 11)
    for name, calculator in calculators.items():
        values = []
        for factor in stretch:
            atoms = hydronium.copy()
            atoms.positions[1] = atoms.positions[0] + factor * (hydronium.positions[1] - hydronium.positions[0])
            atoms.calc = calculator
            values.append(atoms.get_potential_energy())
        energies[name] = np.array(values) - values[2]
    at = int(np.argmin(energies["demo"]))
    report.add("H3O+: O-H length of lowest energy off xTB's", abs(stretch[at] - stretch[int(np.argmin(energies["xtb"]))]) * 0.98, 0.1, "Angstrom")
    report.add("H3O+: proton pulled to 1.8 x, energy error", abs(energies["demo"][-1] - energies["xtb"][-1]), 1.0, "eV", f"{energies['demo'][-1]:.2f} and {energies['xtb'][-1]:.2f} eV")
    shared = xtb_minimum(build("[OH3+].O", charge=1, seed=2))
    with umaserve.Session(args.server) as session:
        session.load(shared)
        last = session.run(10000, temperature=300, timestep_fs=0.5, friction=0.02, every=50, seed=3)
        now = shared.copy()
        now.positions = last.positions
        session.end()
    oxygens = np.where(now.numbers == 8)[0]
    report.add("H5O2+ after 5 ps at 300 K: O-O distance", now.get_distance(*oxygens), 2.9, "Angstrom", f"xTB minimum {shared.get_distance(*np.where(shared.numbers == 8)[0]):.2f}")
    ethanol = xtb_minimum(build("CCO"))
    curve = {}
    for name, calculator in calculators.items():
        values = []
        for factor in stretch:
            atoms = ethanol.copy()
            axis3 = (atoms.positions[0] - atoms.positions[1]) * (factor - 1)
            methyl = [0, *[i for i in range(9) if atoms.numbers[i] == 1 and atoms.get_distance(i, 0) < 1.3]]
            atoms.positions[methyl] += axis3
            atoms.calc = calculator
            values.append(atoms.get_potential_energy())
        curve[name] = np.array(values) - values[2]
    rising = np.diff(curve["demo"][2:])
    report.add("ethanol C-C pulled to 1.8 x, energy error", abs(curve["demo"][-1] - curve["xtb"][-1]), 1.0, "eV", f"{curve['demo'][-1]:.2f} and {curve['xtb'][-1]:.2f} eV")
    report.add("ethanol C-C pulled: energy falls by at most", max(0.0, -float(rising.min())), 0.05, "eV")
    calculators["demo"].close()

    (args.out / "results.json").write_text(json.dumps(report.rows, indent=1) + "\n")
    missed = [row["check"] for row in report.rows if not row["ok"]]
    print(f"{len(report.rows) - len(missed)} of {len(report.rows)} bars met" + (f"; missed: {', '.join(missed)}" if missed else ""))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
