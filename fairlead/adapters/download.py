"""Adapters that a downloader in the engine's pod fetches: what gateways request, and where it lies.

Gateways, the operator and the downloader share this module, so that all know the path before there
is a download.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

DOWNLOADER_PORT: Final = 8100
"""The port of the downloader in a pod with one."""
DOWNLOADER_PATH: Final = "/v1/adapters"
DOWNLOADS_FOLDER: Final = "/var/lib/fairlead/adapter-downloads"
"""The folder of downloads, which the downloader writes and the engine reads."""
PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._=+@-]*"
DOWNLOAD_PATTERNS: Final = {
    "hf": r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*",
    "s3": rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/{PART})+",
    "gs": rf"gs://[a-z0-9][a-z0-9._-]{{1,220}}[a-z0-9](/{PART})+",
    "oci": r"oci://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?",
}
"""The sources that a downloader fetches, by scheme."""
REVISION_PATTERN: Final = "^[0-9a-f]{40}$"
DIGEST_PATTERN: Final = "^sha256:[0-9a-f]{64}$"
_KEY_DIGITS: Final = 32


@dataclass(frozen=True, slots=True)
class AdapterDownload:
    """A download of an adapter.

    source: an address of the scheme hf, s3, gs or oci.
    revision: the commit of an hf:// repository; empty for its branch `main`.
    digest: the digest of the folder, as `fairlead_downloader.folder_writer` defines it; empty if
        any content is taken.
    """

    source: str
    revision: str = ""
    digest: str = ""

    @property
    def scheme(self) -> str:
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        return self.source.partition("://")[2]

    @property
    def folder_name(self) -> str:
        text = "\0".join((self.source, self.revision, self.digest))
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    @property
    def engine_path(self) -> str:
        return f"{DOWNLOADS_FOLDER}/{self.folder_name}"
