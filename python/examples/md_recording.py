"""
Molecular dynamics on the server with a recording, and what is in the recording.

    UMASERVE_URL=http://127.0.0.1:8000/ python md_recording.py
"""

# prints: 50 frames
# prints: mean temperature +\d+ K

import time

import h5py
from ase.build import molecule

import umaserve

with umaserve.Session() as session:
    session.load(molecule("CH3CH2OH"))
    relaxed = session.minimize(fmax=0.05)
    print(f"relaxed in {relaxed.step} steps to {relaxed.energy:.3f} eV")

    session.thermalize(300, seed=1)

    def show(frame: umaserve.Frame) -> None:
        """Is called for every frame; returning False would end the run."""
        if frame.step % 100 == 0:
            print(f"step {frame.step:4}  {frame.energy:.3f} eV  {frame.temperature:4.0f} K")

    session.run(500, every=10, temperature=300, timestep_fs=0.5, seed=1, callback=show, record=True, label="ethanol")

# The session has ended, so the file will be closed: get it once it is.
address = umaserve.Address.parse()
newest = next(r for r in address.recordings() if r["name"].startswith("ethanol"))
while newest["live"]:
    time.sleep(0.1)
    newest = next(r for r in address.recordings() if r["name"] == newest["name"])
path = address.download(newest["name"])

with h5py.File(path) as file:
    positions = file["particles/all/position/value"]
    temperature = file["observables/all/temperature/value"][:]
    print(f"{path}: {len(positions)} frames of {positions.shape[1]} atoms")
    print(f"mean temperature {temperature.mean():.0f} K")
