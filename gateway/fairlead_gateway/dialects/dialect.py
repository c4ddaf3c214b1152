"""The entry of one dialect, which the stages of a request ask instead of its path."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_gateway.dialects.body_form import BodyForm
from fairlead_gateway.dialects.error_shape import OPENAI_ERRORS, ErrorShape
from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.dialects.schemas import CommonFields


@dataclass(frozen=True, slots=True)
class Prompt:
    """The place of the prompt in the bodies of a dialect.

    field: holds the prompt.
    context: the fields that engines put into it besides, in the order in which they render them.
    is_context_first: they stand before the prompt.
    is_open: bodies may also name input that is not in them, or tools that servers run.
    without_marks: returns the JSON text of a prompt without what engines leave out of it.
    """

    field: str
    context: tuple[str, ...] = ()
    is_context_first: bool = True
    is_open: bool = False
    without_marks: Callable[[bytes], bytes] | None = None


# There is one of each dialect: to compare two of them field by field costs 7,000 instructions.
@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """One form of requests and answers.

    name: in usage records, audit, traces and metrics.
    paths: on which clients speak it.
    body_type, listed_type: the fields of its bodies, and the type that has the frequent, harmless
        ones only; None: all fields are judged.
    prompt: where the prompt stands; None: nothing is routed by its prompt.
    form: the parameters of the answer; None: it has no tokens, but scores or vectors.
    grammar: of streams; None: unnamed chunks, as OpenAI's chats have them.
    operation: `gen_ai.operation.name` of OpenTelemetry; empty: the end of the path.
    requests_usage: engines report the tokens of streams on request only.
    is_computed: by the model; otherwise the request uses no tokens.
    is_measured: engines report its tokens, although its bodies and answers are passed on.
    has_early_answer: the answer is whole when the prompt is computed.
    errors: the form of its errors.
    """

    name: str
    paths: tuple[str, ...]
    body_type: type[CommonFields]
    listed_type: type[CommonFields] | None = None
    prompt: Prompt | None = None
    form: BodyForm | None = None
    grammar: EventGrammar | None = None
    operation: str = ""
    requests_usage: bool = False
    is_computed: bool = True
    is_measured: bool = False
    has_early_answer: bool = False
    errors: ErrorShape = OPENAI_ERRORS

    @property
    def generates(self) -> bool:
        """Whether the answer has tokens."""
        return self.form is not None

    @property
    def is_counted(self) -> bool:
        """Whether its tokens count in limits; those that no engine reports, as estimated."""
        return self.prompt is not None or self.is_measured

    @property
    def output_limit(self) -> str:
        """The name of the limit of an answer; empty if it has no tokens."""
        return "" if self.form is None else self.form.limit
