"""Records what coding agents and other clients send, and what they show of errors.

    python -m scripts.record_clients PROGRAMS [CLIENT …]

PROGRAMS is the folder where the clients are installed (`tests/recordings/clients/README.md` says
how). Each client has two conversations of two turns, and one with another agent if it starts such.
Then it runs once for each error. It runs in an empty home folder, against a server on loopback, and
writes a file in `tests/recordings/clients`.
"""

import argparse
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fairlead_gateway.errors import (
    BudgetSpent,
    ConcurrencyReached,
    EngineFailed,
    InvalidApiKey,
    LimitReached,
    NoReadyInstance,
    UnknownModel,
)
from fairlead_testing.client_recordings import FOLDER, FillerWriter, share
from scripts.record_clients.clients import CLIENTS, Client, write_files
from scripts.record_clients.stub_server import SUBAGENT_PROMPT, Fault, SentRequest, StubServer

PROMPTS = (
    "Run echo hi and say what it printed.",
    "Run it again, please.",
    "Which files are here? Run echo hi.",
    "Again.",
)
UNKNOWN_KEY = InvalidApiKey("the API key is not known (send it as Authorization: Bearer)")
BROKEN_OFF = EngineFailed("the engine broke off; the answer is incomplete", code="stream_cut")
FAULTS = {
    "wrong key": Fault(UNKNOWN_KEY),
    "wrong key, no retry": Fault(UNKNOWN_KEY, (("x-should-retry", "false"),)),
    "unknown model": Fault(UnknownModel("model: no model of this name is served here")),
    "limit for 2 s": Fault(
        LimitReached("the limit of 60 requests per minute of tenant acme is reached"),
        (("retry-after", "2"),),
        count=1,
    ),
    "limit without end": Fault(
        ConcurrencyReached("tenant acme has 4 requests in flight, its limit"), (("retry-after", "1"),)
    ),
    "budget": Fault(
        BudgetSpent("the budget of 5 USD per month of tenant acme is used up"),
        (("retry-after", "86400"), ("x-should-retry", "false")),
    ),
    "no engine": Fault(NoReadyInstance("no engine of the model is ready"), (("retry-after", "1"),)),
    "stream cut once": Fault(BROKEN_OFF, after_start=True, count=1),
    "stream cut": Fault(BROKEN_OFF, after_start=True),
}
TURN_SECONDS, FAULT_SECONDS = 120, 75
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SHOWN_CHARACTERS = 700


@dataclass(slots=True)
class Run:
    """Runs of one client in a home folder of its own."""

    client: Client
    programs: Path
    home: Path
    server: StubServer

    def start(self, arguments: Sequence[str], limit: float) -> tuple[int | None, str]:
        """Runs the program; returns its exit code, None after the limit, and its output."""
        project = self.home / "project"
        project.mkdir(exist_ok=True)
        own = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TERM": "dumb", "LANG": "C.UTF-8"}
        command = [str(self.programs / self.client.program), *arguments]
        options: Any = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }
        environment = own | dict(self.client.environment(self.server.url))
        process = subprocess.Popen(command, cwd=project, env=environment, **options)
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return None, output
        return process.returncode, output

    def turn(self, arguments: Sequence[str], prompt: str, session: str, limit: float) -> tuple[int | None, str]:
        """Runs one turn of a conversation."""
        values = {"{prompt}": prompt, "{session}": session, "{url}": self.server.url}
        return self.start(
            [values.get(argument, argument.replace("{url}", self.server.url)) for argument in arguments], limit
        )

    def newest_session(self) -> str:
        """Returns the id of the newest conversation, or an empty text."""
        if not self.client.sessions:
            return ""
        found = re.search(self.client.session, self.start(self.client.sessions, TURN_SECONDS)[1])
        return found[1] if found else ""


def record(client: Client, programs: Path, home: Path) -> dict[str, Any]:
    """Returns the recording of a client."""
    writer = FillerWriter({str(home): "/home/coder".ljust(len(str(home)), "_")})
    with StubServer() as server:
        run = Run(client, programs, home, server)
        write_files(client, server.url, home)
        for arguments in client.setup:
            run.turn(arguments, "", "", TURN_SECONDS)
        conversations = []
        for prompts in (PROMPTS[:2], PROMPTS[2:], *([(SUBAGENT_PROMPT,)] if client.has_subagents else [])):
            turns: list[list[dict[str, Any]]] = []
            session = ""
            for prompt in prompts:
                server.begin()
                code, _ = run.turn(client.next_turn if turns else client.first, prompt, session, TURN_SECONDS)
                print(f"{client.name}: {prompt!r}: exit code {code}, {len(server.sent)} requests", flush=True)
                turns.append([_sent(request, writer) for request in server.sent])
                session = session or run.newest_session()
            conversations.append(turns)
        for arguments in client.probes:
            server.begin()
            run.start(arguments, TURN_SECONDS)
            conversations.append([[_sent(request, writer) for request in server.sent]])
        faults = {name: _fault(run, fault, writer) for name, fault in FAULTS.items() if client.has_faults}
        _, version = run.start(["--version"], TURN_SECONDS)
        for arguments in client.teardown:
            run.start(arguments, TURN_SECONDS)
    shortened, shared = share(conversations)
    return {
        "client": client.name,
        "version": version.strip().splitlines()[-1],
        "package": client.package,
        "source": "recorded",
        "conversations": shortened,
        "faults": faults,
        "shared": shared,
    }


def _sent(request: SentRequest, writer: FillerWriter) -> dict[str, Any]:
    return {
        "method": request.method,
        "target": request.target,
        "headers": [[name, writer.rename(value)] for name, value in request.headers],
        "body_bytes": len(request.body),
        "body": writer.shorten(json.loads(request.body)) if request.body else None,
    }


def _fault(run: Run, fault: Fault, writer: FillerWriter) -> dict[str, Any]:
    run.server.begin(fault)
    code, output = run.turn(run.client.first, PROMPTS[0], "", FAULT_SECONDS)
    attempts = [request for request in run.server.sent if request.method == "POST"]
    print(f"{run.client.name}: {fault.error.code}: exit code {code}, {len(attempts)} requests", flush=True)
    shown = writer.rename(run.client.shown(_ANSI.sub("", output)).strip())
    return {
        "attempts": len(attempts),
        "seconds": [request.seconds for request in attempts][:12],
        "exit_code": code,
        "shown": shown[-_SHOWN_CHARACTERS:],
    }


def main() -> None:
    """Records the clients of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("programs", type=Path, help="the folder of the installed clients")
    parser.add_argument("clients", nargs="*", help="names of clients; all without one")
    options = parser.parse_args()
    for client in CLIENTS:
        if options.clients and client.name not in options.clients:
            continue
        with TemporaryDirectory(prefix="client-", dir="/var/tmp") as home:
            recording = record(client, options.programs.resolve(), Path(home))
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{client.name}.json").write_text(_layout(recording))


def _layout(recording: dict[str, Any]) -> str:
    """Returns the recording as JSON with a line for each request, fault and shared part."""
    text = json.dumps({**recording, "conversations": "@1", "faults": "@2", "shared": "@3"}, indent=1)
    conversations = ",\n".join(
        "  [\n" + ",\n".join("   [\n" + _rows(requests, "    ") + "\n   ]" for requests in turns) + "\n  ]"
        for turns in recording["conversations"]
    )
    faults = ",\n".join(f"  {json.dumps(name)}: {_compact(fault)}" for name, fault in recording["faults"].items())
    text = text.replace('"@1"', f"[\n{conversations}\n ]").replace('"@2"', f"{{\n{faults}\n }}")
    return text.replace('"@3"', f"[\n{_rows(recording['shared'], '  ')}\n ]") + "\n"


def _rows(values: Sequence[Any], indent: str) -> str:
    return ",\n".join(indent + _compact(value) for value in values)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
