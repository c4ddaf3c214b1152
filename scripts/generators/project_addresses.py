"""Addresses of the project in the metadata of the wheel and of the chart.

They come from ``fairlead/distribution.py``. What is not registered is left out.

Source of the annotations: the documentation of Artifact Hub, page "Helm annotations".
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP
from fairlead.distribution import RegisteredAddresses
from scripts.generators.chart_files import CHART

_URLS = re.compile(r"^\[project\.urls\]\n(?:[^\n\[].*\n)*\n", re.MULTILINE)
_BEFORE_URLS = "[dependency-groups]\n"
_NOTE = "# For registries of charts, written by `make generate`. Do not edit.\n"
_EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
_SHOWN_EXAMPLES: Final = (
    "single-model/gpu.yaml",
    "tenants/two-teams.yaml",
    "routes/fallbacks.yaml",
    "adapters/object-store.yaml",
)
"""Examples whose first object of each kind a registry shows."""
_SCREENSHOTS: Final = {
    "Status page of a gateway": "status-page.png",
    "Live view of `fairlead up`": "terminal-live.svg",
    "A decision explained": "terminal-explain.svg",
}
_CHART_PART = re.compile(rf"^{re.escape(_NOTE)}(?:.+\n)*", re.MULTILINE)


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""


_BlockDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def address_files(root: Path, addresses: RegisteredAddresses) -> dict[str, str]:
    """Returns path below ``root`` → content of the files with addresses."""
    chart = f"{CHART}/Chart.yaml"
    return {
        "pyproject.toml": with_urls((root / "pyproject.toml").read_text(), addresses),
        chart: with_chart_part((root / chart).read_text(), addresses),
    }


def with_urls(pyproject: str, addresses: RegisteredAddresses) -> str:
    """Returns a pyproject.toml with the registered addresses; without a table if there are none."""
    named = {
        "Homepage": addresses.site or addresses.repository,
        "Documentation": addresses.site,
        "Source": addresses.repository,
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in named.items() if address)
    table = f"[project.urls]\n{lines}\n" if lines else ""
    return _URLS.sub("", pyproject).replace(_BEFORE_URLS, table + _BEFORE_URLS, 1)


def with_chart_part(chart: str, addresses: RegisteredAddresses) -> str:
    """Returns a Chart.yaml with home, sources and the annotations that Artifact Hub reads."""
    part: dict[str, object] = {}
    if home := addresses.site or addresses.repository:
        part["home"] = home
    if addresses.repository:
        part["sources"] = [addresses.repository]
    if addresses.site:
        part["icon"] = addresses.documentation_page("images/logo.svg")
    part["annotations"] = _annotations(addresses)
    text = _NOTE + yaml.dump(part, Dumper=_BlockDumper, sort_keys=False, width=116)
    return _CHART_PART.sub("", chart).rstrip("\n") + "\n" + text


def _annotations(addresses: RegisteredAddresses) -> dict[str, str]:
    definitions = [
        {
            "kind": kind.name,
            "version": "v1alpha1",
            "name": f"{kind.plural}.{GROUP}",
            "displayName": kind.name,
            "description": kind.description,
        }
        for kind in served_kinds()
    ]
    annotations = {
        "artifacthub.io/category": "ai-machine-learning",
        "artifacthub.io/crds": yaml.safe_dump(definitions, sort_keys=False),
        "artifacthub.io/crdsExamples": yaml.safe_dump(list(_examples()), sort_keys=False, width=116),
        "artifacthub.io/license": "Apache-2.0",
        "artifacthub.io/operator": "true",
        "artifacthub.io/operatorCapabilities": "seamless upgrades",
        "artifacthub.io/prerelease": "true",
    }
    links = {"Documentation": addresses.site, "Sources": addresses.repository}
    named = [{"name": name, "url": address} for name, address in links.items() if address]
    if named:
        annotations["artifacthub.io/links"] = yaml.safe_dump(named)
    if addresses.site:
        screenshots = [
            {"title": title, "url": addresses.documentation_page(f"images/{name}")}
            for title, name in _SCREENSHOTS.items()
        ]
        annotations["artifacthub.io/screenshots"] = yaml.safe_dump(screenshots)
    return annotations


def _examples() -> Iterator[dict[str, Any]]:
    """Yields an object of each kind."""
    shown = set()
    for name in _SHOWN_EXAMPLES:
        for document in yaml.safe_load_all((_EXAMPLES / name).read_text(encoding="utf-8")):
            if document["kind"] not in shown:
                shown.add(document["kind"])
                yield document
