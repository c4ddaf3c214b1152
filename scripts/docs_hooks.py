"""Lets pages of the site link to any file of the repository.

Pages are Markdown with relative links, so that they also work in a checkout. A link that leaves
``docs/`` leads to a copy below ``source/`` of the site: Markdown as a page, other text as a
listing. So the site needs no repository host, and stays correct for the version that it describes.

The former address of a page that was renamed (``docs/.redirects.yml``) leads to the present one.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
REDIRECTS = ROOT / "docs" / ".redirects.yml"
REDIRECT = (
    '<!doctype html><meta charset="utf-8"><title>Moved</title><link rel="canonical" href="{0}">'
    '<meta http-equiv="refresh" content="0; url={0}"><a href="{0}">This page has moved.</a>\n'
)
SOURCE = "source/"
LINK = re.compile(r"(!?\[(?:[^\]]|\n)*?\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
LEXERS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml", ".json": "json"}
MAX_LISTING = 200_000
"""Bytes of a listing; a larger file is copied as it is."""


def repository_path(page: str) -> PurePosixPath:
    """Returns where a page of the site lies in the repository."""
    return PurePosixPath(page.removeprefix(SOURCE)) if page.startswith(SOURCE) else PurePosixPath("docs", page)


def target_of(page: str, link: str) -> str | None:
    """Returns the repository path that a relative link names; ``None`` for other links."""
    if re.match(r"[a-z]+:|/", link):
        return None
    return os.path.normpath(repository_path(page).parent / link)


def site_uri(target: str) -> str | None:
    """Returns the source of the page or file that shows ``target``; ``None`` if nothing does."""
    path = ROOT / target
    if target.startswith("docs/") and path.is_file():
        return target.removeprefix("docs/")
    if path.is_dir():
        readme = next((name for name in ("index.md", "README.md") if (path / name).is_file()), None)
        return site_uri(f"{target}/{readme}") if readme else f"{SOURCE}{target}/listing.md"
    if not path.is_file():
        return None
    is_page = path.suffix == ".md" or path.stat().st_size > MAX_LISTING or path.suffix in (".png", ".svg")
    return f"{SOURCE}{target}" if is_page else f"{SOURCE}{target}.md"


def rewrite_links(markdown: str, page: str) -> tuple[str, set[str]]:
    """Returns the page with links that work on the site, and the repository paths it links to."""
    targets = set()

    def replaced(match: re.Match[str]) -> str:
        target = target_of(page, match[2])
        uri = site_uri(target) if target else None
        if target is None or uri is None:
            return match[0]
        targets.add(target)
        return f"{match[1]}{os.path.relpath(uri, os.path.dirname(page) or '.')}{match[3]}"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts), targets


def shown(target: str) -> str | bytes:
    """Returns what the site shows of a file or folder of the repository."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(f"{child.name}/" if child.is_dir() else child.name for child in path.iterdir())
        return f"# {target}\n\n" + "".join(f"- [{name}]({name})\n" for name in names if not name.startswith((".", "_")))
    if path.suffix == ".md" or not str(site_uri(target)).endswith(".md"):
        return path.read_text(encoding="utf-8") if path.suffix == ".md" else path.read_bytes()
    text = path.read_text(encoding="utf-8")
    return f"# {path.name}\n\n`{target}`\n\n````{LEXERS.get(path.suffix, 'text')}\n{text}\n````\n"


def on_files(files: Files, config: Any) -> Files:
    """Adds the files of the repository that pages link to, and those that these link to."""
    pages = {
        file.src_uri: Path(file.abs_src_path or "").read_text(encoding="utf-8") for file in files.documentation_pages()
    }
    while pages:
        uri, markdown = pages.popitem()
        for target in rewrite_links(markdown, uri)[1]:
            added = site_uri(target)
            if added is None or files.get_file_from_path(added):
                continue
            content = shown(target)
            files.append(File.generated(config, added, content=content))
            if added.endswith(".md") and isinstance(content, str):
                pages[added] = content
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points the links of a page at what the site has."""
    return rewrite_links(markdown, page.file.src_uri)[0]


def on_post_build(config: Any) -> None:
    """Writes a page at each former address. Raises ValueError if its target is not on the site."""
    site = Path(config["site_dir"])
    for former, present in yaml.safe_load(REDIRECTS.read_text(encoding="utf-8")).items():
        if not (site / present).is_file():
            raise ValueError(f"{REDIRECTS.name}: {former} leads to {present}, which is no page")
        page = site / former
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(REDIRECT.format(os.path.relpath(present, os.path.dirname(former))), encoding="utf-8")
