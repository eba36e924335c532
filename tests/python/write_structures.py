"""Writes structures with ASE into the folder given: tests/data/ase.extxyz and ase-plain.xyz."""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

folder = Path(sys.argv[1])

water = molecule("H2O")
water.info.update(
    charge=-1,
    spin=2,
    task="omol",
    name='a "quoted" name',
    flag=True,
    note="it = works",
    vec=np.array([1.5, 2.0]),
    ints=np.array([1, 2, 3]),
    nested={"a": [1, 2]},
)
water.calc = SinglePointCalculator(
    water, energy=-14.2239, forces=np.arange(9).reshape(3, 3) * 0.1
)
water.set_momenta(np.arange(9).reshape(3, 3) * 0.01)
water.set_constraint(FixAtoms([0]))

salt = bulk("NaCl", "rocksalt", a=5.64)
salt.pbc = [True, True, False]
salt.info["task"] = "omat"
salt.set_initial_magnetic_moments([0.5, -0.5])
salt.calc = SinglePointCalculator(
    salt,
    energy=-7.25,
    forces=np.full((2, 3), -0.25),
    stress=np.array([1, 2, 3, 4, 5, 6]) / 64,
)

slab = Atoms("Cu2", positions=[[0, 0, 0], [1, 2, 3]], cell=[4, 5, 0], pbc=[1, 1, 0])
slab.arrays["velocities"] = np.full((2, 3), 0.125)
slab.set_tags([0, 7])
slab.info["label"] = "slab"

write(folder / "ase.extxyz", [water, salt, slab], format="extxyz")
write(folder / "ase-plain.xyz", [molecule("CH4"), molecule("H2O")], format="xyz")
