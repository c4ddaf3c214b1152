"""The distribution of tests among the processes that run them, the workers, and their order.

The tests of a file run in one worker. So do all tests of the API server, since each worker would
start an etcd and a kube-apiserver of its own. These begin first.

Files that start processes mostly wait, and leave processors idle if they run together. So they are
spread among the other files, over the first `_WAITING_SHARE` of the run. Thus no worker should end
long after the others.
"""

import os
import random
import re
from functools import cache
from pathlib import Path

import pytest

_API_SERVER = re.compile(r"\bapi_server: ApiServer|mark\.api_server")
_PROCESSES = re.compile(r"[Vv]alkey|[Pp]rocess\b|LocalStack|render_chart")
API_SERVER_SCOPE = "tests of the API server"
_WAITING_SHARE = 0.8
"""The share of a run over which files that start processes are spread."""


def scope_of(item: pytest.Item) -> str:
    file = _file(item)
    return API_SERVER_SCOPE if _rank(file) == 0 else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mixes tests that wait with others. Scopes are distributed in the order of their first tests.

    With a seed in `FAIRLEAD_TEST_ORDER`, files are in random order, and the tests of each file too.
    """
    seed = os.environ.get("FAIRLEAD_TEST_ORDER")
    if seed is not None:
        draw = random.Random(seed)
        files = sorted({_file(item) for item in items})
        places: dict[str, float] = dict(zip(files, draw.sample(range(len(files)), len(files)), strict=True))
        draw.shuffle(items)
    else:
        places = _file_places(list(dict.fromkeys(map(_file, items))))
    items.sort(key=lambda item: places[_file(item)])


def _file_places(files: list[str]) -> dict[str, float]:
    """Returns the place of each file in the order of the run, from 0 (first) to 1 (last)."""
    waiting = [file for file in files if _rank(file) == 1]
    others = [file for file in files if _rank(file) == 2]
    places = dict.fromkeys(files, 0.0)
    places |= {file: _WAITING_SHARE * place / len(waiting) for place, file in enumerate(waiting, 1)}
    places |= {file: place / len(others) for place, file in enumerate(others, 1)}
    return places


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


@cache
def _rank(file: str) -> int:
    """Returns 0 for tests of the API server, 1 for those of processes, 2 for others."""
    path = Path(file)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if _API_SERVER.search(text):
        return 0
    return 1 if _PROCESSES.search(text) else 2
