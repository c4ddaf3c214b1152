"""Figures in sentences: the generator writes each, and knows each name."""

from pathlib import Path

import pytest

from scripts.generators.figures import with_figures


def filled(folder: Path, text: str, values: dict[str, str]) -> str:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return with_figures(folder, {}, values)["page.md"]


def test_word_before_a_name_becomes_its_figure(tmp_path: Path) -> None:
    text = "**misses 11<!--=missed--> of <!--=goals--> goals** (3–4<!--=cost--> ×)"
    assert filled(tmp_path, text, {"missed": "two", "goals": "1,026", "cost": "1.5–5"}) == (
        "**misses two<!--=missed--> of 1,026<!--=goals--> goals** (1.5–5<!--=cost--> ×)"
    )


@pytest.mark.parametrize(
    ("text", "error"), [("12<!--=typo--> s", "page.md: .* no figure typo"), ("no figure", "no page has cost")]
)
def test_name_without_a_figure_and_figure_without_a_page_are_errors(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        filled(tmp_path, text, {"cost": "5"})
