"""ModelRoutes in manifests: what lint notes about them, and what local mode refuses."""

from pathlib import Path

import pytest

from fairlead.errors import BadInput, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.loader import Manifests, combine_texts, load_manifests, plan_routes
from fairlead.routes.model import RouteTarget

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "routes" / "assistant.yaml"
MODEL = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://a/b", servedNames: [org/tiny]}
  pools: [{acceleratorClassName: nvidia-l4}]
"""
ROUTE = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelRoute
metadata: {name: assistant}
spec:
  servedNames: [acme/assistant]
  targets: [{model: tiny}]
"""


def loaded(*texts: str) -> Manifests:
    combined, problems = combine_texts([("f", "---\n".join(texts))], limits=Limits())
    assert problems == []
    return combined


def test_example_is_a_route_between_two_models() -> None:
    (route,) = plan_routes(load_manifests([EXAMPLE]))
    assert route.key == "chat/assistant"
    assert route.targets == (RouteTarget("chat/qwen3-8b", 9), RouteTarget("chat/qwen3-14b", 1))
    assert load_manifests([EXAMPLE]).notes == ()


@pytest.mark.parametrize(
    ("old", "new", "field", "note", "refusal"),
    [
        ("model: tiny", "model: tny", "spec.targets[0].model", 'no model of these files is "default/tny"',
         "the route default/assistant leads to default/tny, which is no model of these files"),
        ("acme/assistant", "org/tiny", "spec.servedNames", "clients do not reach the route by org/tiny: default/tiny has it",
         "clients cannot reach the route default/assistant by org/tiny: it belongs to default/tiny"),
        ("acme/assistant", "default/a", "spec.servedNames",
         "clients do not reach the route by default/a: it begins with a namespace that holds models",
         "clients cannot reach the route default/assistant by default/a: it belongs to a namespace of models"),
        ("name: assistant", "name: tiny", "metadata.name", "clients do not reach the route by tiny: default/tiny has it",
         "clients cannot reach the route default/tiny by tiny: it belongs to default/tiny"),
    ],
)  # fmt: skip
def test_what_a_cluster_would_show_is_a_note_of_lint_and_an_error_of_local_mode(
    old: str, new: str, field: str, note: str, refusal: str
) -> None:
    combined = loaded(MODEL, ROUTE.replace(old, new))
    (problem,) = combined.notes
    assert (problem.field, problem.message) == (field, f"note: {note}")
    with pytest.raises(BadInput) as refused:
        plan_routes(combined)
    assert (refused.value.field, refused.value.message) == (field, refusal)


def test_routes_of_two_namespaces_may_have_one_name_but_clients_reach_the_first() -> None:
    second = ROUTE.replace("{name: assistant}", "{name: assistant, namespace: b}").replace("acme/assistant", "b-name")
    shared = f"{MODEL}  allowedRoutes: [b]\n"
    combined = loaded(shared, ROUTE, second.replace("model: tiny", "model: default/tiny"))
    (problem,) = combined.notes
    assert problem.message == "note: clients do not reach the route by assistant: the route default/assistant has it"


def test_model_of_another_namespace_must_allow_the_route() -> None:
    route = ROUTE.replace("{name: assistant}", "{name: assistant, namespace: b}").replace(
        "model: tiny", "model: default/tiny"
    )
    combined = loaded(MODEL, route)
    (note,) = combined.notes
    assert (note.field, note.fix) == (
        "spec.targets[0].model",
        "add `allowedRoutes: [b]` to its spec, or remove it here",
    )
    with pytest.raises(BadInput, match="default/tiny, which takes no routes of b"):
        plan_routes(combined)
    for allowed in ("[b]", "['*']"):
        assert loaded(f"{MODEL}  allowedRoutes: {allowed}\n", route).notes == ()
    for wrong in ("[B]", "['b/c']", "b"):
        _, problems = combine_texts([("f", f"{MODEL}  allowedRoutes: {wrong}\n")], limits=Limits())
        assert problems


def test_files_need_a_model_beside_a_route(tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"
    file.write_text(ROUTE)
    with pytest.raises(ManifestError, match="there is no ModelDeployment"):
        load_manifests([file])


def test_fallback_is_checked_like_a_target_and_forms_no_loop() -> None:
    fallback = "  onFailure: [{when: [Unavailable], to: tny}]\n"
    combined = loaded(MODEL, ROUTE + fallback)
    (problem,) = combined.notes
    assert (problem.field, problem.message) == (
        "spec.onFailure[0].to",
        'note: no model of these files is "default/tny"',
    )
    with pytest.raises(BadInput) as refused:
        plan_routes(combined)
    assert refused.value.field == "spec.onFailure[0].to"
    loop = "  onFailure: [{when: [Unavailable], to: b}, {when: [Refused], after: b, to: default/tiny}]\n"
    _, problems = combine_texts([("f", f"{MODEL}---\n{ROUTE}{loop}")], limits=Limits())
    assert [(problem.field, problem.message) for problem in problems] == [
        ("spec.onFailure[1].to", "the fallbacks form a loop: default/tiny → default/b → default/tiny")
    ]
