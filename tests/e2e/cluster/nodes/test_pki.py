"""The certificates of a cluster: who vouches for whom, and who is who."""

import json
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.nodes.control_plane import KUBECONFIGS, CertificateAuthority
from fairlead_testing.http.certificates import has_openssl

pytestmark = pytest.mark.skipif(not has_openssl(), reason="no openssl")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    authority = CertificateAuthority(tmp_path_factory.mktemp("cluster") / "pki")
    authority.make("10.1.2.3")
    return authority


def shown(pki: CertificateAuthority, name: str, *what: str) -> str:
    command = ["openssl", "x509", "-in", str(pki.certificate(name)), "-noout", *what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["apiserver", *KUBECONFIGS])
def test_the_authority_vouches_for_every_certificate(pki: CertificateAuthority, name: str) -> None:
    command = ["openssl", "verify", "-CAfile", str(pki.certificate("ca")), str(pki.certificate(name))]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_clients_carry_the_group_and_user_that_kubernetes_reads(pki: CertificateAuthority) -> None:
    assert "O = system:nodes, CN = system:node:local" in shown(pki, "node", "-subject")
    assert "TLS Web Client Authentication" in shown(pki, "node", "-ext", "extendedKeyUsage")


def test_a_second_node_is_another_user(pki: CertificateAuthority) -> None:
    pki.issue_client("node-second", "system:nodes", "system:node:second")
    assert "O = system:nodes, CN = system:node:second" in shown(pki, "node-second", "-subject")


def test_the_server_answers_to_its_names_and_addresses(pki: CertificateAuthority) -> None:
    listing = shown(pki, "apiserver", "-ext", "subjectAltName")
    for name in ("DNS:kubernetes.default.svc", "IP Address:10.1.2.3", "IP Address:10.96.0.1"):
        assert name in listing


def test_a_kubeconfig_holds_everything_and_is_its_owners_alone(pki: CertificateAuthority, tmp_path: Path) -> None:
    path = tmp_path / "admin.kubeconfig"
    pki.kubeconfig("admin", "https://10.1.2.3:6443", path)
    assert path.stat().st_mode & 0o077 == 0
    config = json.loads(path.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://10.1.2.3:6443"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
