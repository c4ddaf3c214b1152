"""What gateways tell one another through Redis, so that they route as one: what was just sent where, loads, hot prefixes."""
