"""``fairlead routes`` and ``fairlead adapters``: what gateways route to, apart from models."""
