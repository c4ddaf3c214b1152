"""Every pod meets Pod Security `restricted`, and all children follow the shared rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.resources import Manifest, resource_of
from fairlead_operator.render import render_model
from fairlead_testing.kube.render_cases import default_context, read_case

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"), key=lambda path: path.name)
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def manifests(case: Path) -> list[Manifest]:
    model, classes = read_case(case)
    return list(render_model(model, classes, default_context()).manifests)


def templates(rendered: list[Manifest]) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    """(child, pod template) of every workload."""
    for manifest in rendered:
        if manifest["kind"] == "Deployment":
            yield manifest, manifest["spec"]["template"]
        elif manifest["kind"] == "LeaderWorkerSet":
            group = manifest["spec"]["leaderWorkerTemplate"]
            yield manifest, group["leaderTemplate"]
            yield manifest, group["workerTemplate"]


def violations(spec: dict[str, Any]) -> list[str]:
    """Returns the violations of Pod Security `restricted` by a pod."""
    problems = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    pod = spec.get("securityContext", {})
    for volume in spec.get("volumes", []):
        problems += [f"volume of {kind}" for kind in volume.keys() - {"name"} if kind not in VOLUMES]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            problems.append("allowPrivilegeEscalation")
        if own.get("privileged") or own.get("procMount") not in (None, "Default"):
            problems.append("privileged")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            problems.append("capabilities")
        if not own.get("runAsNonRoot", pod.get("runAsNonRoot")) or 0 in (own.get("runAsUser"), pod.get("runAsUser")):
            problems.append("runAsNonRoot")
        if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            problems.append("seccompProfile")
        problems += ["hostPort" for port in container.get("ports", []) if port.get("hostPort")]
    return problems


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_pod_is_restricted(case: Path) -> None:
    for _, template in templates(manifests(case)):
        engines = [container for container in template["spec"]["containers"] if container["name"] == "engine"]
        assert violations({**template["spec"], "containers": engines}) == []  # a user's sidecar is the user's


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_child_is_owned_and_labelled(case: Path) -> None:
    model, _ = read_case(case)
    for manifest in manifests(case):
        metadata = manifest["metadata"]
        resource_of(manifest)  # of a kind that the client knows
        assert len(metadata["name"]) <= 63
        assert metadata["namespace"] == model.metadata.namespace
        (owner,) = metadata["ownerReferences"]
        assert (owner["name"], owner["uid"], owner["controller"]) == (model.metadata.name, model.metadata.uid, True)
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "fairlead"
        for value in metadata["labels"].values():
            assert len(value) <= 63


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_selectors_match_the_right_pods_by_labels(case: Path) -> None:
    rendered = manifests(case)
    for workload, template in templates(rendered):
        pool = workload["metadata"]["labels"]["fairlead.io/pool"]
        beside = [manifest for manifest in rendered if manifest["metadata"]["labels"]["fairlead.io/pool"] == pool]
        labels = template["metadata"]["labels"]
        answers = "fairlead.io/endpoint" in labels
        selectors = {
            manifest["kind"]: manifest["spec"].get("selector") or manifest["spec"].get("podSelector")
            for manifest in beside
            if "spec" in manifest
        }
        assert (selectors["Service"].items() <= labels.items()) == answers
        assert (selectors["PodDisruptionBudget"]["matchLabels"].items() <= labels.items()) == answers
        assert selectors["NetworkPolicy"]["matchLabels"].items() <= labels.items()
        if workload["kind"] == "Deployment":
            assert selectors["Deployment"]["matchLabels"].items() <= labels.items()
            assert set(selectors["Deployment"]["matchLabels"]) == {"fairlead.io/model", "fairlead.io/pool"}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_grace_exceeds_drain_and_start_may_take_half_an_hour(case: Path) -> None:
    model, _ = read_case(case)
    for _, template in templates(manifests(case)):
        spec = template["spec"]
        assert spec["terminationGracePeriodSeconds"] > model.spec.rollout.drain_seconds
        (engine,) = (container for container in spec["containers"] if container["name"] == "engine")
        hook = engine["lifecycle"]["preStop"]
        assert hook.get("sleep") or float(hook["exec"]["command"][-4]) == model.spec.rollout.drain_seconds
        probe = engine.get("startupProbe")
        if probe is not None:
            assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800
            assert engine["livenessProbe"]["failureThreshold"] * engine["livenessProbe"]["periodSeconds"] >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_failed_kv_loads_are_recomputed(case: Path) -> None:
    model, _ = read_case(case)
    for _, template in templates(manifests(case)):
        for argument in template["spec"]["containers"][0]["args"]:
            if "kv_connector" in argument:
                assert argument.count('"kv_load_failure_policy":"recompute"') == max(
                    1, argument.count('"kv_connector":')
                )
        if model.spec.engine.type.label == "sim" and model.spec.kv_cache.transfer.value != "None":
            assert "--kv-load-failure-policy=recompute" in template["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_pods_name_no_user_or_group_where_the_cluster_assigns_them(case: Path) -> None:
    """OpenShift's `restricted-v2` refuses each user and group outside of the namespace's range."""
    model, classes = read_case(case)
    rendered = render_model(model, classes, default_context(assigns_users=True)).manifests
    for _, template in templates(list(rendered)):
        spec = template["spec"]
        engines = [container for container in spec["containers"] if container["name"] == "engine"]
        assert violations({**spec, "containers": engines}) == []
        for part in (spec, *engines, *spec.get("initContainers", [])):
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & part.get("securityContext", {}).keys()
