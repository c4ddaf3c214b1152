"""Follows the gateways among which each idempotency key has an owner.

- `gateway_addresses`: resolves their names, and sends workers each new list.
"""
