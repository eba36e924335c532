"""A session on a server: one structure, its simulation, and what the server says about it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import kB

from . import session_pb2 as pb
from ._link import Broken, Link
from ._messages import (
    DYNAMICS,
    MD,
    OPTIMIZERS,
    RELAX,
    Vectors,
    applied,
    change,
    choose,
    parameters,
    said,
    structure,
    whole,
)
from .address import Address
from .errors import ComputeError, ConnectionLost, RequestRefused, SessionLost, TakenOver
from .frame import Frame, voigt

log = logging.getLogger("umaserve")

NORMAL, TOO_LARGE, TAKEN_OVER = 1000, 1009, 4001
#: Frames that a relaxation may be ahead of the look at its forces.
RELAX_AHEAD = 3

Kind = pb.ClientAction.Start.SimType
#: Sees a frame; False ends the run.
Callback = Callable[[Frame], object]


@dataclass
class _Run:
    """A running simulation."""

    kind: Kind
    parameters: pb.SimulationParams
    every: int  # steps per frame
    base: int | None  # step at which its frames begin to be counted; None: not known
    last: int  # step of the last frame that was handed out
    goal: int | None = None  # step at which it ends; None: open
    ahead: int | None = None  # frames that the server may be ahead; None: its window
    start_seq: int = 0  # number of the message that started it
    stopping: bool = False
    seen: int = 0  # counter of the last edit that the last frame contains
    resumed: Frame | None = None  # where it was when the connection was made again
    edits: list[tuple[int, pb.UserInteractionSparse]] = field(default_factory=list)  # those after `seen`


class Session:
    """
    A session with a server: load a structure, relax it, run dynamics, watch every frame, change things.

        with Session("http://127.0.0.1:8000/") as session:
            session.load(atoms)
            session.minimize(fmax=0.05)
            last = session.run(1000, temperature=300, callback=print)

    `server` is what `Address.parse` takes: a URL, a connection file, `unix:PATH`, or None for the
    environment's UMASERVE_URL. The session outlives its socket: a broken connection is made again for up to
    `reconnect` seconds, with growing pauses, and the simulation goes on where it was, with the server's
    `--resume` even after its restart; at most the frames that were under way are not seen. `session_id`
    takes up an earlier session. With `lasting=False` the session ends with its socket; a break then
    raises `SessionLost`.

    `timeout` (s) bounds the wait for any single answer; None waits as long as the server is alive.
    `on_notice` sees what the server says besides results (also logged by the logger `umaserve`).

    At the end of a `with` block the session is ended on the server, unless it was detached.
    A session is to be used from one thread at a time; any number of sessions may be open.
    """

    def __init__(
        self,
        server: str | os.PathLike[str] | Address | None = None,
        token: str | None = None,
        *,
        session_id: str | None = None,
        lasting: bool = True,
        timeout: float | None = 600.0,
        reconnect: float = 60.0,
        on_notice: Callable[[str], object] | None = None,
    ) -> None:
        if session_id is not None and not lasting:
            raise ValueError("only lasting sessions can be taken up again")
        self.reconnect, self.on_notice = reconnect, on_notice
        #: By what the session is taken up again. Whoever knows it can: a secret.
        self.session_id = ""
        #: Name of the file that was being recorded when the session was taken up, if any.
        self.recording: str | None = None
        #: Whether the simulation goes on while nobody is connected.
        self.detached = False
        #: The last frame; None before the first `load`.
        self.frame: Frame | None = None
        self._lasting = lasting
        self._link = Link(Address.parse(server, token), timeout)
        self._closed = False
        self._atoms = Atoms()
        self._task: str | None = None
        self._run: _Run | None = None
        self._edits = 0  # counter of edits
        self._loading = False  # the edit under way replaces everything
        self._server_step = 0  # step counter of the server's last message
        self._server_edits = 0  # edits that a session contained when it was taken up
        self._link.open(0.0)
        if lasting:
            try:
                state = self._attach(session_id or "")
            except Broken as broken:
                raise ConnectionLost(f"the server closed the connection: {broken}") from None
            if session_id and not state.resumed:
                self.end()
                raise SessionLost(f"the server does not know the session {session_id[:6]}...")

    @property
    def address(self) -> Address:
        """Where the server is; asks its HTTP side, for example `session.address.recordings()`."""
        return self._link.address

    @property
    def running(self) -> bool:
        """Whether a simulation runs, as far as is known."""
        return self._run is not None

    @property
    def edits(self) -> int:
        """Counts `load`, `edit` and whatever else changes the structure, but for the steps of simulations."""
        return self._edits

    def __repr__(self) -> str:
        at = f"step {self.frame.step}" if self.frame else "empty"
        state = "closed" if self._closed else "running" if self.running else "idle"
        return f"<Session at {self.address.base}: {self._atoms.symbols or 'no atoms'}, {at}, {state}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.detached and self.running:
            self.close()
        else:
            self.end()

    # Structures

    @property
    def atoms(self) -> Atoms:
        """
        A copy of the structure as of the last frame, with velocities, and with energy, forces and stress
        as its results. `info`, tags, constraints and the like are those that were loaded.
        """
        atoms: Atoms = self._atoms.copy()
        frame = self.frame
        if frame is None:
            return atoms
        atoms.positions = frame.positions
        if frame.cell is not None:
            atoms.cell = frame.cell
        atoms.set_momenta(frame.velocities * atoms.get_masses()[:, None], apply_constraint=False)
        if not frame.is_evaluated:
            return atoms
        results: dict[str, Any] = {"energy": frame.energy, "free_energy": frame.energy, "forces": frame.forces}
        if frame.stress is not None:
            results["stress"] = voigt(frame.stress)
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    def load(
        self,
        atoms: Atoms,
        *,
        charge: SupportsFloat | None = None,
        spin: SupportsFloat | None = None,
        task: str | None = None,
        velocities: bool = True,
    ) -> Frame:
        """
        Replaces the structure and returns its energy, forces and stress. A running simulation stops.

        `charge` (total, elementary charges) and `spin` (multiplicity 2S+1) default to
        `atoms.info["charge"]`, `atoms.info["spin"]`, else to the server's defaults; `task` ("omol", "omat",
        ...) to the server's. Velocities of `atoms` are taken along; dynamics starts with them: the
        server draws none.
        """
        charge, spin = said(atoms, "charge", charge), said(atoms, "spin", spin)
        moving = atoms.get_velocities() if velocities and atoms.has("momenta") else np.zeros_like(atoms.positions)
        edit = structure(atoms, moving, charge, spin, task)
        self._connected()
        if self.running:
            self.stop()
        before = self._atoms, self._task, self.frame
        self._atoms, self._task = atoms.copy(), task
        self._atoms.calc = None
        for name, value in (("charge", charge), ("spin", spin)):
            if value is not None:
                self._atoms.info[name] = value
        self.frame = Frame.unevaluated(0, atoms.positions.copy(), moving)
        self._loading = True
        try:
            return self._exchange(edit)
        except RequestRefused:
            self._atoms, self._task, self.frame = before
            raise
        finally:
            self._loading = False

    def edit(
        self,
        positions: Vectors | None = None,
        velocities: Vectors | None = None,
        cell: npt.ArrayLike | None = None,
        *,
        charge: SupportsFloat | None = None,
        spin: SupportsFloat | None = None,
    ) -> Frame | None:
        """
        Moves atoms: `{index: xyz}` for some, or an array [N, 3] for all; Angstrom, and Angstrom / (ASE
        time unit) for velocities. `cell`: rows are lattice vectors, Angstrom. While nothing runs, returns
        the new energy and forces. While a simulation runs (in a loop over `frames` or in a callback) it
        takes effect before the next step, and None is returned. Atoms are added and elements
        changed by `load`.
        """
        self._connected()
        if self.frame is None:
            raise RequestRefused("no structure: load one first")
        edit = change(len(self._atoms), positions, velocities, cell)
        info: dict[str, int] = {}
        if charge is not None:
            edit.charge = info["charge"] = whole("charge", charge)
        if spin is not None:
            edit.spin_multiplicity = info["spin"] = whole("spin", spin)
        atoms = self._atoms.copy()
        atoms.info.update(info)
        if cell is not None:
            atoms.cell = np.asarray(cell, dtype=float).reshape(3, 3)
            if not atoms.pbc.any():
                edit.periodicity.a = edit.periodicity.b = edit.periodicity.c = True
                atoms.pbc = True
        if self._run is not None:
            self._edits += 1
            self._run.edits.append((self._edits, edit))
            self._atoms = atoms
            self._link.send(pb.ClientAction(user_interaction=edit, user_interaction_count=self._edits))
            return None
        before = self._atoms, self.frame
        moved = applied(edit, self.frame.positions, self.frame.velocities)
        self._atoms, self.frame = atoms, Frame.unevaluated(self.frame.step, *moved)
        try:
            return self._exchange(edit)
        except RequestRefused:
            self._atoms, self.frame = before
            raise

    def thermalize(self, temperature: float, *, seed: int | None = None) -> Frame:
        """
        Gives the atoms velocities of the Maxwell-Boltzmann distribution at `temperature` (K), without
        motion of the centre of mass. The server itself draws no velocities: dynamics of a structure
        loaded without any begins at rest.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature = {temperature}: a finite number, not below 0, is needed")
        masses = self._atoms.get_masses()[:, None]
        velocities = np.random.default_rng(seed).standard_normal((len(masses), 3)) * np.sqrt(kB * temperature / masses)
        if len(masses) > 1:
            velocities -= (masses * velocities).sum(axis=0) / masses.sum()
        self.edit(velocities=velocities)
        assert self.frame is not None
        return self.frame

    # Simulations

    def run(
        self,
        steps: int,
        *,
        callback: Callback | None = None,
        every: int = 1,
        temperature: float = 300.0,
        timestep_fs: float = 1.0,
        friction: float = 0.02,
        integrator: str | None = None,
        seed: int | None = None,
        record: bool | None = None,
        label: str | None = None,
    ) -> Frame:
        """
        Runs exactly `steps` steps of dynamics and returns the last frame. `callback` sees every `every`-th
        step, and the last one; it ends the run by returning False. The other parameters are those of
        `frames`. Afterwards the structure on the server is that of the returned frame.
        """
        if steps < 1:
            raise ValueError(f"steps = {steps}: at least one")
        last = None
        for last in self.frames(
            steps,
            temperature=temperature,
            timestep_fs=timestep_fs,
            friction=friction,
            integrator=integrator,
            steps_per_frame=every,
            seed=seed,
            record=record,
            label=label,
        ):
            if callback is not None and callback(last) is False:
                break
        if last is None:
            raise ComputeError("the simulation ended before its first frame")
        return last

    def frames(
        self,
        steps: int | None = None,
        *,
        temperature: float = 300.0,
        timestep_fs: float = 1.0,
        friction: float = 0.02,
        integrator: str | None = None,
        steps_per_frame: int = 1,
        seed: int | None = None,
        record: bool | None = None,
        label: str | None = None,
    ) -> Iterator[Frame]:
        """
        Dynamics as an iterator over frames, `steps` steps in all (None: until the loop is left).

        The default integrator is "langevin", ASE's, at `temperature` (K) with `friction` in 1/(ASE time
        unit); "velocity_verlet" conserves the energy. Initial velocities are those of the loaded
        atoms or of `thermalize`. `seed` restarts the random numbers. `record` asks for a trajectory file called `label`
        (default: whether the server records at all). The server waits while the loop's body works. The
        simulation stops when the loop ends or is left, and the structure on the server is then that
        of the last frame that the loop has seen.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"steps = {steps}: at least one")
        self._require_structure()
        message = parameters(
            choose(integrator, DYNAMICS, "integrator"),
            steps_per_frame,
            record,
            label,
            temperature=temperature,
            timestep_fs=timestep_fs,
            friction=friction,
            seed=seed,
        )
        return self._simulate(MD, message, steps, None)

    def minimize(
        self,
        *,
        fmax: float = 0.05,
        steps: int = 500,
        max_step: float = 0.2,
        optimizer: str | None = None,
        callback: Callback | None = None,
        record: bool | None = None,
        label: str | None = None,
    ) -> Frame:
        """
        Relaxes the positions, in a fixed cell, until no atom feels more than `fmax` (eV/Angstrom) or `steps`
        steps are done; the `fmax` of the returned frame tells which. `optimizer` is "bfgs" (default),
        "lbfgs" (default for more than 200 atoms) or "fire", all as ASE's; `max_step` the longest move
        of an atom in a step (Angstrom). `callback` ends it by returning False.
        """
        message = parameters(choose(optimizer, OPTIMIZERS, "optimizer"), 1, record, label, max_step=max_step)
        if steps < 0 or not fmax >= 0:
            raise ValueError(f"steps = {steps}, fmax = {fmax}: not below 0")
        self._require_structure()
        last = self.frame
        if last is None or not last.is_evaluated:
            last = self.edit()
        assert last is not None  # nothing runs
        if steps == 0 or last.fmax <= fmax:
            return last
        for last in self._simulate(RELAX, message, steps, RELAX_AHEAD):
            if (callback is not None and callback(last) is False) or last.fmax <= fmax:
                break
        return last

    def start(
        self,
        *,
        temperature: float = 300.0,
        timestep_fs: float = 1.0,
        friction: float = 0.02,
        integrator: str | None = None,
        steps_per_frame: int = 1,
        seed: int | None = None,
        record: bool | None = None,
        label: str | None = None,
    ) -> None:
        """
        Starts dynamics and returns at once; parameters as for `frames`. `watch` shows its frames,
        `detach` leaves it to itself, `stop` ends it. Unless detached, it waits for somebody who watches.
        """
        message = parameters(
            choose(integrator, DYNAMICS, "integrator"),
            steps_per_frame,
            record,
            label,
            temperature=temperature,
            timestep_fs=timestep_fs,
            friction=friction,
            seed=seed,
        )
        self._begin(MD, message, None, None)

    def watch(self, steps: int | None = None) -> Iterator[Frame]:
        """
        The frames of a simulation that runs already, for `steps` steps (None: until it or the loop ends).
        Leaving the loop does not stop it.
        """
        self._connected()
        run = self._run
        if run is None:
            return
        end = None if steps is None else run.last + steps
        while self._run is run and (end is None or run.last < end):
            frame = self._advance(run)
            if frame is None:
                return
            yield frame

    def stop(self) -> None:
        """Stops the simulation, if one runs; the structure is then that of the last frame."""
        self._connected()
        run = self._run
        if run is not None:
            self._halt(run)
            self._put_back(self.frame, run)

    # Beginning, end, and in between

    def detach(self) -> str:
        """
        Leaves: the running simulation goes on without a viewer, at full speed, and records if it records,
        until somebody takes it up and stops it. Returns the id with which `Session(server,
        session_id=...)` does that.
        """
        if not self._lasting or not self.running:
            raise RequestRefused("nothing to detach: it takes a lasting session with a running simulation")
        self._link.send(pb.ClientAction(detached=True))
        try:
            self._link.confirm()
        except ConnectionLost:
            self._resume(Broken(None, "while detaching"))
            self._link.send(pb.ClientAction(detached=True))
            self._link.confirm()
        self.detached = True
        self.close()
        return self.session_id

    def end(self) -> None:
        """Ends the session for good: the recording is closed, nothing is kept for a return."""
        if not self._closed:
            self._link.send(pb.ClientAction(end_session=True))
        self.close()

    def close(self) -> None:
        """
        Closes the connection. The server keeps a lasting session, its simulation waiting, for its
        `--reconnect-seconds`; `session_id` takes it up again.
        """
        self._closed = True
        self._link.close()

    def recordings(self) -> list[dict[str, Any]]:
        """The server's recordings, newest first; see `Address.recordings`."""
        return self.address.recordings()

    def download(self, name: str, path: str | os.PathLike[str] | None = None) -> Path:
        """Saves a recording of the server; see `Address.download`."""
        return self.address.download(name, path)

    # Internals: simulations

    def _require_structure(self) -> None:
        self._connected()
        if self.frame is None:
            raise RequestRefused("no structure: load one first")
        if self.running:
            raise RequestRefused("a simulation runs already: stop it first")
        if self._atoms.constraints:
            raise ValueError(
                "the server knows no constraints; use ASE's dynamics with the calculator UmaServe, "
                "or load atoms without constraints"
            )

    def _begin(self, kind: Kind, message: pb.SimulationParams, steps: int | None, ahead: int | None) -> _Run:
        self._require_structure()
        assert self.frame is not None
        at = self.frame.step
        goal = None if steps is None else at + steps
        if steps is not None:
            message.steps_per_frame = min(message.steps_per_frame, steps)
        run = _Run(kind, message, message.steps_per_frame, at, at, goal, ahead, seen=self._edits)
        limit = self._frames_left(run)
        if limit is not None:
            self._tighten(limit)
        self._run = run
        self._link.hold(limit)
        self._send_start(run)
        return run

    def _tighten(self, frames: int) -> None:
        """
        Takes so much of the window that the server cannot do more than `frames` frames: a STOP is answered
        and does nothing else.
        """
        surplus = self._link.slack() - frames
        for _ in range(surplus):
            self._link.send(pb.ClientAction(stop=pb.ClientAction.Stop()))
        while surplus > 0:
            result = self._receive()
            if result is None:
                return  # on the new connection some frames may be too many; they are taken back later
            if result.notice.message == "SIMULATION_STOPPED":
                surplus -= 1
            elif result.WhichOneof("payload") == "notice":
                self._complain(result.notice)

    def _send_start(self, run: _Run) -> None:
        message = pb.ClientAction.Start(simulation_type=run.kind, simulation_params=run.parameters)
        run.start_seq = self._link.send(pb.ClientAction(start=message))

    def _frames_left(self, run: _Run) -> int | None:
        """Frames that the server may still send, as far as it has got."""
        if run.goal is None or run.base is None:
            return run.ahead
        left = (run.goal - run.base) // run.every - (max(self._server_step, run.base) - run.base) // run.every
        return left if run.ahead is None else min(left, run.ahead)

    def _simulate(
        self, kind: Kind, message: pb.SimulationParams, steps: int | None, ahead: int | None
    ) -> Iterator[Frame]:
        run = self._begin(kind, message, steps, ahead)
        delivered = self.frame
        try:
            while self._run is run:
                frame = self._advance(run)
                if frame is None:
                    break
                delivered = frame
                yield frame
        except BaseException:
            with suppress(ConnectionLost, SessionLost, RequestRefused, ComputeError):
                self._finish(run, delivered)
            raise
        self._finish(run, delivered)

    def _finish(self, run: _Run, delivered: Frame | None) -> None:
        if self._run is run and not self._closed:
            seen = run.seen
            self._halt(run)
            run.seen = seen
            self._put_back(delivered, run)

    def _advance(self, run: _Run) -> Frame | None:
        """The next frame of the running simulation; None once it has got to its goal or was ended."""
        if run.goal is not None and run.base is not None:
            rest = run.goal - run.last
            if rest <= 0:
                return None
            if rest < run.every:
                # What is left is shorter than a frame. The server waits, so this start is the next it does.
                run.every, run.base = rest, run.last
                run.parameters.steps_per_frame = rest
                run.parameters.ClearField("seed")
                self._send_start(run)
        while True:
            self._link.hold(self._frames_left(run))
            result = self._receive()
            if self._run is not run:
                return None
            if result is None:
                if run.resumed is None or run.resumed.step <= run.last:
                    continue
                run.last = run.resumed.step
                self.frame, run.resumed = run.resumed, None
                return self.frame
            self._link.learn(result)
            if result.WhichOneof("payload") == "frame":
                if result.sim_step <= run.last:
                    continue  # done again by a server that has come back
                run.last, run.seen = result.sim_step, result.user_interaction_count
                run.edits = [edit for edit in run.edits if edit[0] > run.seen]
                self.frame = Frame.of(result)
                return self.frame
            self._complain(result.notice)

    def _halt(self, run: _Run) -> None:
        """Stops the simulation; `self.frame` is the last one that came."""
        run.stopping = True
        stop = pb.ClientAction(stop=pb.ClientAction.Stop())
        self._link.send(stop)
        while self._run is run:
            result = self._receive()
            if result is None:  # a new connection: the stop may have been lost with the old one
                if self._run is run:
                    self._link.send(stop)
                continue
            if result.WhichOneof("payload") == "frame":
                self.frame, run.seen = Frame.of(result), result.user_interaction_count
            elif result.notice.message == "SIMULATION_STOPPED":
                self._run = None
        self._idle_ack()

    def _put_back(self, frame: Frame | None, run: _Run) -> None:
        """Makes `frame`, and the edits that it does not contain yet, the structure of the server again."""
        if frame is None:
            return
        later = [edit for count, edit in run.edits if count > run.seen]
        if later:
            positions, velocities = frame.positions, frame.velocities
            for edit in later:
                positions, velocities = applied(edit, positions, velocities)
            self._push(Frame.unevaluated(frame.step, positions, velocities))
        elif self._server_step != frame.step or self.frame is not frame:
            self._push(frame)

    def _push(self, frame: Frame) -> None:
        """Puts the whole structure onto the server again, as it was at `frame`."""
        self._atoms.positions = frame.positions
        if frame.cell is not None:
            self._atoms.cell = frame.cell
        charge, spin = said(self._atoms, "charge", None), said(self._atoms, "spin", None)
        edit = structure(self._atoms, frame.velocities, charge, spin, self._task)
        loading, self._loading = self._loading, True
        try:
            answer = self._exchange(edit)
        finally:
            self._loading = loading
        if frame.step:
            self._link.send(pb.ClientAction(sim_step=frame.step))
        self._server_step = frame.step
        self.frame = frame if frame.is_evaluated else replace(answer, step=frame.step)

    # Internals: messages

    def _exchange(self, edit: pb.UserInteractionSparse) -> Frame:
        """Sends an edit while nothing runs, and waits for its answer."""
        self._edits += 1
        count = self._edits
        action = pb.ClientAction(user_interaction=edit, user_interaction_count=count)
        self._link.send(action)
        while True:
            self._idle_ack()
            result = self._receive()
            if result is None:  # a new connection; the edit may have been lost
                self._link.send(action)
                continue
            if result.WhichOneof("payload") == "notice":
                self._complain(result.notice)
            elif result.user_interaction_count == count:
                self.frame = Frame.of(result)
                self._idle_ack()
                return self.frame

    def _idle_ack(self) -> None:
        """Stays a whole window behind, so that the next run begins under control."""
        self._link.acknowledge(self._link.server_seq - self._link.window)

    def _complain(self, notice: pb.ServerResult.Notice) -> None:
        """Raises what a notice stands for; others are told on."""
        text = notice.message
        kind = text.partition(":")[0]
        if notice.simulation_stopped:
            self._run = None
        if kind == "COMPUTE_ERROR":
            raise ComputeError(text)
        if kind in ("PROTO_VIOLATION", "CALCULATOR_NOT_SUPPORTED"):
            raise RequestRefused(text)
        if kind == "IDLE_WAITING_FOR_GEOMETRY":
            raise RequestRefused(f"{text}: an atom lacks its element or position")
        if kind in ("WAITING_FOR_ACK", "ACK_CLEARED", "SIMULATION_STOPPED"):
            return
        log.warning("%s", text)
        if self.on_notice is not None:
            self.on_notice(text)

    def _connected(self) -> None:
        """Makes a connection again that an earlier call had to give up."""
        if self._closed:
            raise ConnectionLost("the session is closed")
        if not self._link.is_open:
            self._resume(Broken(None, "not connected"))

    def _receive(self) -> pb.ServerResult | None:
        """The next frame or notice; None after the connection was made again."""
        if self._closed:
            raise ConnectionLost("the session is closed")
        try:
            while True:
                result = self._link.receive()
                if result.WhichOneof("payload") != "session_state":
                    self._server_step = result.sim_step
                    return result
        except Broken as broken:
            self._resume(broken)
            return None

    # Internals: connections

    def _resume(self, broken: Broken) -> None:
        """Makes the connection again, takes up the session, and sends again what was lost."""
        if broken.code == TAKEN_OVER:
            self._closed = True
            raise TakenOver("the session goes on at another socket")
        if broken.code == NORMAL:
            self._closed = True
            raise ConnectionLost("the session has ended")
        while True:
            self._link.open(self.reconnect)
            if not self._lasting:
                self._forget()
                raise SessionLost(f"the connection broke: {broken}")
            try:
                state = self._attach(self.session_id)
            except Broken as again:
                log.info("attaching: %s", again)
                continue
            break
        if not state.resumed:
            self._forget()
            raise SessionLost("the server was reached again but does not know this session any more")
        if broken.code == TOO_LARGE:
            raise RequestRefused(f"larger than the messages that the server takes: {broken}")
        self._reconcile(state)

    def _forget(self) -> None:
        self._run, self.frame, self.recording, self.detached = None, None, None, False
        self._atoms, self._task, self._server_step = Atoms(), None, 0

    def _attach(self, session_id: str) -> pb.ServerResult.SessionState:
        """Takes up a session ("": a new one) on a new socket and returns what the server says of it."""
        self._link.ack = self._link.server_seq
        self._link.send(pb.ClientAction(attach=pb.ClientAction.Attach(session_id=session_id)))
        result = self._link.receive()
        while result.WhichOneof("payload") != "session_state":
            result = self._link.receive()
        state = result.session_state
        self.session_id, self.detached = state.session_id, state.detached
        self.recording = state.recording if state.HasField("recording") else None
        self._server_step = result.sim_step
        self._server_edits = result.user_interaction_count
        if state.resumed and self.frame is None and state.atomic_numbers:
            self._link.seq = max(self._link.seq, result.client_seq)
            self._edits = max(self._edits, result.user_interaction_count)
            self._adopt(state)
        return state

    def _adopt(self, state: pb.ServerResult.SessionState) -> None:
        """Takes over a session of which nothing is known here."""
        self.frame = Frame.of_message(state.frame, self._server_step)
        p = state.periodicity
        periodic = self.frame.cell is not None
        self._atoms = Atoms(
            numbers=list(state.atomic_numbers),
            positions=self.frame.positions,
            cell=self.frame.cell,
            pbc=[p.a, p.b, p.c] if periodic else False,
            info={"charge": state.charge, "spin": state.spin_multiplicity},
        )
        self._task = state.task
        if state.running:
            message = pb.SimulationParams()
            message.CopyFrom(state.parameters)
            every = max(1, message.steps_per_frame)
            self._run = _Run(state.simulation_type, message, every, None, self._server_step)

    def _reconcile(self, state: pb.ServerResult.SessionState) -> None:
        """After a new connection: what the server does not know of is sent again."""
        run = self._run
        if run is None:
            if state.running:  # it remembers less than we do: it had been stopped
                self._link.send(pb.ClientAction(stop=pb.ClientAction.Stop()))
            if self.frame is not None and not self._loading and (state.running or not self._agrees(state, self.frame)):
                self._push(self.frame)
        elif state.running:
            if self._link.client_seq < run.start_seq:
                self._send_start(run)
            at = Frame.of_message(state.frame, self._server_step)
            if at.is_evaluated and run.base is not None and (at.step - run.base) % run.every == 0:
                run.resumed, run.seen = at, self._server_edits
            for count, edit in run.edits:
                if count > self._server_edits:
                    self._link.send(pb.ClientAction(user_interaction=edit, user_interaction_count=count))
        elif run.stopping:
            self._run = None
        elif self._link.client_seq >= run.start_seq:
            self._run = None
            raise ComputeError("the simulation has stopped while the connection was broken")
        else:
            if self.frame is not None and not self._agrees(state, self.frame):
                self._run = None
                self._push(self.frame)
                self._run = run
                run.parameters.ClearField("seed")
            self._send_start(run)
            run.edits.clear()

    def _agrees(self, state: pb.ServerResult.SessionState, frame: Frame) -> bool:
        """Whether the server has this geometry, or a run of ours up to it still to do."""
        theirs = Frame.of_message(state.frame, self._server_step)
        return (
            list(state.atomic_numbers) == self._atoms.numbers.tolist()
            and np.array_equal(theirs.positions, frame.positions)
            and np.array_equal(theirs.velocities, frame.velocities)
            and (theirs.cell is None) == (not self._atoms.pbc.any())
            and (theirs.cell is None or np.array_equal(theirs.cell, self._atoms.cell.array))
        )
