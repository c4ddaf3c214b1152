"""Bearer tokens (JWT) of issuers, which identify tenants as API keys do.

- `messages`: issuers and keys, as workers get them.
- `supervisor`: the issuers, and their public keys.
- `worker`: verifies tokens with these keys.

Gateways without issuers import the messages alone.
"""
