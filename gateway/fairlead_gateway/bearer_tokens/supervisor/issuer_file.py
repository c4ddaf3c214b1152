"""The content of a file of token issuers: whose bearer tokens are accepted, and for whom.

issuers:
  - issuer: https://login.example.com
    audiences: [fairlead]
    jwksUrl: https://login.example.com/keys
"""

from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.validation_messages import validation_problems
from fairlead.manifests.yaml_nodes import decode_file, parse_documents
from fairlead_gateway.bearer_tokens.messages import ALGORITHMS

TOKEN_ISSUERS: Final = 16
"""Limit: issuers of bearer tokens of one gateway."""

_FIX: Final = "begin with `issuers:`, and give issuer, audiences and jwksUrl of each"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def _check_issuer(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or len(text) > 512:
        raise field_error(f'"{text:.60}" is not the URL of an issuer', "write the claim `iss`, an https URL")
    return text


def _check_jwks_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc:
        raise field_error(f'"{text:.60}" is not the URL of a key set', "write an https URL")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise field_error(f'"{text:.60}" is not protected by TLS', "write an https URL")
    return text


def _check_algorithm(text: str) -> str:
    if text not in ALGORITHMS:
        raise field_error(f'"{text:.20}" is not an algorithm that is accepted', f"use some of {', '.join(ALGORITHMS)}")
    return text


class IssuerConfig(StrictModel):
    """An issuer of the file.

    algorithms: None: all that are accepted.
    jwks_url, jwks_file: where its key set is; one of the two.
    ca_file: certificates that may sign the server's; None: those of the system.
    token_file: a bearer token for the server, read at each request.
    token_type: the header `typ` that tokens must have; None: none, `JWT` or `at+jwt`.
    """

    issuer: Annotated[str, AfterValidator(_check_issuer), Field(examples=["https://login.example.com"])]
    audiences: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]],
        Field(min_length=1, max_length=16, examples=["[fairlead]"]),
    ]
    algorithms: (
        Annotated[list[Annotated[str, AfterValidator(_check_algorithm)]], Field(min_length=1, examples=["[RS256]"])]
        | None
    ) = None
    jwks_url: Annotated[str, AfterValidator(_check_jwks_url)] | None = None
    jwks_file: Annotated[str, Field(min_length=1)] | None = None
    ca_file: Annotated[str, Field(min_length=1)] | None = None
    token_file: Annotated[str, Field(min_length=1)] | None = None
    token_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9+.-]{1,32}$", examples=["at+jwt"])] | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise field_error("the key set is not given, or twice", "give jwksUrl or jwksFile")
        for name, value in (("caFile", self.ca_file), ("tokenFile", self.token_file)):
            if value is not None and self.jwks_url is None:
                raise field_error(f"{name} belongs to a jwksUrl", "remove it", at=(name,))
        return self

    @property
    def source(self) -> str:
        return self.jwks_url or str(self.jwks_file)


class _IssuerFile(StrictModel):
    issuers: Annotated[list[IssuerConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        names: dict[str, Any] = {}
        for index, issuer in enumerate(self.issuers):
            if issuer.issuer in names:
                message = f"this issuer is already given in issuers[{names[issuer.issuer]}]"
                raise field_error(message, "put both into one entry", at=("issuers", index, "issuer"))
            names[issuer.issuer] = index
        return self


def parse_issuer_file(raw: bytes, path: Path, limits: Limits) -> tuple[IssuerConfig, ...]:
    """Returns the issuers of a file. Raises ManifestError with every problem.

    Relative paths in the file are relative to its folder.
    """
    file = str(path)
    documents = parse_documents(decode_file(raw, file=file, limits=limits), file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents instead of one"
        raise ManifestError((FileProblem(file, 1, "(document)", message, _FIX),))
    try:
        content = _IssuerFile.model_validate(documents[0].to_python(), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(tuple(validation_problems(error, _IssuerFile, documents[0], file))) from None
    if len(content.issuers) > TOKEN_ISSUERS:
        message = f"{len(content.issuers)} issuers; the limit is {TOKEN_ISSUERS}"
        line = documents[0].locate(("issuers",)).line
        raise ManifestError((FileProblem(file, line, "issuers", message, "remove those not in use"),))
    files = ("jwks_file", "ca_file", "token_file")
    return tuple(
        issuer.model_copy(update={name: str(path.parent / text) for name in files if (text := getattr(issuer, name))})
        for issuer in content.issuers
    )
