"""
Time fairchem's own UMA energy+force evaluation, for comparison with this project's.

    python bench_fairchem.py checkpoint.pt --device cpu --mode general --atoms 24,81,192
    python bench_fairchem.py uma-s-1p2.pt --device cuda --mode nitro --system silicon --atoms 150,1000

Modes: general (eager), compiled (merged experts + torch.compile), multigpu (compiled + TF32, the
former turbo), nitro (UMA Nitro, fairchem's default on one GPU). Nitro accepts three released
checkpoints by MD5; the weights here are random, so that one check is switched off, and nothing
else. Positions move a little before every evaluation, so the neighbour list is rebuilt each
time, as in molecular dynamics. Prints one line per size: atoms, median and best ms for one
energy + forces + stress evaluation through the ASE calculator, peak memory.

Needs: pip install fairchem-core==2.24.0
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit


def water_box(atoms_wanted: int, seed: int = 0) -> Atoms:
    """About `atoms_wanted` atoms of liquid-density water (0.997 g/cm^3), molecules randomly turned."""
    n = max(1, atoms_wanted // 3)
    side = int(np.ceil(n ** (1 / 3)))
    a = 3.104
    rng = np.random.default_rng(seed)
    cells = [(i, j, k) for i in range(side) for j in range(side) for k in range(side)][:n]
    box = Atoms(cell=[side * a, side * a, a * side * n / side**3 if n == side**3 else side * a], pbc=True)
    for c in cells:
        w = molecule("H2O")
        w.rotate(rng.uniform(0, 360), rng.normal(size=3))
        w.translate(np.array(c) * a - w.positions[0])
        box += w
    box.wrap()
    return box


def crystal(symbol: str, atoms_wanted: int) -> Atoms:
    """A cubic supercell near `atoms_wanted` atoms (neighbours in 6 Angstrom: Cu about 78, Si about 46)."""
    cell = bulk(symbol, cubic=True)
    m = max(1, round((atoms_wanted / len(cell)) ** (1 / 3)))
    atoms = cell * (m, m, m)
    atoms.rattle(0.05, seed=0)
    return atoms


SYSTEMS = {
    "water": water_box,
    "copper": lambda n: crystal("Cu", n),
    "silicon": lambda n: crystal("Si", n),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--mode", default="general", choices=["general", "compiled", "multigpu", "nitro"])
    parser.add_argument("--system", default="water", choices=["water", "copper", "silicon"])
    parser.add_argument("--atoms", default="24,81,192")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    settings = {
        "general": InferenceSettings(activation_checkpointing=False),
        "compiled": InferenceSettings(activation_checkpointing=False, merge_mole=True, compile=True),
        "multigpu": InferenceSettings(activation_checkpointing=False, merge_mole=True, compile=True, tf32=True),
        "nitro": InferenceSettings(
            activation_checkpointing=False, merge_mole=True, compile=True, tf32=True, nitro=True
        ),
    }[args.mode]
    if args.mode == "nitro":
        from fairchem.core.models.uma.uma_nitro import _inference

        _inference.verify_checkpoint_file = lambda path: None
    task = {"water": "omc", "copper": "omat", "silicon": "omat"}[args.system]
    for wanted in map(int, args.atoms.split(",")):
        unit = load_predict_unit(args.checkpoint, inference_settings=settings, device=args.device)
        atoms = SYSTEMS[args.system](wanted)
        atoms.info.update(charge=0, spin=0)
        atoms.calc = FAIRChemCalculator(unit, task_name=task)
        rng = np.random.default_rng(1)
        times = []
        warmup = 3 if args.device == "cpu" else 20
        for run in range(args.runs + warmup):
            atoms.positions += rng.normal(scale=0.005, size=(len(atoms), 3))
            start = time.perf_counter()
            atoms.get_forces()
            if run >= warmup:
                times.append(1e3 * (time.perf_counter() - start))
        if args.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        ran = args.mode
        if args.mode == "nitro" and not unit.inference_settings.nitro:
            ran = "nitro-fell-back"
        print(
            f"fairchem {args.device} {ran} {args.system} atoms={len(atoms)} "
            f"median_ms={statistics.median(times):.2f} best_ms={min(times):.2f} peak_GiB={peak:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
