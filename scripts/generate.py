"""Generates files from code: CRDs and their schema for editors, reference pages, the chart's
values, the images' locks, and the figures of pages.

``python scripts/generate.py`` writes the files; ``--check`` only compares and exits 1 with the
names of stale files.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.api.manifest_schema import SCHEMA_FILE, manifest_schema
from fairlead.distribution import ADDRESSES
from scripts.docs_openapi import openapi_files
from scripts.generators.api_reference import NOTE, api_page, conditions_page, settings_page
from scripts.generators.benchmarks_page import BENCHMARKS_PAGE, benchmarks_page
from scripts.generators.chart_files import CHART, chart_files
from scripts.generators.checks_reference import checks_page
from scripts.generators.cli_reference import cli_pages, unfinished_verbs
from scripts.generators.deployment_reference import deployment_pages
from scripts.generators.engines_reference import (
    CATALOG_PAGE,
    ENGINES_PAGE,
    catalog_example,
    catalog_page,
    engine_figures,
    engines_page,
)
from scripts.generators.figures import figures, with_figures
from scripts.generators.image_locks import image_requirements
from scripts.generators.limits_reference import limits_page
from scripts.generators.page_lists import (
    ALERTS_PAGE,
    CONTRIBUTING_PAGE,
    ENGINE_ANSWERS_PAGE,
    METRICS_PAGE,
    alerts_page,
    contributing_page,
    decisions_page,
    engine_answers_page,
    metrics_page,
)
from scripts.generators.project_addresses import address_files
from scripts.generators.redis_commands import redis_page

ROOT = Path(__file__).resolve().parent.parent
CRDS = ("crds", f"{CHART}/crds")


class CrdDumper(yaml.SafeDumper):
    """Quotes the key `n`, which kubectl and helm take for a boolean otherwise."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if text in ("n", "y", "N", "Y") else None)


CrdDumper.add_representer(str, _represent_text)


def outputs() -> dict[str, str]:
    """Returns path below the root → expected content."""
    pages = {
        "docs/decisions/index.md": decisions_page(ROOT, NOTE),
        ALERTS_PAGE: alerts_page(ROOT),
        BENCHMARKS_PAGE: benchmarks_page(ROOT),
        CONTRIBUTING_PAGE: contributing_page(ROOT),
        ENGINE_ANSWERS_PAGE: engine_answers_page(ROOT),
        METRICS_PAGE: metrics_page(ROOT),
        "docs/reference/api.md": api_page(),
        "examples/catalog/qwen3-32b.yaml": catalog_example(),
        CATALOG_PAGE: catalog_page(ROOT),
        "docs/reference/checks.md": checks_page(NOTE),
        "docs/reference/conditions.md": conditions_page(),
        ENGINES_PAGE: engines_page(ROOT),
        "docs/reference/limits.md": limits_page(ROOT, NOTE),
        "docs/reference/redis.md": redis_page(ROOT),
        "docs/reference/settings.md": settings_page(),
        f"crds/schema/{SCHEMA_FILE}": json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n",
    }
    for kind in served_kinds():
        text = yaml.dump(crd_manifest(kind), Dumper=CrdDumper, sort_keys=False, width=116, allow_unicode=True)
        for folder in CRDS:
            pages[f"{folder}/{kind.plural}.yaml"] = (
                f"# Generated from fairlead/api by `make generate`. Do not edit.\n{text}"
            )
    files = chart_files(ROOT) | image_requirements(ROOT) | address_files(ROOT, ADDRESSES) | openapi_files(NOTE)
    pages |= cli_pages(NOTE) | deployment_pages(ROOT, NOTE) | files
    return with_figures(ROOT, pages, figures(ROOT / "bench" / "results") | engine_figures())


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when all is up to date or was written, 1 when ``--check`` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(arguments).check
    if problems := unfinished_verbs():
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    expected = outputs()
    whole = [*(f"{folder}/*.yaml" for folder in CRDS), "docs/reference/cli/*.md"]
    present = {str(path.relative_to(ROOT)) for pattern in whole for path in ROOT.glob(pattern)}
    stale = sorted(present - set(expected))
    stale += [name for name, text in expected.items() if not _holds(ROOT / name, text)]
    if check:
        for name in stale:
            print(f"out of date: {name} (run `make generate`)", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = ROOT / name
        if name not in expected:
            path.unlink()
            print(f"removed {name}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(expected[name], encoding="utf-8")
        print(f"wrote {name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
