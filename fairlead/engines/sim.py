"""The simulated engine: a real HTTP server that behaves like vLLM and takes its time from a profile. Needs no accelerator."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.engines.base import EngineLaunch, EngineReplica
from fairlead.engines.vllm import Vllm
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals

_SHARED_VLLM_FLAGS = {
    "--block-size": re.compile(r"\d+"),
    "--max-model-len": re.compile(r"\d+"),
    "--max-num-batched-tokens": re.compile(r"\d+"),
    "--max-num-queued-reqs": re.compile(r"\d+"),
    "--max-num-queued-tokens": re.compile(r"\d+"),
    "--max-num-seqs": re.compile(r"\d+"),
    "--scheduling-policy": re.compile(r"fcfs|priority"),
    "--shutdown-timeout": re.compile(r"\d+"),
}
"""vLLM's switches that change what is simulated, and the values understood; all others concern the real engine alone."""

CONTEXT_FLAG = "--max-model-len"
DEFAULT_CONTEXT_TOKENS = 32_768
"""The simulated engine's own default."""


class SimulatedEngine:
    """One process hosts as many engines as it is given ports."""

    kind = "sim"
    health_path = "/health"
    metrics_path = "/metrics"

    def launch_command(self, replica: EngineReplica, ports: Sequence[int]) -> EngineLaunch:
        """The simulator's command line; the ports must follow one another, since it is told the first and a count."""
        if list(ports) != list(range(ports[0], ports[0] + len(ports))):
            raise BadInput("the engines of one process need neighbouring ports", field="ports")
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", f"127.0.0.1:{ports[0]}"]
        if len(ports) > 1:
            command += ["--count", str(len(ports))]
        command += ["--model", replica.source, "--served-model-name", replica.name]
        command += ["--profile", profile_argument(replica.profile), "--speed", f"{replica.speed:g}"]
        command += ["--seed", str(replica.seed)]
        taken, ignored = (replica.args, ()) if replica.kind == self.kind else split_args(replica.args)
        command += context_args(replica.profile, taken)
        return EngineLaunch((*command, *taken), dict(replica.env), prints_ready_line=True, ignored_args=ignored)

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Its metrics carry vLLM's names."""
        return Vllm().parse_signals(metrics, rank)


def profile_argument(profile: EngineProfile) -> str:
    """A preset's name, or the coefficients as JSON."""
    return profile.name if builtin_profiles().get(profile.name) == profile else json.dumps(asdict(profile))


def context_args(profile: EngineProfile, args: Sequence[str]) -> list[str]:
    """The context length of an engine that was told none: the usual one, or what its KV memory holds where that is less.

    A longer one than the memory keeps an engine from starting, simulated or real.
    """
    told = any(argument.partition("=")[0] == CONTEXT_FLAG for argument in args)
    return [] if told or profile.kv_tokens >= DEFAULT_CONTEXT_TOKENS else [CONTEXT_FLAG, str(profile.kv_tokens)]


def split_args(args: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """vLLM's arguments → (those that the simulator takes, the others); a switch keeps its value."""
    taken: list[str] = []
    ignored: list[str] = []
    for group in _flag_groups(args):
        name, equals, value = group[0].partition("=")
        values = [value, *group[1:]] if equals else group[1:]
        known = _SHARED_VLLM_FLAGS.get(name)
        fits = known is not None and len(values) == 1 and known.fullmatch(values[0])
        (taken if fits else ignored).extend(group)
    return tuple(taken), tuple(ignored)


def _flag_groups(args: Sequence[str]) -> Iterator[list[str]]:
    """Every switch with the values that follow it."""
    group: list[str] = []
    for argument in args:
        if argument.startswith("--") and group:
            yield group
            group = []
        group.append(argument)
    if group:
        yield group
