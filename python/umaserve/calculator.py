"""An ASE calculator that evaluates on a server."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, SupportsFloat

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ._messages import said
from .address import Address
from .errors import SessionLost
from .frame import Frame, voigt
from .session import Session

#: How often a structure is sent anew, to a server that keeps losing it, before that is an error.
TRIES = 5


class UmaServe(Calculator):
    """
    Energy (eV), forces (eV/Angstrom) and, for cells in three dimensions with periodic directions, stress
    (eV/Angstrom^3, Voigt order, positive in tension) from an umaserve server:

        atoms.calc = UmaServe("http://127.0.0.1:8000/", task="omol", charge=1, spin=1)

    `server` is what `Address.parse` takes (None: the environment's UMASERVE_URL), or a `Session`, which the
    calculator then shares. `charge` (total) and `spin` (multiplicity 2S+1) default to
    `atoms.info["charge"]` and `atoms.info["spin"]`, then to the server's defaults (0; 1 for omol); `task` to
    the server's. `options` are those of `Session`.

    Every calculator has a connection of its own, made at the first calculation, so calculators may
    be used in parallel threads (also by `NEB(parallel=True)`), one thread each. After a break the
    connection is made again and the structure sent again. Copies (`copy.deepcopy`, pickle, which
    holds the token) connect anew. `close`, or a `with` block, gives the place on the server back.
    """

    name = "umaserve"
    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - declared as ASE does
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        server: str | os.PathLike[str] | Address | Session | None = None,
        token: str | None = None,
        *,
        task: str | None = None,
        charge: SupportsFloat | None = None,
        spin: SupportsFloat | None = None,
        **options: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._session: Session | None = None
        self._finalizer: weakref.finalize[..., UmaServe] | None = None
        self._shared = isinstance(server, Session)
        if isinstance(server, Session):
            if options or token:
                raise TypeError("a session has its token and options already")
            self._session, self._address = server, server.address
        else:
            self._address = Address.parse(server, token)
        self._options = {"lasting": False, **options}
        self._task, self._charge, self._spin = task, charge, spin
        self._loaded: tuple[Any, ...] | None = None

    @property
    def session(self) -> Session:
        """The session on the server; connects if there is none."""
        if self._session is None:
            self._session = Session(self._address, **self._options)
            # When the calculator is dropped, or at the latest before the interpreter ends.
            self._finalizer = weakref.finalize(self, self._session.end)
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None, "_finalizer": None, "_shared": False, "_loaded": None}

    def __enter__(self) -> UmaServe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the calculator's session on the server; the next calculation begins another."""
        if self._session is not None and not self._shared:
            self._session = None
            if self._finalizer is not None:
                self._finalizer()
        self._loaded = None

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What a database or trajectory file notes of the calculator; not where the server is."""
        known = {"task": self._task, "charge": self._charge, "spin": self._spin}
        return {name: value for name, value in known.items() if value is not None}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; charge and spin in `atoms.info` count, too."""
        changes: list[str] = super().check_state(atoms, tol=tol)  # type: ignore[no-untyped-call]
        if not changes and self.atoms is not None and self._electrons(atoms) != self._electrons(self.atoms):
            changes.append("info")
        return changes

    def _electrons(self, atoms: Atoms) -> tuple[int | None, int | None]:
        return said(atoms, "charge", self._charge), said(atoms, "spin", self._spin)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Evaluates `atoms` on the server; energy, forces and stress come together."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        self.results = {}
        for tries in range(TRIES):
            try:
                frame = self._evaluate(self.atoms)
                break
            except SessionLost:
                self._loaded = None
                if self._shared or tries + 1 == TRIES:
                    raise
        self.results = {"energy": frame.energy, "free_energy": frame.energy, "forces": frame.forces}
        # The stress of a layer or a chain has no volume to refer to.
        if frame.stress is not None and self.atoms.cell.rank == 3:
            self.results["stress"] = voigt(frame.stress)

    def _evaluate(self, atoms: Atoms) -> Frame:
        session = self.session
        charge, spin = self._electrons(atoms)
        fixed = (atoms.numbers.tobytes(), atoms.pbc.tobytes(), atoms.cell.array.tobytes(), charge, spin)
        if self._loaded == (*fixed, session.edits) and not session.running:
            self._loaded = None
            answer = session.edit(positions=atoms.positions)
            assert answer is not None  # nothing runs
            frame = answer
        else:
            self._loaded = None
            frame = session.load(atoms, charge=charge, spin=spin, task=self._task, velocities=False)
        self._loaded = (*fixed, session.edits)
        return frame
