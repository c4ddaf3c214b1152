"""A real Kubernetes API server for tests, which can be killed, frozen and restarted.

It is always a new one on free loopback ports (`e2e/cluster`, level *api*), started within seconds.
`KUBECONFIG` is never used: it may name a production cluster.

Checks manifests against the OpenAPI files of a Kubernetes release; unknown fields are errors.

The API server drops unknown fields of built-in kinds with a warning at most, and tests have only
one release of it. This checks the rules of OpenAPI: kinds, fields, types, required fields. Rules in
code (range of a port, characters of a label) need a server.

``python -m fairlead_testing.kube.openapi FOLDER > fairlead/manifests/pod_fields.json`` writes the
fields that ``fairlead lint`` knows, once a Kubernetes release.

Manifests that the API accepts and rejects, for tests of lint and of a real server.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any
from unittest import SkipTest

from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import ClusterConfig, config_from_kubeconfig
from fairlead.runtime.clock import SystemClock
from fairlead_testing.processes import block_until, is_alive
from fairlead_testing.yaml_documents import load_document

CLUSTER_TOOL = Path(__file__).parents[3] / "e2e" / "cluster"
_QUICK = {"GOGC": "400"}
"""A sixth less processor time for etcd and API server: Go collects its garbage less often."""
NO_CLUSTER_PROGRAMS = "no etcd, kube-apiserver, helm or promtool: `make test CLUSTER=1` compiles them"

_REF = "#/components/schemas/"
_CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
_EITHER = {f"{_CRD}OrArray", f"{_CRD}OrBool"}
"""Schemas without a type that are, for objects, the schema of a CRD field."""
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}

Manifest = dict[str, Any]


def binaries_folder() -> Path | None:
    """Returns the folder with etcd and kube-apiserver: KUBEBUILDER_ASSETS, else the cache, else
    None.
    """
    if not CLUSTER_TOOL.exists():
        return None
    asked = subprocess.run([sys.executable, str(CLUSTER_TOOL), "assets"], capture_output=True, text=True, check=False)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


class ApiServer:
    """A running API server with its etcd, in the folder `run`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.kubeconfig = run / "admin.kubeconfig"
        self._again: subprocess.Popen[bytes] | None = None
        self._pid = int(loads((run / "record.json").read_text())["processes"]["apiserver"][0])
        self._command = Path(f"/proc/{self._pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")

    def config(self) -> ClusterConfig:
        return config_from_kubeconfig([self.kubeconfig])

    def kill(self) -> None:
        """Sends SIGKILL to the API server. Its data stays in etcd."""
        os.kill(self._pid, signal.SIGKILL)
        if self._again is not None:
            self._again.wait()
            self._again = None
        block_until(lambda: not is_alive(self._pid), "the API server is dead")

    def start(self) -> None:
        """Restarts it on its port and waits until it is ready.

        If a connection took its port as a local end meanwhile, it ends at once and is started
        again.
        """

        def ready() -> bool:
            if self._again is None or self._again.poll() is not None:
                self._run()
            return self._ready()

        block_until(ready, "the API server is ready again")

    def _run(self) -> None:
        with (self.run / "apiserver-again.log").open("ab") as log:
            self._again = subprocess.Popen(
                self._command,
                env=os.environ | _QUICK,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = self._again.pid
        record = self.run / "record.json"
        facts = loads(record.read_text())
        ticks = int(Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[19])
        facts["processes"]["apiserver"] = [self._pid, ticks]  # so that it ends with the cluster
        record.write_text(json.dumps(facts))

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends a process that `start` created."""
        if self._again is not None:
            self.thaw()
            self.kill()

    def _ready(self) -> bool:
        access = self.config()
        context = ClusterCredentials(access, SystemClock(), 0.0).tls_context()
        assert isinstance(context, ssl.SSLContext)
        try:
            with urllib.request.urlopen(f"{access.server}/readyz", context=context, timeout=5.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def api_server_for_test(run: Path) -> Iterator[ApiServer]:
    """Like `running_api_server`, but skips the test if the binaries are missing."""
    if binaries_folder() is None:
        raise SkipTest(NO_CLUSTER_PROGRAMS)
    with running_api_server(run) as server:
        yield server


@contextmanager
def running_api_server(run: Path) -> Iterator[ApiServer]:
    """Runs a new API server in `run`, which is removed at the end. Raises AssertionError if it
    fails.
    """
    tool, environ = (sys.executable, str(CLUSTER_TOOL)), os.environ | _QUICK
    log = run.with_name(f"{run.name}-down.log")
    # Its input ends with this process, also when that is killed. Then it takes the cluster down.
    ending = subprocess.Popen(
        ["sh", "-c", 'read _; exec "$@" 2> "$0"', str(log), *tool, "down", "--run", str(run)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        up = [*tool, "up", "--level", "api", "--run", str(run)]
        done = subprocess.run(up, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"e2e/cluster up: {done.stderr[-4_000:]}")
        server = ApiServer(run)
        try:
            yield server
        finally:
            server.stop()
    finally:
        ending.communicate()
        if ending.returncode:
            raise AssertionError(f"e2e/cluster down: {log.read_text()[-4_000:]}")


class KubernetesRelease:
    """One release. `folder` has its OpenAPI files, one per group and version."""

    def __init__(self, folder: Path) -> None:
        self._schemas: dict[str, Any] = {}
        self._kinds: dict[tuple[str, str], str] = {}
        for path in sorted(folder.glob("*.json")):
            self._schemas |= json.loads(path.read_text(encoding="utf-8"))["components"]["schemas"]
        for name, schema in self._schemas.items():
            for manifest in schema.get("x-kubernetes-group-version-kind", ()):
                version = f"{manifest['group']}/{manifest['version']}" if manifest["group"] else manifest["version"]
                self._kinds[version, manifest["kind"]] = name

    def problems(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns the violations in an object, each with its path; empty if it is valid."""
        said = str(manifest.get("apiVersion")), str(manifest.get("kind"))
        name = self._kinds.get(said)
        if name is None:
            return [f"no kind {said[1]} in {said[0]}"]
        return list(self._check(manifest, {"$ref": _REF + name}, ""))

    def pod_fields(self) -> dict[str, dict[str, Any]]:
        """Returns the fields of a PodSpec and of all types below it: type to field to its type.

        A list has its type in a list, and a map of names has it under ``*``.
        """
        found: dict[str, dict[str, Any]] = {}
        waiting = ["io.k8s.api.core.v1.PodSpec"]
        while waiting:
            full = waiting.pop()
            fields = self._schemas[full].get("properties", {})
            name = full.rpartition(".")[2]
            if name not in found:
                found[name] = {field: _type_of(schema, waiting) for field, schema in fields.items()}
        return found

    def _check(self, value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
        reference = schema.get("$ref")
        if reference is not None:
            name = reference.removeprefix(_REF)
            if name in _EITHER and isinstance(value, dict):
                name = _CRD
            yield from self._check(value, self._schemas[name], path)
            return
        for part in schema.get("allOf", ()):
            yield from self._check(value, part, path)
        if "oneOf" in schema and all(any(self._check(value, one, path)) for one in schema["oneOf"]):
            yield f"{path}: fits none of what it may be: {value!r}"
        kind = schema.get("type")
        if kind is not None and (
            not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
        ):
            yield f"{path}: not of type {kind}: {value!r}"
        elif kind == "array":
            for index, one in enumerate(value):
                yield from self._check(one, schema["items"], f"{path}[{index}]")
        elif kind == "object":
            yield from self._check_fields(value, schema, path)

    def _check_fields(self, value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
        known, others = schema.get("properties"), schema.get("additionalProperties")
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{path}.{name}: missing"
        for name, one in value.items():
            if known is not None and name in known:
                yield from self._check(one, known[name], f"{path}.{name}")
            elif isinstance(others, dict):
                yield from self._check(one, others, f"{path}.{name}")
            elif known is not None:
                yield f"{path}.{name}: no such field"


def _type_of(schema: Mapping[str, Any], waiting: list[str]) -> Any:
    """Returns the type of a field. Adds the schema of another object to `waiting`."""
    schema = {**schema, **{key: value for part in schema.get("allOf", ()) for key, value in part.items()}}
    if "$ref" in schema:
        full = schema["$ref"].removeprefix(_REF)
        name = full.rpartition(".")[2]
        if name not in ("Quantity", "IntOrString"):
            waiting.append(full)
        return name
    if schema.get("type") == "array":
        return [_type_of(schema["items"], waiting)]
    if "additionalProperties" in schema:
        return {"*": _type_of(schema["additionalProperties"], waiting)}
    return schema.get("type", "object")


def main(folder: str) -> None:
    fields = KubernetesRelease(Path(folder)).pod_fields()
    print("{", ",\n".join(f" {json.dumps(name)}: {json.dumps(fields[name])}" for name in sorted(fields)), "}", sep="\n")


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """A rejected object.

    lint: start of `fairlead lint`'s message and fix for `field`.
    server: part of the server's message.
    """

    name: str
    object: Manifest
    field: str
    lint: str
    server: str


@dataclass(frozen=True, slots=True)
class ChangedCase:
    """Two valid objects, where the change from one to the other is rejected with `says`."""

    name: str
    before: Manifest
    after: Manifest
    says: str


@dataclass(frozen=True, slots=True)
class AcceptedCase:
    """A valid object. `becomes` is its spec with defaults; None if it does not matter."""

    name: str
    object: Manifest
    becomes: Manifest | None


def refused_cases(folder: Path) -> Iterator[RefusedCase]:
    """Yields the cases of `refused.yaml`."""
    table = _table(folder / "refused.yaml")
    for case in table["cases"]:
        merged = merge(table["bases"][case["base"]], case["change"])
        both = case.get("says")
        yield RefusedCase(case["name"], merged, case["field"], both or case["lint"], both or case["server"])


def changed_cases(folder: Path) -> Iterator[ChangedCase]:
    for case in _table(folder / "changed.yaml")["cases"]:
        yield ChangedCase(case["name"], case["before"], merge(case["before"], case["change"]), case["says"])


def accepted_cases(folder: Path) -> Iterator[AcceptedCase]:
    for case in _table(folder / "accepted.yaml")["cases"]:
        yield AcceptedCase(case["name"], case["object"], case.get("becomes"))


def merge(base: Manifest, change: Manifest) -> Manifest:
    """Returns `change` merged over `base`. None removes a value; other values replace it."""
    result = deepcopy(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = deepcopy(value)
    return result


def without_empty(value: Any) -> Any:
    """Returns a value without empty lists and mappings, which equal absent ones."""
    if isinstance(value, dict):
        kept = {key: without_empty(below) for key, below in value.items()}
        return {key: below for key, below in kept.items() if below not in ({}, [])}
    return [without_empty(below) for below in value] if isinstance(value, list) else value


def _table(path: Path) -> Manifest:
    found = load_document(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
