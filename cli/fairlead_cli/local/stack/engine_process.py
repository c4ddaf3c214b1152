"""The engine processes of a stack, as values and as running things.

A PoolPlan says what a pool of one model runs; an EngineUnit is one process of it, with one endpoint or several, and knows what the
fleet file should say of each: Starting while it comes up, Ready, Draining, and nothing while it is dead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from fairlead.fleet.model import Instance, InstanceState, Model, Role
from fairlead_cli.addresses import find_free_ports, is_port_free
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase


@dataclass(frozen=True, slots=True)
class EnginePoolSpec:
    """``template`` is an Instance with everything but id, url and state; ``command`` builds the process for its ports.

    ``label`` names its processes for people: the pool's name, with the model's where there are several.
    ``says_ready``: the process prints a ``ready`` line per endpoint; otherwise its ``/health`` is asked.
    ``adopted`` are engines that somebody else runs: they are routed to, and nothing is started for them. ``sleep_level`` is how its
    engines sleep, None where they do not.
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

    @property
    def key(self) -> tuple[str, str]:
        """Model key and pool name: what tells pools apart."""
        return self.model.key, self.name

    def process_sizes(self) -> list[int]:
        """Endpoints per process, in order."""
        full, rest = divmod(self.replicas, self.engines_per_process)
        return [self.engines_per_process] * full + ([rest] if rest else [])


class SleepState(StrEnum):
    """Whether an engine sleeps: one that falls asleep takes nothing new and ends what it has."""

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
    """One engine process. ``first`` is the number of its first endpoint within the pool; numbers name the instances. ``to_sleep``:
    it is wanted asleep. ``wake_seconds`` is how long the last of ``wakings`` took."""

    def __init__(self, pool: EnginePoolSpec, first: int, ports: tuple[int, ...]) -> None:
        self.pool = pool
        self.first = first
        self.ports = ports
        self.is_draining = False
        self.process: ManagedProcess | None = None
        self.sleep_state = SleepState.AWAKE
        self.should_sleep = False
        self.wake_count = 0
        self.wake_seconds = 0.0

    @property
    def name(self) -> str:
        """``main-3``, or ``main-4..7`` for a process with several endpoints."""
        last = self.first + len(self.ports) - 1
        return f"{self.pool.label}-{self.first}" + (f"..{last}" if last > self.first else "")

    @property
    def is_up(self) -> bool:
        """Its process has come up, awake or on the way there."""
        return self.process is not None and self.process.phase is ProcessPhase.READY

    def command(self) -> ProcessCommand:
        """The process to start now; ports that somebody took while it was dead are replaced, and the ids with them."""
        if not all(is_port_free(port) for port in self.ports):
            (self.ports,) = find_free_ports([len(self.ports)])
        return self.pool.command(self.ports, self.first)

    def instance_ids(self) -> list[str]:
        """What its endpoints are called: ``main-3/40123/0``."""
        return [f"{self.pool.name}-{self.first + n}/{port}/0" for n, port in enumerate(self.ports)]

    def urls(self) -> list[str]:
        """Where its endpoints listen."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def instances(self) -> list[Instance]:
        """What the fleet file says of this process just now."""
        state = self.state()
        if state is None:
            return []
        return [
            replace(self.pool.template, id=one, url=url, state=state, bootstrap=self.bootstrap_url(url))
            for one, url in zip(self.instance_ids(), self.urls(), strict=True)
        ]

    def bootstrap_url(self, url: str) -> str | None:
        """Where the other side meets this one: a simulated prefill engine answers for that on its own port."""
        template = self.pool.template
        return url if template.role is Role.PREFILL and template.transfer in ("mooncake", "sglang") else None

    def state(self) -> InstanceState | None:
        """None while it is dead or gone: then it is not part of the fleet."""
        phase = self.process.phase if self.process else ProcessPhase.STOPPED
        if phase not in (ProcessPhase.STARTING, ProcessPhase.READY):
            return None
        if self.is_draining:
            return InstanceState.DRAINING
        if phase is ProcessPhase.STARTING:
            return InstanceState.STARTING
        return _INSTANCE_STATES.get(self.sleep_state, InstanceState.READY)
