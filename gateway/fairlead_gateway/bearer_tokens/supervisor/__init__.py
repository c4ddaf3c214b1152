"""Issuers of bearer tokens (JWT), whose public keys the supervisor fetches for the workers.

- `issuer_file`: the content of the file that `--token-issuers` names.
- `key_service`: reads key sets (JWKS), keeps them up to date, and sends them to the workers.

Gateways without issuers do not import it.
"""
