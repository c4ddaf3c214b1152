"""`rewrite` of a ModelRoute: defaults and caps of parameters in the bodies of requests."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from fairlead.api.strict_model import Rule, StrictModel
from fairlead.routes.model import RequestRewrite

_MAX_TOKENS: Final = 16_777_216
_Tokens = Annotated[int, Field(ge=1, le=_MAX_TOKENS, json_schema_extra={"format": "int32"})]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class RequestDefaults(StrictModel):
    """Parameters that a request gets if it has none, by the names of the OpenAI API."""

    max_tokens: Annotated[
        _Tokens | None,
        Field(
            alias="max_tokens", description="maximum number of tokens in an answer; not above the cap", examples=["512"]
        ),
    ] = None
    temperature: Annotated[
        float | None, Field(alias="temperature", ge=0, le=2, description="sampling temperature", examples=["0.2"])
    ] = None
    top_p: Annotated[
        float | None,
        Field(alias="top_p", gt=0, le=1, description="probability mass that tokens are chosen from", examples=["0.9"]),
    ] = None
    top_k: Annotated[
        int | None,
        Field(
            alias="top_k",
            ge=-1,
            le=1_000_000,
            description="number of most likely tokens to sample from; -1: all",
            examples=["20"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Field(
            alias="min_p",
            ge=0,
            le=1,
            description="minimum probability of a token, as a share of that of the likeliest",
            examples=["0.05"],
        ),
    ] = None
    presence_penalty: Annotated[
        _Penalty | None,
        Field(
            alias="presence_penalty",
            description="penalty on each token that is in the answer already",
            examples=["0.5"],
        ),
    ] = None
    frequency_penalty: Annotated[
        _Penalty | None,
        Field(
            alias="frequency_penalty",
            description="penalty on each token, times how often it is in the answer",
            examples=["0.5"],
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(alias="repetition_penalty", gt=0, le=10, description="factor on repeated tokens", examples=["1.05"]),
    ] = None


class RequestCaps(StrictModel):
    """Upper bounds of parameters, by the names of the OpenAI API."""

    max_tokens: Annotated[
        _Tokens | None,
        Field(
            alias="max_tokens",
            description="maximum number of tokens in an answer, by any name; also the limit of a request without one",
            examples=["1024"],
        ),
    ] = None
    n: Annotated[
        int | None,
        Field(
            alias="n",
            ge=1,
            le=128,
            description="maximum number of answers to a request; also bounds `best_of`",
            examples=["1"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None


class ModelRouteRewrite(StrictModel):
    """Parameters that a route sets in the bodies of requests. It changes no prompt."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.defaults) || !has(self.defaults.max_tokens) || !has(self.caps) || "
            "!has(self.caps.max_tokens) || self.defaults.max_tokens <= self.caps.max_tokens",
            message="the default of max_tokens is above its cap",
            fix="lower the default, or raise the cap",
            at=("defaults", "max_tokens"),
            violation=lambda rewrite: (
                rewrite.defaults.max_tokens is not None
                and rewrite.caps.max_tokens is not None
                and rewrite.defaults.max_tokens > rewrite.caps.max_tokens
            ),
        ),
    )

    defaults: RequestDefaults = Field(
        default_factory=RequestDefaults,
        description="parameters of requests that do not set them",
        examples=["{temperature: 0.2}"],
    )
    caps: RequestCaps = Field(
        default_factory=RequestCaps,
        description="upper bounds; greater values of a request are lowered to them",
        examples=["{max_tokens: 1024}"],
    )

    def to_rewrite(self) -> RequestRewrite:
        """Returns the rewrite as gateways use it."""
        defaults, caps = (values.model_dump(by_alias=True, exclude_none=True) for values in (self.defaults, self.caps))
        return RequestRewrite(tuple(defaults.items()), tuple(caps.items()))
