"""Manifests for a cluster in local mode: each field is honoured, noted, or rejected with field and
fix.
"""

from pathlib import Path

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead.manifests.loader import load_manifests
from fairlead_cli.local.stack.engine_plan import EnginePlan, PlanOptions, plan_engines
from fairlead_cli.local.stack.engine_process import EngineProcess

HEAD = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: a}
spec:
"""
SPLIT = (
    HEAD
    + """\
  model: {uri: "hf://a/b"}
  engine: {type: KIND}
  pools:
    - {name: first, role: Prefill, acceleratorClassName: nvidia-h100}
    - {name: then, role: Decode, acceleratorClassName: nvidia-h100, minReplicas: 2}
    - {name: both, acceleratorClassName: nvidia-h100}
  kvCache: {transfer: Mooncake}
"""
)
EXTERNAL = (
    HEAD
    + """\
  model: {uri: "hf://a/b"}
  engine: {type: External}
  pools:
    - {endpoints: [{url: "http://10.0.0.5"}, {url: "https://[fd00::2]:8443/"}]}
    - {name: known, acceleratorClassName: nvidia-l4, endpoints: [{url: "http://10.0.0.6:9000"}]}
"""
)
EVERYTHING = (
    HEAD
    + """\
  model: {uri: "hf://a/b", revision: v1, credentials: {secretRef: {name: s}}, cache: {size: 1Gi}}
  engine:
    image: mine
    imagePullSecrets: [{name: r}]
    env: [{name: A, value: b}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  pools:
    - acceleratorClassName: nvidia-l4
      parallelism: {tensor: 2}
      minReplicas: 2
      maxReplicas: 4
      template: {spec: {priorityClassName: high}}
  replicas: 3
  kvCache: {offload: {memory: 1Gi}}
  adapters: {claimNames: [loras]}
  autoscaling: {mode: Auto}
  rollout: {paused: true}
"""
)


def make_plan(directory: Path, text: str, *, real: bool = False) -> EnginePlan:
    (directory / "m.yaml").write_text(text)
    return plan_engines(load_manifests([directory / "m.yaml"]), PlanOptions(real=real), find_program=lambda name: name)


def test_fields_without_effect_become_notes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, EVERYTHING)
    assert plan.notes == (
        "a: no effect in local mode: spec.model.revision, spec.model.credentials, spec.model.cache, spec.engine.image, "
        "spec.engine.imagePullSecrets, spec.engine.env[1].valueFrom, spec.pools[0].parallelism, spec.pools[0].template, "
        "spec.kvCache.offload, spec.adapters.claimNames, spec.rollout",
        "a: not scaled, since spec.replicas sets the number",
    )
    (pool,) = plan.pools
    assert pool.replicas == 3
    assert pool.command((9001,), 0).environment == {"A": "b"}


@pytest.mark.parametrize("kind", ["SGLang", "Custom, image: mine"])
def test_unsupported_engine_types_are_simulated(tmp_path: Path, kind: str) -> None:
    text = (
        HEAD + f'  model: {{uri: "hf://a/b"}}\n  engine: {{type: {kind}}}\n  pools: [{{acceleratorClassName: cpu}}]\n'
    )
    (pool,) = make_plan(tmp_path, text).pools
    assert "fairlead_sim" in pool.command((9001,), 0).argv


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        (SPLIT.replace("KIND", "VLLM"), "spec.pools[0].role", "leave --real out, or use the role Serve"),
        (SPLIT.replace("KIND", "SGLang"), "spec.engine.type", "leave --real out to simulate it"),
        (EVERYTHING, "spec.model.revision", "remove it, or leave --real out"),
        (EVERYTHING.replace("revision: v1, ", ""), "spec.engine.env[1].valueFrom", "remove it, or leave --real out"),
        (
            HEAD
            + '  model: {uri: "hf://a/b"}\n  pools: [{acceleratorClassName: cpu, parallelism: {nodes: 2, tensor: 2}}]\n',
            "spec.pools[0].parallelism",
            "remove it, or leave --real out",
        ),
    ],
)
def test_real_engine_with_unsupported_fields_is_refused(tmp_path: Path, text: str, field: str, hint: str) -> None:
    with pytest.raises(BadInput) as error:
        make_plan(tmp_path, text, real=True)
    assert error.value.field == field
    assert (error.value.hint or "").startswith(hint)


@pytest.mark.parametrize(("kind", "transfer"), [("VLLM", "mooncake"), ("SGLang", "sglang")])
def test_prefill_and_decode_pools_are_simulated(tmp_path: Path, kind: str, transfer: str) -> None:
    plan = make_plan(tmp_path, SPLIT.replace("KIND", kind))
    tails = [pool.command((9001,), 0).argv[-4:] for pool in plan.pools]
    assert tails[:2] == [
        ("--kv-connector", transfer, "--kv-role", "kv_producer"),
        ("--kv-connector", transfer, "--kv-role", "kv_consumer"),
    ]
    assert "--kv-connector" not in tails[2]
    templates = [pool.template for pool in plan.pools]
    assert [(template.role, template.transfer) for template in templates] == [
        (Role.PREFILL, transfer),
        (Role.DECODE, transfer),
        (Role.SERVE, None),
    ]


def test_prefill_instances_have_a_bootstrap_url(tmp_path: Path) -> None:
    first, then, _ = make_plan(tmp_path, SPLIT.replace("KIND", "VLLM")).pools
    assert EngineProcess(first, 0, (9001,)).bootstrap_url("http://127.0.0.1:9001") == "http://127.0.0.1:9001"
    assert EngineProcess(then, 0, (9002,)).bootstrap_url("http://127.0.0.1:9002") is None


def test_external_engines_are_adopted_not_started(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, EXTERNAL, real=True)
    assert plan.engines == 3
    assert [pool.process_sizes() for pool in plan.pools] == [[], []]
    instances = [instance for pool in plan.pools for instance in pool.adopted]
    assert [(instance.id, instance.url) for instance in instances] == [
        ("10.0.0.5/80/0", "http://10.0.0.5:80"),
        ("fd00::2/8443/0", "https://[fd00::2]:8443"),
        ("10.0.0.6/9000/0", "http://10.0.0.6:9000"),
    ]
    assert [instance.profile for instance in instances] == [None, None, builtin_profile("l4-qwen8b")]


def test_pod_selector_is_refused(tmp_path: Path) -> None:
    text = EXTERNAL.replace('endpoints: [{url: "http://10.0.0.6:9000"}]', "selector: {matchLabels: {app: a}}")
    with pytest.raises(BadInput, match="no pods that a selector could find") as error:
        make_plan(tmp_path, text)
    assert error.value.field == "spec.pools[1].selector"
