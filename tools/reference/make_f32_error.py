"""
How far fairchem in float32 is from fairchem in float64, per checkpoint and structure.

    for n in 1p1 1p2 m esen; do
      for t in float32 float64; do python make_goldens.py ../../tests/data/nano-$n.pt $t-$n.json --dtype $t --copies 16; done
    done
    python make_f32_error.py ../../tests/data/fairchem-f32-error.json float32-*.json

The same for its TF32 mode: with `--dtype float32 --tf32`, no copies, tf32-$n.json, and fairchem-tf32-error.json.

Writes {checkpoint: {structure: {energy_per_atom (eV), forces (largest, eV/Angstrom), stress (largest,
eV/Angstrom^3, null without one)}}}, each the largest over the copies of a structure. The float64 answers are
those of float64-$n.json beside the input, or without such a file those of tests/data/nano-*.json.
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
        beside = pathlib.Path(path.replace("float32-", "float64-"))
        double = json.loads((beside if "float32-" in path else DATA / f"{name}.json").read_text())
        assert (single["dtype"], double["dtype"]) == ("float32", "float64")
        errors: dict[str, list[dict]] = {}
        for entry, right in zip(single["entries"], double["entries"], strict=True):
            assert entry["name"] == right["name"]
            assert np.allclose(entry["positions"], right["positions"], atol=1e-12)
            assert (entry["stress"] is None) == (right["stress"] is None)
            atoms = len(right["numbers"])
            error = {
                "energy_per_atom": difference(entry["energy"] / atoms, right["energy"] / atoms),
                "forces": difference(entry["forces"], right["forces"]),
                "stress": difference(entry["stress"], right["stress"]),
            }
            errors.setdefault(entry["name"], []).append(error)
        answer[name] = {
            structure: {k: None if copies[0][k] is None else max(c[k] for c in copies) for k in copies[0]}
            for structure, copies in errors.items()
        }
    rows = [
        f' "{name}": {{\n' + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in entries.items()) + "\n }"
        for name, entries in answer.items()
    ]
    pathlib.Path(out).write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
