"""
Time umaserve and fairchem on the same structures, in turns, in one run on one machine.

    cargo build --release --bench step        # once; prints where the program lies
    python bench_ratio.py checkpoint.pt --step PROGRAM --system water --atoms 24,81 --rounds 3

Every round runs umaserve, then fairchem in each of --modes, each in a process of its own (so that
peak memory is its own), all with the same number of threads. Prints per size the medians over the
rounds, the ratio to fairchem's best mode, and both peak memories.

Needs: pip install fairchem-core==2.24.0
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def run(command: list[str], threads: int) -> list[dict[str, str]]:
    """The key=value words of every line that has a time."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = [line for line in done.stdout.splitlines() if "median_ms=" in line]
    if not lines:
        print(f"failed: {' '.join(command)}", file=sys.stderr)
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--step", required=True, help="the program that `cargo build --release --bench step` built")
    parser.add_argument("--system", default="water", choices=["water", "copper", "silicon"])
    parser.add_argument("--atoms", default="24,81")
    parser.add_argument("--modes", default="general", help="comma-separated modes of bench_fairchem.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    from bench_fairchem import SYSTEMS

    task = {"water": "omc", "copper": "omat", "silicon": "omat"}[args.system]
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        for atoms in args.atoms.split(","):
            structure = SYSTEMS[args.system](int(atoms))
            structure.info.update(task=task, charge=0, spin=0)
            file = Path(folder) / "structure.extxyz"
            structure.write(file, format="extxyz")
            ours, theirs, memory = [], {m: [] for m in args.modes.split(",")}, {}
            for _ in range(args.rounds):
                for row in run(
                    [args.step, args.checkpoint, "--file", str(file), "--runs", str(args.runs), "--threads", str(args.threads)],
                    args.threads,
                ):
                    ours.append(float(row["median_ms"]))
                    memory["umaserve"] = float(row["peak_GiB"])
                    share, edges = row["share_of_peak"], row["edges"]
                for mode in theirs:
                    command = [sys.executable, str(here / "bench_fairchem.py"), args.checkpoint]
                    command += ["--mode", mode, "--system", args.system, "--atoms", atoms]
                    for row in run([*command, "--runs", str(args.runs)], args.threads):
                        theirs[mode].append(float(row["median_ms"]))
                        memory[mode] = float(row["peak_GiB"])
            medians = {m: statistics.median(t) for m, t in theirs.items() if t}
            best = min(medians, key=medians.get)
            mine = statistics.median(ours)
            print(
                f"{args.system} atoms={len(structure)} edges={edges} umaserve_ms={mine:.2f} "
                + " ".join(f"fairchem_{m}_ms={t:.2f}" for m, t in medians.items())
                + f" ratio={mine / medians[best]:.3f} share_of_sgemm_peak={share} "
                + f"umaserve_GiB={memory['umaserve']:.2f} fairchem_GiB={memory[best]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
