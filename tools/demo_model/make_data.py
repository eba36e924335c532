"""
Label structures of small molecules with GFN2-xTB (tblite) and write them as shards of npz files.

    python make_data.py DATA_DIR [--workers 2] [--scale 1.0] [--seed 0] [--split test] [--only protons]

The list of jobs depends on the seed and the scale alone; every job has its own random generator, so
that a shard can be made again by itself and an interrupted run continues where it stopped. Each shard
holds, concatenated over its frames: `numbers`, `positions` (Angstrom), `forces` (eV/Angstrom), and per
frame `natoms`, `energy` (eV), `charge`, `spin` (2S+1), `molecule` (index into `names`), `kind`, `split`.
`--split test` makes the frames of the held-out molecules alone, the same ones, for `evaluate.py`; use a
folder of its own for each choice of options. `--only` makes other jobs instead, all for training:
`protons`, protonated and deprotonated water, alone and in clusters, pulled apart and at 200 to 700 K;
`waters`, clusters of 2 to 12 waters for a picosecond at 200 to 500 K, and molecules pulled out of them.

Kinds of jobs: `md` (Langevin dynamics at 200 to 1000 K from a random conformer), `rattle` (Gaussian
displacements), `stretch` (one bond from 0.7 to 2.2 times its length), `pair` (two molecules), `water`
(clusters), `pull` (one molecule moved out of a cluster), `ion` and `radical` dynamics, `proton` (a proton
between two waters).

Needs: pip install tblite rdkit numpy
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from molecules import COMMON, HELD_OUT, IONS, RADICALS, canonical, combinations, held_out
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from tblite.interface import Calculator

RDLogger.DisableLog("rdApp.*")
BOHR, HARTREE = 0.529177210903, 27.211386245988
KB, FS = 8.617333262e-5, 0.09822694788464063  # eV/K; 1 fs in ASE's unit of time, sqrt(amu/eV) Angstrom
MASS = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999}
MAX_FORCE = 16.0  # eV/Angstrom; frames beyond it are no use to a small model
JOBS_PER_SHARD = 12


class Xtb:
    """GFN2-xTB energies and forces of one system, each calculation restarted from the last density."""

    def __init__(self, numbers, charge: int, spin: int):
        self.numbers, self.charge, self.spin = np.asarray(numbers), charge, spin
        self.calc, self.last = None, None

    def __call__(self, positions):
        if self.calc is None:
            self.calc = Calculator("GFN2-xTB", self.numbers, positions / BOHR, float(self.charge), self.spin - 1)
            self.calc.set("verbosity", 0)
        else:
            self.calc.update(positions / BOHR)
        try:
            self.last = self.calc.singlepoint(self.last) if self.last is not None else self.calc.singlepoint()
        except Exception:
            self.last = None
            raise
        return self.last["energy"] * HARTREE, -np.asarray(self.last["gradient"]) * HARTREE / BOHR


def conformer(smiles: str, rng):
    """Numbers and positions of a random conformer; separate fragments are placed 2.6 to 3.4 Angstrom apart."""
    if "." in smiles:
        numbers, positions = None, None
        for part in smiles.split("."):
            z, x = conformer(part, rng)
            if numbers is None:
                numbers, positions = z, x
            else:
                numbers, positions = np.append(numbers, z), np.append(positions, beside(positions, x, rng), axis=0)
        return numbers, positions
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    if len(numbers) == 1:
        return numbers, np.zeros((1, 3))
    seed = int(rng.integers(2**31 - 1))
    if AllChem.EmbedMolecule(mol, randomSeed=seed) != 0:
        raise ValueError(f"no conformer of {smiles}")
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol, maxIters=200)
    else:
        AllChem.UFFOptimizeMolecule(mol, maxIters=200)
    return numbers, np.array(mol.GetConformer().GetPositions())


def rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def beside(fixed, moving, rng, closest=(1.7, 3.2)):
    """Positions of `moving`, turned at random and pushed along a random direction to a random closest distance."""
    moving = (moving - moving.mean(0)) @ rotation(rng).T
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    wanted = rng.uniform(*closest)
    start = fixed.mean(0)
    for step in np.arange(0.0, 30.0, 0.1):
        placed = moving + start + direction * step
        if np.linalg.norm(fixed[:, None] - placed[None], axis=-1).min() >= wanted:
            return placed
    raise ValueError("no room")


def descend(xtb, x, steps: int):
    """A few steepest-descent steps with an adaptive length, to take the worst strain out of a made-up geometry."""
    energy, force = xtb(x)
    length = 0.02
    for _ in range(steps):
        scale = length / max(np.abs(force).max(), 1e-6)
        e, f = xtb(x + force * min(scale, 0.05))
        if e < energy:
            x, energy, force, length = x + force * min(scale, 0.05), e, f, min(length * 1.3, 0.1)
        else:
            length *= 0.4
    return x


def dynamics(xtb, x, temperature, rng, steps, every, skip, step_fs=1.0, friction=0.01):
    """Langevin dynamics (BAOAB); yields (positions, energy, forces) after `skip` steps, one in `every`."""
    mass = np.array([MASS[z] for z in xtb.numbers])[:, None]
    dt = step_fs * FS
    v = rng.normal(size=x.shape) * np.sqrt(1.6 * KB * temperature / mass)
    energy, force = xtb(x)
    damping = np.exp(-friction * step_fs)
    for i in range(steps):
        v = v + 0.5 * dt * force / mass
        x = x + 0.5 * dt * v
        v = damping * v + np.sqrt((1 - damping**2) * KB * temperature / mass) * rng.normal(size=x.shape)
        x = x + 0.5 * dt * v
        energy, force = xtb(x)
        if not np.isfinite(force).all() or np.abs(force).max() > 2 * MAX_FORCE:
            return
        v = v + 0.5 * dt * force / mass
        if i >= skip and (i - skip) % every == 0:
            yield x.copy(), energy, force


def run_job(job):
    """All frames of one job: a list of (positions, energy, forces), with numbers, charge and spin."""
    rng = np.random.default_rng(job["seed"])
    kind, charge, spin = job["kind"], job["charge"], job["spin"]
    numbers, x = conformer(job["smiles"], rng)
    xtb = Xtb(numbers, charge, spin)
    frames = []

    def single(y):
        try:
            e, f = xtb(y)
        except Exception:
            return
        frames.append((y, e, f))

    if len(numbers) == 1:
        single(x)
    elif kind == "rattle":
        x = descend(xtb, x, 6)
        for sigma in rng.uniform(0.01, 0.08, size=6):
            single(x + sigma * rng.normal(size=x.shape))
    elif kind == "stretch":
        x = descend(xtb, x, 4)
        mol = Chem.AddHs(Chem.MolFromSmiles(job["smiles"]))
        bonds = [b for b in mol.GetBonds() if not b.IsInRing()]
        if not bonds:
            bonds = list(mol.GetBonds())
        for _ in range(7):
            bond = bonds[int(rng.integers(len(bonds)))]
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if rng.random() < 0.5:
                i, j = j, i
            edit = Chem.RWMol(mol)
            edit.RemoveBond(i, j)
            part = next(p for p in Chem.GetMolFrags(edit) if j in p)
            moved = list(part) if i not in part else [j]
            y = x + rng.uniform(0.0, 0.05) * rng.normal(size=x.shape)
            axis = y[j] - y[i]
            factor = rng.uniform(0.78, 1.0) if rng.random() < 0.25 else rng.uniform(1.0, 2.2)
            y[moved] += axis * (factor - 1.0)
            single(y)
    elif kind == "proton":
        # O...O from 2.35 to 3.1 Angstrom, the bonded proton moved along the line.
        x = descend(xtb, x, 25)
        oxygen = [int(i) for i in np.where(numbers == 8)[0]]
        hydrogen = np.where(numbers == 1)[0]
        o1, o2 = oxygen[0], oxygen[1]
        h = int(hydrogen[np.argmin(np.linalg.norm(x[hydrogen] - 0.5 * (x[o1] + x[o2]), axis=1))])
        for _ in range(8):
            y = x + 0.03 * rng.normal(size=x.shape)
            line = y[o2] - y[o1]
            distance = np.linalg.norm(line)
            line /= distance
            other = np.linalg.norm(y - y[o2], axis=1) < np.linalg.norm(y - y[o1], axis=1)
            other[h] = False
            y[other] += line * (rng.uniform(2.3, 3.3) - distance)
            span = np.linalg.norm(y[o2] - y[o1])
            y[h] = y[o1] + line * rng.uniform(0.9, span - 0.9) + 0.06 * rng.normal(size=3)
            single(y)
    elif kind == "pull":
        # One water further out, or a little further in, than where the cluster holds it.
        for x, _, _ in dynamics(xtb, descend(xtb, x, 25), job["temperature"], rng, job["steps"], job["every"], job["skip"]):
            molecule = 3 * int(rng.integers(len(numbers) // 3)) + np.arange(3)
            outward = x[molecule].mean(0) - x.mean(0) + 0.5 * rng.normal(size=3)
            y = x.copy()
            y[molecule] += rng.uniform(-0.3, 2.5) * outward / np.linalg.norm(outward)
            frames.append((y, *xtb(y)))
    else:
        if kind in ("pair", "water", "ion"):
            x = descend(xtb, x, 12)
        elif kind != "radical":
            x = descend(xtb, x, 2)
        frames = list(dynamics(xtb, x, job["temperature"], rng, job["steps"], job["every"], job["skip"]))
    kept = [f for f in frames if np.isfinite(f[2]).all() and np.abs(f[2]).max() < MAX_FORCE]
    return numbers, kept


def jobs(scale: float, seed: int):
    """The list of jobs, shuffled, so that any part of it is a fair sample of the whole."""
    rng = random.Random(seed)
    out = []
    common = [canonical(s) for s in COMMON if canonical(s) not in {canonical(h) for h in HELD_OUT}]
    made = combinations(900, seed=0)
    training = [s for s in made if not held_out(s)]
    testing = [s for s in made if held_out(s)][:70]

    def add(kind, smiles, charge=0, spin=1, split="train", temperature=None, steps=84, every=9, skip=12):
        temperature = temperature or rng.choice([200, 300, 300, 500, 700, 1000])
        out.append(dict(kind=kind, smiles=smiles, charge=charge, spin=spin, split=split, temperature=temperature, steps=steps, every=every, skip=skip))  # fmt: skip

    def n(count):
        return max(1, round(count * scale))

    for smiles in common:
        for _ in range(n(7)):
            add("md", smiles)
        for _ in range(n(2)):
            add("stretch", smiles)
        add("rattle", smiles)
    for smiles in ("O", "CCO", "c1ccccc1", "CO", "C", "CC", "C=C", "CC(=O)NC", "CC(=O)NCC(=O)NC", "CNC(=O)C(C)NC=O", "CC(NC(C)=O)C(N)=O"):
        for _ in range(n(14)):
            add("md", canonical(smiles))
        for _ in range(n(3)):
            add("rattle", canonical(smiles))
            add("stretch", canonical(smiles))
    for smiles in training:
        add("md", smiles, steps=60)
        if rng.random() < 0.3 * scale:
            add("stretch", smiles)
        if rng.random() < 0.3 * scale:
            add("rattle", smiles)
    for count, times in ((2, 60), (3, 40), (4, 30), (5, 25), (6, 20), (8, 12), (10, 12)):
        for _ in range(n(times)):
            add("water", ".".join(["O"] * count), temperature=rng.choice([150, 300, 300, 400, 500]), steps=100, every=12, skip=12)
    small = ["O", "N", "C", "CO", "CCO", "C=O", "CC(C)=O", "CC(=O)O", "NC=O", "CN", "CC", "C=C", "O=C=O", "C#N", "CC(=O)NC", "[HH]", "c1ccccc1", "COC"]  # fmt: skip
    for _ in range(n(260)):
        a, b = rng.choice(small), rng.choice(["O", "O", "O"] + small)
        add("pair", f"{a}.{b}", temperature=rng.choice([200, 300, 500]), steps=84, every=12)
    for smiles, charge in IONS:
        for _ in range(n(9)):
            add("ion", smiles, charge=charge, temperature=rng.choice([300, 300, 600]))
        if "." not in smiles and Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms() > 2:
            for _ in range(n(2)):
                add("stretch", smiles, charge=charge)
    for _ in range(n(40)):
        add("proton", "[OH3+].O", charge=1)
        if rng.random() < 0.4:
            add("proton", "O.[OH-]", charge=-1)
            add("proton", "O.O", charge=0)
    for smiles, charge, spin in RADICALS:
        for _ in range(n(6) if smiles not in ("[H]", "[O]") else 1):
            add("radical", smiles, charge=charge, spin=spin)
        if Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms() > 2 and "." not in smiles:
            for _ in range(n(2)):
                add("stretch", smiles, charge=charge, spin=spin)
    for smiles in testing:
        add("md", smiles, split="test", steps=60)
    for smiles in sorted(HELD_OUT):
        for _ in range(10):
            add("md", canonical(smiles), split="test", steps=60)
    rng.shuffle(out)
    for index, job in enumerate(out):
        job["seed"] = seed * 1_000_003 + index
    return out


def more_jobs(name: str, scale: float, seed: int, temperatures):
    """An empty list of training jobs with a seed of its own: (what adds to it, what shuffles and returns it)."""
    rng = random.Random(f"{name} {seed}")
    out = []

    def add(count, kind, smiles, charge=0, steps=132, every=12, skip=12):
        for _ in range(max(1, round(count * scale))):
            out.append(dict(kind=kind, smiles=smiles, charge=charge, spin=1, split="train", temperature=rng.choice(temperatures), steps=steps, every=every, skip=skip))  # fmt: skip

    def finish(offset):
        rng.shuffle(out)
        for index, job in enumerate(out):
            job["seed"] = (seed + offset) * 1_000_003 + index
        return out

    return add, finish


def proton_jobs(scale: float, seed: int):
    """Jobs for protons on and between water molecules, where the list of `jobs` is thin."""
    add, finish = more_jobs("protons", scale, seed, (200, 300, 300, 450, 700))
    add(36, "stretch", "[OH3+]", 1)
    add(16, "ion", "[OH3+]", 1)
    add(60, "ion", "O.[OH3+]", 1)
    add(60, "proton", "O.[OH3+]", 1)
    add(30, "ion", "O.O.[OH3+]", 1)
    add(20, "ion", "O.O.O.[OH3+]", 1)
    add(12, "stretch", "[OH-]", -1)
    add(16, "ion", "O.[OH-]", -1)
    add(16, "proton", "O.[OH-]", -1)
    add(16, "proton", "O.O", 0)
    add(16, "stretch", "O", 0)
    return finish(7777)


def water_jobs(scale: float, seed: int):
    """Jobs for clusters of water that stay together or come apart, where the list of `jobs` is thin."""
    add, finish = more_jobs("waters", scale, seed, (200, 300, 300, 400, 500))
    for count, times in ((2, 40), (3, 40), (4, 30), (6, 30), (8, 30), (10, 40), (12, 10)):
        add(times, "water", ".".join(["O"] * count), steps=1000, every=45, skip=100)
        add(times, "pull", ".".join(["O"] * count), steps=500, every=45, skip=50)
    return finish(8888)


def make_shard(args):
    directory, number, batch = args
    path = directory / f"shard-{number:04d}.npz"
    if path.exists():
        return number, 0
    rows = {key: [] for key in ("natoms", "energy", "charge", "spin", "molecule", "kind", "split")}
    numbers, positions, forces, names = [], [], [], []
    for job in batch:
        try:
            z, frames = run_job(job)
        except Exception as error:  # an SCF that does not converge, a conformer that cannot be built
            print(f"shard {number}: {job['kind']} {job['smiles']}: {error}", flush=True)
            continue
        if job["smiles"] not in names:
            names.append(job["smiles"])
        for x, e, f in frames:
            numbers.append(z)
            positions.append(x - x.mean(0))
            forces.append(f)
            for key, value in (("natoms", len(z)), ("energy", e), ("charge", job["charge"]), ("spin", job["spin"]), ("molecule", names.index(job["smiles"])), ("kind", job["kind"]), ("split", job["split"])):  # fmt: skip
                rows[key].append(value)
    temporary = path.with_suffix(".partial.npz")
    np.savez(
        temporary,
        numbers=np.concatenate(numbers).astype(np.uint8),
        positions=np.concatenate(positions).astype(np.float32),
        forces=np.concatenate(forces).astype(np.float32),
        names=np.array(names),
        **{key: np.array(value) for key, value in rows.items()},
    )
    temporary.rename(path)
    return number, len(rows["energy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of jobs of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["train", "test"], help="only the jobs of this split")
    parser.add_argument("--only", choices=["protons", "waters"], help="these jobs instead")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    made = {None: jobs, "protons": proton_jobs, "waters": water_jobs}[args.only]
    todo = [job for job in made(args.scale, args.seed) if args.split in (None, job["split"])]
    (args.directory / "jobs.json").write_text(json.dumps(todo))
    print(f"{len(todo)} jobs, checksum {zlib.crc32(json.dumps(todo).encode()):08x}", flush=True)
    shards = [(args.directory, i // JOBS_PER_SHARD, todo[i : i + JOBS_PER_SHARD]) for i in range(0, len(todo), JOBS_PER_SHARD)]
    total = 0
    with multiprocessing.Pool(args.workers) as pool:
        for done, (number, count) in enumerate(pool.imap_unordered(make_shard, shards)):
            total += count
            if done % 10 == 0:
                print(f"{done + 1}/{len(shards)} shards, {total} new frames", flush=True)


if __name__ == "__main__":
    main()
