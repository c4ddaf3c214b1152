"""Our images run in a real cluster as a strict platform team would have it: any user id, read-only
root, no privileges."""

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads.manifests import PORT, config_map, deployment, pod_spec, service

pytestmark = pytest.mark.lane("engines", position=20)

FLEET = "models:\n- name: tiny\n  instances:\n  - {url: 'http://engine:8000', engine: sim}\n"
STREAM = f"""
import json, urllib.request
body = {{"model": "tiny", "messages": [{{"role": "user", "content": "Why?"}}], "max_tokens": 4, "stream": True}}
fields = {{"content-type": "application/json"}}
asked = urllib.request.Request("http://gateway:{PORT}/v1/chat/completions", json.dumps(body).encode(), fields)
with urllib.request.urlopen(asked, timeout=30) as answer:
    print(answer.headers["x-fairlead-instance"])
    print(answer.read().decode())
"""
REACHED = f"""
import urllib.error, urllib.request
body, fields = b'{{"model": "tiny", "prompt": "x", "max_tokens": 1}}', {{"content-type": "application/json"}}
asked = urllib.request.Request("http://gateway:{PORT}/v1/completions", body, fields)
try:
    print(urllib.request.urlopen(asked, timeout=30).status)
except OSError as error:
    print(error)
"""
PING = """
import socket
with socket.create_connection(("valkey", 6379), timeout=10) as there:
    there.sendall(b"PING\\r\\n")
    print(there.recv(100))
"""


def test_a_gateway_streams_what_an_engine_says(here: Kubectl) -> None:
    engine = pod_spec("sim", "engine", "--listen", f"0.0.0.0:{PORT}", "--model", "tiny", ready="/health")
    gateway = pod_spec(
        *("gateway", "--fleet", "/etc/fairlead/fleet.yaml", "--listen", f"0.0.0.0:{PORT}", "--insecure"),
        ready="/readyz",
        files="fleet",
    )
    here.apply(config_map("fleet", fleet__yaml=FLEET), service("engine"), service("gateway"))
    here.apply(deployment("engine", engine, replicas=2), deployment("gateway", gateway))
    here.wait_for_rollout("deployment/engine", "deployment/gateway")
    # Pods are ready a moment before every Service leads to them, and until then the gateway says
    # that no engine answers.
    eventually("the gateway reaches an engine", lambda: "200" in here.python("deployment/engine", REACHED))
    told = here.python("deployment/engine", STREAM)
    assert told.startswith("engine/8000/0\n")
    assert told.rstrip().endswith("data: [DONE]")


def test_the_gateway_of_the_image_is_the_compiled_one(here: Kubectl) -> None:
    here.apply(
        config_map("fleet", fleet__yaml=FLEET),
        deployment(
            "gateway",
            pod_spec("gateway", "--fleet", "/etc/fairlead/fleet.yaml", "--listen", f"127.0.0.1:{PORT}", files="fleet"),
        ),
    )
    here.wait_for_rollout("deployment/gateway")
    code = (
        "from fairlead.runtime.compiled_build import is_compiled; from fairlead_gateway.worker.proxy import forwarder; "
        "print(is_compiled(forwarder.__file__))"
    )
    assert here.python("deployment/gateway", code).strip() == "True"


def test_the_redis_of_trials_answers(here: Kubectl) -> None:
    valkey = pod_spec("valkey", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp")
    valkey["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
    here.apply(deployment("valkey", valkey), service("valkey", 6379))
    here.wait_for_rollout("deployment/valkey")
    assert "PONG" in here.python("deployment/valkey", PING)
