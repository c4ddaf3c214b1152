"""The downloader as a process: its API, and what its log says."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead_testing.http.s3_server import ACCESS_KEY, SECRET_KEY, S3Bucket, s3_server

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(5_000)}
SOURCE = "s3://loras/acme/sql-2"


@contextmanager
def downloader(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Runs the program during the block."""
    command = [sys.executable, "-m", "fairlead_downloader", "--port=0", f"--folder={folder}", "--max-bytes=1000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), line
        yield line.split()[1], process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def post(url: str, body: object) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/adapters", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


def test_adapter_is_downloaded_once_and_secrets_are_not_logged(tmp_path: Path) -> None:
    objects = {("loras", f"acme/sql-2/{name}"): content for name, content in FILES.items()}
    with s3_server(S3Bucket(objects)) as bucket:
        environment = {
            "AWS_ENDPOINT_URL": bucket.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        with downloader(tmp_path / "downloads", environment) as (url, process):
            status, answer = post(url, {"name": "sql", "source": SOURCE})
            assert status == 200
            assert answer["path"] == str(tmp_path / "downloads" / AdapterDownload(SOURCE).folder_name)
            assert answer["bytes"] == 5_002
            asked = len(bucket.requests)
            again = post(url, {"name": "sql", "source": SOURCE})[1]
            assert again == {**answer, "seconds": 0.0}
            assert len(bucket.requests) == asked
            wrong = {"name": "sql", "source": SOURCE, "digest": f"sha256:{'0' * 64}"}
            assert (post(url, wrong)[0], post(url, wrong)[1]["code"]) == (422, "digest_mismatch")
            assert post(url, {"name": "sql", "source": f"{SOURCE}/no"})[0] == 404
            with urllib.request.urlopen(f"{url}/healthz", timeout=30) as healthy:
                assert healthy.status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert process.stderr is not None
            log = process.stderr.read()
    assert f"from {SOURCE}: 5002 bytes" in log
    assert SECRET_KEY not in log
    assert ACCESS_KEY not in log


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {},
        {"name": "a"},
        {"name": "a", "source": "file:///etc/passwd"},
        {"name": "a", "source": "http://169.254.169.254/latest"},
        {"name": "a", "source": "s3://bucket/../other"},
        {"name": "a", "source": "s3://user:secret@bucket/path"},
        {"name": "a", "source": "oci://user@registry/a"},
        {"name": "a", "source": "hf://a/.."},
        {"name": "a", "source": "hf://a/b", "revision": "main"},
        {"name": "a", "source": "s3://bucket/a", "revision": "0" * 40},
        {"name": "a", "source": "s3://bucket/a", "digest": "md5:00"},
        {"name": "a", "source": "s3://bucket/a", "path": "/etc"},
    ],
)
def test_malformed_requests_are_refused(body: object) -> None:
    from fairlead_downloader.__main__ import parse_request
    from fairlead_downloader.errors import InvalidRequest

    with pytest.raises(InvalidRequest) as refused:
        parse_request(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refused.value.status == 400


def test_wrong_size_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairlead_downloader", f"--folder={tmp_path}", "--max-bytes=many"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "many" in ended.stderr
