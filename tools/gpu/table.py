#!/usr/bin/env python3
"""The table of docs/performance.md from the logs of run.sh.

    table.py OUT

OUT/bench*.log, OUT/memory.log and OUT/largest*.log hold rows of the bench `gpu`, OUT/peer*.log lines of
bench_fairchem.py, OUT/nve*.log lines of its `--nve`. What is not there is "not measured".
"""

import glob
import os
import re
import sys

CASES = [
    ("si-1000", "1,000 Si", 8.0, ("silicon", 1000)),
    ("cu-1000", "1,000 Cu", 12.0, None),
    ("cu-864", "864 Cu", None, ("copper", 864)),
    ("si-150", "150 Si", 1.5, ("silicon", 150)),
    ("molecules-25", "25 different molecules, 1,446 atoms", 15.0, None),
    ("molecules-64", "64 molecules", None, None),
    ("ethanol", "ethanol, 9 atoms", 0.8, None),
]
MISSING = "not measured"


def lines(out, pattern):
    for path in sorted(glob.glob(os.path.join(out, pattern))):
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from file


def ours(out, pattern):
    """(case, number type) -> columns of the last row."""
    rows = {}
    for line in lines(out, pattern):
        columns = line.split()
        if len(columns) == 11 and columns[4] in ("f32", "tf32", "f16"):
            rows[columns[0], columns[4]] = columns
    return rows


def peer(out):
    """(system, atoms) -> {mode: ms}; atoms as they were run."""
    found = {}
    pattern = re.compile(r"fairchem cuda (\S+) (\S+) atoms=(\d+) median_ms=([\d.]+) .*peak_GiB=([\d.]+)")
    for line in lines(out, "peer*.log"):
        match = pattern.search(line)
        if match:
            mode, system, atoms, ms, gib = match.groups()
            found.setdefault((system, int(atoms)), {})[mode] = f"{ms} ms ({mode}, {gib} GiB)"
    return found


def nearest(found, wanted):
    """fairchem's cells are cubes: the nearest size within a fifth."""
    if wanted is None:
        return MISSING
    system, atoms = wanted
    near = [k for k in found if k[0] == system and abs(k[1] - atoms) <= atoms / 5]
    if not near:
        return MISSING
    key = min(near, key=lambda k: abs(k[1] - atoms))
    return "; ".join(found[key].values()) + ("" if key[1] == atoms else f" at {key[1]} atoms")


def main():
    out = sys.argv[1]
    rows, others = ours(out, "bench*.log"), peer(out)
    print("| case | type | edges | ms | Medges/s | % of peak | peak MiB | aim | fairchem, same run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case, title, aim, like in CASES:
        for kind in ("tf32", "f16", "f32"):
            row = rows.get((case, kind))
            cells = [row[3], row[5], row[7], row[9], row[10]] if row else [MISSING] + 4 * [""]
            beside = nearest(others, like) if kind == "tf32" else ""
            print("|", " | ".join([title, kind, *cells, f"{aim} ms" if aim else "", beside]), "|")
    for (case, kind), row in ours(out, "memory.log").items():
        print("|", " | ".join(["1,000 Cu in little memory", kind, row[3], row[5], row[7], row[9],
                                row[10], "2,048 MiB", ""]), "|")
    for (case, kind), row in ours(out, "largest*.log").items():
        print("|", " | ".join([f"largest Si cell that fits, {row[2]} atoms", kind, row[3], row[5],
                                row[7], row[9], row[10], "30,000 atoms", ""]), "|")
    drift = [line.strip() for line in lines(out, "nve*.log") if "drift" in line]
    print("\nEnergy drift at constant energy:\n")
    print("\n".join(f"    {line}" for line in drift) if drift else f"    {MISSING}")


if __name__ == "__main__":
    main()
