"""The messages of the tokenizing process."""

import msgspec


class TokenizeRequest(msgspec.Struct, array_like=True):
    """A query for the tokens of a text.

    - path: the file of the tokenizer.
    - text: a JSON string, as in the client's request.
    - special: add special tokens around it.
    """

    number: int
    path: str
    text: bytes
    special: bool


class TokenizeReply(msgspec.Struct, array_like=True):
    """The reply to a query.

    - tokens: 32-bit numbers in native byte order.
    - problem: why there are no tokens.
    - note: a warning about the tokenizer.
    """

    number: int
    tokens: bytes = b""
    problem: str = ""
    note: str = ""
