"""The lanes of the end-to-end tests name tests that there are, and leave none of the cluster's to the local lane."""

import re
from pathlib import Path

from lanes import LANES, LOCAL, STORY, lane, place

E2E = Path(__file__).parents[2] / "e2e"
TESTS = [
    f"e2e/kube/{path.name}::{name}"
    for path in sorted(E2E.glob("kube/test_*.py"))
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
]


def test_every_test_on_the_cluster_is_in_a_lane_and_every_row_has_some() -> None:
    assert {lane(one) for one in TESTS} == set(LANES.values())
    assert {place(one) for one in TESTS} == set(range(len(LANES)))
    assert lane("e2e/test_readme.py::test_a_command") == LOCAL


def test_the_story_begins_alone_and_ends_with_what_removes_fairlead() -> None:
    story = sorted((one for one in TESTS if lane(one) == STORY), key=place)
    alone = [
        one for one in story if re.search(rf"{one.partition('::')[2]}\((?:[^)]*)(installation|empty): Release", _text())
    ]
    assert alone == [story[0], *story[-3:]]


def _text() -> str:
    return re.sub(r"\s+", " ", "".join(path.read_text() for path in E2E.glob("kube/test_*.py")))
