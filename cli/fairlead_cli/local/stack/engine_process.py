"""Pools and engine processes of a stack.

An EnginePoolSpec describes a pool of one model. An EngineProcess is one process of it with one or
more endpoints. Their state in the fleet file is Starting, Ready or Draining; they are absent while
the process does not run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path

from fairlead.fleet.model import Instance, InstanceState, Model, Role
from fairlead_cli.addresses import find_free_ports, is_port_free
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase


@dataclass(frozen=True, slots=True)
class EnginePoolSpec:
    """A pool to run.

    template: an Instance without id, URL and state; ``command`` builds the process for its ports.

    label: name of its processes for people; includes the model's name when there are several.

    says_ready: the process prints a ``ready`` line per endpoint; otherwise ``/health`` is polled.

    adopted: engines that run already; they are routed to and never started.

    sleep_level: the level of sleep that its engines use, as in vLLM; None when they do not sleep.

    event_arguments: from the ZMQ endpoints of events and of replays to the arguments with which an
    engine publishes its KV events there. None: it publishes none.

    event_folder: the folder of unix sockets for them; None: they have ports of their own.
    """

    model: Model
    name: str
    replicas: int
    template: Instance
    command: Callable[[tuple[int, ...], int], ProcessCommand]
    label: str
    says_ready: bool = True
    engines_per_process: int = 1
    adopted: tuple[Instance, ...] = ()
    sleep_level: int | None = None
    event_arguments: Callable[[str, str], tuple[str, ...]] | None = None
    event_folder: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.model.key, self.name

    @property
    def has_event_ports(self) -> bool:
        return self.event_arguments is not None and self.event_folder is None

    def process_sizes(self) -> list[int]:
        full, remainder = divmod(self.replicas, self.engines_per_process)
        return [self.engines_per_process] * full + ([remainder] if remainder else [])


class SleepState(StrEnum):
    """Sleep state of an engine. FALLING_ASLEEP: no new requests, those in flight finish."""

    AWAKE = "Awake"
    FALLING_ASLEEP = "FallingAsleep"
    ASLEEP = "Asleep"
    WAKING = "Waking"


_INSTANCE_STATES = {
    SleepState.FALLING_ASLEEP: InstanceState.DRAINING,
    SleepState.ASLEEP: InstanceState.SLEEPING,
    SleepState.WAKING: InstanceState.STARTING,
}


class EngineProcess:
    """One engine process.

    first: number of its first endpoint within the pool; the numbers name the instances.

    event_ports: a port for the KV events of each endpoint, then one for the replays of each; empty
    where there are none, or unix sockets.

    should_sleep: the desired state. ``wake_seconds``: duration of the last of ``wake_count``
    wake-ups.
    """

    def __init__(
        self, pool: EnginePoolSpec, first: int, ports: tuple[int, ...], event_ports: tuple[int, ...] = ()
    ) -> None:
        self.pool = pool
        self.first = first
        self.ports = ports
        self.event_ports = event_ports
        self.is_draining = False
        self.process: ManagedProcess | None = None
        self.sleep_state = SleepState.AWAKE
        self.should_sleep = False
        self.wake_count = 0
        self.wake_seconds = 0.0

    @property
    def name(self) -> str:
        last = self.first + len(self.ports) - 1
        return f"{self.pool.label}-{self.first}" + (f"..{last}" if last > self.first else "")

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.phase is ProcessPhase.READY

    def command(self) -> ProcessCommand:
        """Returns the command to start now; ports that are taken meanwhile are replaced, and the
        ids with them.
        """
        if not all(map(is_port_free, (*self.ports, *self.event_ports))):
            (self.ports, self.event_ports) = _free_ports([(self.pool, len(self.ports))])[0]
        command = self.pool.command(self.ports, self.first)
        endpoints = self.event_endpoints()
        if self.pool.event_arguments is None or not endpoints:
            return command
        return replace(command, argv=(*command.argv, *self.pool.event_arguments(*endpoints[0])))

    def instance_ids(self) -> list[str]:
        return [f"{self.pool.name}-{self.first + n}/{port}/0" for n, port in enumerate(self.ports)]

    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def instances(self) -> list[Instance]:
        """Returns its instances for the fleet file."""
        state = self.state()
        if state is None:
            return []
        endpoints: Sequence[tuple[str | None, str | None]] = self.event_endpoints() or [(None, None)] * len(self.ports)
        return [
            replace(
                self.pool.template,
                id=instance_id,
                url=url,
                state=state,
                bootstrap=self.bootstrap_url(url),
                kv_events=events,
                kv_replay=replay,
            )
            for instance_id, url, (events, replay) in zip(self.instance_ids(), self.urls(), endpoints, strict=True)
        ]

    def event_endpoints(self) -> list[tuple[str, str]]:
        """Returns where each endpoint publishes its KV events, and where it replays them; empty
        without KV events.
        """
        if (folder := self.pool.event_folder) is not None:
            return [(f"ipc://{folder}/{port}.events", f"ipc://{folder}/{port}.replay") for port in self.ports]
        addresses = [f"tcp://127.0.0.1:{port}" for port in self.event_ports]
        count = len(addresses) // 2
        return list(zip(addresses[:count], addresses[count:], strict=True))

    def bootstrap_url(self, url: str) -> str | None:
        """Returns the bootstrap URL for the decode engines; None unless a prefill engine needs one.

        A simulated prefill engine answers on its own port.
        """
        template = self.pool.template
        return url if template.role is Role.PREFILL and template.transfer in ("mooncake", "sglang") else None

    def state(self) -> InstanceState | None:
        """Returns the state in the fleet; None while the process does not run, so that its
        instances are not in the fleet.
        """
        phase = self.process.phase if self.process else ProcessPhase.STOPPED
        if phase not in (ProcessPhase.STARTING, ProcessPhase.READY):
            return None
        if self.is_draining:
            return InstanceState.DRAINING
        if phase is ProcessPhase.STARTING:
            return InstanceState.STARTING
        return _INSTANCE_STATES.get(self.sleep_state, InstanceState.READY)


def create_processes(wanted: Sequence[tuple[EnginePoolSpec, int, int]]) -> list[EngineProcess]:
    """Returns processes on free ports.

    wanted: of each, its pool, the number of its first endpoint, and how many it has.
    """
    ports = _free_ports([(pool, size) for pool, _, size in wanted])
    return [EngineProcess(pool, first, *given) for (pool, first, _), given in zip(wanted, ports, strict=True)]


def _free_ports(wanted: Sequence[tuple[EnginePoolSpec, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns ports and event ports of processes with so many endpoints."""
    sizes = [(size, *((size, size) if pool.has_event_ports else (0, 0))) for pool, size in wanted]
    groups = iter(find_free_ports([*chain.from_iterable(sizes)]))
    return [(next(groups), next(groups) + next(groups)) for _ in wanted]
