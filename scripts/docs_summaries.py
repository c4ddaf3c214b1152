"""Describes each page by its first sentence: for search engines, and for language models.

``llms.txt`` lists the pages of the menu with these sentences. It links to the Markdown of each
page, which the site has next to it.

Source: https://llmstxt.org.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LLMS = "llms.txt"
OPTIONAL = ("Contributing", "Decisions")
"""Sections of the menu that readers with little room leave out."""
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NO_PROSE = re.compile(r"[#|<>]|!\[|!!!|```|[*+-] |=== |\d+\. |    |Status: ")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_SENTENCE = re.compile(r".+?[.?](?=\s|$)")


def first_sentence(markdown: str) -> str:
    """Returns the first sentence of prose, without links and emphasis; empty if there is none."""
    for paragraph in re.split(r"\n\s*\n", _COMMENT.sub("", markdown)):
        text = paragraph.strip("\n")
        if text.strip() and not _NO_PROSE.match(text):
            found = _SENTENCE.match(" ".join(_LINK.sub(r"\1", text).replace("**", "").split()))
            if found:
                return found[0]
    return ""


def menu_pages(files: Files) -> Iterator[Any]:
    """Yields the pages of the menu in its order."""
    page = next((file.page for file in files.documentation_pages() if file.page and file.page.is_homepage), None)
    while page is not None:
        yield page
        page = page.next_page


def llms_text(name: str, pages: list[Any]) -> str:
    """Returns the list of pages, under the sections of the menu's top level."""
    first, *others = pages
    lines = [f"# {name}", "", f"> {first.meta['description']}"]
    section = None
    for page in others:
        sections = [ancestor.title for ancestor in page.ancestors]
        top = "Optional" if sections[0] in OPTIONAL else sections[-1]
        if top != section:
            lines += ["", f"## {top}", ""]
            section = top
        description = page.meta.get("description", "")
        lines.append(f"- [{page.title}]({page.file.src_uri})" + (f": {description}" if description else ""))
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    page.meta.setdefault("description", first_sentence(markdown))
    return markdown


def on_env(env: Any, config: Any, files: Files) -> Any:
    """Adds the list of pages to the site."""
    content = llms_text(config["site_name"], list(menu_pages(files)))
    files.append(File.generated(config, LLMS, content=content))
    return env


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Writes the Markdown of a page next to it."""
    target = Path(config["site_dir"], page.file.src_uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page.markdown, encoding="utf-8")
    return output
