"""Hubs with the API of Hugging Face."""

import json
from typing import Any

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import CredentialsRefused, InvalidContent, SourceFailed, SourceNotFound
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(3_000), "sub/notes.txt": b"a"}
PINNED = AdapterDownload("hf://acme/sql", revision=COMMIT)


def hub(names: list[str], commit: str = COMMIT, revision: str = COMMIT) -> dict[str, CannedResponse]:
    listed = {"sha": commit, "siblings": [{"rfilename": name} for name in names]}
    answers = {f"/api/models/acme/sql/revision/{revision}": CannedResponse((json.dumps(listed).encode(),))}
    for name, content in FILES.items():
        answers[f"/acme/sql/resolve/{commit}/{name}"] = CannedResponse((content,))
    return answers


def test_pinned_commit_is_downloaded_with_the_token(get: Any) -> None:
    with CannedServer(hub([*FILES, ".gitattributes"])) as server:
        adapter = get(PINNED, {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
        sent = [request.headers.get("authorization") for request in server.requests]
    assert {name: (adapter.path / name).read_bytes() for name in FILES} == FILES
    assert sent == ["Bearer hf_secret"] * 4


def test_branch_main_is_taken_without_a_revision_and_files_are_those_of_its_commit(get: Any) -> None:
    with CannedServer(hub(list(FILES), revision="main")) as server:
        get(AdapterDownload("hf://acme/sql", digest=""), {"HF_ENDPOINT": server.url})
        assert all(COMMIT in request.path for request in server.requests[1:])


def test_another_commit_is_refused(get: Any) -> None:
    with CannedServer(hub(list(FILES), commit="f" * 40)) as server, pytest.raises(SourceFailed, match="another commit"):
        get(PINNED, {"HF_ENDPOINT": server.url})


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b", "a//b", "C:\\x", "nul\0"])
def test_unsafe_names_are_refused_before_a_file_is_read(get: Any, name: str) -> None:
    with CannedServer(hub([*FILES, name])) as server:
        with pytest.raises(InvalidContent):
            get(PINNED, {"HF_ENDPOINT": server.url})
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, CredentialsRefused), (403, CredentialsRefused), (404, SourceNotFound), (500, SourceFailed)],
)
def test_statuses_are_told_apart(get: Any, status: int, error: type[Exception]) -> None:
    answers = {f"/api/models/acme/sql/revision/{COMMIT}": CannedResponse((b"{}",), status)}
    with CannedServer(answers) as server, pytest.raises(error) as failed:
        get(PINNED, {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in str(failed.value)


def test_redirect_to_another_host_does_not_get_the_token(get: Any) -> None:
    name = "adapter_config.json"
    stored = {"/stored": CannedResponse((FILES[name],))}
    with CannedServer(stored) as store, CannedServer(hub([name])) as server:
        moved = CannedResponse((b"moved",), 302, {"location": f"{store.url}/stored"})
        server.responses[f"/acme/sql/resolve/{COMMIT}/{name}"] = moved
        adapter = get(PINNED, {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
        assert (adapter.path / name).read_bytes() == FILES[name]
        assert "authorization" not in {field.lower() for field in store.requests[0].headers}


def test_file_that_is_cut_off_or_compressed_fails(get: Any) -> None:
    name = "adapter_config.json"
    for answer in (CannedResponse((b"{}",), cut=True), CannedResponse((b"{}",), headers={"content-encoding": "gzip"})):
        answers = {**hub([name]), f"/acme/sql/resolve/{COMMIT}/{name}": answer}
        with CannedServer(answers) as server, pytest.raises(SourceFailed):
            get(PINNED, {"HF_ENDPOINT": server.url})


def test_hub_that_is_not_there_fails(get: Any) -> None:
    with pytest.raises(SourceFailed, match="cannot connect"):
        get(PINNED, {"HF_ENDPOINT": "http://127.0.0.1:9"})
