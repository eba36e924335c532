"""
Many molecules at once: every thread has a session, and the server packs their steps into batches.

    UMASERVE_URL=http://127.0.0.1:8000/ python many_molecules.py
"""

# prints: 16 molecules
# prints: H2O .* eV

import time
from concurrent.futures import ThreadPoolExecutor

from ase import Atoms
from ase.build import molecule

import umaserve

NAMES = [
    "H2O", "CH4", "NH3", "CO2", "C2H2", "C2H4", "C2H6", "HCN", "H2CO", "CH3OH", "N2H4", "H2O2",
    "CH3CN", "HCOOH", "CH3CHO", "C6H6",
]  # fmt: skip


def relax(start: Atoms) -> Atoms:
    """The molecule at its minimum, with its energy."""
    with umaserve.Session() as session:
        session.load(start)
        session.minimize(fmax=0.05, steps=200)
        return session.atoms


# Not in the threads: ASE reads its collection of molecules when the first one is asked for.
molecules = [molecule(name) for name in NAMES]
before = time.perf_counter()
with ThreadPoolExecutor(max_workers=8) as pool:
    relaxed = list(pool.map(relax, molecules))
for name, atoms in zip(NAMES, relaxed, strict=True):
    print(f"{name:8} {atoms.get_potential_energy():12.4f} eV")
print(f"{len(relaxed)} molecules in {time.perf_counter() - before:.1f} s")
