"""The simulated examples as their README says: applied as they stand they become Ready, and a
stream comes through the gateway."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.kube.cluster_access.index_status import IndexStatus
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest
from e2e.kube.workloads.client_pods import HOST, ClientPod
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead.kube.resources import is_ready
from fairlead_testing.yaml_documents import load_document

pytestmark = pytest.mark.lane("models", position=20)

EXAMPLES = Path(__file__).parents[2] / "examples"
SIMULATED = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/simulated*.yaml"))
_AT_ONCE = 6
_TRIES = 10
_STREAM = """
import json, sys, urllib.request
url, key, body = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=120) as answer:
    data = [line[5:].strip().decode() for line in answer if line.startswith(b"data:")]
    print(json.dumps([dict(answer.headers), data]))
"""
_TOGETHER = """
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
url, key, *bodies = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
def ask(body):
    with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=120) as answer:
        answer.read()
        return answer.headers["x-fairlead-instance"]
with ThreadPoolExecutor(len(bodies)) as pool:
    print(json.dumps(list(pool.map(ask, bodies))))
"""
_DECISION = """
import json, os, sys, urllib.error, urllib.request
fields = {"authorization": "Bearer " + os.environ["FAIRLEAD_MANAGE_TOKEN"]}
asked = urllib.request.Request(f"http://127.0.0.1:8081/api/decisions/{sys.argv[1]}", headers=fields)
try:
    print(urllib.request.urlopen(asked, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    assert error.code == 404, error.read()
    print("null")
"""
_STATE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/sim/state', timeout=10).read().decode())"


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """A streamed answer: its header fields, and the data of its events."""

    fields: dict[str, str]
    data: list[str]

    @property
    def instance(self) -> str:
        return self.fields["x-fairlead-instance"].partition("/")[0]

    @property
    def models(self) -> set[str]:
        return {json.loads(one)["model"] for one in self.data[:-1]}


@dataclass(frozen=True, slots=True)
class AppliedExample:
    """An example that is applied and Ready, in a namespace of its own. ``name`` is the full name of
    the model, since others may have the same short one."""

    here: Kubectl
    release: HelmRelease
    client: ClientPod
    model: DeployedModel
    pods: dict[str, Manifest]

    @property
    def name(self) -> str:
        return f"{self.here.namespace}/{self.model.name}"

    def stream(self, prompt: str = "Why?", tokens: int = 8) -> StreamedAnswer:
        """A chat through the gateway's Service."""
        body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "stream": True}
        words = (f"http://{HOST}/v1/chat/completions", self.client.key, json.dumps(body | {"max_tokens": tokens}))
        told = self.here.run("exec", self.client.name, "--", "python3", "-c", _STREAM, *words)
        fields, data = json.loads(told)
        assert data[-1] == "[DONE]"
        return StreamedAnswer({name.lower(): value for name, value in fields.items()}, data)

    def streams(self, instances: set[str], most: int = 40) -> list[StreamedAnswer]:
        """Sends different prompts until each of these instances has answered one.

        Several run at a time. Why: the instance of a prompt is unknown, and single prompts might
        all go to the fastest.
        """
        found: list[StreamedAnswer] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while {one.instance for one in found} != instances and len(found) < most:
                prompts = [f"{len(found) + more} {'and so on ' * 40}" for more in range(_AT_ONCE)]
                found += pool.map(partial(self.stream, tokens=100), prompts)
        return found

    def stream_together(self, prompts: list[str]) -> set[str]:
        """The instances that answer these prompts, all asked in one moment."""
        bodies = [
            json.dumps({"model": self.name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16})
            for prompt in prompts
        ]
        words = (f"http://{HOST}/v1/chat/completions", self.client.key, *bodies)
        told = self.here.run("exec", self.client.name, "--", "python3", "-c", _TOGETHER, *words)
        return {instance.partition("/")[0] for instance in json.loads(told)}

    def explained_stream(self, prompt: str) -> tuple[StreamedAnswer, dict[str, Any]]:
        """A chat, and why it went where it went.

        A gateway remembers only its own decisions, and another test may replace gateways meanwhile:
        then it asks again, with another beginning of the prompt.
        """
        for number in range(_TRIES):
            answer = self.stream(f"{number} {prompt}")
            for name in self._gateways():
                if (found := self._decision(name, answer)) is not None:
                    return answer, found
        raise AssertionError(f"no gateway remembers any of {_TRIES} decisions")

    def _decision(self, gateway: str, answer: StreamedAnswer) -> dict[str, Any] | None:
        words = ("exec", gateway, "--", "python3", "-c", _DECISION, answer.fields["x-fairlead-decision"])
        try:
            found: dict[str, Any] | None = json.loads(self.release.here.run(*words))
        except AssertionError:
            if gateway in self._gateways():
                raise
            return None
        return found

    def _gateways(self) -> list[str]:
        pods = [pod for pod in self.release.pods("gateway").values() if "deletionTimestamp" not in pod["metadata"]]
        return [pod["metadata"]["name"] for pod in pods if is_ready(pod)]

    def roles(self, role: str) -> dict[str, Manifest]:
        return {uid: pod for uid, pod in self.pods.items() if pod["metadata"]["labels"].get("fairlead.io/role") == role}


def serving(here: Kubectl, installed: HelmRelease, file: str) -> AppliedExample:
    """Apply the example as it stands, and wait until it is Ready and answers."""
    theirs = (EXAMPLES / file).with_name("their-engines.yaml")
    if theirs.exists():
        here.run("apply", "-f", str(theirs))
    here.run("apply", "-f", str(EXAMPLES / file))
    name = load_document((EXAMPLES / file).read_text())["metadata"]["name"]
    client, model = ClientPod(here, installed).start(), DeployedModel(here, name)
    client.first_token(f"{here.namespace}/{name}")
    return AppliedExample(here, installed, client, model, model.wait_until_settled())


@pytest.mark.parametrize("file", [one for one in SIMULATED if one.partition("/")[0] == "single-model"])
def test_a_model_serves_from_each_of_its_instances(here: Kubectl, installed: HelmRelease, file: str) -> None:
    example = serving(here, installed, file)
    assert len(example.pods) == 2
    assert example.stream().models == {example.model.name}
    assert {one.instance for one in example.streams(set(example.pods))} == set(example.pods)
    IndexStatus(installed, example.name).wait_until_followed(len(example.pods))


@pytest.mark.parametrize("file", [one for one in SIMULATED if one.partition("/")[0] == "prefill-decode"])
def test_a_long_prompt_is_computed_by_one_pool_and_answered_by_the_other(
    here: Kubectl, installed: HelmRelease, file: str
) -> None:
    example = serving(here, installed, file)
    prefill, decode = example.roles("Prefill"), example.roles("Decode")
    assert example.stream().instance in decode  # a short prompt stays on one engine
    answer, decided = example.explained_stream("a long story " * 1_000)
    assert answer.instance in decode
    told = decided["handoff"]
    assert (told["outcome"], told["reason"]) == ("done", "step-full"), told
    assert [leg["instance"].partition("/")[0] in prefill for leg in told["legs"]] == [True]
    engine = decode[answer.instance]["metadata"]["name"]
    assert json.loads(here.python(engine, _STATE))["kv_transfer"]["pulled_total"] >= 1


@pytest.mark.parametrize("file", [one for one in SIMULATED if one.partition("/")[0] == "multi-node"])
def test_an_instance_over_two_nodes_answers_by_its_first_pod(here: Kubectl, installed: HelmRelease, file: str) -> None:
    example = serving(here, installed, file)
    group = here.get("leaderworkersets")["items"]
    assert [
        (manifest["spec"]["leaderWorkerTemplate"]["size"], manifest["status"]["readyReplicas"]) for manifest in group
    ] == [(2, 1)]
    assert len(example.pods) == 2
    leader = here.get("pods", "-l", "fairlead.io/endpoint=true")["items"]
    assert [example.stream().instance] == [manifest["metadata"]["uid"] for manifest in leader]


@pytest.mark.parametrize("file", [one for one in SIMULATED if one.partition("/")[0] == "heterogeneous-pools"])
def test_cheap_and_fast_engines_serve_side_by_side(here: Kubectl, installed: HelmRelease, file: str) -> None:
    example = serving(here, installed, file)
    pools = {uid: pod["metadata"]["labels"]["fairlead.io/pool"] for uid, pod in example.pods.items()}
    assert sorted(pools.values()) == ["cheap", "cheap", "fast"]
    assert pools[example.stream().instance] == "fast"  # which is calm
    seen = set[str]()
    for turn in range(5):  # as much at once as the fast one has no time for within the objective
        seen |= example.stream_together([f"{turn} {number} {'and so on ' * 120}" for number in range(16)])
    assert seen == set(pools)


@pytest.mark.parametrize("file", [one for one in SIMULATED if one.partition("/")[0] == "external-engines"])
def test_engines_of_others_answer_under_the_name_that_clients_know(
    here: Kubectl, installed: HelmRelease, file: str
) -> None:
    example = serving(here, installed, file)
    theirs = {pod["metadata"]["uid"] for pod in here.get("pods", "-l", "app=their-vllm")["items"]}
    assert len(theirs) == 2
    answers = example.streams(theirs)
    assert {answer.instance for answer in answers} == theirs
    assert {name for answer in answers for name in answer.models} == {example.name}
    assert not here.get("deployments", "-l", "fairlead.io/model=qwen3-8b-existing")["items"]
