"""The commands of the page on API keys for keys without a tenant, and the list of GitOps."""

import os
import re
from hashlib import sha256
from hmac import new as hmac_new
from pathlib import Path

from fairlead.limits import Limits
from fairlead_gateway.tenants.supervisor.key_list import parse_key_file
from fairlead_testing.pages import Block, CommandPage, parse_page, run_page

DOCS = Path(__file__).parents[2] / "docs"
PAGE = parse_page(DOCS / "how-to/api-keys.md")
PEPPER = "a pepper"
FIRST = hmac_new(PEPPER.encode(), b"sk-first", sha256).hexdigest()
KUBECTL = """#!/usr/bin/env python3
import base64, json, pathlib, re, sys
state, words = pathlib.Path(__file__).parent / "state", " ".join(sys.argv[1:])
if "get secret" in words:
    entry = re.search(r"data\\.(.+)}", words)[1].replace("\\\\", "")
    print(base64.b64encode((state / entry).read_bytes()).decode(), end="")
else:
    for entry, text in json.loads(sys.argv[-1])["data"].items():
        (state / entry).write_bytes(base64.b64decode(text))
    print("secret/fairlead-keys patched")
"""


def run_block(part: str, folder: Path, key: str) -> str:
    """Runs the block with a text on the Secret as the chart writes it, and returns `keys.yaml`."""
    (block,) = (block for block in PAGE.blocks if block.language == "sh" and part in block.text)
    tools, work = folder / "bin", folder / "work"
    (tools / "state").mkdir(parents=True)
    work.mkdir()
    (tools / "kubectl").write_text(KUBECTL)
    (tools / "kubectl").chmod(0o755)
    keys = f'keys:\n  - {{name: first, digest: "{FIRST}"}}\n'
    for entry, text in {"pepper": PEPPER, "keys.yaml": keys}.items():
        (tools / "state" / entry).write_text(text)
    page = CommandPage(PAGE.path, "local", False, "", (Block("sh", block.text, block.line),))
    run_page(page, work, {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "KEY": key}, timeout_seconds=120)
    return (tools / "state" / "keys.yaml").read_text()


def test_a_key_without_a_tenant_is_added_with_its_digest(tmp_path: Path) -> None:
    written = run_block("team-b", tmp_path, "sk-second")
    digest = hmac_new(PEPPER.encode(), b"sk-second", sha256).digest()
    keys = parse_key_file(written, file="keys.yaml", limits=Limits())
    assert keys == {bytes.fromhex(FIRST): "first", digest: "team-b"}


def test_the_first_key_is_removed_with_an_empty_list(tmp_path: Path) -> None:
    written = run_block("keys: []", tmp_path, "")
    assert parse_key_file(written, file="keys.yaml", limits=Limits()) == {}


def test_the_list_of_a_gitops_installation_can_be_appended_to() -> None:
    commands = (DOCS / "how-to/gitops.md").read_text()
    form = re.search(r"^printf '(.+)' \"\$DIGEST\" > keys\.yaml$", commands, re.MULTILINE)
    assert form is not None
    written = form[1].replace("\\n", "\n").replace("%s", FIRST)
    appended = written + f'  - {{name: team-a, digest: "{"a" * 64}"}}\n'
    assert list(parse_key_file(appended, file="keys.yaml", limits=Limits()).values()) == ["first", "team-a"]
