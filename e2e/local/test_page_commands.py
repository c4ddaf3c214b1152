"""Every command of the README and of guides that need no cluster, as written and in its order."""

import os
import subprocess
from pathlib import Path

import pytest

from e2e.vllm.sdks.installation import install_sdks
from fairlead_testing.local_stack import LocalStack
from fairlead_testing.pages import CommandPage, parse_page, run_page

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (page := parse_page(path)).setting in ("local", "checkout")
]
TIMEOUT_SECONDS = 500


@pytest.mark.extended
@pytest.mark.lane("local")  # one after another: pages serve on the default ports
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))
def test_the_commands_of_a_page_do_what_it_says(page: CommandPage, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("examples", "charts"):
        (folder / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        # The demo is measured elsewhere; here it only has to run, so it gets fewer requests.
        "DEMO": "--limit 40 --speed 8",
    }
    run_page(page, ROOT if page.setting == "checkout" else folder, environment, TIMEOUT_SECONDS)


@pytest.mark.extended
def test_the_snippet_for_anthropics_sdk_prints_an_answer(tmp_path: Path) -> None:
    page = parse_page(ROOT / "docs" / "how-to" / "call-models.md")
    snippet = next(block.text for block in page.blocks if "package anthropic" in block.skipped)
    python, *_ = install_sdks().command("python")
    with LocalStack(tmp_path, manifest=None).wait_ready() as up:
        environment = {**os.environ, "ANTHROPIC_BASE_URL": up.url, "ANTHROPIC_API_KEY": "none"}
        done = subprocess.run([python, "-c", snippet], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr


def test_there_are_pages_to_follow() -> None:
    assert ROOT / "README.md" in {page.path for page in PAGES}
