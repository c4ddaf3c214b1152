"""`spec.price` of a ModelDeployment: the price that tenants pay for its tokens."""

from typing import Annotated, ClassVar

from fairlead import units
from fairlead.api.strict_model import Rule, StrictModel, api_field
from fairlead.api.value_types import UsdPerMillionTokens
from fairlead.fleet.model import TokenPrice


class Price(StrictModel):
    """The price of a model's tokens, in US dollars per million tokens."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.cachedInput) || double(self.cachedInput) <= double(self.input)",
            message="cached tokens cost more than others",
            fix="write at most the price of input",
            at=("cachedInput",),
            violation=lambda price: price.to_token_price().cached_input > price.to_token_price().input,
        ),
    )

    input: Annotated[UsdPerMillionTokens, api_field("of a prompt's tokens", '"0.40"')]
    cached_input: Annotated[
        UsdPerMillionTokens | None,
        api_field("of prompt tokens that the engine had in its KV cache; left out = the price of input", '"0.10"'),
    ] = None
    output: Annotated[UsdPerMillionTokens, api_field("of an answer's tokens", '"1.20"')]

    def to_token_price(self) -> TokenPrice:
        """Returns the price of one token of each kind, as gateways use it."""
        cached = self.input if self.cached_input is None else self.cached_input
        prices = (units.parse_token_price(text) for text in (self.input, cached, self.output))
        return TokenPrice(*prices)
