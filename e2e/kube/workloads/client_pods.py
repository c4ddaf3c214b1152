"""A client inside the cluster: a pod that asks the gateway by its Service, as applications do.

Results of the tests on a cluster, written to out/e2e.json, and by ``make e2e LOAD=1`` to
bench/results/e2e.json.

Readers compare times with the goals, never a test: a machine with other work would fail it.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from e2e.kube.cluster_access.kubectl import Kubectl
from e2e.kube.workloads.helm_release import GATEWAY, NAMESPACE, HelmRelease
from e2e.kube.workloads.manifests import config_map, pod, pod_spec
from fairlead_testing.reports import ReportLine, commit, lines_as_json, machine

HOST = f"{GATEWAY}.{NAMESPACE}.svc"
STREAMS = Path(__file__).with_name("streaming_load.py")
_FIRST = """
import json, sys, time, urllib.error, urllib.request
url, key, body, seconds = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
end, said = time.monotonic() + float(seconds), "never asked"
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=30) as answer:
            for line in answer:
                event = json.loads(line[5:]) if line.startswith(b"data: {") else {}
                if any(one["delta"].get("content") for one in event.get("choices", ())):
                    print(json.dumps({"at": time.time(), "instance": answer.headers["x-fairlead-instance"]}))
                    sys.exit()
            said = "the stream ended without a token"
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.read()[:500]}"
    except OSError as error:
        said = repr(error)
    time.sleep(0.05)
sys.exit(f"no token within {seconds} s: {said}")
"""
_ASK = """
import json, sys, urllib.error, urllib.request
url, key, body = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
try:
    with urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, fields), timeout=120) as answer:
        first = answer.readline()
        print("begun", flush=True)
        text = (first + answer.read()).decode()
        print(json.dumps([answer.status, answer.headers["x-fairlead-instance"], text]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, None, error.read().decode()]))
"""
_EACH = """
import json, sys, urllib.error, urllib.request
host, key, requests = sys.argv[1:]
found = []
for path, body, headers in json.loads(requests):
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{host}{path}", data, fields)
    try:
        answer = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        said = {name.lower(): value for name, value in answer.headers.items()}
        found.append([answer.status, said, json.loads(answer.read())])
print(json.dumps(found))
"""

ROOT = Path(__file__).parents[3]
FULL = os.environ.get("FAIRLEAD_E2E", "") == "full"
REPORTS = ROOT / "bench" / "results" if FULL else ROOT / "out"


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """An answer of the gateway. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: Any

    def model_or_code(self) -> str:
        return str(self.body["model"] if self.status == 200 else self.body["error"]["code"])


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """A request to the gateway; without a body it is a GET."""

    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientAnswer:
    """A client's answer. ``instance`` is the engine that gave it, None where there was none."""

    status: int
    instance: str | None
    text: str


class ClientPod:
    """A pod in the namespace ``here`` that has the installation's first key."""

    def __init__(self, here: Kubectl, release: HelmRelease) -> None:
        self.here = here
        self.key = release.key()
        self.name = "client"

    def start(self, node: str | None = None) -> Self:
        """Make it, on one node if it is named, and wait until it runs."""
        spec = pod_spec("gateway", command=("python3", "-c", "import signal; signal.pause()"), files=self.name)
        if node is not None:
            spec["nodeName"] = node
        self.here.apply(config_map(self.name, streams__py=STREAMS.read_text()), pod(self.name, spec))
        self.here.wait("condition=Ready", f"pod/{self.name}")
        return self

    def first_token(self, model: str, seconds: float = 120.0) -> float:
        """Ask until a stream's first token comes; the wall-clock time of it. What is refused
        meanwhile is asked again."""
        body = json.dumps({**_question(model, 8), "stream": True})
        return float(json.loads(self._run(_FIRST, _url("chat/completions"), self.key, body, f"{seconds:g}"))["at"])

    def send(self, model: str, tokens: int = 4, *, prompt: str = "Why?") -> ClientAnswer:
        return self._answer(_url("chat/completions"), json.dumps(_question(model, tokens, prompt)))

    def send_each(self, requests: Iterable[GatewayRequest], key: str = "") -> list[GatewayAnswer]:
        """Sends requests one after the other, with the pod's key or another one."""
        words = json.dumps([[request.path, request.body, dict(request.headers)] for request in requests])
        found = json.loads(self._run(_EACH, HOST, key or self.key, words).splitlines()[-1])
        return [GatewayAnswer(*one) for one in found]

    def begin(self, model: str, tokens: int) -> Callable[[], ClientAnswer]:
        """Begin a stream; what is returned once it has begun gives the whole of it, when it has
        ended."""
        body = json.dumps({**_question(model, tokens), "stream": True})
        words = ["exec", self.name, "--", "python3", "-c", _ASK, _url("chat/completions"), self.key, body]
        command = ["kubectl", "-n", self.here.namespace, *words]
        process = subprocess.Popen(command, env=dict(self.here.environ), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = process.stdout
        begun = lines.readline()

        def ended() -> ClientAnswer:
            with process:
                told = lines.read() if begun == "begun\n" else begun
            return ClientAnswer(*json.loads(told))

        return ended

    def models(self) -> set[str]:
        """Returns the models that the gateway lists."""
        listed = self._answer(_url("models"), "")
        assert listed.status == 200, listed
        return {str(one["id"]) for one in json.loads(listed.text)["data"]}

    def _answer(self, url: str, body: str) -> ClientAnswer:
        return ClientAnswer(*json.loads(self._run(_ASK, url, self.key, body).splitlines()[-1]))

    def _run(self, code: str, *words: str) -> str:
        return self.here.run("exec", self.name, "--", "python3", "-c", code, *words)


class StreamSession:
    """Streams at a constant rate through the gateway's Service, for as long as the block lasts:
    ``streaming_load.py`` in the client's pod.

    ``end`` has the last line of it: the count of everything. ``prompt`` says how often a prompt
    repeats its words (``repeats``), and of how many conversations each is another turn
    (``conversations``).
    """

    def __init__(
        self, client: ClientPod, model: str, *, rate: float, tokens: int, prompt: Mapping[str, int] | None = None
    ) -> None:
        self.failures: list[dict[str, Any]] = []
        self.seconds: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.end: dict[str, Any] = {}
        self._client = client
        options = {"host": HOST, "port": 80, "key": client.key, "model": model, "rate": rate, "tokens": tokens}
        self._options = json.dumps(options | dict(prompt or {}))

    def __enter__(self) -> Self:
        here = self._client.here
        program = ["python3", "/etc/fairlead/streams.py", self._options]
        self._process = subprocess.Popen(
            ["kubectl", "-n", here.namespace, "exec", "-i", self._client.name, "--", *program],
            env=dict(here.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.close()
            self._reader.join()
            said, code = process.stderr.read(), process.wait()
        assert kind is not None or code == 0, f"the client of the streams ended with {code}: {said[-2_000:]}"

    def begin_no_more(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Names what happens during the block, so that a failure can be attributed to it."""
        begun = time.time()
        try:
            yield
        finally:
            self.steps.append({"step": name, "at": round(begun, 3), "seconds": round(time.time() - begun, 1)})

    def attributed_failures(self) -> list[dict[str, Any]]:
        """The failures, each with the last step that had begun before it, and how many seconds
        after that."""
        found = []
        for failure in self.failures:
            before = [step for step in self.steps if step["at"] <= failure["at"]]
            during = {"step": before[-1]["step"], "into": round(failure["at"] - before[-1]["at"], 1)} if before else {}
            found.append({**failure, **during})
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        places = {"failure": self.failures, "second": self.seconds}
        for line in self._process.stdout:
            told = json.loads(line)
            what = told.pop("what")
            if what == "end":
                self.end = told
            else:
                places[what].append(told)


def run_streams(
    client: ClientPod, model: str, *, rate: float, tokens: int, seconds: float
) -> Callable[[], dict[str, Any]]:
    """Runs the same streams from a pod of their own, for a time without any reader.

    Why: there may be no API server to read through. The result comes at their end and has all
    counts.
    """
    here, name = client.here, "streams"
    options = {"host": HOST, "port": 80, "key": client.key, "model": model, "rate": rate, "tokens": tokens}
    command = f"sleep {seconds:g} | exec python3 /etc/fairlead/streams.py '{json.dumps(options)}'"
    spec = pod_spec("gateway", command=("sh", "-c", command), files=client.name)
    here.apply(pod(name, {**spec, "restartPolicy": "Never"}))
    here.wait("condition=Ready", f"pod/{name}")

    def end() -> dict[str, Any]:
        here.wait("jsonpath={.status.phase}=Succeeded", f"pod/{name}", seconds=round(seconds) + 120)
        told = [json.loads(line) for line in here.run("logs", name).splitlines()]
        return next(one for one in told if one["what"] == "end")

    return end


def _url(path: str) -> str:
    return f"http://{HOST}/v1/{path}"


def _question(model: str, tokens: int, prompt: str = "Why?") -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True}


def record_result(part: str, lines: list[ReportLine], *, into: str = "e2e", **figures: Any) -> None:
    """Add one part to the report of this name; its parts of another machine, or of another state of
    the sources, are dropped."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{into}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    head = {"machine": machine(), "commit": commit(ROOT)}
    if {name: report.get(name) for name in head} != head:
        report = head | {"full": FULL, "holds": True, "parts": {}}
    report["parts"][part] = {**figures, "verdict": lines_as_json(lines)}
    report["parts"] = dict(sorted(report["parts"].items()))
    report["holds"] = all(line["holds"] for part in report["parts"].values() for line in part["verdict"])
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
