"""Bearer tokens (JWT) of issuers, which identify tenants as API keys do.

- `verifier`: takes a token apart, and verifies its signature and claims.
- `token_callers`: the caller of a token, remembered until it expires.

A worker imports it when there is an issuer.
"""
