"""
Client of umaserve: run, watch and steer simulations with UMA on a server.

    import umaserve
    from ase.build import molecule

    with umaserve.Session("http://127.0.0.1:8000/") as session:
        print(session.load(molecule("CH3CH2OH")).energy)      # eV
        session.minimize(fmax=0.05)
        session.run(steps=1000, temperature=300, callback=lambda frame: print(frame.step, frame.energy))

`UmaServe` is an ASE calculator that evaluates on the server. Units are those of ASE: Angstrom, eV,
eV/Angstrom, eV/Angstrom^3, kelvin, velocities in Angstrom per ASE time unit (10.18 fs); time steps in fs.
"""

from .address import Address
from .calculator import UmaServe
from .errors import (
    ComputeError,
    ConnectionLost,
    NotAuthorized,
    RequestRefused,
    ServerFull,
    SessionLost,
    TakenOver,
    UmaServeError,
)
from .frame import Frame
from .session import Session

__all__ = [
    "Address",
    "ComputeError",
    "ConnectionLost",
    "Frame",
    "NotAuthorized",
    "RequestRefused",
    "ServerFull",
    "Session",
    "SessionLost",
    "TakenOver",
    "UmaServe",
    "UmaServeError",
]
__version__ = "0.1.0"
