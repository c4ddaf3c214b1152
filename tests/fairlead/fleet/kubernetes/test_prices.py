"""The prices in the fleet of a cluster: of tokens and of replicas."""

from typing import Any

from fairlead.fleet.model import TokenPrice
from fairlead.kube.resources import Manifest
from fairlead_testing.kube.operator_harness import build, model, pod


def test_a_model_has_the_price_of_its_tokens() -> None:
    priced = model(price={"input": "0.40", "cachedInput": "0.10", "output": "1.20"})
    assert build([priced]).fleet.models["x/tiny"].price == TokenPrice(400, 100, 1200)
    assert build([model()]).fleet.models["x/tiny"].price is None


def accelerator(**spec: Any) -> Manifest:
    return {"metadata": {"name": "cpu"}, "spec": {"profile": {"preset": "tiny-cpu"}, **spec}}


PRICED = accelerator(costPerHour="2.50", resource="nvidia.com/gpu")


def test_a_replica_costs_as_much_as_its_devices() -> None:
    pools = [{"acceleratorClassName": "cpu", "parallelism": {"tensor": 4, "nodes": 2}}]
    outcome = build([model(pools=pools)], pod(), classes=[PRICED])
    assert [instance.replica_nano_usd_per_hour for instance in outcome.fleet.instances["x/tiny"]] == [10_000_000_000]
    outcome = build([model()], pod(), classes=[accelerator()])
    assert [instance.replica_nano_usd_per_hour for instance in outcome.fleet.instances["x/tiny"]] == [None]


def test_ranks_of_a_pod_are_one_replica_with_one_price() -> None:
    outcome = build([model()], pod(notes={"fairlead.io/data-parallel": 2}), classes=[PRICED])
    ranks = outcome.fleet.instances["x/tiny"]
    assert {rank.id for rank in ranks} == {"u-p/8000/0", "u-p/8000/1"}
    assert {(rank.replica_id, rank.replica_nano_usd_per_hour) for rank in ranks} == {("u-p/8000", 2_500_000_000)}


def test_price_stays_while_the_spec_is_unreadable_or_the_pool_is_gone() -> None:
    before = build([model()], pod(), classes=[PRICED]).fleet
    for changed in (model(pools=7), model(pools=[{"name": "other", "acceleratorClassName": "cpu"}])):
        (instance,) = build([changed], pod(), previous=before, classes=[PRICED]).fleet.instances["x/tiny"]
        assert instance.replica_nano_usd_per_hour == 2_500_000_000
