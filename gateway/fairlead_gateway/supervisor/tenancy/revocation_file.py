"""The revocation list: digests of API keys that are refused although another source lists them."""

import asyncio
from pathlib import Path

from fairlead.tenants.documents import describe_wrong_lines, parse_revocations


class RevocationFile:
    """A file with one digest on each line, read apart from every other file.

    digests: those of all good lines. A file that cannot be read changes nothing.
    problem: the lines that are no digests, or why the file cannot be read; None if all is well. A
        file that does not exist yet is an empty one.

    Why by line: a key must stop even if everything around it is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: frozenset[bytes] = frozenset()
        self.problem: str | None = None
        self._was_read = False

    async def load(self) -> None:
        """Reads the file; never raises."""
        try:
            text = await asyncio.to_thread(self.path.read_text, encoding="utf-8", errors="replace")
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError) and not self._was_read
            what = f"cannot read {self.path}: {error.strerror or error}; the last list of revoked keys stays"
            self.problem = None if is_missing else what
            return
        self._was_read = True
        self.digests, wrong = parse_revocations(text)
        self.problem = describe_wrong_lines(str(self.path), wrong)
