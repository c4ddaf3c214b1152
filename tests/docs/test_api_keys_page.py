"""The commands of the page on API keys, run as written against files for `kubectl` and `curl`."""

import json
import os
import re
from hashlib import sha256
from hmac import new as hmac_new
from pathlib import Path

import pytest

from fairlead.limits import Limits
from fairlead_gateway.supervisor.file_parsing.key_list import parse_key_file
from fairlead_testing.pages import parse_page, run_page

DOCS = Path(__file__).parents[2] / "docs"
PAGE = parse_page(DOCS / "how-to/api-keys.md")
PEPPER = "a pepper"
FIRST = hmac_new(PEPPER.encode(), b"sk-first", sha256).hexdigest()
AS_BY_THE_CHART = f'keys:\n  - {{name: first, digest: "{FIRST}"}}\n'
KUBECTL = """#!/usr/bin/env python3
import base64, json, pathlib, re, sys, time
state, words = pathlib.Path(__file__).parent / "state", " ".join(sys.argv[1:])
if "port-forward" in words:
    time.sleep(600)
elif "get pods" in words:
    print("pod/fairlead-gateway-a\\npod/fairlead-gateway-b")
elif "get secret" in words:
    entry = re.search(r"data\\.(.+)}", words)[1].replace("\\\\", "")
    print(base64.b64encode((state / entry).read_bytes()).decode(), end="")
elif "patch secret" in words:
    for entry, text in json.loads(sys.argv[-1])["data"].items():
        (state / entry).write_bytes(base64.b64decode(text))
        with (state / "history").open("a") as history:
            history.write(json.dumps(base64.b64decode(text).decode()) + "\\n")
    print("secret/fairlead-keys patched")
"""
CURL = """#!/usr/bin/env python3
import hmac, pathlib, sys
state = pathlib.Path(__file__).parent / "state"
key = next(word for word in sys.argv if "Bearer" in word).split()[-1]
digest = hmac.new((state / "pepper").read_bytes(), key.encode(), "sha256").hexdigest()
print("200" if digest in (state / "keys.yaml").read_text() else "401", end="")
"""


def run_with_keys(folder: Path, keys: str) -> list[list[str]]:
    """Runs the page on a list of keys, and returns the names in the list after each change."""
    tools, work = folder / "bin", folder / "work"
    (tools / "state").mkdir(parents=True)
    work.mkdir()
    for name, text in (("kubectl", KUBECTL), ("curl", CURL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for entry, text in {"pepper": PEPPER, "first-key": "sk-first", "keys.yaml": keys}.items():
        (tools / "state" / entry).write_text(text)
    run_page(PAGE, work, {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, timeout_seconds=120)
    written = map(json.loads, (tools / "state" / "history").read_text().splitlines())
    return [list(parse_key_file(text, file="keys.yaml", limits=Limits()).values()) for text in written]


@pytest.mark.parametrize("keys", [AS_BY_THE_CHART, AS_BY_THE_CHART.rstrip()], ids=["chart", "without a last newline"])
def test_a_rotation_as_pasted_removes_the_old_key_and_keeps_the_new_one(keys: str, tmp_path: Path) -> None:
    assert run_with_keys(tmp_path, keys) == [
        ["first", "team-a"],
        ["first", "team-a", "team-a-2026-11"],
        ["first", "team-a-2026-11"],
        ["first"],
    ]


def test_the_only_key_can_be_revoked(tmp_path: Path) -> None:
    assert run_with_keys(tmp_path, "keys:\n")[-1] == []


def test_the_list_of_a_gitops_installation_can_be_appended_to() -> None:
    commands = (DOCS / "how-to/gitops.md").read_text()
    form = re.search(r"^printf '(.+)' \"\$DIGEST\" > keys\.yaml$", commands, re.MULTILINE)
    assert form is not None
    written = form[1].replace("\\n", "\n").replace("%s", FIRST)
    appended = written + f'  - {{name: team-a, digest: "{"a" * 64}"}}\n'
    assert list(parse_key_file(appended, file="keys.yaml", limits=Limits()).values()) == ["first", "team-a"]
