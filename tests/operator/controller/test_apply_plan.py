"""Plans of edits that move instances between the pools of a model."""

import itertools
from typing import Any

import pytest

from fairlead.kube.resources import Manifest, name_of
from fairlead_operator.controller.apply_plan import ApplyPlan, PruneGuard, make_plan
from fairlead_operator.object_metadata import child_key, owner_reference
from fairlead_testing.kube.operator_harness import OperatorHarness, model_manifest

MODEL: Manifest = {"metadata": {"name": "qwen", "namespace": "chat", "uid": "u-1"}, "spec": {}}
POOLS = ("a", "b")


def states(role: str) -> list[dict[str, Any]]:
    """Returns the states of a pool. before, after: None without a workload, or without a pool."""
    counts, owners = (None, 0, 2), ("fairlead", "keda")
    found = itertools.product(counts, counts, (0, 2), owners)
    return [dict(zip(("role", "before", "after", "ready", "owner"), (role, *one), strict=True)) for one in found]


def deployment(pool: str, role: str, replicas: int, *arguments: str) -> Manifest:
    metadata = {"name": f"qwen-{pool}", "labels": {"fairlead.io/pool": pool, "fairlead.io/role": role}}
    template = {"spec": {"containers": [{"name": "engine", "args": list(arguments)}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": replicas, "template": template},
    }


def running(pool: str, state: dict[str, Any]) -> Manifest:
    """Returns the live Deployment of a pool before the edit."""
    live = deployment(pool, state["role"], state["before"])
    owner = {"manager": state["owner"], "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    live["metadata"] |= {
        "uid": f"u-{pool}",
        "ownerReferences": [owner_reference("qwen", "u-1")],
        "managedFields": [owner],
    }
    return {**live, "status": {"readyReplicas": min(state["ready"], state["before"])}}


def plan_of(pools: dict[str, dict[str, Any]]) -> ApplyPlan:
    wanted = [
        deployment(pool, state["role"], state["after"], "--more")
        for pool, state in pools.items()
        if state["after"] is not None
    ]
    live = [running(pool, state) for pool, state in pools.items() if state["before"] is not None]
    return make_plan(MODEL, wanted, {child_key(one): one for one in live}, PruneGuard())


def count_after(state: dict[str, Any]) -> int:
    """Returns the number that a pool has in the end: another writer's number stays."""
    if state["after"] is None:
        return 0
    is_foreign = state["before"] is not None and state["owner"] != "fairlead"
    return int(state["before"] if is_foreign else state["after"])


@pytest.mark.parametrize("roles", [("Decode", "Decode"), ("Prefill", "Decode")])
def test_no_edit_takes_the_last_ready_instance_of_a_role_that_goes_on(roles: tuple[str, str]) -> None:
    for pair in itertools.product(*map(states, roles)):
        pools = dict(zip(POOLS, pair, strict=True))
        plan = plan_of(pools)
        gone = {name_of(child) for child in plan.prunes}
        gone |= {name_of(step.manifest) for step in plan.steps if step.manifest["spec"].get("replicas") == 0}
        retained = {name_of(kept.manifest) for kept in plan.retained}
        for role in set(roles):
            members = {f"qwen-{pool}": state for pool, state in pools.items() if state["role"] == role}
            ready = {name for name, state in members.items() if min(state["ready"], state["before"] or 0)}
            if any(map(count_after, members.values())):
                assert not ready or ready - gone, f"nothing of this role would serve: {pools}"
            else:
                assert not retained & members.keys(), f"the whole role is set to 0: {pools}"
            if any(count_after(members[name]) for name in ready):
                assert not retained & members.keys(), f"another pool of the role serves already: {pools}"


def test_pool_serves_until_the_one_that_takes_over_is_ready(harness: OperatorHarness) -> None:
    def pools(p: int, d: int) -> list[dict[str, Any]]:
        return [
            {"name": "p", "acceleratorClassName": "cpu", "minReplicas": p},
            {"name": "d", "acceleratorClassName": "cpu", "minReplicas": d},
        ]

    def counts() -> dict[str, int]:
        return {name_of(one): one["spec"]["replicas"] for one in harness.kube.objects_of("Deployment")}

    harness.kube.put(model_manifest(pools=pools(4, 0)))
    harness.run_until_idle()
    harness.edit(pools=pools(0, 3), engine={"type": "Sim", "args": ["--more"]})
    harness.run_until_idle(with_controllers=False)
    assert counts() == {"qwen-p": 4, "qwen-d": 3}
    assert "qwen-p: it serves until an instance of qwen-d is ready" in harness.message("Reconciling")
    harness.run_until_idle()
    assert counts() == {"qwen-p": 0, "qwen-d": 3}
    assert harness.conditions() == {"Ready": ("True", "AllReady")}
    harness.edit(pools=pools(0, 0))
    harness.run_until_idle(with_controllers=False)
    assert counts() == {"qwen-p": 0, "qwen-d": 0}
