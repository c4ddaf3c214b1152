"""Scenarios with real engines in pods: the life of a model, a hung engine, and hand-offs.

A cluster with Fairlead for the scenarios with real engines in pods, and a namespace for each.

The life of a model with real engines on a cluster.

It is applied, served through the gateway's Service, indexed, rolled out, scaled and deleted.

Two real engines in pods, of which one is stopped in its core.

Its server answers ``/health`` with 200 and sends no token.

Streams run all the time and move to the other engine. The operator marks the pod of the stopped
engine and deletes it, and its workload replaces it.

Prefill and decode by real engines in two pods, which hand over by Mooncake and TCP.

The right answer is that of the decode engine alone, asked under a salt of its own
(``prefill_handoff.py``). The decode engine counts the prompt tokens whose KV came from the other
pod. NIXL is left to the runs without a cluster: its progress thread takes a whole core of each
engine, and the node has two.
"""

import asyncio
import json
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from e2e.cluster import levels
from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import RunRecord
from e2e.kube.cluster_access.index_status import IndexStatus
from e2e.kube.cluster_access.kubectl import ApiReader, Kubectl, eventually, run_fairlead
from e2e.kube.workloads.client_pods import HOST, ClientPod, StreamSession
from e2e.kube.workloads.helm_release import GATEWAY, HelmRelease
from e2e.kube.workloads.manifests import Manifest, resource
from e2e.kube.workloads.model_deployments import DeployedModel
from e2e.vllm.client import (
    MAX_TIE_NATS,
    TIMEOUT_SECONDS,
    EngineAnswer,
    TextPrompt,
    logprob_gap,
    make_prompts,
    openai_client,
    send_prompts,
)
from e2e.vllm.engine.engine_processes import BLOCK_TOKENS, fetch
from e2e.vllm.engine.installation import Installation
from e2e.vllm.pods import pod_environment
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead.kube.resources import is_ready

ROOT = Path(__file__).resolve().parents[3]
MODEL = "tiny"
PORT = 8000
HUNG_TIMES = {"after": "30s", "restartAfter": "30s"}
"""Half of the chart's defaults: time without an answer, then with the mark."""
START_SECONDS = 900.0
"""Seconds until engines serve, at most: two that start together share two cores, with others."""

_CORE = """
from pathlib import Path
for folder in Path("/proc").glob("[0-9]*"):
    try:
        command = (folder / "cmdline").read_bytes()
    except OSError:
        continue
    if command.startswith(b"VLLM::EngineCore"):
        print(folder.name)
"""

_POST = """
import sys, urllib.request
url, key, body = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=120) as answer:
    print(answer.read().decode())
"""

_QUESTIONS = tuple(f"Why is {number} a number? " * 40 for number in (3, 17, 255))

_GREEDY = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}

_MARK = "fairlead.io/Serving"
_HUNG_SECONDS = 300.0
"""Seconds until the pod is marked, and from there until it is deleted, at most.

Gateways miss answers first. Then each of the two times of ``HUNG_TIMES`` passes.
"""

_LONG_TOKENS = 1_300
_PROMPTS = 12
_UNDER_FAULT = 8
_AGAIN_SECONDS = 180.0


class StepFailed(RuntimeError):
    """Raised after a step that did not hold: the later steps of a part build on it."""


@dataclass(frozen=True, slots=True)
class PodStage:
    """Fairlead on a cluster, and the engine's environment."""

    installed: Installation
    kubectl: Kubectl
    release: HelmRelease

    @contextmanager
    def namespace(self, part: str) -> Iterator["ModelStage"]:
        """Makes a namespace under restricted Pod Security with the volumes of the environment.

        After a failure, its objects and logs are written to ``out/vllm-pods``.
        """
        name = f"e2e-{part}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        here = self.kubectl.in_namespace(name)
        volumes = pod_environment.volumes(self.installed, name)
        here.apply(pod_environment.accelerator_class(), *volumes)
        stage = ModelStage(self, here, ClientPod(here, self.release).start(), DeployedModel(here, MODEL))
        try:
            yield stage
        except BaseException:
            here.dump(ROOT / "out" / "vllm-pods" / part)
            self.release.here.dump(ROOT / "out" / "vllm-pods" / part / "fairlead")
            raise
        finally:
            here.delete_models()
            here.run("delete", "namespace", name, "--wait=false")
            names = [volume["metadata"]["name"] for volume in volumes if volume["kind"] == "PersistentVolume"]
            here.run("delete", "persistentvolume", *names, "--wait=false")


@dataclass(frozen=True, slots=True)
class ModelStage:
    """A namespace with a client and, once applied, the model."""

    stage: PodStage
    here: Kubectl
    client: ClientPod
    model: DeployedModel

    @property
    def name(self) -> str:
        return f"{self.here.namespace}/{MODEL}"

    def manifest(self, *pools: Manifest, engine: Manifest, **spec: object) -> Manifest:
        """Returns the ModelDeployment, with weights from the claim."""
        fixed = {"model": {"uri": pod_environment.WEIGHTS}, "engine": engine, "rollout": {"drainTimeout": "20s"}}
        spec = {**fixed, "pools": list(pools), **spec}
        return resource("ModelDeployment", MODEL, **spec)

    def address(self, pod: Manifest) -> str:
        return f"http://{pod['status']['podIP']}:{PORT}"

    def gateway(self) -> str:
        return f"http://{self.stage.release.here.get('service', GATEWAY)['spec']['clusterIP']}"

    def pod_of(self, pool: str) -> Manifest:
        pods = [pod for pod in self.model.pods().values() if pod["metadata"]["labels"]["fairlead.io/pool"] == pool]
        return next(pod for pod in pods if is_ready(pod))

    def core(self, pod: Manifest) -> int:
        return int(self.here.run("exec", pod["metadata"]["name"], "-c", "engine", "--", "python3", "-c", _CORE))

    def send_signal(self, pod: Manifest, process: int, signal: str) -> None:
        code = f"import os, signal; os.kill({process}, signal.{signal})"
        self.here.run("exec", pod["metadata"]["name"], "-c", "engine", "--", "python3", "-c", code)

    def wait_until_ready(self, pods: int, seconds: float, replaced: Collection[str] = ()) -> dict[str, Manifest]:
        """Waits until the model has so many pods, all ready, and says so; returns them by uid.

        replaced: uids of pods that must be gone. Why: for a moment after a change, the only pod is
            the one of before, and ready.

        Why not until it is settled: a model of this name in another namespace adds a condition.
        """
        found: dict[str, Manifest] = {}

        def is_so() -> bool:
            model = self.model.get()
            found.clear()
            found.update(self.model.pods(going=True))
            is_seen = model.get("status", {}).get("observedGeneration") == model["metadata"]["generation"]
            is_whole = len(found) == pods and all(map(is_ready, found.values())) and not found.keys() & set(replaced)
            return is_seen and is_whole and self.model.condition("Ready").get("status") == "True"

        eventually(
            f"{pods} pods are ready", is_so, seconds=seconds, describe=lambda: str(self.model.get().get("status"))
        )
        return found

    def wait_until_gone(self, seconds: float) -> None:
        self.here.run("delete", "modeldeployment", MODEL, f"--timeout={seconds:g}s")
        eventually("its pods are gone", lambda: not self.model.pods(going=True), seconds=seconds)


@contextmanager
def pod_stage(installed: Installation) -> Iterator[PodStage]:
    """Brings up a cluster where none is up, and installs Fairlead of the working tree. What was up
    before stays up."""
    run = pinned_versions.cache_folder() / "cluster"
    before = bool(RunRecord(run).get("up") and RunRecord(run).pids())
    try:
        cluster = levels.up("full", run)
        if before:
            levels.load_images(run, None)
        with closing(ApiReader(cluster.environ())) as reader:
            kubectl = Kubectl(cluster.environ(), reader)
            release = HelmRelease(kubectl)
            if release.is_installed:
                release.remove()
            release.install(operator={"hungEngines": HUNG_TIMES})
            yield PodStage(installed, kubectl, release)
    finally:
        if not before:
            levels.down(run)


async def step(report: VllmReport, name: str, what: Callable[[], Numbers]) -> None:
    """Makes one step of a part. Raises StepFailed when it does not hold."""

    async def run() -> Numbers:
        return what()  # here, not in a thread, so that a signal ends it

    if not await report.check(name, run):
        raise StepFailed(f"{name}: the later steps were left out")


def post(client: ClientPod, url: str, body: Manifest) -> Manifest:
    """Returns the JSON answer to a POST from the client's pod."""
    words = ("exec", client.name, "--", "python3", "-c", _POST, url, client.key, json.dumps(body))
    answer: Manifest = json.loads(client.here.run(*words))
    return answer


def metric(url: str, name: str, **labels: str) -> float:
    """Returns the sum of a metric's series with these labels at an engine; 0 without any."""
    pairs = [f'{key}="{value}"' for key, value in labels.items()]
    lines = fetch(f"{url}/metrics", seconds=60.0).decode().splitlines()
    wanted = [line for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in wanted if all(pair in line for pair in pairs))


_RATE, _TOKENS = 0.5, 8


class PodsLifecycle:
    """One model of one or two engines, at most three while they are replaced."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("lifecycle") as self._here:
            await step(self._report, "applied, and a first token through the gateway's Service", self._apply)
            await step(self._report, "answers are those of the engine alone", self._compare)
            await step(self._report, "blocks of the prompts are in the index", self._index)
            await step(self._report, "rollout of a changed argument, under streams", self._roll_out)
            await step(self._report, "two engines, under streams", self._scale_up)
            await step(self._report, "one engine, under streams", self._scale_down)
            await step(self._report, "deleted", self._delete)

    def _apply(self) -> Numbers:
        here = self._here
        manifest = here.manifest(self._pool(1), engine=pod_environment.engine(self._stage.installed))
        begun = time.time()
        here.here.apply(manifest)
        first = here.client.first_token(here.name, seconds=START_SECONDS)
        (pod,) = here.wait_until_ready(pods=1, seconds=60.0).values()
        return {"first_token_seconds": round(first - begun, 1), "phase": pod["status"]["phase"]}

    def _compare(self) -> Numbers:
        """Asks the gateway's Service and the engine's pod the same, from a pod.

        The engine is asked under a salt, so that no answer starts from a cached prefix.
        """
        here = self._here
        (pod,) = here.model.pods().values()
        asked = ((f"http://{HOST}", {"model": here.name}), (here.address(pod), {"model": MODEL, "cache_salt": "alone"}))
        through, alone = ([_answer(here, url, more, question) for question in _QUESTIONS] for url, more in asked)
        require(all(through), "an answer is empty", {"texts": through})
        require(through == alone, "an answer is another one", {"through": through, "alone": alone})
        return {"answers": len(through), "characters": sum(map(len, through))}

    def _index(self) -> Numbers:
        """Looks up the prompts by ``fairlead index match``, and reads the engine's count."""
        here = self._here
        (pod,) = here.model.pods().values()
        IndexStatus(self._stage.release, here.name).wait_until_followed(1)
        numbers: Numbers = {"prompt_tokens": 0, "matched_tokens": 0, "cached_tokens": 0}
        for question in _QUESTIONS:
            asked = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
            tokens = post(here.client, f"{here.address(pod)}/tokenize", asked)["tokens"]
            whole = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
            eventually("its blocks are in the index", lambda: _matched(here, tokens) >= whole, seconds=60.0, every=1.0)  # noqa: B023
            again = post(here.client, f"http://{HOST}/v1/chat/completions", {**asked, "model": here.name, **_GREEDY})
            cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            require(cached in (whole, whole - BLOCK_TOKENS), "the engine found another number", {"cached": cached})
            counts = {"prompt_tokens": len(tokens), "matched_tokens": whole, "cached_tokens": cached}
            numbers = {name: numbers[name] + count for name, count in counts.items()}
        return {"prompts": len(_QUESTIONS), **numbers}

    def _roll_out(self) -> Numbers:
        here = self._here
        before = here.model.pods()
        changed = pod_environment.engine(self._stage.installed, "--max-num-seqs=64")
        return self._change({"engine": {"args": changed["args"]}}, pods=1, replaced=before)

    def _scale_up(self) -> Numbers:
        here = self._here
        before = here.model.pods()
        numbers = self._change({"pools": [self._pool(2)]}, pods=2)
        require(before.keys() <= here.model.pods().keys(), "the first engine was replaced", numbers)
        answered: set[str | None] = set()

        def have_answered() -> bool:
            answered.add(here.client.send(here.name, prompt=f"{len(answered)} {time.monotonic()} ").instance)
            return len(answered - {None}) == 2

        eventually("both engines answer", have_answered, describe=lambda: str(answered))
        return numbers

    def _scale_down(self) -> Numbers:
        return self._change({"pools": [self._pool(1)]}, pods=1)

    def _delete(self) -> Numbers:
        self._here.wait_until_gone(seconds=120.0)
        return {"status_of_a_request": self._here.client.send(self._here.name).status}

    def _change(self, spec: Numbers, *, pods: int, replaced: Collection[str] = ()) -> Numbers:
        """Changes the model while streams run, of which none may fail.

        replaced: pods that are gone afterwards.
        """
        here = self._here
        with StreamSession(here.client, here.name, rate=_RATE, tokens=_TOKENS) as streams:
            begun = time.monotonic()
            here.model.patch(spec)
            here.wait_until_ready(pods=pods, seconds=START_SECONDS, replaced=replaced)
            numbers: Numbers = {"settled_seconds": round(time.monotonic() - begun, 1)}
        numbers |= {name: streams.end[name] for name in ("streams", "outcomes", "first_token_seconds")}
        require(not streams.failures, "a stream failed", {**numbers, "failures": streams.failures[:5]})
        return numbers

    @staticmethod
    def _pool(replicas: int) -> Numbers:
        return pod_environment.pool(minReplicas=replicas)


def _answer(here: ModelStage, url: str, more: Numbers, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], **_GREEDY, **more}
    answer = post(here.client, f"{url}/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


def _matched(here: ModelStage, tokens: list[int]) -> int:
    """Returns the tokens of a prompt that an instance has cached, by ``fairlead index match``."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(tokens))
        file.flush()
        words = ("index", "match", "--model", here.name, "--tokens", str(Path(file.name)), "--output", "json")
        found = json.loads(run_fairlead(here.here, *words)[1])
    return max((instance["matched_tokens"] for instance in found["instances"]), default=0)


_HUNG_RATE, _HUNG_TOKENS = 1.0, 8


class PodsHung:
    """Two engines, clients, and one SIGSTOP."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("hung") as self._here:
            await step(self._report, "two engines serve", self._apply)
            await step(self._report, "SIGSTOP of the core of one engine, under streams", self._stop_core)
            await step(self._report, "deleted", self._delete)

    def _apply(self) -> Numbers:
        here = self._here
        pool = pod_environment.pool(minReplicas=2)
        here.here.apply(here.manifest(pool, engine=pod_environment.engine(self._stage.installed)))
        here.client.first_token(here.name, seconds=START_SECONDS)
        pods = here.wait_until_ready(pods=2, seconds=START_SECONDS)
        return {"cores": len({(uid, here.core(pod)) for uid, pod in pods.items()})}

    def _stop_core(self) -> Numbers:
        """Stops the core of one engine while streams run, until two engines serve again."""
        here = self._here
        before = here.model.pods()
        uid, pod = next(iter(before.items()))
        seconds: Numbers = {}
        with StreamSession(here.client, here.name, rate=_HUNG_RATE, tokens=_HUNG_TOKENS) as streams:
            begun = time.monotonic()
            here.send_signal(pod, here.core(pod), "SIGSTOP")
            health = fetch(f"{here.address(pod)}/health") == b""
            eventually("its pod is marked", lambda: self._mark(uid) == "False", seconds=_HUNG_SECONDS, every=1.0)
            seconds["marked_seconds"] = round(time.monotonic() - begun, 1)
            eventually("its pod is deleted", lambda: uid not in here.model.pods(), seconds=_HUNG_SECONDS, every=1.0)
            seconds["deleted_seconds"] = round(time.monotonic() - begun, 1)
            # Not by the model's status, which is of the time before for a moment.
            eventually("two engines serve", lambda: len(here.model.ready_pods()) == 2, seconds=START_SECONDS, every=1.0)
            seconds["two_serve_seconds"] = round(time.monotonic() - begun, 1)
        numbers = {
            **HUNG_TIMES,
            **seconds,
            **{name: streams.end[name] for name in ("streams", "outcomes", "first_token_seconds")},
        }
        require(health, "the stopped engine's health check fails, so nothing was shown", numbers)
        require(not streams.failures, "a stream failed", {**numbers, "failures": streams.failures[:5]})
        kept = before.keys() - {uid}
        require(kept <= here.model.pods().keys(), "the other engine was replaced too", numbers)
        return numbers

    def _delete(self) -> Numbers:
        self._here.wait_until_gone(seconds=120.0)
        return {}

    def _mark(self, uid: str) -> str:
        pod: Manifest = self._here.model.pods().get(uid, {})
        conditions = pod.get("status", {}).get("conditions", [])
        # A pod that is gone was marked before.
        return next(
            (str(condition["status"]) for condition in conditions if condition["type"] == _MARK), "" if pod else "False"
        )


class PodsHandoff:
    """A prefill pod, a decode pod, and the gateway of the cluster before them."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._seed = 0

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("handoff") as self._here:
            await step(self._report, "a prefill pod and a decode pod serve", self._apply)
            await step(self._report, "first hand-off", self._first)
            await step(self._report, f"{_PROMPTS} prompts, each handed over", self._hand_over)
            await step(self._report, "the prefill pod is killed under requests", self._kill)
            await step(self._report, "the next prefill pod is used", self._again)

    def _apply(self) -> Numbers:
        here = self._here
        pools = [
            pod_environment.pool(name=role.lower(), role=role, minReplicas=1, maxReplicas=1)
            for role in ("Prefill", "Decode")
        ]
        engine = pod_environment.engine(self._stage.installed)
        here.here.apply(here.manifest(*pools, engine=engine, kvCache={"transfer": "Mooncake"}))
        here.client.first_token(here.name, seconds=START_SECONDS)
        here.wait_until_ready(pods=2, seconds=START_SECONDS)
        return {"pods": 2}

    def _first(self) -> Numbers:
        """The connection of a pair is made for the first prompt."""
        numbers = self._compare(1)
        require(numbers["handed_over"] == 1, "it was not handed over", numbers)
        return numbers

    def _hand_over(self) -> Numbers:
        numbers = self._compare(_PROMPTS)
        require(numbers["handed_over"] == _PROMPTS, "not every prompt was handed over", numbers)
        require(numbers["tokens_transferred"] > _PROMPTS * _LONG_TOKENS / 2, "too little KV was transferred", numbers)
        return numbers

    def _kill(self) -> Numbers:
        """Ends the prefill pod without a grace period; every answer must be right all the same."""
        here = self._here
        pod = here.pod_of("prefill")["metadata"]["name"]

        def kill(done: int) -> None:
            if done == 2:
                here.here.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

        return self._compare(_UNDER_FAULT, each=kill)

    def _again(self) -> Numbers:
        """Asks until a prompt is handed over to the pod that took the place of the killed one."""
        here = self._here
        eventually("two pods are ready", lambda: len(here.model.ready_pods()) == 2, seconds=START_SECONDS, every=1.0)
        end, asked = time.monotonic() + _AGAIN_SECONDS, 0
        while time.monotonic() < end:
            asked += 1
            numbers = self._compare(1)
            if numbers["handed_over"]:
                return {**numbers, "asked": asked}
        require(False, "no hand-off any more", {"asked": asked})
        return {}

    def _compare(self, count: int, each: Callable[[int], None] | None = None) -> Numbers:
        """Asks the decode engine alone, then the gateway; every answer must be the same one."""
        before = self._counts()
        with ThreadPoolExecutor(1) as beside:  # the loop of this thread is that of the report
            alone, said, gaps = beside.submit(asyncio.run, self._send(count, each)).result()
        after = self._counts()
        wrong = [
            [answer.status, answer.error[:300], round(nats, 3) if nats < 100 else "another answer"]
            for answer, nats in zip(said, gaps, strict=True)
            if not (answer.ended and nats <= MAX_TIE_NATS)
        ]
        numbers: Numbers = {
            "prompts": count,
            "equal": sum(want.tokens == got.tokens for want, got in zip(alone, said, strict=True)),
            **{name: round(after[name] - before[name]) for name in before},
            "gateway": spread([answer.seconds for answer in said]),
        }
        require(not wrong, "not every answer is that of the decode engine alone", {**numbers, "wrong": wrong})
        return numbers

    async def _send(
        self, count: int, each: Callable[[int], None] | None
    ) -> tuple[Sequence[EngineAnswer], Sequence[EngineAnswer], list[float]]:
        """Returns the answers of the decode engine, those of the gateway, and how far each pair is
        apart."""
        here, self._seed = self._here, self._seed + 1
        decode = here.address(here.pod_of("decode"))
        prompts = await make_prompts(decode, MODEL, count=count, seed=self._seed, least=_LONG_TOKENS)
        named = [
            TextPrompt(prompt.tokens, prompt.kind, prompt.path, {**prompt.body, "model": here.name})
            for prompt in prompts
        ]
        fields = {"authorization": f"Bearer {here.client.key}"}
        gateway = httpx.AsyncClient(base_url=here.gateway(), timeout=TIMEOUT_SECONDS, headers=fields)
        async with openai_client(decode) as direct, gateway as through:
            alone = await send_prompts(direct, prompts, salt=f"alone-{self._seed}")
            require(all(one.ended for one in alone), "the decode engine alone did not answer")
            said = await send_prompts(through, named, at_once=2, each=each)
            pairs = zip(prompts, alone, said, strict=True)
            gaps = [await logprob_gap(direct, one, want.tokens, got.tokens) for one, want, got in pairs]
        return alone, said, gaps

    def _counts(self) -> dict[str, float]:
        here = self._here
        decode = here.address(here.pod_of("decode"))
        status = IndexStatus(self._stage.release, here.name)
        done = status.reports("gateway", "fairlead_gateway_handoffs_total", outcome="done")
        return {
            "handed_over": sum(done),
            "tokens_transferred": metric(decode, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer"),
        }
