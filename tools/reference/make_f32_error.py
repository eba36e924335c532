"""
How far fairchem in float32 is from fairchem in float64, per checkpoint and structure.

    for n in 1p1 1p2 m esen; do python make_goldens.py ../../tests/data/nano-$n.pt f32-$n.json --dtype float32; done
    python make_f32_error.py ../../tests/data/fairchem-f32-error.json f32-*.json

The same for its TF32 mode: with --tf32 as well, tf32-$n.json, and fairchem-tf32-error.json.

Writes {checkpoint: {structure: {energy_per_atom (eV), forces (largest, eV/Angstrom), stress (largest,
eV/Angstrom^3, null without one)}}}. The float64 answers are those of tests/data/nano-*.json.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

DATA = pathlib.Path(__file__).resolve().parent / ".." / ".." / "tests" / "data"


def difference(a, b) -> float | None:
    return None if a is None else float(f"{np.abs(np.array(a) - np.array(b)).max():.3g}")


def main() -> None:
    out, *inputs = sys.argv[1:]
    answer = {}
    for path in sorted(inputs):
        name = "nano-" + pathlib.Path(path).stem.rsplit("-", 1)[-1]
        single = json.loads(pathlib.Path(path).read_text())
        double = json.loads((DATA / f"{name}.json").read_text())
        assert (single["dtype"], double["dtype"]) == ("float32", "float64")
        exact = {e["name"]: e for e in double["entries"]}
        assert exact.keys() == {e["name"] for e in single["entries"]}
        answer[name] = {}
        for entry in single["entries"]:
            right = exact[entry["name"]]
            assert np.allclose(entry["positions"], right["positions"], atol=1e-12)
            assert (entry["stress"] is None) == (right["stress"] is None)
            answer[name][entry["name"]] = {
                "energy_per_atom": difference(entry["energy"] / len(right["numbers"]), right["energy"] / len(right["numbers"])),
                "forces": difference(entry["forces"], right["forces"]),
                "stress": difference(entry["stress"], right["stress"]),
            }
    rows = [
        f' "{name}": {{\n' + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in entries.items()) + "\n }"
        for name, entries in answer.items()
    ]
    pathlib.Path(out).write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
