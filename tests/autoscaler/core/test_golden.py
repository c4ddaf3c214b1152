"""Recorded observations give the recorded plans, to the last digit.

After a deliberate change of the core, run this file as a program. It writes the plans of the new
core over the recorded ones; the observations stay. Then look at what changed.
"""

import lzma
from pathlib import Path
from typing import Any

import msgspec

from fairlead_autoscaler.core import ModelSpec, Observation, ScalingCore

RECORDING = Path(__file__).parent / "golden" / "length_shift.jsonl.xz"
"""A model with separate roles whose prompts change from 8,000 to 1,000 tokens.

The first line is the model, each other line a tick. A plan has its replicas, its sleeping replicas,
its rule and its inputs."""

Plans = dict[str, tuple[int, int, str, dict[str, Any]]]


class Tick(msgspec.Struct):
    observation: Observation
    plans: Plans


def read_recording() -> tuple[ModelSpec, list[Tick]]:
    with lzma.open(RECORDING) as lines:
        model = msgspec.json.decode(lines.readline(), type=ModelSpec, strict=False)
        return model, [msgspec.json.decode(line, type=Tick, strict=False) for line in lines]


def plans_of(core: ScalingCore, observation: Observation) -> Plans:
    """Returns the plans of the next tick as they are recorded."""
    return {
        name: (plan.replicas, plan.asleep, plan.rule, {key: shown.value for key, shown in plan.inputs.items()})
        for name, plan in core.step(observation).pools.items()
    }


def test_core_plans_as_recorded() -> None:
    model, ticks = read_recording()
    core = ScalingCore(model)
    assert len(ticks) > 100
    for tick in ticks:
        assert plans_of(core, tick.observation) == tick.plans


def record_again() -> None:
    """Writes the present plans of the recorded observations, and prints how many differ."""
    model, ticks = read_recording()
    with lzma.open(RECORDING) as lines:
        recorded = lines.read().splitlines()
    core, written, differing = ScalingCore(model), [recorded[0]], 0
    for tick, line in zip(ticks, recorded[1:], strict=True):
        plans = plans_of(core, tick.observation)
        differing += any(plan[:2] != tick.plans[name][:2] for name, plan in plans.items())
        written.append(msgspec.json.encode({**msgspec.json.decode(line), "plans": plans}))
    with lzma.open(RECORDING, "wb", preset=9) as lines:
        lines.write(b"\n".join(written) + b"\n")
    print(f"{differing} of {len(ticks)} ticks have other numbers of replicas")


if __name__ == "__main__":
    record_again()
