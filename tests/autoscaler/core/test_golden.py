"""Recorded observations give the recorded plans, to the last digit."""

import lzma
from pathlib import Path
from typing import Any

import msgspec

from fairlead_autoscaler.core import ModelSpec, Observation, ScalingCore

RECORDING = Path(__file__).parent / "golden" / "length_shift.jsonl.xz"
"""A model with separate roles whose prompts change from 8,000 to 1,000 tokens.

The first line is the model, each other line a tick. A plan has its replicas, its sleeping replicas,
its rule and its inputs."""


class Tick(msgspec.Struct):
    observation: Observation
    plans: dict[str, tuple[int, int, str, dict[str, Any]]]


def test_core_plans_as_recorded() -> None:
    with lzma.open(RECORDING) as lines:
        core = ScalingCore(msgspec.json.decode(lines.readline(), type=ModelSpec, strict=False))
        ticks = [msgspec.json.decode(line, type=Tick, strict=False) for line in lines]
    assert len(ticks) > 100
    for tick in ticks:
        plans = core.step(tick.observation).pools
        found = {
            name: (plan.replicas, plan.asleep, plan.rule, {key: shown.value for key, shown in plan.inputs.items()})
            for name, plan in plans.items()
        }
        assert found == tick.plans
