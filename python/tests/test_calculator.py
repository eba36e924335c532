"""The ASE calculator: what any ASE script expects of one."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms, FixBondLengths
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.vibrations import Vibrations
from conftest import Server, warm

from umaserve import Address, NotAuthorized, Session, UmaServe


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory):
    """A server that computes in double precision."""
    server = Server(tmp_path_factory.mktemp("precise"), "--precision", "f64")
    yield server
    server.end()


def crystal() -> Atoms:
    """Methane in a box, triclinic and strained."""
    atoms = molecule("CH4")
    atoms.cell = [[4.2, 0, 0], [0.4, 4.0, 0], [0.1, 0.3, 4.4]]
    atoms.pbc = True
    atoms.rattle(0.05, seed=4)
    return atoms


def test_forces_and_stress_are_derivatives_of_the_energy(precise: Server) -> None:
    atoms = crystal()
    with UmaServe(precise.file) as atoms.calc:
        assert atoms.get_potential_energy() == atoms.get_potential_energy(force_consistent=True)
        forces, stress = atoms.get_forces(), atoms.get_stress()
        np.testing.assert_allclose(calculate_numerical_forces(atoms, eps=1e-4), forces, atol=1e-5)
        np.testing.assert_allclose(calculate_numerical_stress(atoms, eps=1e-5), stress, atol=1e-6)


def test_equation_of_state_and_cell_relaxation(precise: Server) -> None:
    atoms = crystal()
    with UmaServe(precise.file) as atoms.calc:
        cell = atoms.cell.copy()
        energies, pressures = [], []
        for scale in (0.995, 1.0, 1.005):
            atoms.set_cell(cell * scale, scale_atoms=True)
            energies.append(atoms.get_potential_energy())
            pressures.append(-np.trace(atoms.get_stress(voigt=False)) / 3)
        volume = np.linalg.det(cell.array)
        slope = -(energies[2] - energies[0]) / (volume * (1.005**3 - 0.995**3))
        assert slope == pytest.approx(pressures[1], abs=2e-4)
        atoms.set_cell(cell, scale_atoms=True)
        optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
        optimizer.run(fmax=0.2, steps=15)
        assert atoms.get_potential_energy() < energies[1]


def test_what_is_computed_when(server: Server) -> None:
    atoms = molecule("H2O")
    with server.session() as session:
        atoms.calc = UmaServe(session)
        count = session.edits

        def computed() -> int:
            nonlocal count
            count, before = session.edits, count
            return count - before

        energy = atoms.get_potential_energy()
        assert computed() == 1
        atoms.get_forces()
        assert atoms.get_potential_energy(force_consistent=True) == energy
        assert computed() == 0, "energy and forces come together"
        atoms.positions[0, 0] += 0.1
        assert atoms.get_potential_energy() != energy
        assert computed() == 1
        for change in (
            lambda: atoms.info.update(charge=1, spin=2),
            lambda: atoms.info.update(charge=0, spin=1),
            lambda: atoms.set_atomic_numbers([7, 1, 1]),
            lambda: atoms.set_cell(np.eye(3) * 4),
            lambda: atoms.set_pbc(True),
        ):
            energy = atoms.get_potential_energy()
            computed()
            change()
            # A box without periodicity changes nothing, but ASE asks again.
            is_box = atoms.cell.rank == 3 and not atoms.pbc.any()
            assert (atoms.get_potential_energy() != energy) != is_box
            assert computed() == 1
        atoms.set_initial_magnetic_moments([1, 0, 0])
        atoms.info["remark"] = "no change"
        atoms.get_potential_energy()
        assert computed() == 0
        session.load(molecule("CH4"))  # somebody else uses the session
        computed()
        atoms.rattle(0.01)
        atoms.get_potential_energy()
        assert len(session.atoms) == 3
        assert computed() == 1


def test_stress_only_where_there_is_a_volume(server: Server) -> None:
    atoms = molecule("H2O")
    with UmaServe(server.file) as atoms.calc:
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_magnetic_moment()
        atoms.cell[0] = [5, 0, 0]
        atoms.pbc = [True, False, False]
        assert np.isfinite(atoms.get_forces()).all()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
        atoms.center(vacuum=3)
        assert atoms.get_stress().shape == (6,)


def test_arguments_come_before_info(server: Server) -> None:
    atoms = molecule("H2O")
    atoms.info.update(charge=0, spin=1)
    neutral, charged = atoms.copy(), atoms.copy()
    charged.info.update(charge=1, spin=2)
    with UmaServe(server.file) as calc, UmaServe(server.file, charge=1, spin=2, task="omol") as cation:
        assert cation.get_potential_energy(neutral) == calc.get_potential_energy(charged)
        assert cation.get_potential_energy(neutral) != calc.get_potential_energy(neutral)
        assert cation.todict() == {"task": "omol", "charge": 1, "spin": 2}
        assert cation.name == "umaserve"
    assert calc.get_potential_energy(neutral) == calc.results["energy"], "a closed calculator connects again"
    calc.close()


def test_dynamics_of_ase(server: Server, ethanol: Atoms, tmp_path: Path) -> None:
    with UmaServe(server.file) as ethanol.calc:
        ethanol.set_constraint([FixAtoms([0]), FixBondLengths([(2, 3)])])
        BFGS(ethanol, logfile=None).run(fmax=0.1, steps=50)
        ethanol.set_constraint(FixAtoms([0]))
        fixed = ethanol.positions[0].copy()
        warm(ethanol)
        nve = VelocityVerlet(ethanol, 0.5 * units.fs, trajectory=str(tmp_path / "nve.traj"), loginterval=10)
        before = ethanol.get_total_energy()
        nve.run(100)
        assert ethanol.get_total_energy() == pytest.approx(before, abs=0.01)
        Langevin(ethanol, 0.5 * units.fs, temperature_K=300, friction=0.02 / units.fs).run(10)
        np.testing.assert_array_equal(ethanol.positions[0], fixed)
    frames = read(tmp_path / "nve.traj", ":")
    assert len(frames) == 11
    assert frames[0].calc.name == "umaserve"


def test_server_and_ase_make_the_same_dynamics(server: Server, ethanol: Atoms) -> None:
    warm(ethanol)
    with server.session() as session:
        session.load(ethanol)
        last = session.run(20, integrator="velocity_verlet", timestep_fs=1.0)
    with UmaServe(server.file) as ethanol.calc:
        VelocityVerlet(ethanol, 1.0 * units.fs).run(20)
    np.testing.assert_allclose(last.positions, ethanol.positions, atol=1e-5)
    np.testing.assert_allclose(last.velocities, ethanol.get_velocities(), atol=1e-5)


def test_a_band_with_parallel_images(server: Server) -> None:
    """The inversion of ammonia: the middle of the way is flat."""
    start = molecule("NH3")
    with UmaServe(server.file) as start.calc:
        BFGS(start, logfile=None).run(fmax=0.02)
    end = start.copy()
    end.positions[0, 2] = 2 * end.positions[1:, 2].mean() - end.positions[0, 2]
    images = [start.copy() for _ in range(4)] + [end]
    for image in images:
        image.calc = UmaServe(server.file)
    band = NEB(images, parallel=True)
    band.interpolate()
    FIRE(band, logfile=None).run(fmax=0.1, steps=60)
    heights = np.array([image.get_potential_energy() for image in images])
    assert heights[2] == heights.max()
    assert 0.05 < heights[2] - heights[0] < 0.6
    np.testing.assert_allclose(heights, heights[::-1], atol=5e-3)
    assert abs(images[2].positions[0, 2] - images[2].positions[1:, 2].mean()) < 0.02
    for image in images:
        image.calc.close()


def test_vibrations_of_water(server: Server, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    with UmaServe(server.file) as atoms.calc:
        BFGS(atoms, logfile=None).run(fmax=0.005, steps=50)
        vibrations = Vibrations(atoms, name=str(tmp_path / "vib"))
        vibrations.run()
        real = np.real(vibrations.get_frequencies())[-3:]
    assert 1300 < real[0] < 1900
    assert 3200 < real[1] < real[2] < 4300


def test_many_threads_get_what_one_gets(server: Server) -> None:
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3", "CH3OH", "C2H6", "CO2", "C2H4", "N2")]

    def energy(atoms: Atoms) -> list[float]:
        with UmaServe(server.file) as calc:
            energies = []
            for scale in (1.0, 1.02, 0.98):
                stretched = atoms.copy()
                stretched.positions *= scale
                energies.append(float(calc.get_potential_energy(stretched)))
            return energies

    alone = [energy(atoms) for atoms in structures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(energy, structures))
    assert together == alone, "the same bits, whatever else is computed"


def test_copies_connect_anew(server: Server) -> None:
    atoms = molecule("H2O")
    calc = UmaServe(server.file, charge=0)
    energy = calc.get_potential_energy(atoms)
    for twin in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        assert twin.session is not calc.session
        assert twin.get_potential_energy(atoms) == energy
        twin.close()
    assert server.token not in repr(calc.session)
    assert server.token not in repr(calc.session.address)
    calc.close()
    calc.close()


def test_a_calculator_survives_a_restart(start: Callable[..., Server], ethanol: Atoms) -> None:
    server = start()
    with UmaServe(server.file, reconnect=30) as ethanol.calc:
        energy = ethanol.get_potential_energy()
        server.end(signal.SIGKILL)
        server.start()
        ethanol.calc.reset()
        assert ethanol.get_potential_energy() == energy
        ethanol.rattle(0.01)
        assert ethanol.get_potential_energy() != energy


def test_sessions_end_with_their_calculators(server: Server) -> None:
    def sessions() -> int:
        return int(Address.parse(server.file).get("serve/health")["sessions"])

    atoms = molecule("H2O")
    before = sessions()
    for _ in range(5):
        atoms.calc = UmaServe(server.file)
        atoms.get_potential_energy()
    del atoms
    gc.collect()
    deadline = time.monotonic() + 60
    while sessions() > before:
        assert time.monotonic() < deadline, "sessions are left behind"
        time.sleep(0.05)


def test_wrong_tokens_are_refused(server: Server) -> None:
    atoms = molecule("H2O")
    atoms.calc = UmaServe(server.url, "wrong-token-wrong-token")
    with pytest.raises(NotAuthorized, match="401"):
        atoms.get_potential_energy()
    with pytest.raises(TypeError, match="session"):
        UmaServe(Session(server.file), timeout=3)
