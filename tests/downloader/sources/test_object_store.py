"""S3 and Google Cloud Storage, at a server that checks signatures."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import (
    CredentialsRefused,
    DigestMismatch,
    DownloadError,
    InvalidContent,
    NoRoom,
    SourceFailed,
    SourceNotFound,
)
from fairlead_testing.http.s3_server import ACCESS_KEY, SECRET_KEY, S3Bucket, s3_server

FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": bytes(5_000), "sub/more.txt": b"more"}
SOURCE = "s3://loras/acme/sql-2"


def objects(files: dict[str, bytes], prefix: str = "acme/sql-2") -> dict[tuple[str, str], bytes]:
    return {("loras", f"{prefix}/{name}"): content for name, content in files.items()}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    stored = objects({**FILES, ".gitattributes": b"hidden"}) | {
        ("loras", "acme/sql-20/adapter_config.json"): b"another folder",
        ("loras", "acme/sql-2/sub"): b"",  # as consoles mark a folder
    }
    with s3_server(S3Bucket(stored)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield server


PLAIN = {"AWS_ALLOW_HTTP": "true"}


def test_folder_is_downloaded_with_the_digest_that_sha256sum_gives(bucket: S3Bucket, get: Any) -> None:
    adapter = get(AdapterDownload(SOURCE), PLAIN)
    assert {name: (adapter.path / name).read_bytes() for name in FILES} == FILES
    assert sorted(path.name for path in adapter.path.iterdir()) == [
        ".fairlead.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "sub",
    ]
    line = r"find . -type f -not -path '*/.*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"
    shown = subprocess.run(["sh", "-c", line], cwd=adapter.path, capture_output=True, text=True, check=True).stdout
    assert adapter.digest == f"sha256:{shown.split()[0]}"
    assert adapter.bytes == sum(map(len, FILES.values()))
    assert get(AdapterDownload(SOURCE, digest=adapter.digest), PLAIN).digest == adapter.digest


def test_wrong_digest_is_refused_and_leaves_nothing(bucket: S3Bucket, get: Any, tmp_path: Path) -> None:
    wanted = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    with pytest.raises(DigestMismatch, match=wanted):
        get(AdapterDownload(SOURCE, digest=wanted), PLAIN)
    assert not list((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize(
    ("source", "error"),
    [("s3://loras/acme/nothing", SourceNotFound), ("s3://another/acme/sql-2", SourceNotFound)],
)
def test_absent_folders_and_buckets_are_not_found(
    bucket: S3Bucket, get: Any, source: str, error: type[DownloadError]
) -> None:
    with pytest.raises(error):
        get(AdapterDownload(source), PLAIN)


def test_refused_credentials_are_not_shown(bucket: S3Bucket, get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(CredentialsRefused) as refused:
        get(AdapterDownload(SOURCE), PLAIN)
    assert "secret" not in str(refused.value)
    assert SECRET_KEY not in str(refused.value)


def test_plain_http_needs_a_variable(bucket: S3Bucket, get: Any) -> None:
    with pytest.raises(SourceFailed):
        get(AdapterDownload(SOURCE), {})


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "sub\n/x", "a\\..\\b"])
def test_unsafe_names_are_refused(bucket: S3Bucket, get: Any, tmp_path: Path, name: str) -> None:
    bucket.objects["loras", f"acme/sql-2/{name}"] = b"x"
    with pytest.raises((InvalidContent, SourceFailed)):
        get(AdapterDownload(SOURCE), PLAIN)
    assert not list((tmp_path / "downloads").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"downloads"}


def test_truncated_object_fails(bucket: S3Bucket, get: Any) -> None:
    bucket.truncated.add("acme/sql-2/adapter_model.safetensors")
    with pytest.raises(SourceFailed):
        get(AdapterDownload(SOURCE), PLAIN)


def test_huge_object_finds_no_room(bucket: S3Bucket, get: Any) -> None:
    with pytest.raises(NoRoom):
        get(AdapterDownload(SOURCE), PLAIN, max_bytes=4_000)


def test_folder_without_a_configuration_is_no_adapter(bucket: S3Bucket, get: Any) -> None:
    del bucket.objects["loras", "acme/sql-2/adapter_config.json"]
    with pytest.raises(InvalidContent, match="adapter_config"):
        get(AdapterDownload(SOURCE), PLAIN)


def test_google_cloud_storage_has_the_same_digest(get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(S3Bucket(objects(FILES), checks_signature=False)) as server:
        account = {
            "gcs_base_url": server.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        adapter = get(AdapterDownload(SOURCE.replace("s3:", "gs:")), PLAIN)
    assert (adapter.path / "sub/more.txt").read_bytes() == b"more"
