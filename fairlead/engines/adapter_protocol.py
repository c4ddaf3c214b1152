"""The engine adapter protocol: how an engine is started and how its metrics are read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.engine_profile import EngineProfile
from fairlead.engines.metric_names import MetricNames, read_rank_signals, read_signals
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals


@dataclass(frozen=True, slots=True)
class LocalEngineReplica:
    """An engine process to start.

    kind: `spec.engine.type` of the manifest in lower case.
    args: arguments from the manifest. A simulated engine uses only those that affect simulation.
    profile, speed, seed: parameters of a simulated engine.
    sleeps: the engine starts with sleep mode (see `engines.sleep_mode`).
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
class LocalEngineCommand:
    """A command that starts an engine.

    env: added to the environment.
    prints_ready_line: the engine prints `ready URL` per endpoint on standard output. Otherwise its
        health path is polled.
    ignored_args: arguments that this engine does not use.
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    prints_ready_line: bool
    ignored_args: tuple[str, ...] = ()


class EngineAdapter(Protocol):
    """The adapter of one kind of engine."""

    @property
    def kind(self) -> str:
        """The value of `spec.engine.type` in lower case."""

    @property
    def health_path(self) -> str:
        """The path of the health check: a GET returns 200 once the engine serves.

        The check says nothing about overload or draining.
        """

    @property
    def metrics_path(self) -> str:
        """The path of the metrics page: a GET returns the text for `parse_signals`."""

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Returns the command of a process that serves one replica on each of `ports` of 127.0.0.1.

        Raises BadInput if the engine cannot run on this machine or on these ports.
        """

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Returns the values of a metrics page, for one data-parallel rank or for all together."""

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of each of these data-parallel ranks, in one pass over the page."""


class PodEngineAdapter:
    """The base of adapters for engines that run in pods only. Local mode simulates them.

    title: the name of the engine in errors.
    has_ranks: False if the metrics page is that of a single rank.
    """

    kind: str
    title: str
    names: MetricNames
    health_path = "/health"
    metrics_path = "/metrics"
    has_ranks = True

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Raises BadInput: local mode starts only vLLM and simulated engines."""
        raise BadInput(
            f"local mode cannot start a real {self.title}", field="spec.engine.type", hint="let the engine be simulated"
        )

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        return read_signals(self.names, metrics, rank if self.has_ranks else None)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        """Returns the values of several ranks of one metrics page."""
        if not self.has_ranks:
            return dict.fromkeys(ranks, self.parse_signals(metrics))
        return read_rank_signals(self.names, metrics, ranks)
