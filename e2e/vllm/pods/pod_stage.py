"""A cluster with Fairlead for the scenarios with real engines in pods, and a namespace for each."""

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import levels
from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import RunRecord
from e2e.kube.cluster_access.kubectl import ApiReader, Kubectl, eventually
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import GATEWAY, HelmRelease
from e2e.kube.workloads.manifests import API, Manifest
from e2e.kube.workloads.model_deployments import DeployedModel
from e2e.vllm.engine.engine_processes import fetch
from e2e.vllm.engine.installation import Installation
from e2e.vllm.pods import pod_environment
from e2e.vllm.report import Numbers, VllmReport

ROOT = Path(__file__).resolve().parents[3]
MODEL = "tiny"
PORT = 8000
HUNG_TIMES = {"after": "30s", "restartAfter": "30s"}
"""Half of the chart's defaults: time without an answer, then with the mark."""
START_SECONDS = 900.0
"""Seconds until engines serve, at most: two that start together share two cores, with others."""


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
            names = [one["metadata"]["name"] for one in volumes if one["kind"] == "PersistentVolume"]
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
        """The model's full name, by which the gateway knows it."""
        return f"{self.here.namespace}/{MODEL}"

    def manifest(self, *pools: Manifest, engine: Manifest, **spec: object) -> Manifest:
        """Returns the ModelDeployment, with weights from the claim."""
        fixed = {"model": {"uri": pod_environment.WEIGHTS}, "engine": engine, "rollout": {"drainTimeout": "20s"}}
        spec = {**fixed, "pools": list(pools), **spec}
        return {"apiVersion": API, "kind": "ModelDeployment", "metadata": {"name": MODEL}, "spec": spec}

    def address(self, pod: Manifest) -> str:
        """Returns the URL of the engine in a pod."""
        return f"http://{pod['status']['podIP']}:{PORT}"

    def gateway(self) -> str:
        """Returns the URL of the gateway's Service."""
        return f"http://{self.stage.release.here.get('service', GATEWAY)['spec']['clusterIP']}"

    def pod_of(self, pool: str) -> Manifest:
        """Returns the first ready pod of a pool."""
        pods = [one for one in self.model.pods().values() if one["metadata"]["labels"]["fairlead.io/pool"] == pool]
        return next(one for one in pods if is_ready(one))

    def core(self, pod: Manifest) -> int:
        """Returns the process id, within its pod, of the engine core."""
        return int(self.here.run("exec", pod["metadata"]["name"], "-c", "engine", "--", "python3", "-c", _CORE))

    def send_signal(self, pod: Manifest, process: int, signal: str) -> None:
        """Sends a signal to a process of a pod."""
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
        """Deletes the model and waits until none of its pods is left."""
        self.here.run("delete", "modeldeployment", MODEL, f"--timeout={seconds:g}s")
        eventually("its pods are gone", lambda: not self.model.pods(going=True), seconds=seconds)


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


def is_ready(pod: Manifest) -> bool:
    """Whether a pod is ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def post(client: ClientPod, url: str, body: Manifest) -> Manifest:
    """Returns the JSON answer to a POST from the client's pod."""
    words = ("exec", client.name, "--", "python3", "-c", _POST, url, client.key, json.dumps(body))
    answer: Manifest = json.loads(client.here.run(*words))
    return answer


_POST = """
import sys, urllib.request
url, key, body = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=120) as answer:
    print(answer.read().decode())
"""


def metric(url: str, name: str, **labels: str) -> float:
    """Returns the sum of a metric's series with these labels at an engine; 0 without any."""
    pairs = [f'{key}="{value}"' for key, value in labels.items()]
    lines = fetch(f"{url}/metrics", seconds=60.0).decode().splitlines()
    wanted = [line for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in wanted if all(pair in line for pair in pairs))
