"""Addresses of the project: in one place, and nowhere before they are registered."""

import re
import tomllib

import yaml

from fairlead import __version__
from fairlead.api.kinds import served_kinds
from fairlead.distribution import ADDRESSES, RegisteredAddresses
from fairlead.limits import Limits
from fairlead.manifests.loader import combine_texts
from fairlead_testing.yaml_documents import load_document
from scripts.generators.project_addresses import address_files, with_chart_part, with_urls
from scripts.release.release_run import ROOT

REGISTERED = RegisteredAddresses(repository="https://code.example/fairlead", site="https://docs.example")
CHART = "charts/fairlead/Chart.yaml"


def test_the_committed_files_have_the_addresses_of_the_code() -> None:
    for name, text in address_files(ROOT, ADDRESSES).items():
        assert (ROOT / name).read_text() == text


def test_nothing_is_named_that_is_not_registered() -> None:
    files = address_files(ROOT, RegisteredAddresses())
    assert "urls" not in tomllib.loads(files["pyproject.toml"])["project"]
    assert {"home", "sources", "icon", "maintainers"} & load_document(files[CHART]).keys() == set()
    assert re.findall(r"https?://", files[CHART]) == []


def test_registered_addresses_stand_in_both_files_and_can_be_removed_again() -> None:
    for name, update in (("pyproject.toml", with_urls), (CHART, with_chart_part)):
        without = update((ROOT / name).read_text(), RegisteredAddresses())
        named = update(without, REGISTERED)
        assert named != without
        assert update(named, REGISTERED) == named
        assert update(named, RegisteredAddresses()) == without
    urls = tomllib.loads(with_urls((ROOT / "pyproject.toml").read_text(), REGISTERED))["project"]["urls"]
    assert urls == {
        "Homepage": "https://docs.example",
        "Documentation": "https://docs.example",
        "Source": "https://code.example/fairlead",
    }
    chart = load_document(with_chart_part((ROOT / CHART).read_text(), REGISTERED))
    assert (chart["home"], chart["sources"]) == ("https://docs.example", ["https://code.example/fairlead"])
    site = REGISTERED.documentation_page("images")
    assert chart["icon"] == f"{site}/logo.svg"
    screenshots = load_document(chart["annotations"]["artifacthub.io/screenshots"])
    for address in [chart["icon"], *(shown["url"] for shown in screenshots)]:
        assert (ROOT / "docs" / "images" / address.removeprefix(f"{site}/")).is_file()
    links = load_document(chart["annotations"]["artifacthub.io/links"])
    assert {link["name"] for link in links} == {"Documentation", "Sources"}


def test_pages_are_those_of_the_release_line_where_a_site_is_registered() -> None:
    line = ".".join(__version__.split(".")[:2])
    assert REGISTERED.documentation_page("reference/x.html") == f"https://docs.example/{line}/reference/x.html"
    assert RegisteredAddresses().documentation_page("reference/x.html") == "reference/x.html"


def test_the_chart_lists_its_kinds_for_registries() -> None:
    annotations = load_document((ROOT / CHART).read_text())["annotations"]
    kinds = load_document(annotations["artifacthub.io/crds"])
    assert {kind["name"] for kind in kinds} == {
        load_document(path.read_text())["metadata"]["name"] for path in (ROOT / "crds").glob("*.yaml")
    }


def test_the_chart_has_a_valid_example_of_each_kind_for_registries() -> None:
    annotations = load_document((ROOT / CHART).read_text())["annotations"]
    text = annotations["artifacthub.io/crdsExamples"]
    kinds = [example["kind"] for example in load_document(text)]
    assert sorted(kinds) == sorted(kind.name for kind in served_kinds())
    documents = "---\n".join(yaml.safe_dump(example) for example in load_document(text))
    assert combine_texts([("examples", documents)], limits=Limits())[1] == []


def test_annotations_are_those_that_registries_know() -> None:
    chart = load_document(with_chart_part((ROOT / CHART).read_text(), REGISTERED))
    known = {
        *("category", "crds", "crdsExamples", "license", "links", "operator", "operatorCapabilities"),
        *("prerelease", "screenshots"),
    }
    assert chart["annotations"].keys() == {f"artifacthub.io/{name}" for name in known}
    assert all(isinstance(text, str) for text in chart["annotations"].values())
    levels = ("basic install", "seamless upgrades", "full lifecycle", "deep insights", "auto pilot")
    assert chart["annotations"]["artifacthub.io/operatorCapabilities"] in levels
