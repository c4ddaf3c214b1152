"""The documentation site: it builds without a warning, and asks no other host for anything.

The build takes a minute. `make test` checks the sources of the pages (`tests/test_docs.py`).
"""

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

DOCS = Path(__file__).parents[2] / "docs"
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
"""Elements whose address a browser loads by itself."""
ADDRESS_ONLY = {"canonical", "prev", "next", "alternate", "edit"}
"""Kinds of ``link`` that name an address and load nothing."""


class Page(HTMLParser):
    """Collects what a browser loads for a page, the targets of its links, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ADDRESS_ONLY:
            self.loads.append(given[LOADED[tag]])


@cache
def parsed(path: Path) -> Page:
    return Page(path)


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted((site / "9.8").rglob("*.html"))
    assert len(pages) > 100
    foreign = [
        f"{path.name}: {address}"
        for path in pages
        for address in parsed(path).loads
        if re.match(r"(?:https?:)?//", address)
    ]
    assert foreign == []


def test_no_style_sheet_loads_anything_from_another_host(site: Path) -> None:
    sheets = list((site / "9.8").rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", sheet.read_text()) == []


def test_every_link_of_the_built_pages_leads_to_a_page_and_an_anchor(site: Path) -> None:
    pages = {path.resolve(): parsed(path) for path in (site / "9.8").rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / place).resolve() if place else path
            if target.is_dir():
                target /= "index.html"
            known = pages.get(target)
            if not target.exists() or (known and anchor and anchor not in known.anchors):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_the_selector_lists_the_version_and_the_root_leads_to_it(site: Path) -> None:
    assert json.loads((site / "versions.json").read_text()) == [
        {"version": "9.8", "title": "9.8", "aliases": ["latest"]}
    ]
    assert "url=9.8/" in (site / "index.html").read_text()


def test_a_former_address_leads_to_the_present_page(site: Path) -> None:
    former = site / "9.8" / "decisions" / "0039-between-serving-and-ended.html"
    assert parsed(former).links == ["0039-sleep-tier.html"]
    assert (former.parent / "0039-sleep-tier.html").is_file()
    assert 'content="0; url=0039-sleep-tier.html"' in former.read_text()


def test_a_file_outside_of_docs_that_a_page_links_to_is_part_of_the_site(site: Path) -> None:
    chart = site / "9.8" / "source" / "charts" / "fairlead" / "index.html"
    assert "autoscaler.enabled" in chart.read_text()


def test_the_list_for_language_models_has_each_page_of_the_menu_and_its_markdown(site: Path) -> None:
    version = site / "9.8"
    text = (version / "llms.txt").read_text()
    assert text.startswith("# Fairlead\n\n> Serve large language models ")
    sections = re.findall("^## (.+)$", text, re.MULTILINE)
    assert sections[:2] == ["Getting started", "How to"]
    assert sections[-1] == "Optional"
    listed = re.findall(r"^- \[.+\]\((\S+)\)", text, re.MULTILINE)
    assert [page for page in listed if not (version / page).is_file()] == []
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(listed) == pages - {"index.md"}
    bare = re.findall(r"^- .+\.md\)$", text, re.MULTILINE)
    assert len(bare) < 3, "pages without a sentence of prose"


def test_each_page_has_a_description_of_its_own(site: Path) -> None:
    page = (site / "9.8/how-to/vllm.html").read_text()
    assert '<meta name="description" content="You deploy a model with vLLM, ' in page


def test_no_name_of_a_figure_is_on_the_site(site: Path) -> None:
    texts = {path: path.read_text() for kind in ("html", "md", "json", "txt") for path in site.rglob(f"*.{kind}")}
    assert any("/benchmarks.md" in str(path) for path in texts)
    assert [path for path, text in texts.items() if re.search(r"(?:<|&lt;)!--=[\w-]", text)] == []
