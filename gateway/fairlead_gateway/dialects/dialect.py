"""The entry of one dialect, which the stages of a request ask instead of its path."""

from collections.abc import Callable
from typing import Final

from fairlead_gateway.dialects.body_form import BodyForm
from fairlead_gateway.dialects.error_shape import OPENAI_ERRORS, ErrorShape
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.schemas import CommonFields


class Prompt:
    """The place of the prompt in the bodies of a dialect.

    field: holds the prompt.
    context: the fields that engines put into it besides, in the order in which they render them.
    is_context_first: they stand before the prompt.
    is_open: bodies may also name input that is not in them, or tools that servers run.
    without_marks: returns the JSON text of a prompt without what engines leave out of it.
    """

    __slots__ = ("context", "field", "is_context_first", "is_open", "without_marks")

    def __init__(
        self,
        field: str,
        context: tuple[str, ...] = (),
        *,
        is_context_first: bool = True,
        is_open: bool = False,
        without_marks: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.field = field
        self.context = context
        self.is_context_first = is_context_first
        self.is_open = is_open
        self.without_marks = without_marks


class Answer:
    """The form of the answers in a dialect.

    form: the parameters of the answer; None: it has no tokens, but scores or vectors.
    operation: `gen_ai.operation.name` of OpenTelemetry; empty: the end of the path.
    grammar: of streams; None: unnamed chunks, as OpenAI's chats have them.
    requests_usage: engines report the tokens of streams on request only.
    is_computed: by the model; otherwise the request uses no tokens.
    is_early: it is whole when the prompt is computed.
    """

    __slots__ = ("form", "grammar", "is_computed", "is_early", "operation", "requests_usage")

    def __init__(
        self,
        form: BodyForm | None = None,
        grammar: EventGrammar | None = None,
        *,
        operation: str = "",
        requests_usage: bool = False,
        is_computed: bool = True,
        is_early: bool = False,
    ) -> None:
        self.form = form
        self.operation = operation
        self.grammar = grammar
        self.requests_usage = requests_usage
        self.is_computed = is_computed
        self.is_early = is_early or not is_computed


_OTHER_ANSWER: Final = Answer()


class Dialect:
    """One form of requests and answers.

    name: in usage records, audit, traces and metrics.
    paths: on which clients speak it.
    bodies: the fields of its bodies, and the type that has the frequent, harmless ones only; None:
        all fields are judged.
    prompt: where the prompt stands; None: nothing is routed by its prompt.
    errors: the form of its errors.
    generates, output_limit, form, operation, grammar, requests_usage, is_computed,
    has_early_answer: of its answer.
    """

    __slots__ = (
        "body_type",
        "errors",
        "form",
        "generates",
        "grammar",
        "has_early_answer",
        "is_computed",
        "listed_type",
        "name",
        "operation",
        "output_limit",
        "paths",
        "prompt",
        "requests_usage",
    )

    def __init__(
        self,
        name: str,
        paths: tuple[str, ...],
        bodies: tuple[type[CommonFields], type[CommonFields] | None],
        *,
        prompt: Prompt | None = None,
        answer: Answer = _OTHER_ANSWER,
        errors: ErrorShape = OPENAI_ERRORS,
    ) -> None:
        self.name = name
        self.paths = paths
        self.body_type, self.listed_type = bodies
        self.prompt = prompt
        self.errors = errors
        self.form = answer.form
        self.operation = answer.operation
        self.generates: bool = answer.form is not None
        self.output_limit: str = "" if answer.form is None else answer.form.limit
        self.grammar = answer.grammar
        self.requests_usage = answer.requests_usage
        self.is_computed = answer.is_computed
        self.has_early_answer = answer.is_early
