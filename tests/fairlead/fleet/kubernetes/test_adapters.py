"""Adapters of a cluster: what they become in the fleet, and which names they get."""

from dataclasses import replace
from typing import Any

from fairlead.adapters.download import AdapterDownload
from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.kubernetes.builder import FleetResult
from fairlead.fleet.kubernetes.claimant_objects import adapter_cache, route_cache
from fairlead.kube.resources import MODEL_ADAPTERS, MODEL_ROUTES, Manifest
from fairlead.limits import Limits
from fairlead_testing.kube.manifests import manifest
from fairlead_testing.kube.operator_harness import build, keyed, model

SLOTS = {"slots": 3}


def adapter(name: str, *served: str, born: str = "5", namespace: str = "x", **spec: Any) -> Manifest:
    whole = {"base": "tiny", "source": f"hf://acme/{name}", "servedNames": list(served), **spec}
    return manifest(MODEL_ADAPTERS, name, namespace, {"creationTimestamp": born}, spec=whole)


def built(models: list[Manifest], adapters: list[Manifest], **more: Any) -> FleetResult:
    return build(models, adapters=adapter_cache().parse(keyed(*adapters)), **more)


def test_a_base_has_its_adapters_and_slots() -> None:
    outcome = built([model(adapters=SLOTS)], [adapter("sql", "acme/sql"), adapter("legal")])
    tiny = outcome.fleet.models["x/tiny"]
    assert tiny.adapters == (
        LoraAdapter("legal", "acme/legal", ("legal",)),
        LoraAdapter("sql", "acme/sql", ("sql", "acme/sql")),
    )
    assert (tiny.adapter_slots, outcome.problems) == (3, ())


def test_replicas_reach_the_gateways() -> None:
    outcome = built([model(adapters=SLOTS)], [adapter("sql", replicas=2)])
    assert outcome.fleet.models["x/tiny"].adapters == (LoraAdapter("sql", "acme/sql", ("sql",), 2),)


def test_an_adapter_whose_base_cannot_load_it_is_not_served() -> None:
    models = [model(), model("y", adapters=SLOTS)]
    outcome = built(models, [adapter("a"), adapter("b", base="gone"), adapter("c", base="y", source="pvc:claim/c")])
    assert [served.adapters for served in outcome.fleet.models.values()] == [(), ()]


def test_a_base_of_another_namespace_is_none() -> None:
    outcome = built([model(adapters=SLOTS)], [adapter("sql", namespace="other")])
    assert outcome.fleet.models["x/tiny"].adapters == ()


def test_names_belong_to_models_routes_and_adapters_by_age() -> None:
    route = manifest(MODEL_ROUTES, "legal", "x", {"creationTimestamp": "4"}, spec={"targets": [{"model": "tiny"}]})
    models = [model(adapters=SLOTS, created="1"), model("sql", created="9")]
    adapters = [adapter("sql", "tiny", "x/sub"), adapter("legal", "law")]
    outcome = built(models, adapters, routes=route_cache().parse(keyed(route)))
    legal, sql = outcome.fleet.models["x/tiny"].adapters
    assert (legal.client_names, sql.client_names) == (("law",), ("sql",))
    assert outcome.fleet.models["x/sql"].shadowed
    assert outcome.fleet.routes["x/legal"].names == ("legal",)


def test_an_adapter_and_a_base_that_cannot_be_read_stay_as_they_were() -> None:
    models, adapters = [model(adapters=SLOTS)], [adapter("sql"), adapter("legal")]
    before = built(models, adapters).fleet
    broken = built(models, [adapter("sql", rank=8), adapter("legal")], previous=before)
    assert broken.fleet is before
    assert "the adapter x/sql cannot be used: spec.rank: unknown field" in broken.problems[0]
    unreadable = built([model(adapters={"slots": "many"})], adapters, previous=before)
    assert unreadable.fleet.models["x/tiny"].adapters == before.models["x/tiny"].adapters
    assert unreadable.fleet.models["x/tiny"].adapter_slots == 3


def test_only_the_oldest_adapters_are_served_beyond_the_limit() -> None:
    adapters = [adapter("c", born="3"), adapter("a", born="1"), adapter("b", born="2")]
    outcome = built([model(adapters=SLOTS)], adapters, limits=replace(Limits(), adapters=2))
    assert [lora.name for lora in outcome.fleet.models["x/tiny"].adapters] == ["a", "b"]
    assert outcome.problems == ("there are 3 adapters: only the oldest 2 are served",)


def test_download_reaches_the_gateways_with_the_path_of_its_folder() -> None:
    download = AdapterDownload("s3://loras/sql")
    outcome = built([model(adapters={"download": {}})], [adapter("sql", source=download.source)])
    assert outcome.fleet.models["x/tiny"].adapters == (
        LoraAdapter("sql", download.engine_path, ("sql",), download=download),
    )
    assert (
        built([model(adapters=SLOTS)], [adapter("sql", source=download.source)]).fleet.models["x/tiny"].adapters == ()
    )
