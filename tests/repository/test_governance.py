"""Governance files: they exist, name registered addresses alone, and have well-formed forms."""

import re
from pathlib import Path

import pytest
from repository_rules import ROOT

from fairlead_testing.yaml_documents import load_document

PAGES = ("CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "MAINTAINERS.md", "ROADMAP.md", "SECURITY.md", "SUPPORT.md")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PUBLIC_WORKS = ("https://www.contributor-covenant.org/", "https://docs.github.com/")
"""Public pages that the governance files may cite."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_person_and_no_address_of_ours(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.findall(r"[\w.+-]+@[\w-]+\.\w+", text) == []
    assert [url for url in re.findall(r"https?://[^)\s>]+", text) if not url.startswith(PUBLIC_WORKS)] == []


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.name)
def test_a_form_has_a_name_and_unique_fields(form: Path) -> None:
    document = load_document(form.read_text())
    assert {"name", "description", "body"} <= document.keys()
    ids = [field["id"] for field in document["body"] if field["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))
    assert all(field["attributes"].get("label") for field in document["body"] if field["type"] != "markdown")


def test_the_support_page_names_the_forms_that_exist() -> None:
    names = {load_document(form.read_text()).get("name") for form in FORMS}
    assert set(re.findall(r'the form "([^"]+)"', (ROOT / "SUPPORT.md").read_text())) == names - {None}
