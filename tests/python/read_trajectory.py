"""Reads recordings with MDAnalysis, ZnH5MD/ASE and pyh5md and compares every number.

usage: read_trajectory.py EXPECTED.json FILE.h5 [EXPECTED.json FILE.h5 ...]

EXPECTED.json holds what was recorded in umaserve's units: Angstrom, Angstrom / (ASE time unit),
eV, eV/Angstrom, fs, K. Each reader has its own units; the conversions below are those of the
readers' documentation, written out, not taken from umaserve.
"""

import json
import os
import sys
import warnings

import ase.units
import h5py
import MDAnalysis
import numpy as np
import pyh5md
import znh5md

warnings.filterwarnings("ignore")

KJ_PER_MOL = ase.units.mol / ase.units.kJ  # one eV in kJ/mol
F4 = dict(rtol=2e-6, atol=2e-6)
F8 = dict(rtol=1e-14, atol=0)


def close(actual, wanted, what, rtol, atol):
    np.testing.assert_allclose(np.asarray(actual, float), np.asarray(wanted, float),
                               rtol=rtol, atol=atol, err_msg=what)


def mdanalysis(path, wanted):
    # No topology. MDAnalysis knows the format by the extension .h5md only; a file called .h5 needs
    # the format and the number of atoms in words, or a link with the other extension.
    n_atoms = len(wanted["species"])
    universe = MDAnalysis.Universe(path, format="H5MD", topology_format="MINIMAL", n_atoms=n_atoms)
    assert universe.atoms.n_atoms == n_atoms
    link = os.path.splitext(path)[0] + ".h5md"
    os.symlink(path, link)
    universe = MDAnalysis.Universe(link)
    assert universe.atoms.n_atoms == n_atoms
    assert universe.trajectory.n_frames == len(wanted["frames"])
    n = 0
    for ts, frame in zip(universe.trajectory, wanted["frames"]):
        n += 1
        close(ts.positions, frame["positions"], "MDAnalysis positions, Angstrom", **F4)
        angstrom_per_ps = np.array(frame["velocities"]) * ase.units.fs * 1000
        close(ts.velocities, angstrom_per_ps, "MDAnalysis velocities, Angstrom/ps", rtol=2e-6, atol=1e-4)
        close(ts.forces, np.array(frame["forces"]) * KJ_PER_MOL, "MDAnalysis forces, kJ/mol/Angstrom",
              rtol=2e-6, atol=1e-4)
        close(ts.time, frame["time_fs"] / 1000, "MDAnalysis time, ps", rtol=1e-12, atol=1e-12)
        assert ts.data["step"] == frame["step"]
        close(ts.data["all/potential_energy"], frame["energy_ev"], "MDAnalysis energy", **F8)
        close(ts.data["all/kinetic_energy"], frame["kinetic_ev"], "MDAnalysis kinetic energy", **F8)
        close(ts.data["all/temperature"], frame["temperature_kelvin"], "MDAnalysis temperature", **F8)
        cell = np.array(frame["cell"])
        if np.any(cell):
            lengths = np.linalg.norm(cell, axis=1)
            unit = cell / lengths[:, None]
            cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
            close(ts.dimensions, [*lengths, *np.degrees(np.arccos(cosines))], "MDAnalysis box", rtol=1e-5, atol=1e-5)
        else:
            assert ts.dimensions is None, ts.dimensions
    assert n == len(wanted["frames"])
    ts = universe.trajectory[-1]
    close(ts.positions, wanted["frames"][-1]["positions"], "MDAnalysis random access", **F4)


def ase_through_znh5md(path, wanted):
    images = znh5md.IO(path, particles_group="all")[:]
    assert len(images) == len(wanted["frames"])
    for atoms, frame in zip(images, wanted["frames"]):
        assert list(atoms.numbers) == wanted["species"]
        assert list(atoms.pbc) == wanted["periodic"]
        close(atoms.cell.array, frame["cell"], "ASE cell, Angstrom", **F8)
        close(atoms.positions, frame["positions"], "ASE positions, Angstrom", **F4)
        close(atoms.get_forces(), frame["forces"], "ASE forces, eV/Angstrom", **F4)
        close(atoms.get_potential_energy(), frame["energy_ev"], "ASE energy, eV", **F8)
        close(atoms.get_velocities(), frame["velocities"], "ASE velocities, ASE units", **F4)
        kinetic = 0.5 * np.sum(atoms.get_masses()[:, None] * np.array(frame["velocities"]) ** 2)
        close(atoms.get_kinetic_energy(), kinetic, "ASE kinetic energy, eV", rtol=1e-5, atol=1e-9)
        if frame["stress"] is not None:
            close(atoms.get_stress(voigt=False), frame["stress"], "ASE stress, eV/Angstrom^3", **F8)


def through_pyh5md(path, wanted):
    with pyh5md.File(path, "r") as file:
        particles = file.particles_group("all")
        unit = ase.units.fs
        for name, scale, key in [("position", 1, "positions"), ("velocity", unit, "velocities"),
                                 ("force", KJ_PER_MOL, "forces"), ("forces", 1, "forces"),
                                 ("velocities", 1, "velocities")]:
            element = pyh5md.element(particles, name)
            assert element.element_type == "TimeElement", name
            close(element.value[:], np.array([f[key] for f in wanted["frames"]]) * scale,
                  f"pyh5md {name}", rtol=2e-6, atol=1e-4)
            close(element.time[:], [f["time_fs"] for f in wanted["frames"]], f"pyh5md {name} time", **F8)
            assert list(element.step[:]) == [f["step"] for f in wanted["frames"]]
        edges = pyh5md.element(particles["box"], "edges")
        close(edges.value[:], [f["cell"] for f in wanted["frames"]], "pyh5md edges", **F8)
        names = {"potential_energy": "energy_ev", "kinetic_energy": "kinetic_ev",
                 "temperature": "temperature_kelvin"}
        for name, key in names.items():
            element = pyh5md.element(file["observables/all"], name)
            close(element.value[:], [f[key] for f in wanted["frames"]], f"pyh5md {name}", **F8)


def layout(path, wanted):
    """What H5MD 1.1 asks for, and what umaserve adds."""
    with h5py.File(path, "r") as file:
        assert list(file["h5md"].attrs["version"]) == [1, 1]
        assert file["h5md/creator"].attrs["name"] == "umaserve"
        assert list(file["h5md/modules/units"].attrs["version"]) == [1, 0]
        assert file["particles/trajectory"] == file["particles/all"]
        box = file["particles/all/box"]
        assert box.attrs["dimension"] == 3
        assert list(box.attrs["boundary"]) == ["periodic" if p else "none" for p in wanted["periodic"]]
        units = {"position": "Angstrom", "velocity": "Angstrom fs-1", "force": "kJ mol-1 Angstrom-1",
                 "forces": "eV Angstrom-1"}
        for name, unit in units.items():
            group = file["particles/all"][name]
            assert group["value"].attrs["unit"] == unit
            assert group["step"] == file["particles/all/position/step"]
            assert group["time"].attrs["unit"] == "fs"
        assert file["particles/all/species/value"].dtype == np.int8
        events = file["umaserve/events"]
        texts = [text.decode() for text in events["text"][:]]
        assert list(zip(events["step"][:], texts)) == [tuple(e) for e in wanted["events"]], texts
        close(file["umaserve/masses"][:], wanted["masses"], "masses, Da", **F8)
        provenance = file["umaserve/provenance"]
        for name, value in wanted["provenance"].items():
            assert provenance.attrs[name] == value, (name, provenance.attrs[name], value)


def main(arguments):
    pairs = list(zip(arguments[0::2], arguments[1::2], strict=True))
    assert pairs, __doc__
    for expected, path in pairs:
        with open(expected) as file:
            wanted = json.load(file)
        for reader in (layout, mdanalysis, ase_through_znh5md, through_pyh5md):
            reader(path, wanted)
            print(f"{reader.__name__}: {len(wanted['frames'])} frames of {len(wanted['species'])} atoms agree")


if __name__ == "__main__":
    main(sys.argv[1:])
