"""How kopf gets in: by ``fairlead.kube.access``, as our own client does, with no look-up of names and no other package.

Tokens of service accounts are rotated long before they end (an hour after their making, at the earliest). kopf holds a token in
memory, so it is told to ask again in good time, and does so by itself when the API server refuses one.
"""

import base64
from datetime import UTC, datetime, timedelta

import kopf

from fairlead.kube.access import Access, AccessError

TOKEN_SECONDS = 1_200.0


def connection(access: Access, wall: float) -> kopf.ConnectionInfo:
    """``access`` as kopf wants it. ``wall`` is Unix seconds. Raises AccessError for what kopf cannot do, or an unreadable token."""
    for value, name in ((access.server_name, "tls-server-name"), (access.acting_as, "as")):
        if value:
            raise AccessError(f"the operator cannot use {name} of a kubeconfig", field=name, hint="remove it")
    token = access.token
    if access.token_file is not None:
        try:
            token = access.token_file.read_text().strip()
        except OSError as error:
            raise AccessError(f"cannot read the token {access.token_file}: {error.strerror or error}") from error
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.authority_file,
        ca_data=_text(access.authority),
        insecure=not access.verified,
        scheme="Bearer" if token else None,
        token=token,
        certificate_path=access.certificate_file,
        certificate_data=_text(access.certificate),
        private_key_path=access.key_file,
        private_key_data=_text(access.key),
        default_namespace=access.namespace,
        expiration=None if access.token_file is None else _soon(wall),
    )


def _soon(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC) + timedelta(seconds=TOKEN_SECONDS)


def _text(pem: bytes | None) -> str | None:
    """As it stands in a kubeconfig."""
    return None if pem is None else base64.b64encode(pem).decode()
