"""The clients that are recorded: how each is pointed at a server, and how it runs one turn."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

MODEL = "claude-sonnet-4-5"
KEY = "fl_example_key"

AIDER = (
    *("--model", "openai/coder", "--no-auto-commits", "--yes-always", "--no-check-update", "--no-show-release-notes"),
    *("--no-show-model-warnings", "--analytics-disable", "--no-gitignore", "--message", "{prompt}"),
)
CODEX = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that runs without a terminal.

    program: its path below the folder of installed clients.
    environment, files: by the server's address; files lie in the home folder.
    first, next_turn: arguments of the first turn of a conversation, and of a later one.
    setup, probes, teardown: arguments of runs before and after, and of others that are recorded.
    sessions: arguments that list conversations, where the client needs their ids; ``session``
        finds the id of the newest one.
    error: finds the lines of an error in the output; all lines without one.
    """

    name: str
    package: str
    program: str
    environment: Callable[[str], Mapping[str, str]]
    files: Callable[[str], Mapping[str, str]]
    first: Sequence[str]
    next_turn: Sequence[str]
    setup: Sequence[Sequence[str]] = ()
    probes: Sequence[Sequence[str]] = ()
    teardown: Sequence[Sequence[str]] = ()
    sessions: Sequence[str] = ()
    session: str = ""
    error: str = ""
    has_subagents: bool = False
    has_faults: bool = True

    def shown(self, output: str) -> str:
        return "\n".join(line for line in output.splitlines() if re.search(self.error, line) and line.strip())


def _no_files(_: str) -> Mapping[str, str]:
    return {}


def _claude_environment(url: str) -> Mapping[str, str]:
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "claude-haiku-4-5",
        "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1",
    }


def _codex_files(url: str) -> Mapping[str, str]:
    config = f"""
model = "gpt-5"
model_provider = "fairlead"

[model_providers.fairlead]
name = "Fairlead"
base_url = "{url}/v1"
env_key = "FAIRLEAD_API_KEY"
wire_api = "responses"
"""
    return {".codex/config.toml": config}


def _opencode_files(package: str, url: str) -> Mapping[str, str]:
    provider = {
        "npm": f"@ai-sdk/{package}",
        "name": "Fairlead",
        "options": {"baseURL": f"{url}/v1", "apiKey": "{env:FAIRLEAD_API_KEY}"},
        "models": {"coder": {"name": "coder"}},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"fairlead": provider},
        "model": "fairlead/coder",
        "small_model": "fairlead/coder",
        "autoupdate": False,
        "share": "disabled",
    }
    return {".config/opencode/opencode.json": json.dumps(config, indent=2)}


def _key_environment(_: str) -> Mapping[str, str]:
    return {"FAIRLEAD_API_KEY": KEY}


def _aider_environment(url: str) -> Mapping[str, str]:
    return {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def _opencode(name: str, package: str, *, is_first: bool = False) -> Client:
    """Returns OpenCode with a package for a dialect; only the first one has all recordings."""
    return Client(
        name,
        "opencode-ai",
        "opencode-ai/node_modules/.bin/opencode",
        _key_environment,
        partial(_opencode_files, package),
        ("run", "{prompt}"),
        ("run", "--continue", "{prompt}"),
        has_subagents=is_first,
        has_faults=is_first,
    )


CLIENTS = (
    Client(
        "claude-code",
        "@anthropic-ai/claude-code",
        "claude-code/node_modules/.bin/claude",
        _claude_environment,
        _no_files,
        ("-p", "{prompt}", "--allowedTools", "Bash"),
        ("-p", "{prompt}", "--continue", "--allowedTools", "Bash"),
        probes=(("-p", "/context"),),
        has_subagents=True,
        error="API Error|authenticate|issue with|command printed",
    ),
    Client(
        "codex",
        "@openai/codex",
        "codex/node_modules/.bin/codex",
        _key_environment,
        _codex_files,
        ("exec", *CODEX, "{prompt}"),
        ("exec", "resume", "--last", *CODEX, "{prompt}"),
        error="^ERROR",
        has_subagents=True,
    ),
    _opencode("opencode", "openai-compatible", is_first=True),
    _opencode("opencode-messages", "anthropic"),
    _opencode("opencode-responses", "openai"),
    Client(
        "cline",
        "cline",
        "cline/node_modules/.bin/cline",
        lambda _: {},
        _no_files,
        ("--json", "{prompt}"),
        ("--json", "--id", "{session}", "{prompt}"),
        setup=(("auth", "openai", "-k", KEY, "-b", "{url}/v1", "-m", "coder"),),
        teardown=(("hub", "stop"),),
        sessions=("history", "--json"),
        session=r'"sessionId":"([^"]+)"',
        error=r'"type":"error"(?!.*hook dispatch)',
    ),
    Client(
        "aider",
        "aider-chat",
        "aider/bin/aider",
        _aider_environment,
        _no_files,
        ("--no-restore-chat-history", *AIDER),
        ("--restore-chat-history", *AIDER),
        error=r"^(?:litellm|The API|Retrying|Authorization|here$|requests in|per month|broke off|engine of)",
    ),
)


def write_files(client: Client, url: str, home: Path) -> None:
    """Writes the client's configuration."""
    for name, text in client.files(url).items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
