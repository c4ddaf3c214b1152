"""The adapter for the simulated engine: an HTTP server with vLLM's API and times from a profile."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.metric_names import VLLM_METRICS, read_rank_signals, read_signals
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals

SIM_ENGINES_PER_PROCESS: Final = 256
"""Limit: simulated engines in one process."""

_NUMBER_FLAGS = (
    *("--block-size", "--max-model-len", "--max-num-batched-tokens", "--max-num-queued-reqs"),
    *("--max-num-queued-tokens", "--max-num-seqs", "--shutdown-timeout"),
)
_SHARED_VLLM_FLAGS = {
    **dict.fromkeys(_NUMBER_FLAGS, re.compile(r"\d+")),
    "--scheduling-policy": re.compile(r"fcfs|priority"),
}
"""vLLM flags that affect the simulation, with the accepted values. The simulator ignores all
others.
"""

CONTEXT_FLAG = "--max-model-len"
DEFAULT_CONTEXT_TOKENS = 32_768
"""The simulator's default context length."""


class SimulatedEngine:
    """The adapter for the simulated engine. One process hosts one engine per port."""

    kind = "sim"
    health_path = "/health"
    metrics_path = "/metrics"

    def local_launch_command(self, replica: LocalEngineReplica, ports: Sequence[int]) -> LocalEngineCommand:
        """Returns the simulator's command line. Raises BadInput for gaps between ports."""
        if list(ports) != list(range(ports[0], ports[0] + len(ports))):
            raise BadInput("the engines of one process need consecutive ports", field="ports")
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", f"127.0.0.1:{ports[0]}"]
        if len(ports) > 1:
            command += ["--count", str(len(ports))]
        command += ["--model", replica.source, "--served-model-name", replica.name]
        command += ["--profile", profile_argument(replica.profile), "--speed", f"{replica.speed:g}"]
        command += ["--seed", str(replica.seed)]
        taken, ignored = (replica.args, ()) if replica.kind == self.kind else split_args(replica.args)
        command += context_args(replica.profile, taken)
        return LocalEngineCommand((*command, *taken), dict(replica.env), prints_ready_line=True, ignored_args=ignored)

    def parse_signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        return read_signals(VLLM_METRICS, metrics, rank)

    def parse_rank_signals(self, metrics: bytes, ranks: Collection[int]) -> dict[int, EngineSignals]:
        return read_rank_signals(VLLM_METRICS, metrics, ranks)


def profile_argument(profile: EngineProfile) -> str:
    """Returns the name of a built-in profile, or as JSON the coefficients that are no defaults.

    Why: a coefficient that a later release adds must change no pod.
    """
    import json  # gateways need this module without it

    if builtin_profiles().get(profile.name) == profile:
        return profile.name
    given = asdict(profile)
    return json.dumps(
        {field.name: given[field.name] for field in fields(profile) if given[field.name] != field.default}
    )


def context_args(profile: EngineProfile, args: Sequence[str]) -> list[str]:
    """Returns the flag that limits the context to the KV memory; empty if none is needed.

    None is needed if `args` set a context length, or if the KV memory has room for the default one.

    Why: an engine does not start with a context longer than its KV memory, simulated or real.
    """
    has_context = any(argument.partition("=")[0] == CONTEXT_FLAG for argument in args)
    return [] if has_context or profile.kv_tokens >= DEFAULT_CONTEXT_TOKENS else [CONTEXT_FLAG, str(profile.kv_tokens)]


def split_args(args: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns vLLM's arguments as (used by the simulator, ignored). Flags keep their values."""
    taken: list[str] = []
    ignored: list[str] = []
    for group in _flag_groups(args):
        name, equals, value = group[0].partition("=")
        values = [value, *group[1:]] if equals else group[1:]
        pattern = _SHARED_VLLM_FLAGS.get(name)
        fits = pattern is not None and len(values) == 1 and pattern.fullmatch(values[0])
        (taken if fits else ignored).extend(group)
    return tuple(taken), tuple(ignored)


def _flag_groups(args: Sequence[str]) -> Iterator[list[str]]:
    """Yields every flag with the values that follow it."""
    group: list[str] = []
    for argument in args:
        if argument.startswith("--") and group:
            yield group
            group = []
        group.append(argument)
    if group:
        yield group
