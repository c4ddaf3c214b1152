"""Conversion of earlier manifests: recorded examples keep their comments and their meaning."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.api.v1alpha1 import API_VERSION
from fairlead.limits import Limits
from fairlead.manifests.convert import convert_document, convert_spec
from fairlead.manifests.convert_text import convert_text
from fairlead.manifests.loader import combine_texts

EARLIER = sorted((Path(__file__).parent / "earlier").glob("*.yaml"))


def model(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": "a"}, "spec": spec}


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_every_earlier_example_is_converted_and_keeps_its_comments(path: Path) -> None:
    text = path.read_text()
    converted = convert_text(text, file=path.name)
    assert converted.keeps_comments
    assert converted.changes
    _, problems = combine_texts([(path.name, converted.text)], limits=Limits())
    assert problems == []
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    assert [line.strip() for line in converted.text.splitlines() if line.strip().startswith("#")] == comments


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_a_converted_example_is_converted_no_further(path: Path) -> None:
    once = convert_text(path.read_text(), file=path.name).text
    again = convert_text(once, file=path.name)
    assert (again.text, again.changes) == (once, ())


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_each_earlier_field_of_an_example_is_refused_with_its_new_name(path: Path) -> None:
    text = path.read_text()
    _, problems = combine_texts([(path.name, text)], limits=Limits())
    said = {problem.field for problem in problems if "fairlead convert" in problem.fix}
    renamed = [
        change for change in convert_text(text, file=path.name).changes if change.key or change.children is not None
    ]
    for change in renamed:
        field = ".".join(str(step) for step in change.path).replace("objectives.itl", "objectives")
        assert any(field.startswith(name.replace("[", ".").replace("]", "")) for name in said), (field, said)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"model": {"source": "hf://a/b"}}, {"model": {"uri": "hf://a/b"}}),
        (
            {"model": {"source": "hf://a/b", "credentials": {"secretName": "token"}}},
            {"model": {"uri": "hf://a/b", "credentials": {"secretRef": {"name": "token"}}}},
        ),
        (
            {"model": {"source": "hf://a/b"}, "engine": {"kind": "sglang", "servedModelName": "a/b"}},
            {"model": {"uri": "hf://a/b", "servedNames": ["a/b"]}, "engine": {"type": "SGLang"}},
        ),
        (
            {"model": {"source": "hf://a/b"}, "engine": {"servedModelName": "a/b"}},
            {"model": {"uri": "hf://a/b", "servedNames": ["a/b"]}},
        ),
        (
            {"pools": [{"accelerator": "l4", "replicas": {"min": 0, "max": 4}}, {"replicas": {}}]},
            {"pools": [{"acceleratorClassName": "l4", "minReplicas": 0, "maxReplicas": 4}, {}]},
        ),
        (
            {"objectives": {"target": 0.999, "ttft": "1s", "itl": "40ms"}},
            {"slo": {"target": "99.9%", "ttft": "1s", "tpot": "40ms"}},
        ),
        ({"objectives": {"target": 1}}, {"slo": {"target": "100%"}}),
        ({"autoscaling": {"mode": "Off"}}, {"autoscaling": {"mode": "Disabled"}}),
        ({"autoscaling": {"mode": False}}, {"autoscaling": {"mode": "Disabled"}}),
        (
            {"autoscaling": {"max": 9, "downWindow": "5m", "schedules": [{"name": "a", "min": 1, "max": 2}]}},
            {
                "autoscaling": {
                    "maxReplicas": 9,
                    "stabilizationWindow": "5m",
                    "schedules": [{"name": "a", "minReplicas": 1, "maxReplicas": 2}],
                }
            },
        ),
        ({"rollout": {"surge": 2, "drain": "5m"}}, {"rollout": {"maxSurge": 2, "drainTimeout": "5m"}}),
        (
            {"kvCache": {"transfer": "Nixl", "offload": {"kind": "Native"}}},
            {"kvCache": {"transfer": "NIXL", "offload": {"type": "Native"}}},
        ),
        ({"kvCache": {"transfer": "Mooncake"}}, {"kvCache": {"transfer": "Mooncake"}}),
        ({"engine": "vllm", "pools": 3, "objectives": None}, {"engine": "vllm", "pools": 3, "slo": None}),
    ],
)
def test_each_word_becomes_the_new_one(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    assert convert_spec(earlier) == now
    assert convert_spec(now) == now


def test_seconds_of_a_profile_become_quantities_that_read_back_to_the_same_number() -> None:
    profile = {"prefillTokenSeconds": 3.6e-05, "attentionSeconds": 1.24e-08, "stepSeconds": 1.5, "hitTokenSeconds": 0.0}
    earlier = {"apiVersion": API_VERSION, "kind": "AcceleratorClass", "spec": {"profile": {**profile, "kvTokens": 5}}}
    assert convert_document(earlier).document["spec"]["profile"] == {
        "prefillTokenSeconds": "36u",
        "attentionSeconds": "12.4n",
        "stepSeconds": "1.5",
        "hitTokenSeconds": 0,
        "kvTokens": 5,
    }


def test_objects_of_other_kinds_and_releases_stay() -> None:
    for document in (
        {"kind": "Secret"},
        {"apiVersion": "serving.fairlead.io/v2", "kind": "ModelDeployment", "spec": {"objectives": {}}},
    ):
        assert convert_document(document).document == document


def test_every_object_of_a_list_is_converted() -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [model(model={"source": "hf://a/b"}), {"kind": "Secret"}]}
    found = convert_document(listed)
    assert found.document["items"] == [model(model={"uri": "hf://a/b"}), {"kind": "Secret"}]
    assert [change.describe() for change in found.changes] == [
        "items[0].spec.model.source is now items[0].spec.model.uri"
    ]


BLOCK = """\
# a model
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata:
  name: a   # its name
spec:
  model:
    source: hf://Qwen/Qwen3-8B # the weights
    credentials:
      secretName: token
  engine:
    # the engine
    servedModelName: Qwen/Qwen3-8B  # as clients know it
    kind: vllm
  pools:
    - accelerator: nvidia-l4   # small
      replicas: # numbers
        min: 1
        # at night
        max: 4  # at day
      role: Serve
    -
      name: two
      accelerator: cpu
      replicas: {min: 2}
  autoscaling: {mode: "Off"}
  objectives:
    itl: 40ms
    target: 0.95

# the end
"""
CONVERTED = """\
# a model
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata:
  name: a   # its name
spec:
  model:
    uri: hf://Qwen/Qwen3-8B # the weights
    credentials:
      secretRef: {name: token}
    servedNames: [Qwen/Qwen3-8B]  # as clients know it
  engine:
    # the engine
    type: VLLM
  pools:
    - acceleratorClassName: nvidia-l4   # small
      # numbers
      minReplicas: 1
        # at night
      maxReplicas: 4  # at day
      role: Serve
    -
      name: two
      acceleratorClassName: cpu
      minReplicas: 2
  autoscaling: {mode: Disabled}
  slo:
    tpot: 40ms
    target: "95%"

# the end
"""


def test_the_layout_and_the_comments_of_a_file_stay() -> None:
    found = convert_text(BLOCK, file="a.yaml")
    assert found.keeps_comments
    assert found.text == CONVERTED


def test_json_stays_json() -> None:
    text = yaml.safe_dump(model(model={"source": "hf://a/b"}), default_flow_style=True, default_style='"')
    found = convert_text(text, file="a.json")
    assert '"uri": "hf://a/b"' in found.text


def test_a_file_with_anchors_is_written_anew_and_says_so() -> None:
    text = "x: &pool {accelerator: cpu}\n"
    text = (
        BLOCK.replace("    - accelerator: nvidia-l4   # small\n", "    - &one\n      accelerator: nvidia-l4\n") + text
    )
    shared = text.replace("    -\n      name: two\n      accelerator: cpu\n      replicas: {min: 2}\n", "    - *one\n")
    found = convert_text(shared, file="a.yaml")
    assert not found.keeps_comments
    assert [pool["acceleratorClassName"] for pool in yaml.safe_load(found.text)["spec"]["pools"]] == ["nvidia-l4"] * 2
