"""The prices in the fleet of a cluster: of tokens and of replicas."""

from fairlead.fleet.model import TokenPrice
from fairlead_testing.kube.fleet_objects import build, model


def test_a_model_has_the_price_of_its_tokens() -> None:
    priced = model(price={"input": "0.40", "cachedInput": "0.10", "output": "1.20"})
    assert build([priced]).fleet.models["x/tiny"].price == TokenPrice(400, 100, 1200)
    assert build([model()]).fleet.models["x/tiny"].price is None
