"""What a session does: load, edit, relax, run, stop, record."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.optimize import BFGS
from conftest import MODEL, PROGRAM, Server, warm

from umaserve import ComputeError, ConnectionLost, Frame, RequestRefused, Session, SessionLost, TakenOver, UmaServe


def test_load_gives_what_predict_gives(session: Session, tmp_path: Path) -> None:
    cell = Atoms("COH4", molecule("CH3OH").positions, cell=[6, 6.5, 7], pbc=True)
    cell.rattle(0.05, seed=1)
    ion = Atoms(
        "OH3", [[0, 0, 0.1], [0.95, 0, -0.2], [-0.48, 0.83, -0.2], [-0.48, -0.83, -0.2]], info={"charge": 1, "spin": 1}
    )
    structures = [molecule("CH3CH2OH"), ion, molecule("CH3"), cell]
    structures[2].info["spin"] = 2
    write(tmp_path / "in.xyz", structures, format="extxyz")
    command = [
        PROGRAM,
        "predict",
        "--model",
        MODEL,
        "--device",
        "cpu",
        tmp_path / "in.xyz",
        "--output",
        tmp_path / "out.xyz",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for atoms, wanted in zip(structures, read(tmp_path / "out.xyz", ":"), strict=True):
        frame = session.load(atoms)
        assert frame.energy == pytest.approx(wanted.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(frame.forces, wanted.get_forces(), atol=1e-6)
        np.testing.assert_array_equal(frame.positions, atoms.positions)
        assert (frame.stress is not None) == atoms.pbc.all()
        if frame.stress is not None:
            np.testing.assert_allclose(session.atoms.get_stress(voigt=False), wanted.get_stress(voigt=False), atol=1e-6)
        assert session.atoms.get_potential_energy() == frame.energy
    with_charge = session.load(structures[1]).energy
    assert session.load(structures[1], charge=0, spin=2).energy != with_charge
    assert session.atoms.info == {"charge": 0, "spin": 2}


def test_minimize_is_ases_bfgs(session: Session, ethanol: Atoms) -> None:
    ethanol.rattle(0.1, seed=2)
    session.load(ethanol)
    seen: list[Frame] = []
    last = session.minimize(fmax=0.02, callback=seen.append)
    assert last.fmax <= 0.02
    assert [f.step for f in seen] == list(range(1, len(seen) + 1))
    assert last is seen[-1] is session.frame
    with UmaServe(session.address) as ethanol.calc:
        optimizer = BFGS(ethanol, logfile=None)
        optimizer.run(fmax=0.02, steps=300)
        assert optimizer.nsteps == len(seen)
        np.testing.assert_allclose(last.positions, ethanol.positions, atol=1e-4)
        # The server is where the frame is, although it had gone further.
        assert session.edit().energy == last.energy
    assert session.minimize(fmax=0.02).step == last.step, "nothing left to do"


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_other_optimizers_get_to_the_minimum(session: Session, ethanol: Atoms, optimizer: str) -> None:
    session.load(ethanol)
    last = session.minimize(fmax=0.05, optimizer=optimizer, steps=300)
    assert last.fmax <= 0.05
    assert session.minimize(fmax=1e-9, optimizer=optimizer, steps=4).step == last.step + 4, "ends after its steps"


def test_nve_conserves_energy(session: Session, ethanol: Atoms) -> None:
    session.load(ethanol)
    session.minimize()
    frame = session.thermalize(300, seed=2)
    np.testing.assert_allclose(ethanol.get_masses() @ frame.velocities, 0, atol=1e-12)
    total, times = [], []
    for frame in session.frames(400, integrator="velocity_verlet", timestep_fs=0.5, steps_per_frame=4):
        total.append(frame.energy + frame.kinetic)
        times.append(frame.time_fs)
    assert len(total) == 100
    np.testing.assert_allclose(np.diff(times), 2.0)
    drift = np.polyfit(times, total, 1)[0] * 1000 / len(ethanol)
    assert abs(drift) < 5e-3, f"{drift} eV/atom/ps"
    assert np.std(total) / len(ethanol) < 1e-3


def test_runs_have_exactly_their_steps(session: Session, ethanol: Atoms) -> None:
    session.load(warm(ethanol))
    seen: list[int] = []
    last = session.run(25, every=10, seed=7, callback=lambda frame: seen.append(frame.step))
    assert seen == [10, 20, 25]
    assert last.step == 25
    session.load(ethanol)
    np.testing.assert_array_equal(session.run(25, seed=7).positions, last.positions)
    session.load(ethanol)
    for steps in (1, 2, 22):  # the random numbers go on
        last_of_parts = session.run(steps, seed=7 if steps == 1 else None)
    np.testing.assert_array_equal(last_of_parts.positions, last.positions)
    assert last_of_parts.step == 25
    assert session.run(3, every=1000).step == 28


def test_a_callback_ends_the_run_where_it_is(session: Session, ethanol: Atoms) -> None:
    session.load(warm(ethanol))
    last = session.run(10_000, seed=3, every=2, callback=lambda frame: frame.step < 6)
    assert last.step == 6
    assert not session.running
    assert session.frame is last
    assert repr(last).startswith("<Frame of 9 atoms at step 6: -")
    again = session.edit()
    assert again is not None
    assert again.energy == pytest.approx(last.energy, abs=1e-5)
    np.testing.assert_array_equal(again.positions, last.positions)
    np.testing.assert_array_equal(again.velocities, last.velocities)
    np.testing.assert_allclose(session.atoms.get_velocities(), last.velocities, rtol=1e-12)
    assert session.run(1).step == 7


def test_errors_in_a_callback_stop_the_run(session: Session, ethanol: Atoms) -> None:
    session.load(warm(ethanol))

    def fail(frame: Frame) -> None:
        raise KeyError(frame.step)

    with pytest.raises(KeyError):
        session.run(1000, callback=fail)
    assert not session.running
    assert session.frame is not None
    assert session.frame.step == 1
    for frame in session.frames():
        if frame.step == 4:
            break
    assert session.run(1).step == 5


def test_edits_move_atoms_while_nothing_runs(session: Session, ethanol: Atoms) -> None:
    before = session.load(ethanol)
    moved = session.edit({3: ethanol.positions[3] + [0.1, 0, 0]})
    assert moved is not None
    assert moved.energy != before.energy
    ethanol.positions[3, 0] += 0.1
    np.testing.assert_array_equal(moved.positions, ethanol.positions)
    fresh = session.load(ethanol)
    assert fresh.energy == moved.energy
    back = session.edit(molecule("CH3CH2OH").positions)
    assert back is not None
    assert back.energy == before.energy
    assert session.edit(charge=1, spin=2).energy != before.energy
    periodic = session.edit(cell=np.eye(3) * 9)
    assert periodic is not None
    assert periodic.stress is not None
    assert session.atoms.pbc.all()
    for wrong in ({9: [0, 0, 0]}, {-1: [0, 0, 0]}, np.zeros((3, 3)), {0: [np.nan, 0, 0]}, {0: [1, 2]}):
        with pytest.raises(ValueError, match="atom|shape|finite"):
            session.edit(wrong)
    with pytest.raises(RequestRefused, match="coords|1e6|position"):
        session.edit({0: [1e9, 0, 0]})
    assert session.frame is periodic, "refused: nothing has changed"


def test_edits_steer_a_run(session: Session, ethanol: Atoms) -> None:
    session.load(ethanol)
    place = ethanol.positions[0] + [0.0, 0.0, 0.05]
    seen = []
    for frame in session.frames(40, temperature=0, friction=0, integrator="velocity_verlet", timestep_fs=0.01):
        seen.append(frame.positions[0])
        if frame.step == 5:
            assert session.edit({0: place}, velocities=np.zeros((9, 3))) is None
    assert np.linalg.norm(seen[4] - ethanol.positions[0]) < 1e-3
    assert np.linalg.norm(seen[-1] - place) < 1e-2
    # An edit at the last frame is not lost.
    for frame in session.frames(3, integrator="velocity_verlet", timestep_fs=0.01):
        if frame.step == 43:
            session.edit({0: ethanol.positions[0]})
    assert session.frame is not None
    assert session.frame.step == 43
    np.testing.assert_array_equal(session.frame.positions[0], ethanol.positions[0])
    assert session.frame.energy == session.edit().energy


def test_load_while_a_simulation_runs(session: Session, ethanol: Atoms) -> None:
    session.load(ethanol)
    for frame in session.frames():
        if frame.step == 3:
            water = session.load(molecule("H2O"))
    assert len(water.positions) == 3
    assert session.frame is water
    assert session.run(2).step == 2


def test_a_slow_viewer_holds_the_simulation(server: Server, ethanol: Atoms) -> None:
    def sent() -> int:
        with server.session().address._open("metrics") as answer:
            lines = answer.read().decode().splitlines()
        return int(next(line for line in lines if line.startswith("umaserve_frames_total")).split()[1])

    with server.session() as session:
        session.load(warm(ethanol))
        frames = session.frames(200)
        next(frames)
        ahead, deadline = -1, time.monotonic() + 60
        while ahead != (ahead := sent()):
            assert time.monotonic() < deadline, "it goes on although nobody reads"
            time.sleep(0.5)
        steps = [frame.step for frame in frames]
        assert steps == list(range(2, 201))
        assert sent() - ahead >= 200 - 1 - 10, "it had been more than ten frames ahead"


@pytest.mark.parametrize("window", [1, 4, 40])
def test_windows_of_other_sizes(start: Callable[..., Server], ethanol: Atoms, window: int) -> None:
    with start("--max-unacked", str(window)).session(timeout=60) as session:
        session.load(warm(ethanol))
        for steps in (1, 3, 30):
            base = session.frame.step if session.frame else 0
            assert session.run(steps).step == base + steps
        assert session.minimize(fmax=1e-6, steps=6).step == base + steps + 6


def test_recordings(session: Session, ethanol: Atoms, tmp_path: Path) -> None:
    session.load(warm(ethanol))
    last = session.run(22, every=5, record=True, label="kept")
    session.run(5, record=False)
    session.end()
    deadline = time.monotonic() + 60
    while not (found := [r for r in session.recordings() if r["name"].startswith("kept") and not r["live"]]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    path = session.download(found[0]["name"], tmp_path / "kept.h5")
    with h5py.File(path) as file:
        positions = file["particles/all/position/value"][:]
        assert file["particles/all/position/step"][:].tolist() == [5, 10, 15, 20, 22]
    np.testing.assert_allclose(positions[-1], last.positions, atol=1e-5)
    with pytest.raises(RequestRefused, match="404"):
        session.download("none.h5", tmp_path / "none.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.h5"]


def test_refusals_name_the_limit(session: Session, ethanol: Atoms) -> None:
    with pytest.raises(RequestRefused, match="load"):
        session.run(1)
    before = session.load(ethanol)
    crowd = Atoms("H1001", positions=np.arange(3003).reshape(-1, 3))
    with pytest.raises(RequestRefused, match=r"1001.*1000"):
        session.load(crowd)
    with pytest.raises(RequestRefused, match="time step"):
        session.run(1, timestep_fs=1000)
    with pytest.raises(RequestRefused, match="task"):
        session.load(ethanol, task="alchemy")
    with pytest.raises(ValueError, match="atom 1 is of no element"):
        session.load(Atoms("HX", [[0, 0, 0], [0, 0, 1]]))
    assert session.frame is before
    assert session.atoms == ethanol
    for wrong in ({"integrator": "leapfrog"}, {"temperature": float("nan")}, {"every": 0}):
        with pytest.raises(ValueError, match="leapfrog|temperature|at least one"):
            session.run(1, **wrong)
    with pytest.raises(ValueError, match="whole number"):
        session.load(ethanol, charge=0.5)
    with pytest.raises(ValueError, match="without a cell"):
        session.load(Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], pbc=[True, False, False]))
    ethanol.set_constraint(FixAtoms([0]))
    session.load(ethanol)
    with pytest.raises(ValueError, match="constraints"):
        session.minimize()
    assert session.load(molecule("H2O")).is_evaluated


def test_a_failed_evaluation_says_why(session: Session, ethanol: Atoms) -> None:
    session.load(ethanol)
    together = Atoms("H2", [[0, 0, 0], [0, 0, 0]])
    try:
        session.load(together)
    except ComputeError as error:
        assert str(error).startswith("COMPUTE_ERROR")  # noqa: PT017
        assert session.atoms.calc is None
        assert session.frame is not None
        assert not session.frame.is_evaluated
    assert session.load(ethanol).is_evaluated


def test_a_cell_keeps_its_stress_and_its_shape(session: Session) -> None:
    atoms = molecule("CH4", vacuum=2.5)
    atoms.pbc = True
    atoms.rattle(0.05, seed=3)
    session.load(warm(atoms))
    frame = session.run(3, integrator="velocity_verlet")
    assert frame.stress is not None
    np.testing.assert_array_equal(session.atoms.cell, atoms.cell)
    assert session.atoms.pbc.all()
    assert session.atoms.get_stress().shape == (6,)
    np.testing.assert_array_equal(frame.stress, frame.stress.T)
    layer = molecule("CH4", vacuum=2.5)
    layer.pbc = [True, True, False]
    assert session.load(layer).energy != session.load(atoms).energy


def test_detached_runs_go_on(server: Server, ethanol: Atoms) -> None:
    session = server.session()
    session.load(warm(ethanol))
    session.start(seed=5, steps_per_frame=10)
    first = next(session.watch())
    secret = session.detach()
    with pytest.raises(ConnectionLost, match="closed"):
        session.edit()

    def done() -> int:
        return int(session.address.get("serve/status")["steps"])

    before, deadline = done(), time.monotonic() + 60
    while done() < before + 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with server.session(session_id=secret) as session:
        assert session.running
        assert session.detached
        assert session.frame is not None
        assert session.frame.step > first.step + 200 // 10
        assert str(session.atoms.symbols) == str(ethanol.symbols)
        steps = [frame.step for frame in session.watch(50)]
        assert len(steps) in (5, 6)
        session.stop()
        assert not session.running
        at = session.frame.step
        assert session.run(2).step == at + 2
    with pytest.raises(SessionLost):
        server.session(session_id=secret)


def test_leaving_a_detached_run_does_not_end_it(server: Server, ethanol: Atoms) -> None:
    session = server.session()
    session.load(warm(ethanol))
    session.start()
    secret = session.detach()
    with server.session(session_id=secret) as looking:
        assert looking.running
    with server.session(session_id=secret) as again:
        assert again.running
        again.stop()
    with pytest.raises(SessionLost):
        server.session(session_id=secret)
    with server.session() as session, pytest.raises(RequestRefused, match="nothing to detach"):
        session.detach()


def test_a_session_has_one_viewer(server: Server, ethanol: Atoms) -> None:
    session = server.session()
    session.load(ethanol)
    with server.session(session_id=session.session_id) as other:
        with pytest.raises(TakenOver):
            session.edit()
        assert str(other.atoms.symbols) == str(ethanol.symbols)
        assert other.edit() is not None


def test_units_are_ases(session: Session) -> None:
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    atoms.set_velocities([[0.01, 0, 0], [0.01, 0, 0]])
    session.load(atoms)
    frame = session.run(1, integrator="velocity_verlet", timestep_fs=2.0)
    np.testing.assert_allclose(frame.positions[:, 0], 0.01 * 2.0 * units.fs, rtol=1e-4)
    assert frame.time_fs == 2.0
    assert frame.temperature == pytest.approx(2 * frame.kinetic / (3 * 2 * units.kB))
