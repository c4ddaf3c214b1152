"""The status of routes: names, targets, and what changes of others do to them."""

from typing import Any

from fairlead_testing.kube.operator_harness import NameStatusCluster


class Cluster(NameStatusCluster):
    """A cluster with routes and their models."""

    def __init__(self) -> None:
        super().__init__("ModelRoute", "route")

    def route(self, name: str, *served: str, **spec: Any) -> None:
        whole = {"servedNames": list(served), "targets": [{"model": "tiny"}], **spec}
        self.put("ModelRoute", name, spec=whole)

    def model(self, name: str, *served: str) -> None:
        self.put("ModelDeployment", name, spec={"model": {"uri": "hf://a/b", "servedNames": list(served)}})


def test_status_says_names_targets_and_that_they_exist() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("assistant", "acme/assistant", targets=[{"model": "tiny", "weight": 9}, {"model": "other/big"}])
    status = cluster.status("assistant")
    assert (status["clientName"], status["servedNames"]) == ("assistant", ["acme/assistant"])
    assert status["targets"] == "chat/tiny 9, other/big 1"
    assert cluster.conditions("assistant") == {
        "Accepted": ("True", "Valid", "gateways serve the route"),
        "ResolvedRefs": ("False", "ModelNotFound", "no model is called other/big: its conversations get 503"),
    }
    cluster.put("ModelDeployment", "big", "other", spec={"model": {"uri": "hf://a/b"}})
    assert cluster.queued == {"other/big", "route:chat/assistant"}
    message = "spec.allowedRoutes of other/big does not list chat: the route is not served"
    assert cluster.conditions("assistant")["ResolvedRefs"] == ("False", "RefNotPermitted", message)
    allowing = {"model": {"uri": "hf://a/b"}, "allowedRoutes": ["chat"]}
    cluster.put("ModelDeployment", "big", "other", spec=allowing)
    assert cluster.queued == {"other/big", "route:chat/assistant"}
    assert cluster.conditions("assistant")["ResolvedRefs"] == ("True", "Resolved", "all 2 targets exist")


def test_status_names_a_shadow_that_belongs_to_another_team() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.put("ModelDeployment", "big", "other", spec={"model": {"uri": "hf://a/b"}, "allowedRoutes": ["ops"]})
    cluster.route("a", targets=[{"model": "tiny"}], shadow={"model": "other/big"})
    message = "spec.allowedRoutes of other/big does not list chat: they are skipped"
    assert cluster.conditions("a")["ResolvedRefs"] == ("False", "RefNotPermitted", message)


def test_status_says_that_a_fallback_is_missing_and_refuses_a_loop() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("a", targets=[{"model": "tiny"}], onFailure=[{"when": ["Unavailable"], "to": "big"}])
    message = "no model is called chat/big: it answers for no other model"
    assert cluster.conditions("a")["ResolvedRefs"] == ("False", "ModelNotFound", message)
    cluster.model("big")
    assert "route:chat/a" in cluster.queued
    assert cluster.conditions("a")["ResolvedRefs"][0] == "True"
    back = {"when": ["Unavailable"], "after": "big", "to": "chat/tiny"}
    cluster.route("a", targets=[{"model": "tiny"}], onFailure=[{"when": ["Unavailable"], "to": "big"}, back])
    accepted = cluster.conditions("a")["Accepted"]
    assert accepted[:2] == ("False", "InvalidRoute")
    loop = "chat/tiny → chat/big → chat/tiny"
    assert f"spec.onFailure[1].to: the fallbacks form a loop: {loop}" in accepted[2]


def test_status_says_that_a_shadow_is_missing_and_that_nothing_can_be_compared() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("a", shadow={"model": "next", "percent": 10})
    message = "no model is called chat/next: no requests are copied"
    assert cluster.conditions("a")["ResolvedRefs"] == ("False", "ModelNotFound", message)
    cluster.model("next")
    assert "route:chat/a" in cluster.queued
    assert cluster.conditions("a")["ResolvedRefs"][0] == "True"
    cluster.route("a", shadow={"model": "chat/tiny"})
    accepted = cluster.conditions("a")["Accepted"]
    assert accepted[:2] == ("False", "InvalidRoute")
    assert "spec.shadow.model: the model is the only target of the route" in accepted[2]


def test_unchanged_status_is_not_written_again() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("assistant")
    for _ in range(3):
        cluster.reconcile("assistant")
    assert cluster.counts.statuses == 1


def test_change_during_a_write_of_the_status_is_not_missed() -> None:
    """The response holds it, so that its event is not new."""
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("a")

    def edit(_: str) -> None:
        cluster.kube.before_write = lambda _: None
        cluster.route("a", targets=[{"model": "big"}])

    cluster.kube.listeners.clear()
    cluster.kube.before_write = edit
    assert cluster.reconcile("a") == 0.0
    assert cluster.conditions("a")["ResolvedRefs"][:2] == ("False", "ModelNotFound")
    assert cluster.reconcile("a") is None


def test_names_of_a_model_are_refused_and_follow_it() -> None:
    cluster = Cluster()
    cluster.model("tiny", "acme/assistant")
    cluster.route("tiny", "acme/assistant", "chat/new")
    status = cluster.status("tiny")
    assert (status["clientName"], status["servedNames"]) == ("chat/tiny", [])
    accepted = cluster.conditions("tiny")["Accepted"]
    assert accepted[:2] == ("False", "NamesTaken")
    assert "clients that request acme/assistant get chat/tiny" in accepted[2]
    assert "the served name chat/new is refused: the namespace chat holds models" in accepted[2]
    cluster.model("tiny")
    assert "route:chat/tiny" in cluster.queued
    assert cluster.status("tiny")["servedNames"] == ["acme/assistant"]


def test_a_younger_model_does_not_take_the_name_of_a_route() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    cluster.route("assistant")
    assert cluster.status("assistant")["clientName"] == "assistant"
    cluster.put("ModelDeployment", "assistant", "other", metadata={"creationTimestamp": "9999"}, spec={"model": {}})
    snapshot = cluster.cache.snapshot("other/assistant")
    assert snapshot is not None
    assert [(name.name, name.owner) for name in snapshot.refused_names] == [("assistant", "route:chat/assistant")]
    assert cluster.conditions("assistant")["Accepted"][0] == "True"


def test_rules_without_weight_and_unreadable_specs_are_told() -> None:
    cluster = Cluster()
    cluster.model("tiny")
    override = {"tenants": ["acme"], "targets": [{"model": "tiny", "weight": 0}]}
    cluster.route("a", targets=[{"model": "tiny", "weight": 1}], overrides=[override])
    message = "no target of spec.overrides[0] has a weight above 0: its requests get 503"
    assert cluster.conditions("a")["ResolvedRefs"] == ("False", "NoWeight", message)
    cluster.route("a", overrides=[{"headers": {"Authorization": "x"}, "targets": [{"model": "tiny"}]}])
    conditions = cluster.conditions("a")
    assert set(conditions) == {"Accepted"}
    assert conditions["Accepted"][:2] == ("False", "InvalidRoute")
    assert "this header holds a key" in conditions["Accepted"][2]


def test_deleted_route_is_left_alone() -> None:
    cluster = Cluster()
    cluster.route("a")
    cluster.kube.remove("ModelRoute", "chat", "a")
    cluster.reconcile("a")
    assert (cluster.counts.statuses, cluster.cache.routes) == (0, {})
