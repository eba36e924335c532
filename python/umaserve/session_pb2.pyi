from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Integrator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTEGRATOR_DEFAULT: _ClassVar[Integrator]
    INTEGRATOR_VELOCITY_VERLET: _ClassVar[Integrator]
    INTEGRATOR_LANGEVIN: _ClassVar[Integrator]
    INTEGRATOR_BFGS: _ClassVar[Integrator]
    INTEGRATOR_LBFGS: _ClassVar[Integrator]
    INTEGRATOR_FIRE: _ClassVar[Integrator]
INTEGRATOR_DEFAULT: Integrator
INTEGRATOR_VELOCITY_VERLET: Integrator
INTEGRATOR_LANGEVIN: Integrator
INTEGRATOR_BFGS: Integrator
INTEGRATOR_LBFGS: Integrator
INTEGRATOR_FIRE: Integrator

class Mat3(_message.Message):
    __slots__ = ("m",)
    M_FIELD_NUMBER: _ClassVar[int]
    m: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, m: _Optional[_Iterable[float]] = ...) -> None: ...

class IntDelta(_message.Message):
    __slots__ = ("indices", "values")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class Vec3Delta(_message.Message):
    __slots__ = ("indices", "coords")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    COORDS_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    coords: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., coords: _Optional[_Iterable[float]] = ...) -> None: ...

class SystemArrays(_message.Message):
    __slots__ = ("positions", "velocities", "forces")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VELOCITIES_FIELD_NUMBER: _ClassVar[int]
    FORCES_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedScalarFieldContainer[float]
    velocities: _containers.RepeatedScalarFieldContainer[float]
    forces: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, positions: _Optional[_Iterable[float]] = ..., velocities: _Optional[_Iterable[float]] = ..., forces: _Optional[_Iterable[float]] = ...) -> None: ...

class Periodicity(_message.Message):
    __slots__ = ("a", "b", "c")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    a: bool
    b: bool
    c: bool
    def __init__(self, a: bool = ..., b: bool = ..., c: bool = ...) -> None: ...

class SimulationParams(_message.Message):
    __slots__ = ("calculator", "temperature", "timestep_fs", "friction", "fmax", "max_step", "optimizer", "integrator", "seed", "steps_per_frame", "frame_interval_ms", "record", "record_label")
    CALCULATOR_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_FS_FIELD_NUMBER: _ClassVar[int]
    FRICTION_FIELD_NUMBER: _ClassVar[int]
    FMAX_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    INTEGRATOR_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    FRAME_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    RECORD_LABEL_FIELD_NUMBER: _ClassVar[int]
    calculator: str
    temperature: float
    timestep_fs: float
    friction: float
    fmax: float
    max_step: float
    optimizer: str
    integrator: Integrator
    seed: int
    steps_per_frame: int
    frame_interval_ms: int
    record: bool
    record_label: str
    def __init__(self, calculator: _Optional[str] = ..., temperature: _Optional[float] = ..., timestep_fs: _Optional[float] = ..., friction: _Optional[float] = ..., fmax: _Optional[float] = ..., max_step: _Optional[float] = ..., optimizer: _Optional[str] = ..., integrator: _Optional[_Union[Integrator, str]] = ..., seed: _Optional[int] = ..., steps_per_frame: _Optional[int] = ..., frame_interval_ms: _Optional[int] = ..., record: bool = ..., record_label: _Optional[str] = ...) -> None: ...

class UserInteractionSparse(_message.Message):
    __slots__ = ("natoms", "atomic_numbers", "positions", "velocities", "cell", "full_update", "charge", "spin_multiplicity", "task", "periodicity")
    class Mat3(_message.Message):
        __slots__ = ("m",)
        M_FIELD_NUMBER: _ClassVar[int]
        m: _containers.RepeatedScalarFieldContainer[float]
        def __init__(self, m: _Optional[_Iterable[float]] = ...) -> None: ...
    NATOMS_FIELD_NUMBER: _ClassVar[int]
    ATOMIC_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VELOCITIES_FIELD_NUMBER: _ClassVar[int]
    CELL_FIELD_NUMBER: _ClassVar[int]
    FULL_UPDATE_FIELD_NUMBER: _ClassVar[int]
    CHARGE_FIELD_NUMBER: _ClassVar[int]
    SPIN_MULTIPLICITY_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PERIODICITY_FIELD_NUMBER: _ClassVar[int]
    natoms: int
    atomic_numbers: IntDelta
    positions: Vec3Delta
    velocities: Vec3Delta
    cell: UserInteractionSparse.Mat3
    full_update: bool
    charge: int
    spin_multiplicity: int
    task: str
    periodicity: Periodicity
    def __init__(self, natoms: _Optional[int] = ..., atomic_numbers: _Optional[_Union[IntDelta, _Mapping]] = ..., positions: _Optional[_Union[Vec3Delta, _Mapping]] = ..., velocities: _Optional[_Union[Vec3Delta, _Mapping]] = ..., cell: _Optional[_Union[UserInteractionSparse.Mat3, _Mapping]] = ..., full_update: bool = ..., charge: _Optional[int] = ..., spin_multiplicity: _Optional[int] = ..., task: _Optional[str] = ..., periodicity: _Optional[_Union[Periodicity, _Mapping]] = ...) -> None: ...

class ClientAction(_message.Message):
    __slots__ = ("seq", "ack", "user_interaction_count", "sim_step", "user_interaction", "start", "stop", "schema_version", "attach", "detached", "end_session")
    class Attach(_message.Message):
        __slots__ = ("session_id",)
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        session_id: str
        def __init__(self, session_id: _Optional[str] = ...) -> None: ...
    class Start(_message.Message):
        __slots__ = ("simulation_type", "simulation_params")
        class SimType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            MD: _ClassVar[ClientAction.Start.SimType]
            RELAX: _ClassVar[ClientAction.Start.SimType]
        MD: ClientAction.Start.SimType
        RELAX: ClientAction.Start.SimType
        SIMULATION_TYPE_FIELD_NUMBER: _ClassVar[int]
        SIMULATION_PARAMS_FIELD_NUMBER: _ClassVar[int]
        simulation_type: ClientAction.Start.SimType
        simulation_params: SimulationParams
        def __init__(self, simulation_type: _Optional[_Union[ClientAction.Start.SimType, str]] = ..., simulation_params: _Optional[_Union[SimulationParams, _Mapping]] = ...) -> None: ...
    class Stop(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    USER_INTERACTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIM_STEP_FIELD_NUMBER: _ClassVar[int]
    USER_INTERACTION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    END_SESSION_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ack: int
    user_interaction_count: int
    sim_step: int
    user_interaction: UserInteractionSparse
    start: ClientAction.Start
    stop: ClientAction.Stop
    schema_version: int
    attach: ClientAction.Attach
    detached: bool
    end_session: bool
    def __init__(self, seq: _Optional[int] = ..., ack: _Optional[int] = ..., user_interaction_count: _Optional[int] = ..., sim_step: _Optional[int] = ..., user_interaction: _Optional[_Union[UserInteractionSparse, _Mapping]] = ..., start: _Optional[_Union[ClientAction.Start, _Mapping]] = ..., stop: _Optional[_Union[ClientAction.Stop, _Mapping]] = ..., schema_version: _Optional[int] = ..., attach: _Optional[_Union[ClientAction.Attach, _Mapping]] = ..., detached: bool = ..., end_session: bool = ...) -> None: ...

class ServerResult(_message.Message):
    __slots__ = ("seq", "client_seq", "user_interaction_count", "sim_step", "frame", "notice", "session_state", "schema_version")
    class Frame(_message.Message):
        __slots__ = ("positions", "velocities", "forces", "cell", "stress", "energy", "temperature", "kinetic", "time_fs", "fmax")
        POSITIONS_FIELD_NUMBER: _ClassVar[int]
        VELOCITIES_FIELD_NUMBER: _ClassVar[int]
        FORCES_FIELD_NUMBER: _ClassVar[int]
        CELL_FIELD_NUMBER: _ClassVar[int]
        STRESS_FIELD_NUMBER: _ClassVar[int]
        ENERGY_FIELD_NUMBER: _ClassVar[int]
        TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
        KINETIC_FIELD_NUMBER: _ClassVar[int]
        TIME_FS_FIELD_NUMBER: _ClassVar[int]
        FMAX_FIELD_NUMBER: _ClassVar[int]
        positions: _containers.RepeatedScalarFieldContainer[float]
        velocities: _containers.RepeatedScalarFieldContainer[float]
        forces: _containers.RepeatedScalarFieldContainer[float]
        cell: Mat3
        stress: Mat3
        energy: float
        temperature: float
        kinetic: float
        time_fs: float
        fmax: float
        def __init__(self, positions: _Optional[_Iterable[float]] = ..., velocities: _Optional[_Iterable[float]] = ..., forces: _Optional[_Iterable[float]] = ..., cell: _Optional[_Union[Mat3, _Mapping]] = ..., stress: _Optional[_Union[Mat3, _Mapping]] = ..., energy: _Optional[float] = ..., temperature: _Optional[float] = ..., kinetic: _Optional[float] = ..., time_fs: _Optional[float] = ..., fmax: _Optional[float] = ...) -> None: ...
    class Notice(_message.Message):
        __slots__ = ("message", "simulation_stopped")
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        SIMULATION_STOPPED_FIELD_NUMBER: _ClassVar[int]
        message: str
        simulation_stopped: bool
        def __init__(self, message: _Optional[str] = ..., simulation_stopped: bool = ...) -> None: ...
    class SessionState(_message.Message):
        __slots__ = ("session_id", "resumed", "reconnect_seconds", "detached", "running", "simulation_type", "parameters", "atomic_numbers", "frame", "periodicity", "charge", "spin_multiplicity", "task", "recording")
        SESSION_ID_FIELD_NUMBER: _ClassVar[int]
        RESUMED_FIELD_NUMBER: _ClassVar[int]
        RECONNECT_SECONDS_FIELD_NUMBER: _ClassVar[int]
        DETACHED_FIELD_NUMBER: _ClassVar[int]
        RUNNING_FIELD_NUMBER: _ClassVar[int]
        SIMULATION_TYPE_FIELD_NUMBER: _ClassVar[int]
        PARAMETERS_FIELD_NUMBER: _ClassVar[int]
        ATOMIC_NUMBERS_FIELD_NUMBER: _ClassVar[int]
        FRAME_FIELD_NUMBER: _ClassVar[int]
        PERIODICITY_FIELD_NUMBER: _ClassVar[int]
        CHARGE_FIELD_NUMBER: _ClassVar[int]
        SPIN_MULTIPLICITY_FIELD_NUMBER: _ClassVar[int]
        TASK_FIELD_NUMBER: _ClassVar[int]
        RECORDING_FIELD_NUMBER: _ClassVar[int]
        session_id: str
        resumed: bool
        reconnect_seconds: int
        detached: bool
        running: bool
        simulation_type: ClientAction.Start.SimType
        parameters: SimulationParams
        atomic_numbers: _containers.RepeatedScalarFieldContainer[int]
        frame: ServerResult.Frame
        periodicity: Periodicity
        charge: int
        spin_multiplicity: int
        task: str
        recording: str
        def __init__(self, session_id: _Optional[str] = ..., resumed: bool = ..., reconnect_seconds: _Optional[int] = ..., detached: bool = ..., running: bool = ..., simulation_type: _Optional[_Union[ClientAction.Start.SimType, str]] = ..., parameters: _Optional[_Union[SimulationParams, _Mapping]] = ..., atomic_numbers: _Optional[_Iterable[int]] = ..., frame: _Optional[_Union[ServerResult.Frame, _Mapping]] = ..., periodicity: _Optional[_Union[Periodicity, _Mapping]] = ..., charge: _Optional[int] = ..., spin_multiplicity: _Optional[int] = ..., task: _Optional[str] = ..., recording: _Optional[str] = ...) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    USER_INTERACTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIM_STEP_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_STATE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    seq: int
    client_seq: int
    user_interaction_count: int
    sim_step: int
    frame: ServerResult.Frame
    notice: ServerResult.Notice
    session_state: ServerResult.SessionState
    schema_version: int
    def __init__(self, seq: _Optional[int] = ..., client_seq: _Optional[int] = ..., user_interaction_count: _Optional[int] = ..., sim_step: _Optional[int] = ..., frame: _Optional[_Union[ServerResult.Frame, _Mapping]] = ..., notice: _Optional[_Union[ServerResult.Notice, _Mapping]] = ..., session_state: _Optional[_Union[ServerResult.SessionState, _Mapping]] = ..., schema_version: _Optional[int] = ...) -> None: ...
