"""Issuers of bearer tokens (JWT), whose public keys the supervisor fetches for the workers.

- `issuer_file`: the content of the file that `--token-issuers` names.
- `key_set`: the public keys in a key set (JWKS) that may verify tokens.
- `key_service`: reads key sets, keeps them up to date, and sends them to the workers.

Gateways without issuers import none of it.
"""
