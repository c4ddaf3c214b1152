"""The recorder: sends recorded requests to a running engine and writes what it answers.

It repeats the recordings after an engine's release. The requests stay those of the earlier
recordings, the answers are the bytes that the engine sent.
"""

from collections.abc import Iterable
from pathlib import Path

from fairlead_sim.transcripts.http_client import get_request, open_client, send_request
from fairlead_sim.transcripts.manifest import ManifestEntry
from fairlead_sim.transcripts.recording import RecordedRequest, is_complete, read_recording


async def record_entries(entries: Iterable[ManifestEntry], folder: Path, authority: str) -> dict[str, bytes]:
    """Records the requests of ``folder`` at an engine, in the manifest's order.

    Returns file name → content.

    Requests that stay open while others are sent, and those that wait for a client to leave, are
    left out: scenarios record them by hand.
    """
    version = (await send_request(authority, get_request("/version"))).json()["version"]
    made = {}
    for entry in entries:
        if entry.hold:
            continue
        request = read_recording(folder / f"{entry.name}.txt").request
        answer = await _exchange(authority, request)
        made[f"{entry.name}.txt"] = recording_bytes(entry.name, version, request.to_bytes(authority), answer)
    return made


def recording_bytes(name: str, version: str, request: bytes, answer: bytes) -> bytes:
    """Returns a recording in the form that ``read_recording`` reads."""
    head = f"# {name}\n# vLLM {version}, real engine, raw bytes\n".encode()
    return head + b"===== REQUEST =====\n" + request + b"\n===== RESPONSE =====\n" + answer + b"\n"


async def _exchange(authority: str, request: RecordedRequest) -> bytes:
    """Returns the bytes of one response. Raises EOFError if the engine closes before its end."""
    async with open_client(authority) as connection:
        await connection.send(request.to_bytes(authority))
        while not is_complete(bytes(connection.received)):
            if not await connection.read_more():
                raise EOFError(f"the engine closed after {len(connection.received)} bytes")
        return bytes(connection.received)
