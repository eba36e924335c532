"""A session on a server: one structure, its simulation, and what the server says about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from . import session_pb2 as pb
from .address import Address, refusal
from .errors import ComputeError, ConnectionLost, RequestRefused, SessionLost
from .frame import Frame

WINDOW = 10  # unacknowledged messages after which a running simulation waits
INTEGRATORS = {
    None: pb.INTEGRATOR_DEFAULT,
    "velocity_verlet": pb.INTEGRATOR_VELOCITY_VERLET,
    "langevin": pb.INTEGRATOR_LANGEVIN,
    "bfgs": pb.INTEGRATOR_BFGS,
    "lbfgs": pb.INTEGRATOR_LBFGS,
    "fire": pb.INTEGRATOR_FIRE,
}
# The server goes away in order to come back (1012), or vanished (1006): worth a new attempt.
TAKEN_OVER, NORMAL = 4001, 1000


class Session:
    """
    A session with the server at `url` (see `Address.parse` for what that may be).

    `timeout` (s) bounds the wait for any single answer, `reconnect` (s) how long a broken connection is
    made again: a session outlives its socket, and with `--resume` also a restart of the server. Pass
    `session_id` to take up an earlier session. A session is used from one thread.
    """

    def __init__(self, url, token: str | None = None, *, session_id: str = "", timeout: float = 120.0, reconnect: float = 60.0):  # fmt: skip
        self.address = Address.parse(url, token)
        self.timeout, self.reconnect = timeout, reconnect
        self.session_id = session_id
        self.recording: str | None = None  # name of the trajectory file, if the server told
        self.frame: Frame | None = None  # the last frame
        self.running = False
        self._atoms = Atoms()
        self._seq = self._ack = self._server_seq = self._edits = 0
        self._steps_per_frame = 1
        self._socket = None
        self._resume_known = False
        if session_id:
            state = self._attach()
            if not state.resumed:
                self.close()
                raise SessionLost(f"the server does not know the session {session_id[:6]}...")
        else:
            self._open()
            # Asks for an identity; servers that know none ignore it.
            self._send(attach="")

    @classmethod
    def from_connection_file(cls, path, **options) -> Session:
        """With the server whose `--connection-file` is `path`."""
        return cls(Address.of_file(path), **options)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # Structures

    @property
    def atoms(self) -> Atoms:
        """A copy of the structure as of the last frame, with energy, forces and stress attached."""
        atoms = self._atoms.copy()
        frame = self.frame
        if frame is None or len(frame.positions) != len(atoms):
            return atoms
        atoms.positions = frame.positions
        if frame.cell is not None:
            atoms.cell = frame.cell
        if frame.velocities is not None:
            atoms.set_velocities(frame.velocities)
        results = {"energy": frame.energy, "forces": frame.forces}
        if frame.stress is not None:
            s = frame.stress
            results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
        atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if v is not None})
        return atoms

    def load(self, atoms: Atoms, *, charge: int | None = None, spin: int | None = None, task: str | None = None) -> Frame:
        """
        Replaces the structure and returns its energy, forces and stress. Velocities of `atoms` are taken
        along. `charge` (total) and `spin` (2S+1) default to `atoms.info["charge"]`, `atoms.info["spin"]`,
        else to the server's defaults; `task` to the server's.
        """
        if len(atoms) == 0:
            raise ValueError("a structure without atoms")
        edit = pb.UserInteractionSparse(natoms=len(atoms), full_update=True)
        indices = range(len(atoms))
        edit.atomic_numbers.indices.extend(indices)
        edit.atomic_numbers.values.extend(int(z) for z in atoms.numbers)
        edit.positions.indices.extend(indices)
        edit.positions.coords.extend(atoms.positions.ravel().tolist())
        velocities = atoms.get_velocities()
        if velocities is not None and np.any(velocities):
            edit.velocities.indices.extend(indices)
            edit.velocities.coords.extend(velocities.ravel().tolist())
        if atoms.cell.rank > 0 and atoms.pbc.any():
            edit.cell.m.extend(atoms.cell.complete().array.ravel().tolist())
            edit.periodicity.a, edit.periodicity.b, edit.periodicity.c = (bool(p) for p in atoms.pbc)
        charge = atoms.info.get("charge") if charge is None else charge
        spin = atoms.info.get("spin") if spin is None else spin
        if charge is not None:
            edit.charge = _whole("charge", charge)
        if spin is not None:
            edit.spin_multiplicity = _whole("spin", spin)
        if task is not None:
            edit.task = task
        if self.running:
            self.stop()
        self._atoms = atoms.copy()
        return self._edit(edit)

    def edit(
        self,
        positions: Mapping[int, np.ndarray] | np.ndarray | None = None,
        velocities: Mapping[int, np.ndarray] | np.ndarray | None = None,
        cell=None,
    ) -> Frame | None:
        """
        Moves atoms: `{index: xyz}`, or an array for all. While nothing runs, returns the new energy and
        forces; while a simulation runs (in a loop over `frames` or in a callback) it takes effect before
        the next step and None is returned.
        """
        edit = pb.UserInteractionSparse(full_update=False)
        for name, values in (("positions", positions), ("velocities", velocities)):
            if values is None:
                continue
            if not isinstance(values, Mapping):
                values = dict(enumerate(np.asarray(values, dtype=float)))
            delta = getattr(edit, name)
            for index, xyz in values.items():
                delta.indices.append(index)
                delta.coords.extend(np.asarray(xyz, dtype=float).reshape(3).tolist())
        if cell is not None:
            edit.cell.m.extend(np.asarray(cell, dtype=float).reshape(9).tolist())
            self._atoms.cell = np.asarray(cell, dtype=float).reshape(3, 3)
        return self._edit(edit)

    # Simulations

    def run(self, steps: int, *, callback: Callable[[Frame], bool | None] | None = None, every: int = 1, **parameters) -> Frame:  # fmt: skip
        """
        Runs `steps` steps of dynamics and returns the last frame; `callback` sees every `every`-th step
        and ends the run by returning False. Parameters as for `frames`. Afterwards the structure on the
        server is that of the returned frame.
        """
        if steps < 1:
            raise ValueError(f"steps = {steps}: at least one")
        last = None
        for last in self.frames(steps, steps_per_frame=every, **parameters):
            if callback is not None and callback(last) is False:
                break
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
        Dynamics as an iterator over frames, `steps` steps in all (None: until the loop is left). The
        default integrator is Langevin at `temperature` (K) with `friction` in 1/(ASE time unit), as
        ASE's own; `integrator="velocity_verlet"` conserves the energy. `record` asks for a trajectory file
        called `label`. The simulation stops when the iterator ends or is closed, and the structure on
        the server is then that of the last frame that was delivered.
        """
        params = _parameters(temperature=temperature, timestep_fs=timestep_fs, friction=friction, integrator=integrator, steps_per_frame=steps_per_frame, seed=seed, record=record, label=label)  # fmt: skip
        wanted = None if steps is None else -(-steps // steps_per_frame)
        return self._frames(pb.ClientAction.Start.MD, params, wanted)

    def minimize(
        self,
        *,
        fmax: float = 0.05,
        max_steps: int = 500,
        max_step: float = 0.2,
        optimizer: str | None = None,
        callback: Callable[[Frame], bool | None] | None = None,
        record: bool | None = None,
        label: str | None = None,
    ) -> Frame:
        """
        Relaxes until no atom feels more than `fmax` (eV/Angstrom) or `max_steps` are done; look at
        `.fmax` of the frame that is returned. `optimizer` is bfgs (default), lbfgs or fire, `max_step`
        the longest move of an atom in a step (Angstrom).
        """
        if self.frame is not None and self.frame.fmax is not None and self.frame.fmax <= fmax:
            return self.frame
        params = _parameters(max_step=max_step, integrator=optimizer, steps_per_frame=1, record=record, label=label)
        last = None
        for last in self._frames(pb.ClientAction.Start.RELAX, params, max_steps):
            if (last.fmax is not None and last.fmax <= fmax) or (callback is not None and callback(last) is False):
                break
        return last

    def watch(self, steps: int | None = None) -> Iterator[Frame]:
        """The frames of a simulation that runs already, after `session_id` was taken up. Leaving the loop does not stop it."""
        wanted = None if steps is None else -(-steps // self._steps_per_frame)
        while self.running and wanted != 0:
            frame = self._next_frame(wanted)
            if frame is None:
                return
            wanted = None if wanted is None else wanted - 1
            yield frame

    def stop(self) -> None:
        """Stops the simulation; the structure is that of the last frame the server sent."""
        self._send(stop=True)
        while True:
            result = self._receive()
            if result is None:  # a new connection: the stop may have been lost with the old one
                if not self.running:
                    return
                self._send(stop=True)
                continue
            self._acknowledge()
            if result.WhichOneof("payload") == "frame":
                self.frame = Frame.of(result)
            elif result.WhichOneof("payload") == "notice" and result.notice.message == "SIMULATION_STOPPED":
                self.running = False
                return

    # Beginning, end, and in between

    def detach(self) -> str:
        """
        Leaves: the simulation goes on without a viewer, and records if it records. Returns the id with
        which `Session(url, session_id=...)` takes it up again.
        """
        if not self._resume_known:
            self._await_identity()
        self._send(detached=True)
        self.close()
        return self.session_id

    def end(self) -> None:
        """Ends the session for good: the recording is closed, nothing is kept for a return."""
        with suppress(ConnectionClosed, ConnectionLost):
            self._send(end_session=True)
        self.close()

    def close(self) -> None:
        """Closes the connection. The server keeps the session for a while (its `--reconnect-seconds`)."""
        if self._socket is not None:
            with suppress(ConnectionClosed, OSError):
                self._socket.close()
            self._socket = None

    # Internals

    def _frames(self, kind, params, wanted) -> Iterator[Frame]:
        if len(self._atoms) == 0:
            raise RequestRefused("no structure: load one first")
        self._steps_per_frame = params.steps_per_frame
        start = pb.ClientAction.Start(simulation_type=kind, simulation_params=params)
        self._hold(wanted)
        self._send(start=start)
        self.running = True
        delivered = self.frame
        try:
            while wanted != 0:
                frame = self._next_frame(wanted)
                if frame is None:
                    # Only after a new connection to a server that had not seen the start.
                    self._send(start=start)
                    self.running = True
                    continue
                delivered = frame
                wanted = None if wanted is None else wanted - 1
                yield frame
        finally:
            if self.running and self._socket is not None:
                self.stop()
                self._put_back(delivered)

    def _put_back(self, frame: Frame | None) -> None:
        """Frames that were under way when the run was left are taken back."""
        if frame is None or self.frame is None or self.frame.step == frame.step or frame.step == 0:
            self.frame = frame or self.frame
            return
        everywhere = list(range(len(frame.positions)))
        edit = pb.UserInteractionSparse(full_update=False)
        edit.positions.indices.extend(everywhere)
        edit.positions.coords.extend(frame.positions.ravel().tolist())
        if frame.velocities is not None:
            edit.velocities.indices.extend(everywhere)
            edit.velocities.coords.extend(frame.velocities.ravel().tolist())
        self._edit(edit, sim_step=frame.step)
        self.frame = frame

    def _next_frame(self, wanted) -> Frame | None:
        """The next frame of the running simulation; None if the connection was renewed and nothing runs."""
        while True:
            result = self._receive()
            if result is None:
                if not self.running:
                    return None
                self._acknowledge()
                continue
            if result.WhichOneof("payload") == "frame":
                self.frame = Frame.of(result)
                self._hold(None if wanted is None else wanted - 1)
                return self.frame
            if result.WhichOneof("payload") == "notice":
                self._complain(result.notice)
                self._hold(wanted)

    def _hold(self, wanted) -> None:
        """Acknowledges so much that the server may send at most `wanted` more frames (None: any number)."""
        back = 0 if wanted is None else max(0, WINDOW - wanted)
        self._acknowledge(max(0, self._server_seq - back))

    def _acknowledge(self, upto: int | None = None) -> None:
        upto = self._server_seq if upto is None else upto
        if upto > self._ack:
            self._ack = upto
            self._send()

    def _edit(self, edit, sim_step: int | None = None) -> Frame | None:
        self._edits += 1
        counter = self._edits
        self._send(user_interaction=edit, user_interaction_count=counter, sim_step=sim_step)
        if self.running:
            return None
        while True:
            result = self._receive()
            if result is None:  # a new connection; the edit may have been lost
                self._send(user_interaction=edit, user_interaction_count=counter, sim_step=sim_step)
                continue
            self._acknowledge()
            if result.user_interaction_count != counter:
                continue
            if result.WhichOneof("payload") == "frame":
                self.frame = Frame.of(result)
                return self.frame
            if result.WhichOneof("payload") == "notice":
                self._complain(result.notice)
                if result.notice.message == "IDLE_WAITING_FOR_GEOMETRY":
                    raise RequestRefused("the structure is not complete: an atom lacks its element or position")

    def _complain(self, notice) -> None:
        text = notice.message
        if notice.simulation_stopped:
            self.running = False
        if text.startswith("COMPUTE_ERROR"):
            raise ComputeError(text)
        if text.startswith(("PROTO_VIOLATION", "CALCULATOR_NOT_SUPPORTED")):
            raise RequestRefused(text)
        if notice.simulation_stopped:
            raise RequestRefused(text)

    def _send(self, *, attach=None, user_interaction=None, start=None, stop=False, detached=None, end_session=False, user_interaction_count=None, sim_step=None) -> None:  # fmt: skip
        self._seq += 1
        action = pb.ClientAction(seq=self._seq, schema_version=1)
        if self._ack:
            action.ack = self._ack
        if attach is not None:
            action.attach.session_id = attach
        if user_interaction is not None:
            action.user_interaction.CopyFrom(user_interaction)
        if start is not None:
            action.start.CopyFrom(start)
        if stop:
            action.stop.SetInParent()
        if detached is not None:
            action.detached = detached
        if end_session:
            action.end_session = True
        if user_interaction_count is not None:
            action.user_interaction_count = user_interaction_count
        if sim_step is not None:
            action.sim_step = sim_step
        if self._socket is None:
            raise ConnectionLost("the session is closed")
        # A break shows at the next receive, which makes the connection again.
        with suppress(ConnectionClosed):
            self._socket.send(action.SerializeToString())

    def _receive(self):
        """The next message, with its counters taken over; None after the connection was made again."""
        if self._socket is None:
            raise ConnectionLost("the session is closed")
        try:
            while True:
                data = self._socket.recv(timeout=self.timeout)
                if isinstance(data, str):
                    continue
                result = pb.ServerResult.FromString(data)
                self._server_seq = max(self._server_seq, result.seq)
                if result.WhichOneof("payload") == "session_state":
                    self._take_identity(result.session_state)
                    self._acknowledge()
                    continue
                return result
        except TimeoutError:
            raise ConnectionLost(f"no answer from {self.address.base} within {self.timeout} s") from None
        except ConnectionClosed as closed:
            self._socket = None
            code = closed.rcvd.code if closed.rcvd else None
            reason = f"{code or 'no close frame'} {closed.rcvd.reason if closed.rcvd else ''}".strip()
            if not self._resume_known or code in (NORMAL, TAKEN_OVER, 1008, 1009):
                raise ConnectionLost(f"the server closed the connection: {reason}") from None
            state = self._attach()
            if not state.resumed:
                raise SessionLost("the server was reached again but does not know this session any more") from None
            return None

    def _await_identity(self) -> None:
        deadline = time.monotonic() + 5
        while not self._resume_known and time.monotonic() < deadline:
            with suppress(TimeoutError):
                result = pb.ServerResult.FromString(self._socket.recv(timeout=1))
                self._server_seq = max(self._server_seq, result.seq)
                if result.WhichOneof("payload") == "session_state":
                    self._take_identity(result.session_state)
        if not self._resume_known:
            raise RequestRefused("this server does not keep sessions without a connection")

    def _take_identity(self, state) -> None:
        self.session_id, self._resume_known = state.session_id, True
        self.recording = state.recording if state.HasField("recording") else None

    def _open(self) -> None:
        """Opens the socket, for up to `reconnect` seconds if the server cannot be reached."""
        deadline, pause = time.monotonic() + self.reconnect, 0.5
        while True:
            try:
                self._socket = connect(self.address.websocket, additional_headers=self.address.headers, max_size=None, compression=None, open_timeout=20)  # fmt: skip
                return
            except InvalidStatus as refused:
                body = (refused.response.body or b"").decode(errors="replace")
                error = refusal(refused.response.status_code, body, self.address.base)
                if refused.response.status_code != 503 or not self.session_id:
                    raise error from None
            except (OSError, InvalidHandshake, TimeoutError) as failed:
                error = ConnectionLost(f"{self.address.base} cannot be reached: {failed}")
                if not self.session_id:
                    raise error from None
            if time.monotonic() + pause > deadline:
                raise error
            time.sleep(pause)
            pause = min(5.0, 1.6 * pause)

    def _attach(self):
        """Takes up the session `session_id` on a new socket and returns the server's SessionState."""
        self._open()
        self._ack = self._server_seq
        self._send(attach=self.session_id)
        while True:
            try:
                result = pb.ServerResult.FromString(self._socket.recv(timeout=self.timeout))
            except (ConnectionClosed, TimeoutError):
                raise ConnectionLost(f"{self.address.base}: the session could not be taken up again") from None
            if result.WhichOneof("payload") == "session_state":
                break
        state = result.session_state
        self._server_seq = max(self._server_seq, result.seq)
        self._seq = max(self._seq, result.client_seq)
        self._edits = max(self._edits, result.user_interaction_count)
        self._take_identity(state)
        if state.resumed:
            self.running = state.running
            self._steps_per_frame = max(1, state.parameters.steps_per_frame)
            self.frame = Frame.of_message(state.frame, result.sim_step)
            self._atoms = Atoms(numbers=list(state.atomic_numbers), positions=self.frame.positions)
            if self.frame.cell is not None:
                p = state.periodicity
                self._atoms.cell, self._atoms.pbc = self.frame.cell, [p.a, p.b, p.c]
            self._atoms.info |= {"charge": state.charge, "spin": state.spin_multiplicity}
        self._acknowledge()
        return state


def _whole(name: str, value) -> int:
    if int(value) != value:
        raise ValueError(f"{name} = {value}: a whole number is needed")
    return int(value)


def _parameters(*, integrator, steps_per_frame, record, label, temperature=0.0, timestep_fs=0.0, friction=0.0, max_step=0.0, seed=None):  # fmt: skip
    if integrator not in INTEGRATORS:
        raise ValueError(f"{integrator!r} is none of {', '.join(k for k in INTEGRATORS if k)}")
    if steps_per_frame < 1:
        raise ValueError(f"{steps_per_frame} steps per frame: at least one")
    params = pb.SimulationParams(
        calculator="uma", temperature=temperature, timestep_fs=timestep_fs, friction=friction, max_step=max_step,
        integrator=INTEGRATORS[integrator], steps_per_frame=steps_per_frame, frame_interval_ms=0,
    )  # fmt: skip
    if seed is not None:
        params.seed = seed
    if record is not None:
        params.record = record
    if label is not None:
        params.record_label = label
    return params
