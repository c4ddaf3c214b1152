"""Pages that readers follow: what they show is run somewhere, valid, and no promise."""

import json
import os
import re
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fairlead.limits import Limits
from fairlead.manifests.loader import combine_texts
from fairlead_testing.pages import Block, CommandPage, missing_line, parse_page, run_page, simulated_manifest
from fairlead_testing.yaml_documents import load_document, load_documents

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLLOWED = [
    ROOT / "README.md",
    *sorted(chain.from_iterable((DOCS / folder).glob("*.md") for folder in ("getting-started", "how-to"))),
]
"""Pages that a reader follows step by step."""
PROGRAM = re.compile(r"(?:\$ )?(?:kubectl|helm|fairlead|make|curl|python3?|pip|kind|openssl|git|export)\b")
SHELLS = ("sh", "bash", "shell", "console")
VALUES_SCHEMA = json.loads((ROOT / "charts" / "fairlead" / "values.schema.json").read_text(encoding="utf-8"))
PROMISE = re.compile(
    r"\b(?:not yet|coming|in an? (?:later|future|coming|upcoming) (?:release|version)|(?:is|are) planned|planned for|"
    r"will (?:be|get) (?:added|supported)|to be done|work in progress)\b",
    re.IGNORECASE,
)
WORKSHOP = ("docs/status.md", "docs/decisions/")
"""Pages that may speak of what is missing: the status page, and records of their time."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(language: str) -> list[tuple[Path, Block]]:
    return [(path, block) for path in FOLLOWED for block in parse_page(path).blocks if block.language == language]


def accelerators_of(path: Path) -> list[dict[str, Any]]:
    """Returns the AcceleratorClasses of a page, which its other manifests may name."""
    documents = [
        document
        for block in parse_page(path).blocks
        if block.language == "yaml" and not block.skipped
        for document in load_documents(block.text)
        if isinstance(document, dict)
    ]
    return [document for document in documents if document.get("kind") == "AcceleratorClass"]


def is_same(manifest: dict[str, Any], other: dict[str, Any]) -> bool:
    return manifest["kind"] == other["kind"] and manifest["metadata"]["name"] == other["metadata"]["name"]


def test_pages_say_where_their_commands_run_and_why_a_block_is_left_out() -> None:
    for path in FOLLOWED:
        page = parse_page(path)
        unmarked = [block.line for block in page.blocks if block.language in SHELLS and not block.skipped]
        assert page.setting or not unmarked, f"{path.name} has commands and no `<!-- commands: … -->`"
        assert page.setting != "none" or len(page.reason.split()) >= 3, f"{path.name}: the reason is missing"
        reasons = [block.skipped for block in page.blocks if block.skipped]
        assert [reason for reason in reasons if len(reason.split()) < 3] == [], path.name


def test_reasons_name_tests_that_exist() -> None:
    reasons = [text for page in map(parse_page, FOLLOWED) for text in (page.reason, *(b.skipped for b in page.blocks))]
    files = [file for reason in reasons for file in re.findall(r"[\w./]+\.py", reason)]
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_a_page_that_runs_somewhere_has_a_command_that_runs() -> None:
    idle = [
        page.path.name
        for page in map(parse_page, FOLLOWED)
        if page.setting not in ("", "none") and not any(block.is_command and not block.skipped for block in page.blocks)
    ]
    assert idle == [], "no command of the page is run: say why with `commands: none: REASON`"


def test_pages_for_every_kind_of_installation_exist() -> None:
    assert {"local", "checkout", "cluster", "installation"} <= {parse_page(path).setting for path in FOLLOWED}


def test_commands_are_written_so_that_they_can_be_pasted() -> None:
    for path in FOLLOWED:
        blocks = parse_page(path).blocks
        other = [block.line for block in blocks if block.language in ("bash", "shell", "console")]
        assert other == [], f"{path.name}: use sh"
        bare = [block.line for block in blocks if not block.language and PROGRAM.match(block.text)]
        assert bare == [], f"{path.name}: commands without a language are not run"
        prompts = [block.line for block in blocks if block.language == "sh" and re.search(r"^\$ ", block.text, re.M)]
        assert prompts == [], path.name


def test_manifests_are_complete_and_valid() -> None:
    for path, block in blocks_of("yaml"):
        if block.skipped:
            continue
        if block.file and "values" in block.file:
            jsonschema.validate(load_document(block.text), VALUES_SCHEMA)
        else:
            check_manifest(path, block)


def check_manifest(path: Path, block: Block) -> None:
    documents = [document for document in load_documents(block.text) if document]
    for document in documents:
        assert {"apiVersion", "kind"} <= document.keys(), f"{path.name}:{block.line}: no complete manifest"
    own = [document for document in documents if document["apiVersion"].startswith("serving.fairlead.io/")]
    if own:
        own += [entry for entry in accelerators_of(path) if not any(is_same(entry, document) for document in own)]
        problems = combine_texts([(f"{path.name}:{block.line}", yaml.safe_dump_all(own))], limits=Limits())[1]
        assert problems == []


def test_pages_describe_what_exists() -> None:
    promises = []
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if named(path).startswith(WORKSHOP):
            continue
        plain = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        promises += [f"{named(path)}: {promise[0]}" for promise in PROMISE.finditer(plain)]
    assert promises == []


def test_the_parser_reads_markers_files_and_backgrounds(tmp_path: Path) -> None:
    page = write_page(
        tmp_path,
        "<!-- commands: local, simulated -->\n"
        "```yaml\n# model.yaml\na: 1\n```\n"
        "<!-- background: ^ready -->\n```sh\nfairlead up\n```\n"
        "<!-- not run: it needs a GPU -->\n```sh\nnvidia-smi\n```\n",
    )
    manifest, started, skipped = page.blocks
    assert (page.setting, page.simulated) == ("local", True)
    assert manifest.file == "model.yaml"
    assert started.background == "^ready"
    assert skipped.skipped == "it needs a GPU"


def test_output_without_a_last_newline_does_not_hide_that_of_the_next_block(tmp_path: Path) -> None:
    blocks = "```sh\nprintf first\n```\n```text\nfirst\n```\n```sh\necho second\n```\n```text\nsecond\n```\n"
    page = write_page(tmp_path, f"<!-- commands: local -->\n{blocks}")
    run_page(page, tmp_path, os.environ, timeout_seconds=60)


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="moon"):
        write_page(tmp_path, "<!-- commands: moon -->\n")


def test_a_setting_within_a_line_is_an_example(tmp_path: Path) -> None:
    assert write_page(tmp_path, "| `<!-- commands: local -->` | once |\n").setting == ""


def test_expected_lines_are_found_in_their_order_with_any_text_for_an_ellipsis() -> None:
    output = "NAME   READY\nqwen   2/2   12s\nall is well\n"
    assert missing_line("NAME READY\nqwen … 12s", output) is None
    assert missing_line("qwen\nNAME", output) == "NAME"
    assert missing_line("qwen 3/3", output) == "qwen 3/3"


def test_a_simulated_manifest_keeps_the_pools_and_drops_what_needs_hardware() -> None:
    shown = (ROOT / "examples" / "single-model" / "gpu.yaml").read_text(encoding="utf-8")
    accelerator, model = load_documents(simulated_manifest(shown))
    assert accelerator["spec"].keys() == {"costPerHour", "profile"}
    assert model["spec"]["engine"] == {"type": "Sim"}
    assert model["spec"]["pools"] == [{"acceleratorClassName": "nvidia-l40s", "minReplicas": 2, "maxReplicas": 8}]


def write_page(folder: Path, text: str) -> CommandPage:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return parse_page(path)
