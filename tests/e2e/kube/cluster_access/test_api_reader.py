"""A query of tests over one connection equals that of ``kubectl get`` with the same words."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from e2e.kube.cluster_access.kubectl import ApiReader, path_of


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("pods",), "/api/v1/namespaces/here/pods"),
        (("pod", "one"), "/api/v1/namespaces/here/pods/one"),
        (("pods", "-l", "a=b,c in (d,e)"), "/api/v1/namespaces/here/pods?labelSelector=a%3Db%2Cc%20in%20%28d%2Ce%29"),
        (("deployments", "-l", "a=b"), "/apis/apps/v1/namespaces/here/deployments?labelSelector=a%3Db"),
        (
            ("modeldeployment", "tiny"),
            "/apis/serving.fairlead.io/v1alpha1/namespaces/here/modeldeployments/tiny",
        ),
        (("nodes",), None),
        (("deployment/one", "--show-managed-fields"), None),
        (("pods,services", "-l", "a=b"), None),
        (("pods", "--watch"), None),
        (("events.events.k8s.io",), None),
    ],
)
def test_plain_questions_have_a_path_and_others_are_left_to_kubectl(words: tuple[str, ...], path: str | None) -> None:
    assert path_of("here", words) == path


class Server(BaseHTTPRequestHandler):
    """Says what it was asked, and closes every second connection after its answer without saying
    so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        exists = self.path != "/missing"
        body = json.dumps({"asked": self.path}).encode()
        self.send_response(200 if exists else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.path == "/last"

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[ApiReader]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        kubeconfig = {
            "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "clusters": [{"name": "one", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "one", "user": {}}],
        }
        (tmp_path / "config").write_text(json.dumps(kubeconfig))
        opened = ApiReader({"KUBECONFIG": str(tmp_path / "config")})
        yield opened
        opened.close()
        server.shutdown()
        thread.join()


def test_a_connection_that_was_closed_meanwhile_is_opened_again(reader: ApiReader) -> None:
    for path in ("/one", "/last", "/two"):
        assert reader.read(path) == {"asked": path}


def test_what_is_not_there_is_said_as_kubectl_says_it_by_an_error(reader: ApiReader) -> None:
    with pytest.raises(AssertionError, match="/missing: 404"):
        reader.read("/missing")
    assert reader.read("/one") == {"asked": "/one"}
