"""The digest of a folder: SHA-256 of a list of its files. Pure.

The list is what `sha256sum` prints: for each file its SHA-256, two spaces, its name relative to the
folder, and a newline. It is sorted by the bytes of the names. So the digest of a folder is that of

    find . -type f -not -path '*/.*' -printf '%P\\n' | LC_ALL=C sort |
      xargs -d '\\n' sha256sum | sha256sum

Hidden files, and files in hidden folders, are left out, as in downloads.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "sha256:"


def folder_digest(files: Mapping[str, str]) -> str:
    """Returns the digest of a folder.

    files: the SHA-256 of each file as hexadecimal digits, by its relative name.
    """
    lines = (f"{files[name]}  {name}\n".encode() for name in sorted(files, key=str.encode))
    return PREFIX + hashlib.sha256(b"".join(lines)).hexdigest()
