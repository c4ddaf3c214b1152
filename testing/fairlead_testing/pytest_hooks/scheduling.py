"""Divides the tests among the processes that run them, and orders them.

A file's tests stay together. All tests of the API server run in one process, since each process
would start an etcd and a kube-apiserver of its own. They begin first. Files that start processes,
which wait, come among those that compute, since waiting together they leave processors idle. They
end before the others, so that no process ends long after the rest.
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
    """Returns which tests run one after another with this one, in one process."""
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
        places = _mixed(list(dict.fromkeys(map(_file, items))))
    items.sort(key=lambda item: places[_file(item)])


def _mixed(files: list[str]) -> dict[str, float]:
    """Returns the place of each file in a run, from 0 to 1."""
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
