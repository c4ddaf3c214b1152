"""A model with disaggregated prefill and decode, served by processes of the simulated engine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, Role

MODEL_KEY = "default/tiny"


@dataclass(slots=True)
class KillableEngine:
    """An engine process."""

    url: str
    process: "subprocess.Popen[str]"

    def kill(self) -> None:
        """Kills the process and waits for its end."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stops it with SIGSTOP."""
        os.kill(self.process.pid, signal.SIGSTOP)


@contextmanager
def killable_engine(*arguments: str) -> Iterator[KillableEngine]:
    """Runs a simulated engine on a free port until the end of the block."""
    command = [sys.executable, "-m", "fairlead_sim", "engine", "--served-model-name", "tiny", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready http://"), line
            yield KillableEngine(line.split()[1], process)
        finally:
            process.kill()


@dataclass(slots=True)
class DisaggregatedModel:
    """The engines by role."""

    prefill: Sequence[KillableEngine]
    decode: Sequence[KillableEngine]
    transfer: str = "nixl"
    serve: Sequence[KillableEngine] = field(default_factory=list)

    def fleet(self) -> Fleet:
        """Returns a fleet of one model; ids are `prefill-0`, `decode-0`, `serve-0` and so on."""
        groups = ((Role.PREFILL, self.prefill), (Role.DECODE, self.decode), (Role.SERVE, self.serve))
        found = tuple(
            Instance(
                f"{role.value.lower()}-{number}",
                "default",
                "tiny",
                role.value.lower(),
                one.url,
                role=role,
                state=InstanceState.READY,
                transfer=None if role is Role.SERVE else self.transfer,
                bootstrap=one.url if role is Role.PREFILL and self.transfer != "nixl" else None,
            )
            for role, group in groups
            for number, one in enumerate(group)
        )
        return Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: found})
