"""Bearer tokens (JWT) of issuers, which identify tenants as API keys do.

- `supervisor`: the issuers, and their public keys.
- `worker`: verifies tokens with these keys.

Gateways without issuers import none of it.
"""
