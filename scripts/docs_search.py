"""Orders the results of the site's search: boosts of folders, and further words of pages.

``docs/.search.yml`` has both. The theme reads a boost from the metadata of a page. Words become
tags of the page's own entry in the index, and not of the entries of its sections.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).resolve().parents[1] / "docs" / ".search.yml"


@cache
def table() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


def search_metadata(url: str) -> dict[str, Any]:
    """Returns the metadata by which the theme indexes a page."""
    for folder, boost in table()["boosts"].items():
        if url.startswith(folder):
            return {"boost": boost} if boost else {"exclude": True}
    return {}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    page.meta["search"] = search_metadata(page.url)
    return markdown


def on_post_build(config: Any) -> None:
    """Adds the words to the index. Raises ValueError for a page that is not there."""
    path = Path(config["site_dir"], "search", "search_index.json")
    index = json.loads(path.read_text(encoding="utf-8"))
    entries = {entry["location"]: entry for entry in index["docs"]}
    for page, words in table()["words"].items():
        if page not in entries:
            raise ValueError(f"{TABLE.name}: {page} is not in the index")
        entries[page]["tags"] = words
    path.write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")
