"""The pages of `docs/migrate`: their commands give the output that they show."""

import re
from pathlib import Path

import pytest

from fairlead.fleet.client_names import NameClaim, NameHistory, name_owners
from fairlead_testing.pages import page_commands, page_files, run_fairlead

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "migrate"
PAGES = sorted(path.name for path in FOLDER.glob("*.md") if page_files(path.read_text(encoding="utf-8")))
RUN = ("fairlead convert ", "fairlead lint ")
EMPTY_BLOCK = re.compile(r"^ *```\w+[^\n]*\n\s*```$", re.M)


def test_each_system_has_a_page_with_manifests() -> None:
    assert PAGES == [
        "aibrix.md",
        "kserve.md",
        "kthena.md",
        "kubeai.md",
        "litellm.md",
        "llm-d.md",
        "production-stack.md",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_commands_give_the_output_of_the_page(name: str, tmp_path: Path) -> None:
    page = (FOLDER / name).read_text(encoding="utf-8")
    for file, text in page_files(page).items():
        (tmp_path / file).write_text(text)
    commands = [command for command in page_commands(page) if command.line.startswith(RUN)]
    assert commands
    for command in commands:
        assert run_fairlead(command.line, tmp_path) == command.output, command.line


def test_no_block_is_empty() -> None:
    empty = [path.name for path in FOLDER.glob("*.md") if EMPTY_BLOCK.search(path.read_text(encoding="utf-8"))]
    assert empty == []


def test_cut_over_gives_the_name_to_the_converted_model_and_back() -> None:
    """Steps 3 to 5 of the cut-over in `docs/migrate/index.md`, and the way back."""
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert "kubectl annotate mdep llama-external fairlead.io/release-names=true" in page
    assert "--set clientNames.llama=default/llama-external" in page

    def owner(*, is_releasing: bool, history: NameHistory) -> str:
        external = NameClaim(
            "default", "llama-external", ("llama",), frozenset({"llama-external", "llama"}), is_releasing=is_releasing
        )
        converted = NameClaim("default", "llama", (), frozenset({"default/llama"}))
        return name_owners([external, converted], {"default"}, history)["llama"]

    before = NameHistory(remembered={"llama": "default/llama-external"})
    assert owner(is_releasing=False, history=before) == "default/llama-external"
    assert owner(is_releasing=True, history=before) == "default/llama"
    after = NameHistory(
        assigned={"llama": "default/llama-external"},
        remembered={"llama": "default/llama"},
    )
    assert owner(is_releasing=True, history=after) == "default/llama-external"
