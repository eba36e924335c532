#!/usr/bin/env python3
"""The table of docs/performance.md from the logs of run.sh.

    table.py OUT

OUT/bench*.log, OUT/memory.log and OUT/largest*.log hold rows of the bench `gpu`, OUT/peer*.log lines of
peer.py, OUT/nve*.log lines of its `--nve`. What is not there is "not measured".
"""

import glob
import os
import re
import sys

# Name in the bench, title, aim on an H100 (ms), what others have published.
CASES = [
    ("si-1000", "1,000 Si", 8.0, "Nitro 14.4 ms (H200)"),
    ("cu-1000", "1,000 Cu", 12.0, "fairchem 16.8 ms"),
    ("cu-864", "864 Cu", None, ""),
    ("si-150", "150 Si", 1.5, "Nitro 2.6 ms"),
    ("si-216", "216 Si", None, ""),
    ("molecules-25", "25 different molecules, 1,446 atoms", 15.0, "TorchSim + fairchem 260 ms"),
    ("molecules-64", "64 molecules", None, ""),
    ("ethanol", "ethanol, 9 atoms", 0.8, ""),
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
    """case -> what fairchem took, by mode."""
    found = {}
    pattern = re.compile(
        r"fairchem cuda (\S+) (\S+) systems=\d+ atoms=\d+ median_ms=([\d.]+) .*peak_GiB=([\d.]+)"
    )
    for line in lines(out, "peer*.log"):
        match = pattern.search(line)
        if match:
            mode, case, ms, gib = match.groups()
            found.setdefault(case, {})[mode] = f"{ms} ms ({mode}, {gib} GiB)"
    return found


def main():
    out = sys.argv[1]
    rows, others = ours(out, "bench*.log"), peer(out)
    print("| case | type | edges | ms | Medges/s | % of peak | peak MiB | aim | published | fairchem, same run |")
    print("|" + 10 * " --- |")

    def line(title, kind, row, aim, published="", beside=""):
        cells = [row[3], row[5], row[7], row[9], row[10]] if row else ["", MISSING, "", "", ""]
        print("|", " | ".join([title, kind, *cells, aim, published, beside]), "|")

    for case, title, aim, published in CASES:
        for kind in ("tf32", "f16", "f32"):
            theirs = "; ".join(others.get(case, {}).values()) or MISSING
            texts = (published, theirs) if kind == "tf32" else ()
            line(title, kind, rows.get((case, kind)), f"{aim} ms" if aim else "", *texts)
    memory = ours(out, "memory.log") or {("cu-1000", "tf32"): None}
    for (_, kind), row in memory.items():
        line("1,000 Cu in little memory", kind, row, "2,048 MiB", "8.4 GiB")
    largest = ours(out, "largest*.log") or {("largest", "tf32"): None}
    for (_, kind), row in largest.items():
        atoms = f", {int(row[2]):,} atoms" if row else ""
        line("largest Si cell in 72,000 MiB" + atoms, kind, row, "30,000 atoms", "Nitro 15,000 atoms")
    print("\n| energy at constant energy | type | steps | drift, eV/atom/ns | last error, eV/atom | ms/step |")
    print("|" + 6 * " --- |")
    number = r"(-?[\d.]+(?:e-?\d+)?|NaN|inf|-inf)"
    pattern = re.compile(
        rf"(\S+) +(\S+) +(\d+) atoms +(\d+) steps +drift +{number} eV/atom/ns +last error +{number} eV/atom +{number} ms/step"
    )
    drifts = [match.groups() for match in map(pattern.search, lines(out, "nve*.log")) if match]
    for kind, case, atoms, steps, drift, last, ms in drifts:
        print(f"| {case}, {atoms} atoms | {kind} | {int(steps):,} | {drift} | {last} | {ms} |")
    if not drifts:
        print(f"| ethanol; 128 Si | f32, tf32 | 10,000 | {MISSING} | | |")


if __name__ == "__main__":
    main()
