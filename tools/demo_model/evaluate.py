"""
What the demo model can do and what not, against GFN2-xTB, through the server that ships it.

    python evaluate.py MODEL.pt --data DATA_DIR --server http://127.0.0.1:8000/ --umaserve PATH [--out DIR]

The server must serve MODEL.pt. Held-out molecules go through `umaserve predict`, everything else through
sessions on the server. Prints a table with the bar of every check, writes it to OUT/results.json, and
draws OUT/parity.png and OUT/drift.png. `--only nve,relax` runs some of the checks (held-out, nve, relax,
frequencies, protons) and keeps the rows of the others, as long as they belong to the same file.
`--labels DIR` writes what the test of the shipped file reads: DIR/demo-held-out.extxyz, one labelled frame
of each of 48 held-out molecules, and DIR/demo-ethanol.extxyz, a distorted ethanol and the minimum of xTB.
Exit status 1 if a bar is missed.

Needs: pip install numpy ase matplotlib tblite rdkit, and the client of this repository: pip install ./python
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import umaserve
from ase import Atoms, units
from ase.build import minimize_rotation_and_translation
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.io import read, write
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from make_data import Xtb, conformer
from molecules import HELD_OUT, canonical
from scipy.sparse.csgraph import connected_components

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DIPEPTIDE = canonical(sorted(HELD_OUT)[0])
FRAMES_PER_MOLECULE = 6
TIMESTEP_FS = 1.0
STEPS_PER_FRAME = 20
EQUILIBRATIONS = 8
BLUE = "#1f5fa8"


class XtbCalculator(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        charge, spin = self.atoms.info.get("charge", 0), self.atoms.info.get("spin", 1)
        energy, forces = Xtb(self.atoms.numbers, charge, spin)(self.atoms.positions)
        self.results = {"energy": energy, "forces": forces}


class Report:
    """Rows of checks; those of an earlier run stay if they are of the same checkpoint and not made again."""

    def __init__(self, path: Path, model: Path):
        self.path = path
        self.digest = hashlib.sha256(model.read_bytes()).hexdigest()
        self.rows = []
        if path.exists():
            earlier = json.loads(path.read_text())
            if earlier["sha256"] == self.digest:
                self.rows = earlier["rows"]

    def add(self, what: str, value: float, bar: float, unit: str, note: str = "") -> None:
        ok = bool(value <= bar)
        self.rows = [row for row in self.rows if row["check"] != what]
        self.rows.append(dict(check=what, value=float(value), bar=bar, unit=unit, ok=ok, note=note))
        print(f"{'ok  ' if ok else 'MISS'} {what:48s} {value:10.4g} (at most {bar:g} {unit}) {note}", flush=True)
        self.path.write_text(json.dumps(dict(sha256=self.digest, rows=self.rows), indent=1) + "\n")


def build(smiles: str, charge=0, spin=1, seed=1) -> Atoms:
    numbers, positions = conformer(smiles, np.random.default_rng(seed))
    return Atoms(numbers=numbers, positions=positions, info={"charge": charge, "spin": spin})


def xtb_minimum(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = XtbCalculator()
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    return atoms


def water_prism() -> Atoms:
    """
    Ten waters as two rings of five above each other, relaxed by xTB: the usual minimum of (H2O)10 (Temelso,
    Archer, Shields, J. Phys. Chem. A 115, 12034 (2011)), 0.69 eV below a random heap of ten that xTB has relaxed.
    """
    side, height, bond = 2.75, 2.8, 0.97
    angle = 2 * np.pi * np.arange(5) / 5
    ring = side / (2 * np.sin(np.pi / 5)) * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    symbols, positions = "", []
    for turn, here in ((0, -height / 2), (1, height / 2)):
        for k in range(5):
            oxygen = ring[k] + [0, 0, here]
            # One hydrogen along the ring; the other to the other ring or, every second one, outwards.
            between = [0, 0, -here] if k % 2 == turn else ring[k]
            for direction in (ring[(k + 1) % 5] - ring[k], np.array(between)):
                positions.append(oxygen + bond * direction / np.linalg.norm(direction))
            symbols += "HHO"
            positions.append(oxygen)
    return xtb_minimum(Atoms(symbols, positions, info={"charge": 0, "spin": 1}))


def distorted_ethanol() -> tuple[Atoms, Atoms]:
    """(0.12 Angstrom of noise on every coordinate, the minimum of xTB)."""
    minimum = xtb_minimum(build("CCO"))
    distorted = minimum.copy()
    distorted.calc = None
    distorted.positions += 0.12 * np.random.default_rng(5).normal(size=distorted.positions.shape)
    return distorted, minimum


# Held-out molecules.


def held_out_frames(data: Path, per_molecule: int) -> list[Atoms]:
    """Labelled frames of the molecules of the test split, the first `per_molecule` of each."""
    from frames import Frames

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


def predict(program: str, model: Path, frames: list[Atoms]) -> list[Atoms]:
    with tempfile.TemporaryDirectory() as folder:
        bare = [Atoms(numbers=a.numbers, positions=a.positions, info={k: a.info[k] for k in ("charge", "spin")}) for a in frames]
        write(f"{folder}/in.extxyz", bare)
        subprocess.run([program, "predict", f"{folder}/in.extxyz", "-o", f"{folder}/out.extxyz", "--model", str(model)], check=True, capture_output=True)  # fmt: skip
        return read(f"{folder}/out.extxyz", ":")


def check_held_out(args, report: Report) -> None:
    frames = held_out_frames(args.data, FRAMES_PER_MOLECULE)
    answers = predict(args.umaserve, args.model, frames)
    e_true = np.array([a.get_potential_energy() for a in frames])
    e_model = np.array([a.get_potential_energy() for a in answers])
    count = np.array([len(a) for a in frames])
    f_true = np.concatenate([a.get_forces().ravel() for a in frames])
    f_model = np.concatenate([a.get_forces().ravel() for a in answers])
    molecules = {a.info["smiles"] for a in frames}
    note = f"{len(frames)} frames of {len(molecules)} molecules, 200 to 1000 K"
    report.add("held-out molecules: force MAE", 1e3 * np.abs(f_model - f_true).mean(), 80, "meV/Angstrom", note)
    report.add("held-out molecules: energy MAE", 1e3 * np.abs((e_model - e_true) / count).mean(), 5, "meV/atom", note)
    dipeptide = np.concatenate([np.full(3 * len(a), a.info["smiles"] == DIPEPTIDE) for a in frames])
    report.add("alanine dipeptide (held out): force MAE", 1e3 * np.abs(f_model - f_true)[dipeptide].mean(), 80, "meV/Angstrom")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), dpi=90)
    left.plot(f_true, f_model, ",", color=BLUE)
    left.plot([-8, 8], [-8, 8], lw=0.6, color="grey")
    left.set(xlabel="GFN2-xTB force (eV/Å)", ylabel="demo model (eV/Å)", xlim=(-8, 8), ylim=(-8, 8))
    error = 1e3 * (e_model - e_true) / count
    right.hist(error, bins=40, color=BLUE)
    right.set(xlabel="energy error (meV/atom)", ylabel="frames")
    figure.suptitle("Molecules never trained on", fontsize=10)
    figure.tight_layout()
    figure.savefig(args.out / "parity.png")


# Dynamics at constant energy.


def bonds(atoms: Atoms, factor: float) -> set[tuple[int, int]]:
    """Pairs nearer than `factor` times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < factor * (radii[:, None] + radii[None])
    return {(int(i), int(j)) for i, j in zip(*np.where(np.triu(near, 1)))}


def nve(server: str, start: Atoms, picoseconds: float, seed: int) -> dict:
    """Constant energy at 300 K, after relaxation, 1 ps of thermostat and 4 ps of velocity scaling: drift (meV/atom/ps), changed bonds, lost molecules, and the energies."""
    rng = np.random.default_rng(seed)
    with umaserve.Session(server, timeout=600) as session:
        session.load(start)
        session.minimize(fmax=0.05, steps=200)
        atoms = start.copy()
        atoms.positions = session.frame.positions
        known = bonds(atoms, 1.25)
        atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 / atoms.get_masses()[:, None]))
        Stationary(atoms)
        ZeroRotation(atoms)
        session.load(atoms)
        warm = session.run(int(1000 / TIMESTEP_FS), temperature=300, timestep_fs=TIMESTEP_FS, friction=0.1, every=100, seed=seed)
        atoms.positions, velocities = warm.positions, warm.velocities
        atoms.set_velocities(velocities)
        Stationary(atoms)
        ZeroRotation(atoms)
        # One moment of a thermostat is hotter or colder than its mean, the more so the fewer atoms there are.
        for _ in range(EQUILIBRATIONS):
            session.load(atoms)
            frames = list(session.frames(500, integrator="velocity_verlet", timestep_fs=TIMESTEP_FS, steps_per_frame=STEPS_PER_FRAME))
            mean = np.mean([frame.temperature for frame in frames])
            atoms.positions = frames[-1].positions
            atoms.set_velocities(frames[-1].velocities * np.sqrt(300 / mean))
        session.load(atoms)
        times, totals, temperatures, changed, parts = [], [], [], set(), 1
        began = time.monotonic()
        steps = int(picoseconds * 1000 / TIMESTEP_FS)
        for frame in session.frames(steps, integrator="velocity_verlet", timestep_fs=TIMESTEP_FS, steps_per_frame=STEPS_PER_FRAME):
            times.append((frame.time_fs or 0) / 1000)
            totals.append(frame.energy + frame.kinetic)
            temperatures.append(frame.temperature)
            atoms.positions = frame.positions
            changed |= (known - bonds(atoms, 1.6)) | (bonds(atoms, 1.0) - known)
            parts = max(parts, connected_components(atoms.get_all_distances() < 4.0)[0])
        wall = time.monotonic() - began
        session.end()
    times, totals = np.array(times) - times[0], np.array(totals)
    return dict(
        drift=1e3 * abs(np.polyfit(times, totals, 1)[0]) / len(start), changed=len(changed), parts=int(parts), times=times,
        change=1e3 * (totals - totals[0]) / len(start), temperature=float(np.mean(temperatures)), step_ms=1e3 * wall / steps,
    )  # fmt: skip


SYSTEMS = {
    "water": lambda: build("O"),
    "ethanol": lambda: build("CCO"),
    "benzene": lambda: build("c1ccccc1"),
    "alanine dipeptide": lambda: build(DIPEPTIDE),
    "10 waters": water_prism,
}


def check_nve(args, report: Report) -> None:
    chosen = args.systems or list(SYSTEMS)
    # All at once: the server computes them together.
    with ThreadPoolExecutor(len(chosen)) as pool:
        seeds = {name: 11 + i for i, name in enumerate(SYSTEMS)}
        runs = {name: pool.submit(nve, args.server, SYSTEMS[name](), args.ps, seeds[name]) for name in chosen}
        runs = {name: run.result() for name, run in runs.items()}
    figure, axis = plt.subplots(figsize=(7, 3.6), dpi=90)
    for name, run in runs.items():
        note = f"mean {run['temperature']:.0f} K, {run['step_ms']:.1f} ms/step, {len(chosen)} systems at once"
        report.add(f"{name}: NVE drift over {args.ps:g} ps", run["drift"], 1.0, "meV/atom/ps", note)
        report.add(f"{name}: bonds broken or formed", run["changed"], 0, "bonds")
        report.add(f"{name}: pieces more than 4 Angstrom apart", run["parts"], 1, "pieces")
        axis.plot(run["times"], run["change"], lw=0.8, label=name)
    axis.set(xlabel="time (ps)", ylabel="total energy change (meV/atom)")
    axis.legend(fontsize=8, ncols=2)
    axis.set_title(f"Constant-energy dynamics, {TIMESTEP_FS} fs steps, from 300 K", fontsize=10)
    figure.tight_layout()
    figure.savefig(args.out / "drift.png")


# Minima, vibrations, reactions.


def check_relax(args, report: Report) -> None:
    distorted, minimum = distorted_ethanol()
    with umaserve.Session(args.server) as session:
        session.load(distorted)
        relaxed = session.minimize(fmax=0.01, steps=500)
        final = session.atoms
        session.end()
    minimize_rotation_and_translation(minimum, final)
    rmsd = float(np.sqrt(((final.positions - minimum.positions) ** 2).sum(1).mean()))
    report.add("distorted ethanol relaxed: RMSD to xTB", rmsd, 0.05, "Angstrom", f"fmax {relaxed.fmax:.3f} after {relaxed.step} steps")
    report.add("distorted ethanol relaxed: largest force", relaxed.fmax, 0.01, "eV/Angstrom")


def check_frequencies(args, report: Report) -> None:
    wanted, found = [], []
    for calculator, into in ((XtbCalculator(), wanted), (umaserve.UmaServe(args.server), found)):
        water = build("O")
        water.calc = calculator
        BFGS(water, logfile=None).run(fmax=0.003, steps=200)
        with tempfile.TemporaryDirectory() as folder:
            vibrations = Vibrations(water, name=f"{folder}/vib")
            vibrations.run()
            into.extend(float(abs(f)) for f in vibrations.get_frequencies()[-3:])
    calculator.close()
    worst = max(abs(a / b - 1) for a, b in zip(found, wanted))
    report.add("water: worst frequency against xTB", 100 * worst, 10, "%", f"{[round(f) for f in found]} and {[round(f) for f in wanted]} 1/cm")


def curve(atoms: Atoms, fixed: int, pulled: int, moved: list[int], factors, calculator) -> np.ndarray:
    """Energies with the bond from `fixed` to `pulled` at `factors` times its length, `moved` going along."""
    bond = atoms.positions[pulled] - atoms.positions[fixed]
    energies = []
    for factor in factors:
        now = atoms.copy()
        now.positions[moved] += (factor - 1) * bond
        now.calc = calculator
        energies.append(now.get_potential_energy())
    return np.array(energies)


def check_protons(args, report: Report) -> None:
    factors = np.linspace(0.8, 1.8, 11)
    equilibrium = 2
    demo, xtb = umaserve.UmaServe(args.server), XtbCalculator()

    hydronium = xtb_minimum(build("[OH3+]", charge=1))
    length = hydronium.get_distance(0, 1)
    ours, theirs = (curve(hydronium, 0, 1, [1], factors, c) for c in (demo, xtb))
    ours, theirs = ours - ours[equilibrium], theirs - theirs[equilibrium]
    off = abs(factors[np.argmin(ours)] - factors[np.argmin(theirs)]) * length
    report.add("H3O+: O-H length of lowest energy off xTB's", off, 0.1, "Angstrom")
    report.add("H3O+: proton pulled to 1.8 x, energy error", abs(ours[-1] - theirs[-1]), 1.0, "eV", f"{ours[-1]:.2f} and {theirs[-1]:.2f} eV")

    shared = xtb_minimum(build("[OH3+].O", charge=1, seed=2))
    oxygens = np.where(shared.numbers == 8)[0]
    with umaserve.Session(args.server) as session:
        session.load(shared)
        longest = 0.0
        for frame in session.frames(int(5000 / TIMESTEP_FS), temperature=300, timestep_fs=TIMESTEP_FS, friction=0.02, steps_per_frame=50, seed=3):
            longest = max(longest, float(np.linalg.norm(np.subtract(*frame.positions[oxygens]))))
        session.end()
    report.add("H5O2+, 5 ps at 300 K: longest O-O distance", longest, 3.0, "Angstrom", f"xTB minimum {shared.get_distance(*oxygens):.2f}")

    ethanol = xtb_minimum(build("CCO"))
    methyl = [0, *[i for i in range(9) if ethanol.numbers[i] == 1 and ethanol.get_distance(i, 0) < 1.3]]
    ours, theirs = (curve(ethanol, 1, 0, methyl, factors, c) for c in (demo, xtb))
    ours, theirs = ours - ours[equilibrium], theirs - theirs[equilibrium]
    report.add("ethanol C-C pulled to 1.8 x: energy error", abs(ours[-1] - theirs[-1]), 1.0, "eV", f"{ours[-1]:.2f} and {theirs[-1]:.2f} eV")
    fall = max(0.0, -float(np.diff(ours[equilibrium:]).min()))
    report.add("ethanol C-C pulled: energy falls on the way by", fall, 0.05, "eV")
    demo.close()


CHECKS = {"held-out": check_held_out, "nve": check_nve, "relax": check_relax, "frequencies": check_frequencies, "protons": check_protons}


def write_labels(data: Path, directory: Path) -> None:
    frames = held_out_frames(data, 2)
    second = [a for i, a in enumerate(frames) if a.info["smiles"] in {b.info["smiles"] for b in frames[:i]}]
    write(directory / "demo-held-out.extxyz", second[:48], format="extxyz")
    distorted, minimum = distorted_ethanol()
    minimum.calc = None
    write(directory / "demo-ethanol.extxyz", [distorted, minimum], format="extxyz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="folder of make_data.py, for the check held-out and for --labels")
    parser.add_argument("--server", help="where MODEL.pt is served, for all checks but held-out")
    parser.add_argument("--umaserve", default="umaserve")
    parser.add_argument("--out", type=Path, default=Path("evaluation"))
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--only", default=",".join(CHECKS), help="some of " + ", ".join(CHECKS) + "; empty: none")
    parser.add_argument("--ps", type=float, default=20.0, help="length of the constant-energy runs")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, help="only the constant-energy runs of these")
    args = parser.parse_args()
    running = [name for name in args.only.split(",") if name]
    unknown = [name for name in running if name not in CHECKS]
    if unknown:
        parser.error(f"no check is called {unknown[0]}; there are {', '.join(CHECKS)}")
    if args.data is None and ("held-out" in running or args.labels):
        parser.error("held-out molecules need --data")
    if args.server is None and set(running) - {"held-out"}:
        parser.error("a check needs --server")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.labels:
        write_labels(args.data, args.labels)
    report = Report(args.out / "results.json", args.model)
    for name in running:
        CHECKS[name](args, report)
    missed = [row["check"] for row in report.rows if not row["ok"]]
    print(f"{len(report.rows) - len(missed)} of {len(report.rows)} bars met" + (f"; missed: {', '.join(missed)}" if missed else ""))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
