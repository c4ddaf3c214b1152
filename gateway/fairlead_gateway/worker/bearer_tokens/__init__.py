"""Bearer tokens (JWT) of issuers, which identify tenants as API keys do.

- `token_parts`: takes a token apart, without trusting any of it.
- `signatures`: verifies signatures with public keys.
- `verifier`: the claims of a token that an accepted issuer has signed.
- `token_callers`: the caller of a token, remembered until it expires.

A worker imports it when there is an issuer.
"""
