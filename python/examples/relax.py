"""
Relaxes the structures of a file (default: some molecules of ASE's) and writes them with their results.

    UMASERVE_URL=http://127.0.0.1:8000/ python relax.py [INPUT [OUTPUT.extxyz]]
"""

# prints: CH4 +converged
# prints: C2H6O +converged

import sys

from ase.build import molecule
from ase.io import read, write

import umaserve

FMAX = 0.03  # eV/Angstrom

NAMES = ("H2O", "CH4", "CH3CH2OH")
structures = read(sys.argv[1], ":") if len(sys.argv) > 1 else [molecule(name) for name in NAMES]

relaxed = []
with umaserve.Session() as session:
    for atoms in structures:
        session.load(atoms)  # charge and spin multiplicity are those of atoms.info
        last = session.minimize(fmax=FMAX, steps=300)
        state = "converged" if last.fmax <= FMAX else "not converged"
        print(f"{atoms.get_chemical_formula():8} {state} after {last.step} steps: {last.energy:.4f} eV")
        relaxed.append(session.atoms)
write(sys.argv[2] if len(sys.argv) > 2 else "relaxed.extxyz", relaxed)
