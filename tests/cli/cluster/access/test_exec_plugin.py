"""Login by an exec credential plugin, and its failures."""

import base64
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.kube.transport.kubeconfig import ClusterConfigError, config_from_kubeconfig
from fairlead_cli.cluster.access.connection import resolve_access, run_exec_plugin
from fairlead_cli.exit_codes import ClusterUnreachable
from fairlead_cli.target import ClusterOptions, kubeconfig_paths
from fairlead_testing.yaml_documents import load_document

V1 = "client.authentication.k8s.io/v1"


def plugin(tmp_path: Path, body: str) -> str:
    """Returns the path of a plugin; ``info`` is the exec info that it gets."""
    path = tmp_path / "login"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\ninfo = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return "./login"


def kubeconfig(tmp_path: Path, **user: Any) -> Path:
    cluster = {"server": "https://10.0.0.1:6443", "certificate-authority-data": base64.b64encode(b"CA").decode()}
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "chat"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def entry(command: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": V1, "command": command, "interactiveMode": "Never", **more}


TELL = """
status = {"token": f"{info['spec']['cluster']['server']} {os.environ['WHO']} {sys.argv[1]} {info['spec']['interactive']}"}
print(json.dumps({"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": status}))
"""


def test_plugin_token_is_used_and_exec_info_is_passed(tmp_path: Path) -> None:
    env = [{"name": "WHO", "value": "jane"}]
    user = entry(plugin(tmp_path, TELL), args=["get-token"], env=env, provideClusterInfo=True)
    access = config_from_kubeconfig([kubeconfig(tmp_path, exec=user)], login=run_exec_plugin)
    assert access.token == "https://10.0.0.1:6443 jane get-token False"
    assert access.namespace == "chat"
    assert "jane" not in repr(access)


def test_plugin_may_return_a_certificate(tmp_path: Path) -> None:
    body = (
        f'print(json.dumps({{"apiVersion": "{V1}", "status": {{"clientCertificateData": "C", "clientKeyData": "K"}}}}))'
    )
    access = config_from_kubeconfig([kubeconfig(tmp_path, exec=entry(plugin(tmp_path, body)))], login=run_exec_plugin)
    assert (access.token, access.certificate, access.key) == (None, b"C", b"K")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("print('no JSON')", "printed no ExecCredential"),
        ("print(json.dumps({'apiVersion': 'else', 'status': {'token': 'x'}}))", "gave neither a token nor"),
        (f"print(json.dumps({{'apiVersion': '{V1}', 'status': {{}}}}))", "gave neither a token nor"),
        ("sys.exit('your session has run out')", "exited with 1: your session has run out"),
    ],
)
def test_plugin_failure_names_the_command(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(ClusterConfigError, match="login plugin") as refused:
        config_from_kubeconfig([kubeconfig(tmp_path, exec=entry(plugin(tmp_path, body)))], login=run_exec_plugin)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (
            entry("fairlead-no-such-plugin", installHint="get it at example.com"),
            "cannot be run: No such file.*get it at",
        ),
        (
            entry("x") | {"apiVersion": "client.authentication.k8s.io/v1alpha1"},
            "has apiVersion client.authentication.k8s.io/v1alpha1",
        ),
        (entry("x") | {"interactiveMode": "Always"}, "wants a terminal"),
    ],
)
def test_missing_plugin_has_a_hint(tmp_path: Path, user: dict[str, Any], words: str) -> None:
    with pytest.raises(ClusterConfigError, match=words):
        config_from_kubeconfig([kubeconfig(tmp_path, exec=user)], login=run_exec_plugin)


def test_components_refuse_exec_plugins(tmp_path: Path) -> None:
    """Operator and gateway run no programs of users."""
    with pytest.raises(ClusterConfigError, match="exec of a user is not honoured"):
        config_from_kubeconfig([kubeconfig(tmp_path, exec=entry("x"))])


def test_static_token_precedes_a_plugin(tmp_path: Path) -> None:
    access = config_from_kubeconfig(
        [kubeconfig(tmp_path, token="t", exec=entry("fairlead-no-such-plugin"))], login=run_exec_plugin
    )
    assert access.token == "t"


# --- where it is looked for ---------------------------------------------------------------------------------------------


def test_kubeconfig_is_found_by_kubectl_rules(tmp_path: Path) -> None:
    usual = tmp_path / ".kube" / "config"
    assert kubeconfig_paths(ClusterOptions(), {}, tmp_path) == []
    assert kubeconfig_paths(ClusterOptions(context="x"), {}, tmp_path) == [usual]
    usual.parent.mkdir()
    usual.write_text("{}")
    assert kubeconfig_paths(ClusterOptions(), {}, tmp_path) == [usual]
    assert kubeconfig_paths(ClusterOptions(), {"KUBECONFIG": "a:b"}, tmp_path) == [Path("a"), Path("b")]
    assert kubeconfig_paths(ClusterOptions(kubeconfig=Path("c")), {"KUBECONFIG": "a:b"}, tmp_path) == [Path("c")]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (ClusterOptions(), "no Kubernetes cluster is configured"),
        (ClusterOptions(kubeconfig=Path("/nowhere/config")), "no kubeconfig at /nowhere/config"),
        (ClusterOptions(context="prod"), "no kubeconfig at .*--kubeconfig"),
    ],
)
def test_missing_kubeconfig_error_has_a_hint(tmp_path: Path, way: ClusterOptions, words: str) -> None:
    with pytest.raises(ClusterUnreachable, match=words) as refused:
        resolve_access(way, {}, tmp_path)
    assert refused.value.hint


def test_json_kubeconfig_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "json").write_text(json.dumps(load_document(kubeconfig(tmp_path, token="t").read_text())))
    assert resolve_access(ClusterOptions(kubeconfig=tmp_path / "json"), {}, tmp_path).token == "t"
