"""Credentials for kopf, from the same configuration as our own client.

kopf gets the token with an expiration. So it logs in again in time, or when the API server rejects
the token.

Why: kopf keeps a token in memory. Service account tokens are rotated long before they expire (an
hour after creation, at the earliest).
"""

import base64
from datetime import UTC, datetime, timedelta

import kopf

from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError

TOKEN_REFRESH_SECONDS = 1_200.0


def connection_info(access: ClusterConfig, wall: float) -> kopf.ConnectionInfo:
    """Returns the configuration for kopf.

    Raises ClusterConfigError for options that kopf lacks, or an unreadable token.

    wall: Unix seconds.
    """
    for value, name in ((access.server_name, "tls-server-name"), (access.impersonate_user, "as")):
        if value:
            raise ClusterConfigError(f"the operator cannot use {name} of a kubeconfig", field=name, hint="remove it")
    token = access.token
    if access.token_file is not None:
        try:
            token = access.token_file.read_text().strip()
        except OSError as error:
            raise ClusterConfigError(f"cannot read the token {access.token_file}: {error.strerror or error}") from error
    return kopf.ConnectionInfo(
        server=access.server,
        ca_path=access.ca_file,
        ca_data=_to_base64(access.ca_data),
        insecure=not access.verify_tls,
        scheme="Bearer" if token else None,
        token=token,
        certificate_path=access.certificate_file,
        certificate_data=_to_base64(access.certificate),
        private_key_path=access.key_file,
        private_key_data=_to_base64(access.key),
        default_namespace=access.namespace,
        expiration=None if access.token_file is None else _expiration(wall),
    )


def _expiration(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC) + timedelta(seconds=TOKEN_REFRESH_SECONDS)


def _to_base64(pem: bytes | None) -> str | None:
    """Returns PEM data in base64, as a kubeconfig has it; None for None."""
    return None if pem is None else base64.b64encode(pem).decode()
