"""The choice of the API server and credentials, and refused ways to impersonate another user."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import (
    ClusterConfigError,
    config_from_kubeconfig,
    in_cluster_config,
    load_config,
)
from fairlead.runtime.clock import ManualClock
from fairlead_testing.http.certificates import CertificateAuthority

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}


def kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any], *, name: str = "here") -> Path:
    document = {
        "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "team"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def account(folder: Path, token: str = "one") -> Path:
    (folder / "token").write_text(token + "\n")
    (folder / "ca.crt").write_text("")
    (folder / "namespace").write_text("serving")
    return folder


def test_pod_finds_its_service_account(tmp_path: Path) -> None:
    access = load_config(IN_POD, tmp_path, account(tmp_path))
    assert (access.server, access.namespace) == ("https://10.0.0.1:6443", "serving")
    assert (access.token, access.token_file) == (None, tmp_path / "token")
    assert (
        in_cluster_config({**IN_POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, tmp_path).server == "https://[fd00::1]:6443"
    )


def test_pod_without_token_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterConfigError, match="automountServiceAccountToken"):
        load_config(IN_POD, tmp_path, tmp_path)


def test_named_kubeconfig_comes_first_and_default_last(tmp_path: Path) -> None:
    home, pod = tmp_path / "home", account(tmp_path)
    (home / ".kube").mkdir(parents=True)
    named = kubeconfig(tmp_path / "named", {"server": "https://named"}, {"token": "t"})
    kubeconfig(home / ".kube" / "config", {"server": "https://usual"}, {"token": "t"})
    assert load_config({**IN_POD, "KUBECONFIG": str(named)}, home, pod).server == "https://named"
    assert load_config(IN_POD, home, pod).server == "https://10.0.0.1:6443"
    assert load_config({}, home, pod).server == "https://usual"
    with pytest.raises(ClusterConfigError, match="no Kubernetes cluster is configured"):
        load_config({}, tmp_path, pod)


def test_first_kubeconfig_with_an_entry_wins(tmp_path: Path) -> None:
    first = kubeconfig(tmp_path / "a", {"server": "https://a"}, {"token": "a"})
    second = kubeconfig(tmp_path / "b", {"server": "https://b"}, {"token": "b"})
    third = kubeconfig(tmp_path / "c", {"server": "https://c"}, {"token": "c"}, name="there")
    missing = tmp_path / "missing"
    assert config_from_kubeconfig([missing, first, second, third]).server == "https://a"
    assert config_from_kubeconfig([first, third], "there").server == "https://c"
    with pytest.raises(ClusterConfigError, match="no context 'nowhere'"):
        config_from_kubeconfig([first], "nowhere")
    with pytest.raises(ClusterConfigError, match="no kubeconfig at"):
        config_from_kubeconfig([missing])


def test_files_are_relative_to_the_kubeconfig_and_data_wins(tmp_path: Path) -> None:
    data = base64.b64encode(b"PEM").decode()
    cluster = {"server": "https://a/", "certificate-authority": "ca.pem", "certificate-authority-data": data}
    access = config_from_kubeconfig([kubeconfig(tmp_path / "a", cluster, {"tokenFile": "token", "token": "old"})])
    assert (access.ca_data, access.ca_file) == (b"PEM", None)
    assert (access.token, access.token_file, access.server) == (None, tmp_path / "token", "https://a")
    cluster = {"server": "https://a", "certificate-authority": "ca.pem"}
    assert config_from_kubeconfig([kubeconfig(tmp_path / "a", cluster, {})]).ca_file == tmp_path / "ca.pem"


def test_proxy_is_that_of_the_cluster_and_is_not_shown(tmp_path: Path) -> None:
    cluster = {"server": "https://a", "proxy-url": "http://me:secret@p:3128"}
    access = config_from_kubeconfig([kubeconfig(tmp_path / "a", cluster, {})])
    assert access.proxy_url == "http://me:secret@p:3128"
    assert "secret" not in repr(access)


@pytest.mark.parametrize(
    ("cluster", "user", "field", "words"),
    [
        ({}, {"exec": {"command": "aws"}}, "exec", "run the plugin yourself"),
        ({}, {"auth-provider": {"name": "gcp"}}, "auth-provider", "give a token"),
        ({}, {"username": "u"}, "username", "no passwords"),
        ({}, {"as-uid": "1"}, "as-uid", "not honoured"),
        ({"proxy-url": "socks5://p"}, {}, "proxy-url", "not an http"),
        ({"server": "ftp://a"}, {}, "server", "not an http"),
        ({"certificate-authority-data": "%"}, {}, "certificate-authority-data", "not base64"),
        ({}, {"client-certificate": "c"}, "client-key", "has no key"),
    ],
)
def test_unsupported_entries_are_refused(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], field: str, words: str
) -> None:
    path = kubeconfig(tmp_path / "a", {"server": "https://a", **cluster}, user)
    with pytest.raises(ClusterConfigError, match=words) as raised:
        config_from_kubeconfig([path])
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("[1]", "not a mapping"),
        ("a: [", "not YAML"),
        ("{}", "no current context"),
        ("clusters: [1]", "an entry of clusters"),
        ("users: [{name: a, user: 1}]", "an entry of users"),
    ],
)
def test_broken_kubeconfig_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(ClusterConfigError, match=words):
        config_from_kubeconfig([tmp_path / "a"])


def test_no_secret_is_printed(tmp_path: Path) -> None:
    key = base64.b64encode(b"hidden").decode()
    user = {"token": "hidden", "client-certificate-data": key, "client-key-data": key}
    access = config_from_kubeconfig([kubeconfig(tmp_path / "a", {"server": "https://a"}, user)])
    assert access.token == "hidden"
    assert "hidden" not in repr(access).replace("certificate=b'hidden'", "")


def test_token_is_reloaded_and_kept_while_its_file_is_missing(tmp_path: Path) -> None:
    clock = ManualClock()
    credentials = ClusterCredentials(in_cluster_config(IN_POD, account(tmp_path)), clock, 10.0)
    assert credentials.headers() == [("Authorization", "Bearer one")]
    (tmp_path / "token").write_text("two")
    assert credentials.headers() == [("Authorization", "Bearer one")]
    clock.advance(10.0)
    assert credentials.headers() == [("Authorization", "Bearer two")]
    (tmp_path / "token").write_text("three")
    assert credentials.invalidate()
    assert credentials.headers() == [("Authorization", "Bearer three")]
    (tmp_path / "token").unlink()
    clock.advance(10.0)
    assert credentials.headers() == [("Authorization", "Bearer three")]


def test_impersonation_is_supported(tmp_path: Path) -> None:
    user = {"token": "t", "as": "operator", "as-groups": ["a", "b"]}
    access = config_from_kubeconfig([kubeconfig(tmp_path / "a", {"server": "http://a"}, user)])
    credentials = ClusterCredentials(access, ManualClock(), 10.0)
    assert credentials.headers()[1:] == [
        ("Impersonate-User", "operator"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
    ]
    assert credentials.tls_context() is True
    assert not credentials.invalidate()


def test_certificates_are_data_or_files_and_invalid_ones_are_named(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    client = authority.issue("client")

    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {"server": "https://a", "certificate-authority-data": encoded(authority.ca_file)}
    user = {"client-certificate-data": encoded(client.certificate), "client-key": client.key.name}
    access = config_from_kubeconfig([kubeconfig(tmp_path / "a", cluster, user)])
    credentials = ClusterCredentials(access, ManualClock(), 10.0)
    context = credentials.tls_context()
    assert credentials.tls_context() is context
    credentials.invalidate()
    assert credentials.tls_context() is not context
    client.key.write_text("none")
    credentials.invalidate()
    with pytest.raises(ClusterConfigError, match="certificates cannot be used"):
        credentials.tls_context()
