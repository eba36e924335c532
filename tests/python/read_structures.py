"""Prints, as JSON, what ASE finds in the structure file given."""

import json
import sys

import numpy as np
from ase.io import read


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


def frame(atoms):
    results = atoms.calc.results if atoms.calc else {}
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "info": {key: plain(value) for key, value in atoms.info.items()},
        "arrays": {key: plain(value) for key, value in atoms.arrays.items()},
        "fixed": [i for c in atoms.constraints for i in c.get_indices().tolist()],
        "results": {key: plain(value) for key, value in results.items()},
    }


print(json.dumps([frame(atoms) for atoms in read(sys.argv[1], index=":")]))
