"""A Prometheus server on this machine that scrapes pods of the cluster by ServiceMonitors.

Every scrape goes through the API server's proxy, since tests see nothing of a cluster but its
KUBECONFIG. The targets are those that the monitors select now, with the labels that the Prometheus
operator gives them.
"""

import base64
import json
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from e2e.cluster.artifacts.pinned_versions import prometheus_program
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from fairlead_testing.processes import unused_port

_SCRAPE_SECONDS = 2
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0


@dataclass(slots=True)
class PrometheusServer:
    """A server for as long as the block lasts. It scrapes what ``monitors`` select, every 2 s."""

    kubectl: Kubectl
    monitors: Sequence[Manifest]
    _folder: "tempfile.TemporaryDirectory[str]" = field(init=False)
    _process: "subprocess.Popen[bytes]" = field(init=False)
    _url: str = field(init=False, default="")

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fairlead-prometheus-")
        folder = Path(self._folder.name)
        config = folder / "prometheus.json"
        config.write_text(json.dumps(self._config(folder)))
        port = unused_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [
            str(prometheus_program()),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        eventually("Prometheus is ready", self._is_ready, seconds=_START_SECONDS, describe=self._log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Returns the series of an instant query.

        Raises AssertionError with the server's message for an expression that it refuses.
        """
        answer = self._get("query", query=expression)
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def wait_until_scraped(self, seconds: float) -> dict[str, int]:
        """Waits until every target was scraped, and returns the number of targets by job."""

        def states() -> list[tuple[str, str, str]]:
            targets = self._get("targets")["data"]["activeTargets"]
            return [(target["labels"]["job"], target["health"], target["lastError"]) for target in targets]

        is_done = lambda: bool(found := states()) and all(health == "up" for _, health, _ in found)  # noqa: E731
        eventually("every target is up", is_done, seconds=seconds, describe=lambda: str(states()))
        jobs = [job for job, _, _ in states()]
        return {job: jobs.count(job) for job in sorted(set(jobs))}

    def _config(self, folder: Path) -> Manifest:
        access = json.loads(self.kubectl.run("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        user, cluster = access["users"][0]["user"], access["clusters"][0]["cluster"]
        files = {
            "ca_file": cluster["certificate-authority-data"],
            "cert_file": user["client-certificate-data"],
            "key_file": user["client-key-data"],
        }
        for name, data in files.items():
            (folder / name).write_bytes(base64.b64decode(data))
        server = urllib.parse.urlsplit(cluster["server"]).netloc
        tls = {name: str(folder / name) for name in files}
        jobs = [
            {
                "job_name": monitor["metadata"]["name"],
                "scheme": "https",
                "tls_config": tls,
                "honor_labels": endpoint.get("honorLabels", False),
                "static_configs": [
                    {"targets": [server], "labels": labels} for labels in self._targets(monitor, endpoint)
                ],
            }
            for monitor in self.monitors
            for endpoint in monitor["spec"]["endpoints"]
        ]
        interval = f"{_SCRAPE_SECONDS}s"
        return {"global": {"scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": jobs}

    def _targets(self, monitor: Manifest, endpoint: Manifest) -> Iterator[dict[str, str]]:
        """Yields the labels of each ready pod behind the Services that a monitor selects."""
        here = self.kubectl.in_namespace(monitor["metadata"]["namespace"])
        selector = ",".join(f"{name}={value}" for name, value in monitor["spec"]["selector"]["matchLabels"].items())
        for service in here.get("services", "-l", selector)["items"]:
            name = service["metadata"]["name"]
            slices = here.get("endpointslices", "-l", f"kubernetes.io/service-name={name}")["items"]
            for one in slices:
                ports = [port["port"] for port in one["ports"] if port["name"] == endpoint["port"]]
                for address in one["endpoints"] or ():
                    if address["conditions"].get("ready") and ports:
                        pod = address["targetRef"]["name"]
                        yield {
                            "__metrics_path__": f"/api/v1/namespaces/{here.namespace}/pods/{pod}:{ports[0]}/proxy"
                            f"{endpoint['path']}",
                            "namespace": here.namespace,
                            "pod": pod,
                            "service": name,
                            "endpoint": endpoint["port"],
                            "job": name,
                            "instance": f"{address['addresses'][0]}:{ports[0]}",
                        }

    def _get(self, what: str, **fields: str) -> Manifest:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found: Manifest = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _log(self) -> str:
        return (Path(self._folder.name) / "prometheus.log").read_text()[-3_000:]
