"""Why a download fails. No error text contains a credential.

- 400 InvalidRequest: the request is malformed.
- 403 CredentialsRefused: the source wants other credentials.
- 404 SourceNotFound: there is nothing under the address.
- 422 DigestMismatch: the content is not the pinned one.
- 422 InvalidContent: the content is no adapter, or has unsafe names.
- 502 SourceFailed: the source cannot be reached, or broke off.
- 507 NoRoom: it does not fit into the size of the downloads.
"""

from typing import ClassVar

from fairlead.errors import FairleadError


class DownloadError(FairleadError):
    """Base of these errors.

    status, code: of the response.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"


class InvalidRequest(DownloadError):
    """Raised if a request's body or a field of it is malformed, or its scheme is not supported."""

    status, code = 400, "invalid_request"


class CredentialsRefused(DownloadError):
    """Raised if the source refuses the credentials, or wants some."""

    status, code = 403, "credentials_refused"


class SourceNotFound(DownloadError):
    """Raised if there is no such bucket, folder, repository or commit."""

    status, code = 404, "source_not_found"


class DigestMismatch(DownloadError):
    """Raised if the content has another digest than the pinned one."""

    status, code = 422, "digest_mismatch"


class InvalidContent(DownloadError):
    """Raised if the content is no adapter, or if a name in it leads out of its folder."""

    status, code = 422, "invalid_content"


class SourceFailed(DownloadError):
    """Raised if the source cannot be reached, or if its answer is incomplete."""

    status, code = 502, "source_failed"


class NoRoom(DownloadError):
    """Raised if the content does not fit while the other folders are in use."""

    status, code = 507, "no_room"
