"""Lanes of the end-to-end tests: each test on the cluster is in one, and the order within keeps
installations apart."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from e2e.parallel_lanes import CHANGES, LANES, LOCAL, LaneMarker, lane, lane_position

KUBE = Path(__file__).parents[2] / "e2e" / "kube"
_ALONE = {"installation", "empty", "configured", "scraped", "pinned"}
"""Fixtures that have the installation alone."""


def marker(name: str, **keywords: object) -> LaneMarker:
    return SimpleNamespace(args=(name,), kwargs=keywords)


def markers(tree: ast.Module) -> dict[str, LaneMarker]:
    """Returns test → its closest lane marker, as the file's text has it."""
    lanes, own = {}, None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            own = _lane_of(node.value.elts if isinstance(node.value, ast.List) else [node.value])
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            lanes[node.name] = _lane_of(node.decorator_list) or own
    return lanes


def _lane_of(expressions: list[ast.expr]) -> LaneMarker | None:
    for call in expressions:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.lane":
            keywords = {item.arg: ast.literal_eval(item.value) for item in call.keywords}
            return marker(ast.literal_eval(call.args[0]), **keywords)
    return None


def test_every_test_on_the_cluster_is_in_a_lane_of_its_own_choice() -> None:
    by_file = {path.name: markers(ast.parse(path.read_text())) for path in sorted(KUBE.rglob("test_*.py"))}
    assert not [name for tests in by_file.values() for name, given in tests.items() if given is None]
    assert {lane(given) for tests in by_file.values() for given in tests.values()} == set(LANES) - {LOCAL}


def test_all_lanes_but_the_last_share_the_installation_once_it_is_there() -> None:
    order = sorted(
        (lane_position(given), node.lineno, "configured" in arguments, bool(_ALONE & arguments), lane(given))
        for path in sorted(KUBE.rglob("test_*.py"))
        for tree in [ast.parse(path.read_text())]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and (given := markers(tree).get(node.name))
        if not any(".FULL" in ast.unparse(decorator) for decorator in node.decorator_list)  # these run one by one
        for arguments in [{item.arg for item in node.args.args}]
    )
    alone = [name for *_, alone, name in order if alone]
    assert alone == [order[0][-1], *[CHANGES] * (len(alone) - 1)]
    assert [alone for *_, alone, name in order if name == CHANGES] == [True] * (len(alone) - 1)
    kept = [configured for *_, configured, _, _ in order]
    assert kept == sorted(kept), "whoever keeps the installation until the end runs last"
    assert sum(kept) > 1


def test_tests_without_a_lane_are_local_and_unknown_lanes_are_refused() -> None:
    assert lane(None) == LOCAL
    assert lane_position(None) > lane_position(marker("engines", position=99))
    with pytest.raises(ValueError, match="no lane is called 'elsewhere'"):
        lane(marker("elsewhere"))
