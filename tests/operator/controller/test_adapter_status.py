"""The status of adapters: names, their base, and what changes of others do to them."""

from typing import Any

from fairlead.adapters.download import AdapterDownload
from fairlead_testing.kube.operator_harness import NameStatusCluster

POOLS = [{"acceleratorClassName": "nvidia-l4"}]
ON_DEMAND = "gateways load it into engines of tiny on demand"


class Cluster(NameStatusCluster):
    """A cluster with adapters and their bases."""

    def __init__(self) -> None:
        super().__init__("ModelAdapter", "adapter")

    def adapter(self, name: str, *served: str, **spec: Any) -> None:
        whole = {"base": "tiny", "source": "pvc:loras/sql-1", "servedNames": list(served), **spec}
        self.put("ModelAdapter", name, spec=whole)

    def model(self, name: str = "tiny", **spec: Any) -> None:
        self.put("ModelDeployment", name, spec={"model": {"uri": "hf://a/b"}, "pools": POOLS, **spec})


def test_status_follows_the_base_and_the_source() -> None:
    cluster = Cluster()
    cluster.adapter("sql", "acme/sql")
    missing = ("False", "BaseNotFound", "no ModelDeployment here is called tiny")
    assert cluster.conditions("sql") == {"Ready": missing}
    cluster.model()
    assert cluster.queued == {"chat/tiny", "adapter:chat/sql"}
    assert cluster.conditions("sql")["Ready"][:2] == ("False", "BaseWithoutSlots")
    cluster.model(adapters={"slots": 2})
    assert "adapter:chat/sql" in cluster.queued
    assert cluster.conditions("sql")["Ready"][:2] == ("False", "ClaimNotMounted")
    cluster.model(adapters={"slots": 2, "claimNames": ["loras"]})
    assert cluster.conditions("sql") == {"Ready": ("True", "Loadable", ON_DEMAND)}
    status = cluster.status("sql")
    assert (status["clientName"], status["servedNames"]) == ("sql", ["acme/sql"])
    assert status["engineSource"] == "/var/lib/fairlead/adapters/loras/sql-1"
    cluster.adapter("sql", "acme/sql", source="hf://acme/sql-2")
    assert cluster.status("sql")["engineSource"] == "acme/sql-2"
    cluster.kube.remove("ModelDeployment", "chat", "tiny")
    assert "adapter:chat/sql" in cluster.queued
    assert cluster.conditions("sql")["Ready"] == missing
    assert "engineSource" not in cluster.status("sql")


def test_a_change_of_the_status_of_a_base_queues_no_adapter() -> None:
    cluster = Cluster()
    cluster.model(adapters={"slots": 2})
    cluster.adapter("sql")
    cluster.model(adapters={"slots": 2})
    assert "adapter:chat/sql" not in cluster.queued


def test_names_of_others_are_refused_and_an_older_adapter_keeps_its_own() -> None:
    cluster = Cluster()
    cluster.model(adapters={"slots": 2, "claimNames": ["loras"]})
    cluster.put("ModelRoute", "assistant", spec={"targets": [{"model": "tiny"}]})
    cluster.adapter("assistant", "tiny")
    taken = cluster.conditions("assistant")["NameTaken"]
    assert taken[:2] == ("True", "BareNameTaken")
    assert "clients that request assistant get the route chat/assistant" in taken[2]
    assert cluster.conditions("assistant")["Ready"] == ("True", "Loadable", ON_DEMAND)
    status = cluster.status("assistant")
    assert (status["clientName"], status["servedNames"]) == ("chat/assistant", [])
    cluster.kube.remove("ModelRoute", "chat", "assistant")
    cluster.adapter("law")
    assert cluster.status("law")["clientName"] == "law"
    cluster.put("ModelDeployment", "law", spec={"model": {"uri": "hf://a/b"}, "pools": POOLS})
    snapshot = cluster.cache.snapshot("chat/law")
    assert snapshot is not None
    assert [(name.name, name.owner) for name in snapshot.refused_names] == [("law", "adapter:chat/law")]


def test_specs_that_cannot_be_read_are_told() -> None:
    cluster = Cluster()
    cluster.model(adapters={"slots": "many"})
    cluster.adapter("sql")
    assert cluster.conditions("sql")["Ready"][:2] == ("Unknown", "BaseInvalid")
    cluster.adapter("sql", source="s3://bucket")
    ready = cluster.conditions("sql")["Ready"]
    assert ready[:2] == ("False", "InvalidAdapter")
    assert "write it like s3://BUCKET/PATH" in ready[2]


def test_adapter_of_a_store_needs_a_downloader() -> None:
    cluster = Cluster()
    cluster.model(adapters={"slots": 2})
    cluster.adapter("sql", source="s3://bucket/sql")
    ready = cluster.conditions("sql")["Ready"]
    assert ready[:2] == ("False", "BaseUnsuitable")
    assert "set spec.adapters.download there" in ready[2]
    cluster.model(adapters={"slots": 2, "download": {}})
    assert cluster.conditions("sql")["Ready"][:2] == ("True", "Loadable")
    assert cluster.status("sql")["engineSource"] == AdapterDownload("s3://bucket/sql").engine_path


def test_unchanged_and_deleted_adapters_are_not_written() -> None:
    cluster = Cluster()
    cluster.adapter("sql")
    for _ in range(3):
        cluster.reconcile("sql")
    assert cluster.counts.statuses == 1
    cluster.kube.remove("ModelAdapter", "chat", "sql")
    cluster.reconcile("sql")
    assert (cluster.counts.statuses, cluster.cache.adapters) == (1, {})
