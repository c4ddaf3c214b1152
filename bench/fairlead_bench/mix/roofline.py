"""Step profiles from public peak figures alone, and the throughput of accelerators by shape.

The throughput is that of the knee by which the autoscaler sizes. ``throughput_tables.py`` has that
of simulated engines with the same profiles.

The model has P weights and K bytes of keys and values per token. The accelerator has M bytes of
memory. It does F operations and moves B bytes a second, each times the share that engines reach:

    p = 2·P / F                   two operations per weight and token
    w = 2·P / B                   BF16 weights, read once a step
    c = K / B                     a resident token's keys and values, read once a step
    q = 4·layers·hidden / F       scores and values of one pair of tokens, two operations each
    KV tokens = (M·share - 2·P - reserved) / K

Chunks of prefill are 2,048 tokens below 40 GB and 8,192 from there on, as vLLM's defaults go by
memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix import PoolCandidate, throughput

ITL_SECONDS = (0.12, 0.04)
FILE = Path(__file__).with_name("accelerators.yaml")


@dataclass(frozen=True, slots=True)
class PricedProfile:
    """An accelerator of a price list: its profile and USD per hour."""

    profile: EngineProfile
    cost_per_hour: float


def price_lists() -> Mapping[str, list[PricedProfile]]:
    """Returns the price lists of the committed figures, by name."""
    read, known = _read(), profiles()
    return {
        name: [PricedProfile(known[accelerator], price) for accelerator, price in prices.items()]
        for name, prices in read["prices"].items()
    }


def profiles() -> dict[str, EngineProfile]:
    """Returns the step profiles of all accelerators, by name."""
    read = _read()
    return {one["name"]: profile(one, read["model"], read["reached"]) for one in read["accelerators"]}


def _read() -> Any:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def profile(one: Mapping[str, Any], model: Mapping[str, Any], reached: Mapping[str, Any]) -> EngineProfile:
    """Returns the step profile of one accelerator."""
    weights = model["weights_billion"] * 1e9
    operations = one["tflops"] * 1e12 * reached["compute"]
    bandwidth = one["gbps"] * 1e9 * reached["bandwidth"]
    free = one["gb"] * 1e9 * reached["memory"] - 2.0 * weights - reached["reserved_gb"] * 1e9
    return EngineProfile(
        one["name"],
        prefill_token_seconds=2.0 * weights / operations,
        attention_seconds=4.0 * model["layers"] * model["hidden"] / operations,
        weights_seconds=2.0 * weights / bandwidth,
        step_seconds=reached["step_seconds"],
        sequence_seconds=reached["sequence_seconds"],
        resident_token_seconds=model["kv_bytes_per_token"] / bandwidth,
        kv_tokens=int(free / model["kv_bytes_per_token"]),
        max_sequences=256,
        step_tokens=2_048 if one["gb"] < 40 else 8_192,
    )


def objectives(itl_seconds: float) -> SloTargets:
    """Returns the SLO: first tokens within 3 s, and 0.5 s more per 1,000 prompt tokens."""
    return SloTargets(target=0.99, ttft_seconds=3.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=itl_seconds)


def throughput_at_knee(
    priced: Sequence[PricedProfile], grid: RequestShapeGrid, objectives: SloTargets
) -> list[PoolCandidate]:
    """Returns every accelerator with its throughput of every shape at the core's knee.

    A shape is the middle of its bucket.
    """
    shapes = [grid.bucket_center(index) for index in range(grid.size)]
    return [
        PoolCandidate(
            one.profile.name,
            one.cost_per_hour,
            tuple(throughput(one.profile, prompt, output, objectives) for prompt, output in shapes),
        )
        for one in priced
    ]
