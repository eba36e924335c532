"""
ASE's own methods on the server's GPUs: the barrier of the inversion of ammonia with a nudged elastic
band whose images are evaluated in parallel, and the vibrations at its end and at its top.

    UMASERVE_URL=http://127.0.0.1:8000/ python neb.py
"""

# prints: barrier 0\.\d+ eV
# prints: minimum: 0 imaginary
# prints: top: 1 imaginary

import tempfile

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.vibrations import Vibrations

import umaserve


def imaginary(atoms: Atoms) -> int:
    """How many directions lead downhill."""
    with tempfile.TemporaryDirectory() as scratch:
        vibrations = Vibrations(atoms, name=scratch + "/vib")
        vibrations.run()
        # The six smallest in size are translations and rotations.
        frequencies = sorted(vibrations.get_frequencies(), key=abs)[6:]
    return int(sum(abs(f.imag) > 1 for f in frequencies))


start = molecule("NH3")
start.calc = umaserve.UmaServe()
BFGS(start, logfile=None).run(fmax=0.01)
end = start.copy()
end.positions[0, 2] = 2 * end.positions[1:, 2].mean() - end.positions[0, 2]

images = [start.copy() for _ in range(6)] + [end]
for image in images:
    image.calc = umaserve.UmaServe()  # every image has its own connection
band = NEB(images, climb=True, parallel=True)  # parallel: a thread for each image
band.interpolate()
FIRE(band, logfile=None).run(fmax=0.05, steps=100)

energies = np.array([image.get_potential_energy() for image in images])
for energy in energies - energies[0]:
    print(f"{energy:7.3f} eV  " + "#" * int(energy * 100))
print(f"barrier {np.ptp(energies):.3f} eV")
print(f"minimum: {imaginary(start)} imaginary frequencies")
print(f"top: {imaginary(images[int(energies.argmax())])} imaginary frequencies")
