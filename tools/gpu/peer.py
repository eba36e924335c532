#!/usr/bin/env python3
"""Times fairchem's UMA on the structures that the bench `gpu` times, so that both have the same work.

    gpu --cases si-1000,cu-1000,molecules-25 --write-cases cases
    peer.py uma-s-1p2.pt cases/si-1000.xyz --device cuda --mode nitro
    peer.py uma-s-1p2.pt cases/molecules-25.xyz --device cuda --mode general-tf32

A file with one structure runs through the ASE calculator, one with several as one batch
(`atomicdata_list_to_batch`). Modes: general and general-tf32 (experts are not merged, so that structures
of different composition may share a batch), multigpu (merged experts, torch.compile, TF32), nitro (UMA
Nitro, fairchem's default: merged too). Nitro accepts three released checkpoints by their digest; with random
weights that one check is switched off.

Atoms move a little before every evaluation, so that neighbours are searched each time. Prints for every
file: atoms, median and best ms of one evaluation of energy, forces and stress, peak memory.

Needs: pip install fairchem-core==2.24.0
"""

import argparse
import os
import statistics
import time

import ase.io
import numpy as np
import torch
from fairchem.core import FAIRChemCalculator
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

SETTINGS = {
    "general": lambda: InferenceSettings(activation_checkpointing=False),
    "general-tf32": lambda: InferenceSettings(activation_checkpointing=False, tf32=True),
    "multigpu": lambda: InferenceSettings(
        activation_checkpointing=False, merge_mole=True, compile=True, tf32=True
    ),
    "nitro": lambda: InferenceSettings(
        activation_checkpointing=False, merge_mole=True, compile=True, tf32=True, nitro=True
    ),
}


def batch_of(structures, device):
    """What the predict unit takes, positions included."""
    data = [
        AtomicData.from_ase(
            atoms,
            task_name=atoms.info["task"],
            r_edges=False,
            r_data_keys=["spin", "charge"],
        )
        for atoms in structures
    ]
    return atomicdata_list_to_batch(data).to(device)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("structures", nargs="+", help="files of `gpu --write-cases`")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--mode", default="general", choices=list(SETTINGS))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=20)
    args = parser.parse_args()

    if args.mode == "nitro":
        from fairchem.core.models.uma.uma_nitro import _inference

        _inference.verify_checkpoint_file = lambda path: None
    for path in args.structures:
        structures = ase.io.read(path, index=":")
        name = os.path.splitext(os.path.basename(path))[0]
        if args.device == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
        unit = load_predict_unit(
            args.checkpoint, inference_settings=SETTINGS[args.mode](), device=args.device
        )
        if len(structures) == 1:
            atoms = structures[0]
            atoms.calc = FAIRChemCalculator(unit, task_name=atoms.info["task"])

            def evaluate():
                return atoms.get_potential_energy(), atoms.get_forces()
        else:

            def evaluate():
                answer = unit.predict(batch_of(structures, args.device))
                # The numbers arrive: what is only queued would not be timed.
                return answer["energy"].cpu(), answer["forces"].cpu()

        rng = np.random.default_rng(1)
        times = []
        for run in range(args.warmup + args.runs):
            for atoms in structures:
                atoms.positions += rng.normal(scale=0.005, size=(len(atoms), 3))
            start = time.perf_counter()
            evaluate()
            if run >= args.warmup:
                times.append(1e3 * (time.perf_counter() - start))
        if args.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        ran = args.mode
        if ran == "nitro" and not unit.inference_settings.nitro:
            ran = "nitro-fell-back"
        print(
            f"fairchem {args.device} {ran} {name} systems={len(structures)} "
            f"atoms={sum(map(len, structures))} median_ms={statistics.median(times):.2f} "
            f"best_ms={min(times):.2f} peak_GiB={peak:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
