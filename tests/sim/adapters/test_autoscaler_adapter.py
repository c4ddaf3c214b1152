"""The autoscaler seam: terms of the protocol, numbers of the production core."""

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.core.types import ModelSpec, Observation, ScalingPlan
from fairlead_autoscaler.mix import simulation_solver
from fairlead_sim.adapters.autoscaler_adapter import parse_model, parse_observation
from fairlead_sim.autoscaling import scenarios
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.seams import autoscaler, main
from fairlead_testing.pytest_hooks.nightly import shortened

DOCUMENTED = Path(__file__).parents[3] / "docs" / "reference" / "seams.md"
ROLES = {"Serve": "both", "Prefill": "prefill", "Decode": "decode"}


def info_of(model: ModelSpec) -> dict[str, Any]:
    """Returns a model as a tool describes it."""
    pools: dict[str, Any] = {}
    for facts in model.pools:
        prior = facts.profile
        assert prior is not None
        pools[facts.name] = {
            "role": ROLES[facts.role],
            "cost": facts.cost_per_hour,
            "min": facts.minimum,
            "max": facts.maximum,
            "startup_p50": facts.startup_p50_seconds,
            "startup_p90": facts.startup_p90_seconds,
            "max_num_seqs": prior.max_sequences,
            "kv_tokens": prior.kv_tokens,
            "profile": {
                "step_base": prior.step_seconds,
                "step_per_seq": prior.sequence_seconds + prior.prefill_token_seconds,
                "step_per_kv_token": prior.resident_token_seconds,
                "step_per_prompt_token": prior.prefill_token_seconds,
                "chunk": prior.step_tokens,
            },
        }
    return {
        "slo": {"ttft": model.ttft_seconds, "itl": model.itl_seconds},
        "timeout": model.patience_seconds,
        "interval": model.interval_seconds,
        "pools": pools,
        "ttft_le": model.ttft_bounds,
        "itl_le": [*model.itl_bounds, float("inf")],
    }


def obs_of(seen: Observation) -> dict[str, Any]:
    """Returns an observation in the form of the protocol."""
    gateway: dict[str, Any] | None = (
        None
        if seen.gateway is None
        else {
            "d_arrivals": seen.gateway.arrivals,
            "d_prompt": seen.gateway.prompt_tokens,
            "held": seen.gateway.held,
            "d_abandoned": seen.gateway.abandoned,
        }
    )
    if gateway and seen.shapes is not None:
        gateway["shapes"] = [[shape.prompt_tokens, shape.output_tokens, shape.requests] for shape in seen.shapes]
    pools = {}
    for name, pool in seen.pools.items():
        replicas = pool.replicas and [
            {
                "id": replica.id,
                "state": replica.state.value,
                "age": replica.age_seconds,
                "startup_s": replica.startup_seconds,
                "running": replica.running,
                "waiting": replica.waiting,
                "kv": replica.kv_share,
                "d_prompt": replica.prompt_tokens,
                "d_gen": replica.generated_tokens,
                "d_gen_time": replica.itl_seconds,
                "d_finished": replica.finished,
                "d_first": replica.first_tokens,
                "d_ttft_sum": replica.ttft_seconds,
                "ttft_hist": replica.ttft_counts,
                "itl_hist": replica.itl_counts,
            }
            for replica in pool.replicas
        ]
        pools[name] = {
            "desired": pool.desired,
            "ready": pool.ready,
            "pending": pool.pending,
            "draining": pool.draining,
            "pending_age": pool.pending_ages_seconds,
            "replicas": replicas,
        }
    return {"t": seen.now, "gateway": gateway, "pools": pools}


class Both:
    """The core and the seam, which receive the same observations."""

    def __init__(self, model: ModelSpec) -> None:
        self.model = model
        self.core = ScalingCore(model)
        self.seam = autoscaler(info_of(model))
        self.steps: list[dict[str, int]] = []
        self.mixed = 0

    def step(self, observation: Observation) -> ScalingPlan:
        assert parse_observation(obs_of(observation), self.model) == replace(observation, mixes={})
        plan = self.core.step(observation)
        self.mixed += any("mix_replicas" in pool.inputs for pool in plan.pools.values())
        self.steps.append({name: pool.replicas for name, pool in plan.pools.items()})
        assert self.seam.step(obs_of(observation)) == self.steps[-1]
        return plan


def short() -> AutoscalingScenario:
    scenario = replace(scenarios.step_cold(2), seconds=shortened(1_500.0, 750.0))
    return replace(scenario, faults=PlantFaults(missing=((300.0, 400.0),), zeroed=((500.0, 600.0),)))


def test_the_seam_answers_what_the_core_answers() -> None:
    scenario = short()
    controller = Both(scenario.model)
    run_controller(scenario, controller)
    assert len(controller.steps) == scenario.seconds / 5.0
    assert len({tuple(step.items()) for step in controller.steps}) > 1


def test_with_request_shapes_pools_are_sized_by_the_mix_as_in_the_core() -> None:
    scenario = replace(scenarios.smooth_mixed(2), seconds=shortened(1_500.0, 900.0))
    controller = Both(scenario.model)
    run_controller(scenario, controller, solver=simulation_solver())
    assert controller.mixed > 100
    assert any(step["L"] > 0 for step in controller.steps)


def test_info_describes_the_model_of_the_scenarios() -> None:
    model = short().model
    parsed = parse_model(info_of(model))
    assert parsed.pools[0].profile is not None
    assert model.pools[0].profile is not None
    assert parsed.pools[0].profile.sequence_seconds == pytest.approx(model.pools[0].profile.sequence_seconds)
    same = replace(parsed.pools[0], profile=model.pools[0].profile)
    assert replace(parsed, pools=(same,)) == model


def test_objects_do_as_well_as_mappings() -> None:
    class Info:
        slo = {"ttft": 3.0, "itl": 0.15}  # noqa: RUF012 - a tool's object, as it may come
        pools = {"main": {"role": "decode", "min": 2, "max": 5}}  # noqa: RUF012

    model = parse_model(Info())
    [pool] = model.pools
    assert (pool.name, pool.role.value, pool.minimum, pool.maximum, pool.profile) == ("main", "Decode", 2, 5, None)
    assert (model.patience_seconds, model.interval_seconds, model.ttft_bounds) == (None, 5.0, ())


def test_missing_is_not_zero() -> None:
    pool = {"desired": 1, "ready": 1, "replicas": [{"id": 7, "state": "ready", "age": 60.0, "running": 0}]}
    model = parse_model({"pools": {"main": {}}})
    seen = parse_observation({"t": 5.0, "gateway": {"held": 3}, "pools": {"main": pool}}, model)
    assert seen.gateway is None
    [replica] = seen.pools["main"].replicas or ()
    assert (replica.id, replica.running, replica.waiting, replica.kv_share) == ("7", 0.0, None, None)
    silent = {"main": {"desired": 1, "ready": 1, "replicas": None}}
    dark = parse_observation({"t": 5.0, "gateway": None, "pools": silent}, model)
    assert dark.pools["main"].replicas is None


def test_a_histogram_may_leave_what_lies_beyond_its_edges_to_the_total() -> None:
    model = parse_model({"ttft_le": [1.0, 2.0, float("inf")], "itl_le": [0.1], "pools": {"main": {}}})

    def counts(**signals: Any) -> tuple[Any, Any]:
        replica = {"id": "a", "state": "ready", "age": 9.0, **signals}
        pool = {"desired": 1, "ready": 1, "replicas": [replica]}
        [seen] = (
            parse_observation({"t": 5.0, "gateway": None, "pools": {"main": pool}}, model).pools["main"].replicas or ()
        )
        return seen.ttft_counts, seen.itl_counts

    assert counts(ttft_hist=[3, 2, 1], itl_hist=[4, 5], d_first=6) == ((3.0, 2.0, 1.0), (4.0, 5.0))
    assert counts(ttft_hist=[3, 2], itl_hist=[4], d_first=6) == ((3.0, 2.0, 1.0), (4.0, 0.0))
    assert counts(ttft_hist=[3, 2, 1, 0], itl_hist=[], d_first=6) == (None, None)


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, -3.0, 1e308, 2.5])
def test_a_pool_without_pod_counts_keeps_its_size(wrong: float | None) -> None:
    core = autoscaler({"pools": {"main": {"max": 9}}})
    counted = {"desired": 3, "ready": 3, "pending": 0, "draining": 0, "replicas": []}
    for field in ("desired", "ready"):
        pool = {**counted, field: wrong}
        assert core.step({"t": 5.0, "gateway": None, "pools": {"main": pool}}) == {}
    assert core.step({"t": wrong, "gateway": None, "pools": {"main": counted}}) == {"main": 3}


def test_a_replica_without_a_state_is_omitted() -> None:
    replicas = [{"id": "a", "state": None, "age": 9.0}, {"id": "b", "state": "ready", "age": None, "running": 2}]
    pool = {"desired": 2, "ready": 2, "replicas": replicas}
    seen = parse_observation({"t": 5.0, "gateway": None, "pools": {"main": pool}}, parse_model({"pools": {"main": {}}}))
    assert [replica.id for replica in seen.pools["main"].replicas or ()] == ["b"]


def test_settings_are_the_cores() -> None:
    scenario = short()
    frozen = autoscaler(info_of(scenario.model), freeze=True)

    class Frozen:
        def step(self, observation: Observation) -> ScalingPlan:
            desired = frozen.step(obs_of(observation))
            assert desired.get("S", 3) == 3
            return ScalingPlan()

    run_controller(replace(scenario, seconds=300.0), Frozen())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal_usua": 2}, r"goal_usua: there is no such setting \(did you mean goal_usual\?\)"),
        ({"goal_usual": "2"}, "goal_usual: str where a number belongs"),
        ({"goal_usual": float("nan")}, "goal_usual: nan is not a finite number of 0 or more"),
        ({"freeze": 1}, "freeze: 1 is neither True nor False"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        autoscaler({"pools": {"main": {}}}, **settings)


REPLICA = {"id": "a", "state": "ready", "age": 60.0, "running": 2, "ttft_hist": [1, 0]}
COUNTED = {"desired": 1, "ready": 1, "replicas": [REPLICA]}


def pool_told(**fields: Any) -> dict[str, Any]:
    return {"t": 5.0, "gateway": None, "pools": {"main": {**COUNTED, **fields}}}


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"t": "now", "pools": {}}, "t: str where a number belongs"),
        ({"t": 5.0, "pools": 7}, "pools: int where an object with a field for each name belongs"),
        ({"t": 5.0, "gateway": 7}, "gateway: int where an object belongs"),
        ({"t": 5.0, "gateway": {"d_arrivals": "5", "d_prompt": 1}}, "gateway.d_arrivals: str where a number belongs"),
        ({"t": 5.0, "gateway": {"shapes": [[1, 2]]}}, "gateway.shapes[0]: 2 numbers"),
        ({"t": 5.0, "pools": {"main": [1]}}, "pools.main: list where an object belongs"),
        (pool_told(desired="one"), "pools.main.desired: str where a number belongs"),
        (pool_told(ready=True), "pools.main.ready: bool where a number belongs"),
        (pool_told(pending_age=3), "pools.main.pending_age: int where a list belongs"),
        (pool_told(replicas=1), "pools.main.replicas: int where a list belongs"),
        (pool_told(replicas=["a"]), "pools.main.replicas[0]: str where an object belongs"),
        (pool_told(replicas=[{**REPLICA, "state": "up"}]), "pools.main.replicas[0].state: no state is called 'up'"),
        (pool_told(replicas=[{**REPLICA, "id": None}]), "pools.main.replicas[0].id is missing"),
        (pool_told(replicas=[REPLICA, REPLICA]), "pools.main.replicas[1].id: another replica has the id 'a'"),
        (pool_told(replicas=[{**REPLICA, "kv": "x"}]), "pools.main.replicas[0].kv: str where a number belongs"),
        (pool_told(replicas=[{**REPLICA, "ttft_hist": 3}]), "pools.main.replicas[0].ttft_hist: int where a list"),
    ],
)
def test_a_malformed_step_is_rejected_with_its_field_and_changes_nothing(obs: dict[str, Any], message: str) -> None:
    right = pool_told()
    lines = [{"op": "reset", "pools": {"main": {}}}, {"op": "step", **obs}, {"op": "step", **right}]
    errors, answers = io.StringIO(), io.StringIO()
    source = io.StringIO("\n".join(json.dumps(line) for line in lines))
    assert main(["autoscaler"], source, answers, errors) == 2
    assert errors.getvalue().startswith(f"line 2: step: {message}")
    begun, refused, went_on = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert begun == {}
    assert refused["error"].startswith(f"step: {message}")
    assert went_on == {"main": 1}


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "pools is missing"),
        ({"pools": 5}, "pools: int where an object with a field for each name belongs"),
        ({"pools": {"main": "x"}}, "pools.main: str where an object belongs"),
        ({"pools": {"main": {"role": "chief"}}}, "pools.main.role: no role is called 'chief' (both, prefill, decode)"),
        ({"pools": {"main": {"role": ["both"]}}}, "pools.main.role: no role is called"),
        ({"pools": {"main": {"min": 5, "max": 2}}}, "pools.main.max: 2 is less than min, 5"),
        ({"pools": {"main": {"max": 1e308}}}, "pools.main.max: 1e+308 is not between 0 and 1e+06"),
        ({"pools": {"main": {"max": 2.5}}}, "pools.main.max: 2.5 is not a whole number"),
        ({"pools": {"main": {"min": -1}}}, "pools.main.min: -1 is not between"),
        ({"pools": {"main": {"max": "9"}}}, "pools.main.max: str where a number belongs"),
        ({"pools": {"main": {"cost": math.nan}}}, "pools.main.cost: nan is not between"),
        ({"pools": {"main": {"startup_p50": 1e308}}}, "pools.main.startup_p50: 1e+308 is not between 0 and 86400"),
        ({"pools": {"main": {"profile": 5}}}, "pools.main.profile: int where an object belongs"),
        ({"pools": {"main": {"profile": {}}}}, "pools.main.profile: all step times are 0 (omit"),
        ({"pools": {"main": {"profile": {"step_base": -1}}}}, "pools.main.profile.step_base: -1 is not between"),
        ({"pools": {"main": {"profile": {"step_base": 1, "chunk": 0}}}}, "pools.main.profile.chunk: 0 is not between"),
        ({"pools": {}, "slo": 3}, "slo: int where an object belongs"),
        ({"pools": {}, "slo": {"ttft": 0}}, "slo.ttft: 0 is not between"),
        ({"pools": {}, "slo": {"itl": -1e308}}, "slo.itl: -1e+308 is not between"),
        ({"pools": {}, "timeout": -1}, "timeout: -1 is not between"),
        ({"pools": {}, "interval": 0}, "interval: 0 is not between"),
        ({"pools": {}, "interval": 10**400}, "interval: int where a number belongs"),
        ({"pools": {}, "ttft_le": 3}, "ttft_le: int where a list belongs"),
        ({"pools": {}, "ttft_le": [1, None]}, "ttft_le[1]: NoneType where a number belongs"),
        ({"pools": {}, "itl_le": [0.2, 0.1]}, "itl_le: [0.2, 0.1] are not rising bucket bounds"),
        ({"pools": {}, "itl_le": [math.nan]}, "itl_le: [nan] are not rising bucket bounds"),
    ],
)
def test_a_malformed_reset_is_rejected_with_field_and_expected_value(info: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        autoscaler(info)
    assert str(caught.value).startswith(message)


def test_what_is_not_limited_is_missing_or_infinite() -> None:
    for none in ({}, {"slo": None}, {"slo": {"ttft": math.inf, "itl": None}, "timeout": math.inf}):
        model = parse_model({"pools": {"main": {}}, **none})
        assert (model.ttft_seconds, model.itl_seconds, model.patience_seconds) == (None, None, None)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"op": "step", "t": "\xff"}', b"{", b"null"])
def test_malformed_json_does_not_end_the_session(line: bytes) -> None:
    right = json.dumps({"op": "step", **pool_told()}).encode()
    sent = b"\n".join([b'{"op": "reset", "pools": {"main": {}}}', line, right])
    command = [sys.executable, "-m", "fairlead_sim.seams", "autoscaler"]
    done = subprocess.run(command, input=sent, capture_output=True, check=False)
    begun, refused, went_on = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, begun, went_on) == (2, {}, {"main": 1})
    assert list(refused) == ["error"]


def test_the_lines_of_the_manual() -> None:
    shown = DOCUMENTED.read_text().partition("## The autoscaler as JSON lines")[2].partition("\n## ")[0]
    sent = re.findall(r"^> (\{.*)$", shown, re.MULTILINE)
    wanted = [json.loads(line) for line in re.findall(r"^< (\{.*)$", shown, re.MULTILINE)]
    assert wanted
    done = subprocess.run(
        [sys.executable, "-m", "fairlead_sim.seams", "autoscaler"],
        input="\n".join(sent),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted
