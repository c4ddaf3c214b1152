"""What Fairlead needs of an engine, whatever its kind: how it is started and what its metrics say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.signals import EngineSignals


@dataclass(frozen=True, slots=True)
class EngineReplica:
    """One engine process to start. ``args`` are the manifest's; ``profile``, ``speed`` and ``seed`` shape a simulated one.

    ``kind`` is the engine that the manifest names: a simulated engine takes only those ``args`` that change what it simulates.
    ``sleeps``: it is to be able to (``engines.sleep``).
    """

    name: str
    source: str
    profile: EngineProfile
    kind: str = "vllm"
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    speed: float = 1.0
    seed: int = 0
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class EngineLaunch:
    """A command to run, ``env`` on top of the environment. ``ignored`` are arguments that this engine has no use for.

    ``says_ready``: it prints a line ``ready URL`` per endpoint on stdout; otherwise its health path is asked.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    prints_ready_line: bool
    ignored_args: tuple[str, ...] = ()


class EngineAdapter(Protocol):
    """One kind of engine."""

    @property
    def kind(self) -> str:
        """As in ``spec.engine.kind``."""
        ...

    @property
    def health_path(self) -> str:
        """GET answers 200 once the engine serves. It says nothing of overload or draining."""
        ...

    @property
    def metrics_path(self) -> str:
        """GET answers the text that ``signals`` reads."""
        ...

    def launch_command(self, replica: EngineReplica, ports: Sequence[int]) -> EngineLaunch:
        """The process that serves one replica on each of ``ports`` of 127.0.0.1. Raises BadInput when it cannot."""
        ...

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """What a metrics page says; of one data-parallel rank, or of all together."""
        ...
