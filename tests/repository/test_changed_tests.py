"""``make test CHANGED=1`` runs what a change can reach, and no less."""

from changed_tests import reachable_tests


def reached_from(*names: str) -> set[str]:
    return set(reachable_tests(set(names)))


def test_imports_of_imports_are_reached() -> None:
    reached = reached_from("gateway/fairlead_gateway/limits/exchange.py")
    assert {"tests/gateway/limits/test_window.py", "tests/gateway/limits/test_exactness.py"} <= reached
    assert "tests/autoscaler/local/test_target.py" not in reached


def test_programs_that_a_test_starts_are_reached() -> None:
    assert "tests/gateway/supervisor/test_worker_pool.py" in reached_from("gateway/fairlead_gateway/worker/__main__.py")


def test_a_page_reaches_the_tests_of_pages() -> None:
    assert "tests/test_docs.py" in reached_from("docs/glossary.md")


def test_what_all_tests_depend_on_reaches_all() -> None:
    assert reached_from("pyproject.toml") > reached_from("docs/glossary.md")


def test_the_rules_of_the_repository_are_always_reached() -> None:
    assert reached_from() == {"tests/repository/test_rules.py"}
