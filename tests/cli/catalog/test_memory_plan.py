"""The devices of a plan, and what is said about a model that does not fit."""

import re

import pytest

from fairlead.errors import BadInput
from fairlead_cli.catalog.entry import read_entries
from fairlead_cli.catalog.memory_plan import (
    Device,
    PlanRequest,
    choose_plan,
    describe_misfit,
    known_device,
    plan_memory,
)
from fairlead_cli.catalog.roofline import GIB, accelerator_figures


def request_for(
    model: str, memory_gib: int, *, count: int = 8, context: int | None = None, devices: int | None = None
) -> PlanRequest:
    return PlanRequest(
        read_entries()[model], Device("a-device", memory_gib * GIB, count), context=context, devices=devices
    )


def test_a_plan_takes_the_fewest_devices_that_fit() -> None:
    plan = choose_plan(request_for("qwen3-32b", 80))
    assert plan is not None
    assert (plan.devices, plan.context) == (2, 40_960)
    assert not plan_memory(request_for("qwen3-32b", 80), 1, 40_960).fits


def test_a_shorter_context_needs_fewer_devices() -> None:
    plan = choose_plan(request_for("qwen3-32b", 80, context=16_384))
    assert plan is not None
    assert plan.devices == 1
    assert plan.requests >= 1
    assert plan.kv_tokens >= 16_384


def test_an_instance_stays_on_one_node() -> None:
    assert choose_plan(request_for("llama-3.3-70b", 80, count=2)) is None
    assert choose_plan(request_for("llama-3.3-70b", 80, count=4)) is not None


def test_what_does_not_fit_is_told_with_its_numbers_and_what_would_fit() -> None:
    request = request_for("llama-3.3-70b", 80, count=2)
    text = describe_misfit(request, accelerator_figures())
    plan = plan_memory(request, 2, 131_072)
    assert "needs 131.4 GiB for weights and 40 GiB of KV for one request of 131,072 tokens" in text
    assert "2 × 70.1 GiB of a-device are there" in text
    assert "--on nvidia-a100 or nvidia-h100" in text
    (context,) = re.findall(r"--context ≤ ([\d,]+) with --tensor 2", text)
    longest = int(context.replace(",", ""))
    assert plan_memory(request, 2, longest).fits
    assert not plan_memory(request, 2, longest + 1_024).fits
    assert plan.usable_bytes < plan.weight_bytes + plan.kv_bytes


def test_weights_that_are_too_large_have_no_context_that_fits() -> None:
    text = describe_misfit(request_for("kimi-k2", 24), {})
    assert "--context" not in text
    assert text.endswith("use devices with more memory")


def test_proposals_keep_the_given_number_of_devices() -> None:
    text = describe_misfit(request_for("qwen3-32b", 80, devices=1), accelerator_figures())
    more, others, context = text.partition(": use ")[2].split(", or ")
    assert more == "--tensor 2"
    assert others.endswith(" with --tensor 1")
    assert context.startswith("--context ≤ ")
    assert "--tensor" not in context
    for name in others.removeprefix("--on ").removesuffix(" with --tensor 1").split(" or "):
        device = known_device(name, accelerator_figures(), None)
        assert choose_plan(PlanRequest(read_entries()["qwen3-32b"], device, devices=1)) is not None


@pytest.mark.parametrize("devices", [3, 5, 16])
def test_devices_that_cannot_share_a_model_are_refused(devices: int) -> None:
    with pytest.raises(BadInput, match="cannot be split") as caught:
        choose_plan(request_for("qwen3-32b", 80, devices=devices))
    assert caught.value.hint == "use one of 1, 2, 4, 8"


@pytest.mark.parametrize("context", [0, -1, 40_961])
def test_a_context_beyond_the_model_is_refused(context: int) -> None:
    with pytest.raises(BadInput, match="1 to 40,960 tokens"):
        choose_plan(request_for("qwen3-32b", 80, context=context))


def test_windows_count_as_whole_where_the_engine_keeps_them() -> None:
    entry = read_entries()["gemma-3-27b"]
    device = Device("a-device", 80 * GIB, 8)
    vllm, sglang = (plan_memory(PlanRequest(entry, device, engine), 2, 131_072) for engine in ("vllm", "sglang"))
    assert sglang.kv_bytes > 2 * vllm.kv_bytes


def test_memory_of_an_unknown_class_must_be_given() -> None:
    with pytest.raises(BadInput, match="memory of mine is not known"):
        known_device("mine", accelerator_figures(), None)
    assert known_device("mine", accelerator_figures(), 5 * GIB) == Device("mine", 5 * GIB, 8)
