"""An S3 server in memory, on its own: listing by prefix and reading, with signatures checked.

It runs inside a test, or as a program in a pod: `python3 s3_server.py ADDRESS PORT OBJECTS`. It is
strict: a request whose signature is not that of its key gets 403.

Source: AWS Signature Version 4, "Authenticating Requests (AWS Signature Version 4)".
"""

import hashlib
import hmac
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from xml.sax.saxutils import escape

ACCESS_KEY: Final = "AKIDEXAMPLE"
SECRET_KEY: Final = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>[^,]+), ?SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>\w+)"
)


@dataclass(slots=True)
class S3Bucket:
    """The objects of a server.

    objects: by bucket and key.
    checks_signature: False for a server like that of Google, with tokens.
    truncated: keys whose content ends after half of it.
    page: objects in one answer of a listing.
    """

    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    checks_signature: bool = True
    truncated: set[str] = field(default_factory=set)
    page: int = 2
    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def s3_server(bucket: S3Bucket, host: str = "127.0.0.1", port: int = 0) -> Iterator[S3Bucket]:
    """Serves the objects during the block."""

    class Handler(_Handler):
        state = bucket

    with ThreadingHTTPServer((host, port), Handler) as server:
        bucket.url = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield bucket
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: S3Bucket
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers a listing or an object."""
        path, _, query = self.path.partition("?")
        self.state.requests.append(self.path)
        if self.state.checks_signature and not self._is_signed(path, query):
            self._send_error(403, "SignatureDoesNotMatch")
            return
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        if not any(name == bucket for name, _ in self.state.objects):
            self._send_error(404, "NoSuchBucket")
        elif "list-type=2" in query:
            self._list(bucket, dict(urllib.parse.parse_qsl(query)))
        elif (bucket, key) not in self.state.objects:
            self._send_error(404, "NoSuchKey")
        else:
            self._send_object(key, self.state.objects[bucket, key])

    def log_message(self, format: str, *args: object) -> None:
        """Writes nothing."""

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        start = query.get("continuation-token", "")
        keys = sorted(
            key for name, key in self.state.objects if name == bucket and key.startswith(query.get("prefix", ""))
        )
        left = [key for key in keys if key > start]
        page = left[: self.state.page]
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(left) > len(page) else ""
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;1&quot;</ETag><Size>{len(self.state.objects[bucket, key])}</Size></Contents>"
            for key in page
        )
        truncated = "true" if more else "false"
        text = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{entries}</ListBucketResult>"
        self._send(200, text.encode())

    def _send_object(self, key: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.send_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("etag", '"1"')
        self.end_headers()
        if key in self.state.truncated:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _send_error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{SECRET_KEY}</Message></Error>".encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _is_signed(self, path: str, query: str) -> bool:
        found = _AUTHORIZATION.fullmatch(self.headers.get("authorization", ""))
        if found is None or found["key"] != ACCESS_KEY:
            return False
        names = found["headers"].split(";")
        if "host" not in names or "x-amz-date" not in names:
            return False
        pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
        canonical = "\n".join(
            (
                "GET",
                urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~"),
                "&".join(f"{_quote(name)}={_quote(value)}" for name, value in pairs),
                *(f"{name}:{(self.headers.get(name) or '').strip()}" for name in names),
                "",
                found["headers"],
                self.headers.get("x-amz-content-sha256", ""),
            )
        )
        scope = found["scope"]
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self.headers['x-amz-date']}\n{scope}\n{hashed}"
        key = f"AWS4{SECRET_KEY}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), found["signature"])


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def main(host: str, port: str, objects: str) -> None:
    """Serves objects until the process ends.

    objects: JSON of their texts, by bucket and key with a slash between them.
    """
    texts: dict[str, str] = json.loads(objects)
    stored = {(name.partition("/")[0], name.partition("/")[2]): text.encode() for name, text in texts.items()}
    with s3_server(S3Bucket(stored), host, int(port)):
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
