"""The shards of make_data.py in memory, those of all folders below the one that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Frames:
    """All frames of a directory of shards in memory; `molecule` is the SMILES of each frame."""

    def __init__(self, directory: Path):
        columns = {k: [] for k in ("numbers", "positions", "forces", "natoms", "energy", "charge", "spin", "kind", "split", "molecule")}
        for path in sorted(directory.rglob("shard-????.npz")):
            shard = dict(np.load(path))
            shard["molecule"] = shard["names"][shard["molecule"]]
            for key in columns:
                columns[key].append(shard[key])
        for key, parts in columns.items():
            setattr(self, key, np.concatenate(parts))
        self.start = np.concatenate([[0], np.cumsum(self.natoms)])

    def __len__(self):
        return len(self.natoms)

    def system(self, i):
        s = slice(self.start[i], self.start[i + 1])
        return self.numbers[s], self.positions[s], int(self.charge[i]), int(self.spin[i])

    def force(self, i):
        return self.forces[self.start[i] : self.start[i + 1]]

    def select(self, split):
        return np.where(self.split == split)[0]
