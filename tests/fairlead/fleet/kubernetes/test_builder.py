"""The fleet that objects of a cluster give, by tables."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profiles
from fairlead.fleet.kubernetes.builder import FleetResult, pod_selections
from fairlead.fleet.kubernetes.spec_cache import SpecCache
from fairlead.fleet.model import (
    Fleet,
    Instance,
    InstanceState,
    KvPullSource,
    RequestPolicy,
    Role,
    UnknownFields,
    next_fleet,
)
from fairlead.kube.resources import Manifest
from fairlead_testing.kube.operator_harness import (
    GONE,
    LIMITS,
    LWS,
    NOT_READY,
    READY,
    build,
    external,
    keyed,
    model,
    pod,
)


def only_instance(outcome: FleetResult, key: str = "x/tiny") -> Instance:
    (instance,) = outcome.fleet.instances[key]
    return instance


def test_a_model_says_which_fields_its_engines_get_and_how_many_are_tried() -> None:
    engine = {"type": "SGLang", "unknownFields": "Refuse", "allowedFields": ["priority"]}
    policy = build([model(engine=engine)]).fleet.models["x/tiny"].requests
    assert policy == RequestPolicy(frozenset(), UnknownFields.REFUSE, frozenset({"priority"}))
    assert policy.engines == {"sglang"}
    assert build([model()]).fleet.models["x/tiny"].requests == RequestPolicy()
    assert build([model(routing={"maxAttempts": 1})]).fleet.models["x/tiny"].routing.max_attempts == 1


def test_ready_pod_is_an_instance_with_its_annotations() -> None:
    notes = {"fairlead.io/port": 9000, "fairlead.io/kv-events-port": 5500, "fairlead.io/kv-replay-port": 5700}
    outcome = build([model(slo={"ttft": "800ms"}, routing={"preset": "session"})], pod(notes=notes))
    assert only_instance(outcome) == Instance(
        id="u-p/9000/0",
        namespace="x",
        model="tiny",
        pool="main",
        url="http://10.0.0.1:9000",
        profile=builtin_profiles()["tiny-cpu"],
        kv_events="tcp://10.0.0.1:5500",
        kv_replay="tcp://10.0.0.1:5700",
    )
    served = outcome.fleet.models["x/tiny"]
    assert (served.objectives.ttft_seconds, served.routing.preset, served.shadowed) == (0.8, "session", False)
    assert (outcome.problems, outcome.excluded) == ((), {})
    assert (outcome.fleet.version, outcome.fleet.membership_epoch) == (1, 1)


def test_instances_with_peers_have_a_pull_address() -> None:
    peers = {"bytesPerToken": 1024, "bandwidth": "2Gi", "latency": "5ms"}
    deployment = model(kvCache={"offload": {"memory": "8Gi", "peers": peers}})
    lends = pod("a", notes={"fairlead.io/kv-peers-port": 5800, "fairlead.io/data-parallel": 2})
    older = pod("b")
    instances = build([deployment], lends, older).fleet.instances["x/tiny"]
    price = (1024, 2 * 2**30, 0.005)
    assert [each.pull for each in instances] == [
        KvPullSource("10.0.0.1:5800", *price),
        KvPullSource("10.0.0.1:5801", *price),
        None,
    ]
    assert [each.pull for each in build([model()], lends).fleet.instances["x/tiny"]] == [None, None]


@pytest.mark.parametrize(
    ("status", "metadata", "state"),
    [
        (READY, {}, InstanceState.READY),
        (NOT_READY, {}, InstanceState.STARTING),
        ({"phase": "Pending", "podIP": "10.0.0.1"}, {}, InstanceState.STARTING),
        (READY, GONE, InstanceState.DRAINING),
        (NOT_READY, GONE, InstanceState.DRAINING),
    ],
)
def test_pod_state_maps_to_instance_state(
    status: Mapping[str, Any], metadata: dict[str, str], state: InstanceState
) -> None:
    assert only_instance(build([model()], pod(status=status, **metadata))).state is state


@pytest.mark.parametrize(
    ("mark", "status", "state"),
    [
        ("1-asleep", READY, InstanceState.SLEEPING),
        ("2-waking", READY, InstanceState.STARTING),
        ("1-stuck", READY, InstanceState.SLEEPING),
        ("1-asleep", NOT_READY, InstanceState.STARTING),
        ("", READY, InstanceState.READY),
        ("3-asleep", READY, InstanceState.READY),
        ("1-dozing", READY, InstanceState.READY),
    ],
)
def test_sleeping_instance_gets_no_requests_and_is_no_member(
    mark: str, status: Mapping[str, Any], state: InstanceState
) -> None:
    outcome = build([model()], pod(status=status, notes={"fairlead.io/sleep": mark}))
    assert only_instance(outcome).state is state
    assert bool(next_fleet(Fleet(), outcome.fleet.models, outcome.fleet.instances).membership_epoch) is (
        state is InstanceState.READY
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"status": {"phase": "Pending"}}, "it has no address yet"),
        ({"status": {"phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.1"}}, "it has ended (Evicted)"),
        ({"status": {"phase": "Succeeded", "podIP": "10.0.0.1"}}, "it has ended (Succeeded)"),
        ({"status": {}}, "it has no address yet"),
        ({"labels": {"fairlead.io/endpoint": "false"}}, "it serves no HTTP"),
        ({"labels": {"fairlead.io/pool": ""}}, "it lacks the label fairlead.io/pool"),
        ({"labels": {"fairlead.io/role": "Cook"}}, "its role 'Cook' is not known"),
        ({"labels": {"fairlead.io/model": "other"}}, "there is no model x/other"),
        ({"namespace": "y"}, "there is no model y/tiny"),
        (
            {"labels": {"fairlead.io/role": "Prefill"}, "notes": {"fairlead.io/transfer": "pigeon"}},
            "its role is Prefill, and it has no known KV transfer protocol",
        ),
    ],
)
def test_excluded_pods_have_a_reason(changed: dict[str, Any], why: str) -> None:
    outcome = build([model()], pod(**changed))
    assert outcome.fleet.instances == {"x/tiny": ()}
    assert list(outcome.excluded.values()) == [why]


def test_ipv6_address_is_formatted_for_urls() -> None:
    notes = {"fairlead.io/kv-events-port": 5500}
    instance = only_instance(build([model()], pod(notes=notes, status={**READY, "podIP": "fd00::7"})))
    assert (instance.url, instance.kv_events) == ("http://[fd00::7]:8000", "tcp://[fd00::7]:5500")


def test_invalid_numbers_count_as_absent() -> None:
    notes = {"fairlead.io/port": "http", "fairlead.io/data-parallel": "-1", "fairlead.io/kv-events-port": "99999"}
    instance = only_instance(build([model()], pod(notes=notes)))
    assert (instance.id, instance.dp_rank, instance.kv_events) == ("u-p/8000/0", None, None)


def test_each_rank_is_an_instance_at_one_address() -> None:
    notes = {"fairlead.io/data-parallel": 2, "fairlead.io/kv-events-port": 5500}
    ranks = build([model()], pod(notes=notes)).fleet.instances["x/tiny"]
    assert [(rank.id, rank.url, rank.dp_rank, rank.kv_events) for rank in ranks] == [
        ("u-p/8000/0", "http://10.0.0.1:8000", 0, "tcp://10.0.0.1:5500"),
        ("u-p/8000/1", "http://10.0.0.1:8000", 1, "tcp://10.0.0.1:5501"),
    ]


def test_ranks_on_several_nodes_publish_where_they_run() -> None:
    group = {f"{LWS}name": "tiny-main", f"{LWS}group-index": "3"}
    notes = {"fairlead.io/data-parallel": 4, "fairlead.io/kv-events-port": 5500, f"{LWS}size": 2}
    leader = pod("leader", {**group, f"{LWS}worker-index": "0"}, notes)
    worker = pod(
        "worker",
        {**group, f"{LWS}worker-index": "1", "fairlead.io/endpoint": ""},
        status={**READY, "podIP": "10.0.0.2"},
    )
    outcome = build([model()], leader, worker)
    assert [rank.kv_events for rank in outcome.fleet.instances["x/tiny"]] == [
        "tcp://10.0.0.1:5500",
        "tcp://10.0.0.1:5501",
        "tcp://10.0.0.2:5502",
        "tcp://10.0.0.2:5503",
    ]
    assert outcome.excluded == {"x/worker": "it serves no HTTP"}
    alone = build([model()], leader).fleet.instances["x/tiny"]
    assert [rank.kv_events for rank in alone][2:] == [None, None]


def test_prefill_and_decode_know_their_kv_transfer() -> None:
    notes = {"fairlead.io/transfer": "mooncake", "fairlead.io/bootstrap-port": 8998}
    instance = only_instance(build([model()], pod(labels={"fairlead.io/role": "Prefill"}, notes=notes)))
    assert (instance.role, instance.transfer, instance.bootstrap) == (Role.PREFILL, "mooncake", "http://10.0.0.1:8998")
    instance = only_instance(
        build([model()], pod(labels={"fairlead.io/role": "Decode"}, notes={"fairlead.io/transfer": "nixl"}))
    )
    assert (instance.role, instance.transfer, instance.bootstrap) == (Role.DECODE, "nixl", None)


@pytest.mark.parametrize(("kind", "read"), [("vllm", "vllm"), ("sglang", "sglang"), ("sim", "sim"), ("custom", "vllm")])
def test_engine_kind_selects_the_metrics_adapter(kind: str, read: str) -> None:
    assert only_instance(build([model()], pod(labels={"fairlead.io/engine": kind}))).engine == read


# --- profiles -----------------------------------------------------------------------------------------------------------


def accelerator(name: str, **profile: Any) -> Manifest:
    return {"kind": "AcceleratorClass", "metadata": {"name": name}, "spec": {"profile": profile}}


def test_cluster_class_takes_precedence_over_builtin() -> None:
    outcome = build([model()], pod(), classes=[accelerator("cpu", preset="910b4", kvTokens=7)])
    profile = only_instance(outcome).profile
    assert profile is not None
    assert (profile.name, profile.kv_tokens) == ("cpu", 7)


def test_unknown_accelerator_is_a_problem_and_its_pods_are_served() -> None:
    outcome = build([model(pools=[{"acceleratorClassName": "gone"}])], pod(), pod("q"))
    assert [instance.profile for instance in outcome.fleet.instances["x/tiny"]] == [None, None]
    assert outcome.problems == (
        "x/tiny: there is no AcceleratorClass 'gone'; routing uses the default profile for the pool main",
    )


def test_unreadable_class_counts_as_absent() -> None:
    outcome = build(
        [model(pools=[{"acceleratorClassName": "odd"}])], pod(), classes=[accelerator("odd", preset="none")]
    )
    assert only_instance(outcome).profile is None
    assert outcome.problems[0].startswith("the AcceleratorClass odd cannot be read: profile.preset: no engine profile")


def test_simulated_engine_may_name_a_profile() -> None:
    outcome = build([model(engine={"type": "Sim"}, pools=[{"acceleratorClassName": "910b4"}])], pod())
    assert (only_instance(outcome).profile, outcome.problems) == (builtin_profiles()["910b4"], ())


def test_removed_pool_drains_without_a_problem() -> None:
    outcome = build([model()], pod(labels={"fairlead.io/pool": "old"}, **GONE))
    assert (only_instance(outcome).profile, outcome.problems) == (None, ())


# --- external engines ---------------------------------------------------------------------------------------------------


def test_endpoint_addresses_are_instances() -> None:
    server = only_instance(build([external({"endpoints": [{"url": "http://10.1.1.1:80/"}]})]))
    assert (server.id, server.url, server.engine, server.state) == (
        "10.1.1.1/80/0",
        "http://10.1.1.1:80",
        "vllm",
        "Ready",
    )


def test_endpoints_need_a_namespace_that_an_administrator_allowed() -> None:
    outcome = build([external({"endpoints": [{"url": "http://10.1.1.1:80"}]})], endpoint_namespaces=frozenset())
    assert outcome.fleet.instances == {"x/tiny": ()}
    assert outcome.problems == (
        "x/tiny: endpoints are not allowed in the namespace x; an administrator allows them by the chart value "
        "externalEngines.namespaces (FAIRLEAD_ENDPOINT_NAMESPACES)",
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:8081", "it is a loopback address"),
        ("http://[::ffff:127.0.0.1]:80", "it is a loopback address"),
        ("http://169.254.169.254:80", "it is a link-local address or a metadata service"),
        ("http://0.0.0.0:80", "it is not the address of one host"),
        ("http://10.0.0.1:8000", "it is the address of a pod or Service that another model uses"),
        ("http://[::ffff:10.0.0.1]:9999", "it is the address of a pod or Service that another model uses"),
        ("http://10.0.0.7:8000", "it is the address of a pod or Service that another model uses"),
    ],
)
def test_endpoint_with_a_refused_address_is_no_instance(url: str, why: str) -> None:
    steal = external({"endpoints": [{"url": url}, {"url": "http://vllm.example:8000"}]}, name="steal", namespace="b")
    theirs = external({"selector": {"matchLabels": {"app": "vllm"}}}, name="theirs", namespace="a")
    selected = keyed(pod("q", {"app": "vllm"}, namespace="a", status={**READY, "podIP": "10.0.0.7"}))
    outcome = build([model(), theirs, steal], pod(), selected_pods={("a", "app=vllm"): selected})
    assert [(instance.url, instance.checks_address) for instance in outcome.fleet.instances["b/steal"]] == [
        ("http://vllm.example:8000", True)
    ]
    assert outcome.problems == (f"b/steal: the endpoint {url} is refused: {why}",)
    assert not only_instance(outcome).checks_address


def test_endpoint_with_the_address_of_another_models_service_is_no_instance() -> None:
    services = {
        "x/tiny-main": {"spec": {"clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["10.1.1.1"]}},
        "x/headless": {"spec": {"clusterIPs": ["None"]}},
        "x/named": {"spec": {"type": "ExternalName"}},
    }
    urls = ("http://10.96.0.1:80", "http://[fd00::1]:80", "http://10.1.1.1:80", "http://vllm.example:80")
    steal = external({"endpoints": [{"url": url} for url in urls]}, name="steal", namespace="b")
    outcome = build([model(), steal], pod(), services=services)
    assert [instance.url for instance in outcome.fleet.instances["b/steal"]] == [
        "http://10.1.1.1:80",
        "http://vllm.example:80",
    ]
    why = "it is the address of a pod or Service that another model uses"
    assert outcome.problems == tuple(f"b/steal: the endpoint {url} is refused: {why}" for url in urls[:2])
    assert outcome.fleet.service_addresses == {"10.96.0.1", "fd00::1"}
    assert build([model()], pod(), services=services).fleet.service_addresses == frozenset()


def test_external_pods_are_found_by_their_labels() -> None:
    models = [external({"selector": {"matchLabels": {"app": "vllm"}, "port": 9000}})]
    assert pod_selections(SpecCache().models(keyed(*models)), LIMITS) == {("x", "app=vllm")}
    pods = keyed(
        pod("a", {"app": "vllm"}),
        pod("b", {"app": "vllm"}, **GONE),
        pod("c", {"app": "vllm"}, status={"phase": "Pending"}),
        pod("d"),
    )
    outcome = build(models, selected_pods={("x", "app=vllm"): pods})
    assert [(instance.id, instance.state, instance.url) for instance in outcome.fleet.instances["x/tiny"]] == [
        ("u-a/9000/0", InstanceState.READY, "http://10.0.0.1:9000"),
        ("u-b/9000/0", InstanceState.DRAINING, "http://10.0.0.1:9000"),
    ]
    assert outcome.excluded == {"x/c": "it has no address yet"}


def test_many_selectors_of_a_namespace_are_one_selection_of_pods() -> None:
    many = [
        external(
            *({"name": f"p{pool}", "selector": {"matchLabels": {"app": f"a{pool}"}}} for pool in range(16)), name=name
        )
        for name in ("m", "n")
    ]
    assert pod_selections(SpecCache().models(keyed(*many)), LIMITS) == {("x", None)}
    pods = keyed(pod("a", {"app": "a3"}), pod("b", {"app": "unknown"}))
    instances = build(many, selected_pods={("x", None): pods}).fleet.instances
    assert {key: [(instance.id, instance.pool) for instance in group] for key, group in instances.items()} == {
        "x/m": [("u-a/8000/0", "p3")],
        "x/n": [],
    }


def test_models_beyond_the_limit_select_no_pods() -> None:
    pools = [{"selector": {"matchLabels": {"app": "vllm"}}}]
    models = [model(created="2025-01-01T00:00:00Z"), external(*pools, name="late")]
    assert pod_selections(SpecCache().models(keyed(*models)), replace(LIMITS, models=1)) == set()


def test_served_name_comes_from_the_pod_or_the_external_spec() -> None:
    notes = {"fairlead.io/served-model-name": "Qwen/Qwen3-8B"}
    theirs = {"engine": {"type": "External"}, "model": {"uri": "hf://a/b", "servedNames": ["Qwen/Qwen3-8B", "other"]}}
    newer = {"uri": "hf://a/b", "servedNames": ["a/new-one"]}
    outcome = build([model(model=newer)], pod(notes=notes))
    assert only_instance(outcome).served_name == "Qwen/Qwen3-8B"  # the pod is older than the spec
    assert only_instance(build([model()], pod(notes={"fairlead.io/served-model-name": "no name"}))).served_name is None
    assert only_instance(build([model()], pod(notes={"fairlead.io/served-model-name": "tiny"}))).served_name is None
    addresses = [{"endpoints": [{"url": "http://10.1.1.1:80"}]}]
    assert only_instance(build([model(**theirs, pools=addresses)])).served_name == "Qwen/Qwen3-8B"
    assert (
        only_instance(
            build([model(engine=theirs["engine"], model={"uri": "hf://a/b", "servedNames": ["tiny"]}, pools=addresses)])
        ).served_name
        is None
    )
    chosen = {("x", "app=vllm"): keyed(pod("a", {"app": "vllm"}))}
    adopting = [{"selector": {"matchLabels": {"app": "vllm"}}}]
    assert only_instance(build([model(**theirs, pools=adopting)], selected_pods=chosen)).served_name == "Qwen/Qwen3-8B"


def test_external_pods_stay_until_they_are_listed() -> None:
    models = [external({"selector": {"matchLabels": {"app": "vllm"}}})]
    first = build(models, selected_pods={("x", "app=vllm"): keyed(pod("a", {"app": "vllm"}))}).fleet
    assert build(models, previous=first).fleet is first
    assert build(models, previous=first, selected_pods={("x", "app=vllm"): {}}).fleet.instances == {"x/tiny": ()}


def test_engine_claimed_by_two_models_belongs_to_the_older() -> None:
    pools = {"endpoints": [{"url": "http://10.1.1.1:80"}]}
    older = external(pools, name="z", created="2025-01-01T00:00:00Z")
    outcome = build([external(pools), older])
    assert [instance.id for instance in outcome.fleet.instances["x/z"]] == ["10.1.1.1/80/0"]
    assert outcome.fleet.instances["x/tiny"] == ()
    assert outcome.problems == (
        "the models x/z and x/tiny both name the engine http://10.1.1.1:80; only the older model uses it",
    )
    assert outcome.excluded == {"x/tiny: 10.1.1.1/80/0": "it already belongs to the model x/z"}


# --- names, doubt, order ------------------------------------------------------------------------------------------------


def test_unreadable_spec_changes_nothing() -> None:
    good = model(slo={"ttft": "800ms"}, pools=[{"acceleratorClassName": "npu-910b4"}])
    first = build([good], pod()).fleet
    outcome = build([model(pools=[], novelty=True)], pod(), previous=first)
    assert outcome.fleet is first
    assert outcome.problems[0].startswith("the spec of the model x/tiny cannot be read: ")
    grown = build([model(pools=[])], pod(), pod("q"), previous=first).fleet
    assert [instance.profile for instance in grown.instances["x/tiny"]] == [builtin_profiles()["910b4"]] * 2


def test_unreadable_spec_keeps_external_engines() -> None:
    first = build([external({"endpoints": [{"url": "http://10.1.1.1:80"}]})]).fleet
    assert build([model(pools=[])], previous=first).fleet is first


def test_pods_are_served_even_if_the_spec_was_never_readable() -> None:
    outcome = build([model(pools=[])], pod())
    assert only_instance(outcome).state is InstanceState.READY


def test_deleted_model_removes_its_instances() -> None:
    first = build([model()], pod()).fleet
    outcome = build([], pod(), previous=first)
    assert (outcome.fleet.models, outcome.fleet.instances, outcome.fleet.membership_epoch) == ({}, {}, 2)


@pytest.mark.parametrize(
    ("after", "version", "epoch"),
    [
        ([pod()], 1, 1),
        ([pod(status={**READY, "hostIP": "192.0.2.1"})], 1, 1),
        ([pod(), pod("q", status=NOT_READY)], 2, 1),
        ([pod(), pod("q")], 2, 2),
        ([pod(**GONE)], 2, 2),
        ([], 2, 2),
        ([pod(notes={"fairlead.io/kv-events-port": 5500})], 2, 1),
    ],
)
def test_version_grows_with_changes_and_epoch_with_ready_set(after: list[Manifest], version: int, epoch: int) -> None:
    first = build([model()], pod()).fleet
    fleet = build([model()], *after, previous=first).fleet
    assert (fleet.version, fleet.membership_epoch) == (version, epoch)
    assert (fleet is first) == (version == 1)


def test_order_of_objects_does_not_matter() -> None:
    models, pods = [model(), model("b")], [pod("q"), pod("p"), pod("r", {"fairlead.io/model": "b"})]
    assert build(models, *pods).fleet == build(models[::-1], *pods[::-1]).fleet


def test_models_and_instances_are_limited() -> None:
    limits = replace(LIMITS, models=1, instances=1)
    old = build([model()], pod("z")).fleet
    outcome = build(
        [model(), model("new", created="2026-03-01T00:00:00Z")], pod("a"), pod("z"), previous=old, limits=limits
    )
    assert [instance.id for instance in outcome.fleet.instances["x/tiny"]] == ["u-z/8000/0"]
    assert list(outcome.fleet.models) == ["x/tiny"]
    assert outcome.problems == (
        "the namespace x has too many models: only its oldest 1 of 2 are served; namespaces share 1 models",
        "the namespace x has too many instances: 1 of 2 are served; namespaces share 1 instances, "
        "and each rank and each endpoint is one",
    )
    assert outcome.excluded == {"u-a/8000/0": "its namespace has more instances than its share"}


def test_endpoints_of_one_manifest_cost_other_namespaces_no_instance() -> None:
    pools = [
        {"name": f"p{pool}", "endpoints": [{"url": f"http://10.1.{pool}.{number}:80"} for number in range(256)]}
        for pool in range(16)
    ]
    greedy = external(*pools, name="greedy", namespace="b", created="2025-01-01T00:00:00Z")
    own = pod("z", namespace="a")
    taken = build([greedy]).fleet
    assert len(taken.instances["b/greedy"]) == LIMITS.instances
    outcome = build([greedy, model(namespace="a")], own, previous=taken)
    assert [instance.id for instance in outcome.fleet.instances["a/tiny"]] == ["u-z/8000/0"]
    assert len(outcome.fleet.instances["b/greedy"]) == LIMITS.instances - 1
    assert outcome.problems == (
        "the namespace b has too many instances: 4,095 of 4,096 are served; namespaces share 4,096 instances, "
        "and each rank and each endpoint is one",
    )
    replaced = build([greedy, model(namespace="a")], pod("new", namespace="a"), previous=outcome.fleet)
    assert [instance.id for instance in replaced.fleet.instances["a/tiny"]] == ["u-new/8000/0"]


def test_ranks_of_one_pod_cost_other_namespaces_no_instance() -> None:
    limits = replace(LIMITS, instances=8)
    many = [pod(f"r{number}", notes={"fairlead.io/data-parallel": 1024}) for number in range(2)]
    few = [pod(f"z{number}", namespace="a") for number in range(4)]
    instances = build([model(), model(namespace="a")], *many, *few, limits=limits).fleet.instances
    assert (len(instances["a/tiny"]), len(instances["x/tiny"])) == (4, 4)


def test_models_of_one_namespace_leave_room_for_those_of_others() -> None:
    limits = replace(LIMITS, models=4)
    many = [model(f"m{number}", created=f"2025-01-0{number}T00:00:00Z") for number in range(1, 7)]
    outcome = build([*many, model(namespace="a")], limits=limits)
    assert list(outcome.fleet.models) == ["a/tiny", "x/m1", "x/m2", "x/m3"]


def test_spec_is_parsed_only_after_a_change() -> None:
    specs = SpecCache()
    (first,) = specs.models(keyed(model()))
    (same,) = specs.models(keyed({**model(), "status": {"ready": "1/1"}}))
    (other,) = specs.models(keyed(model(routing={"preset": "session"})))
    assert same is first
    assert other.spec != first.spec
    assert specs.models({}) == ()


def test_endpoint_with_a_pods_uid_as_its_host_takes_no_instance() -> None:
    uid = "0b5b1a2e-6f0e-4c57-9a51-1b2c3d4e5f60"
    victim = model("victim", "b", created="2026-05-01T00:00:00Z")
    own = pod(labels={"fairlead.io/model": "victim"}, namespace="b", uid=uid)
    endpoints = [{"url": f"http://{uid}:{port}"} for port in (8000, 9999)]
    outcome = build([external({"endpoints": endpoints}, name="taker", namespace="a"), victim], own)
    assert only_instance(outcome, "b/victim").id == f"{uid}/8000/0"
    assert outcome.fleet.instances["a/taker"] == ()
    assert "the form of a pod's uid" in outcome.problems[0]


def test_namespace_keeps_an_endpoint_that_an_older_one_names_too() -> None:
    pool = {"endpoints": [{"url": "http://engines.example:8000"}]}
    older = external(pool, name="taker", namespace="a")
    younger = external(pool, name="victim", namespace="b", created="2026-05-01T00:00:00Z")
    outcome = build([older, younger])
    assert only_instance(outcome, "a/taker").id == "engines.example/8000/0"
    assert only_instance(outcome, "b/victim").id == "engines.example/8000/b/0"
    assert outcome.problems == ()
