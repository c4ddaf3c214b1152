"""Forms with files, as SDKs send audio to `/v1/audio/transcriptions`.

The fields of a form become a JSON object, so that all rules for fields and model names apply to
it. The engine gets a new form. Why: no two parsers of forms agree on odd ones, so that an engine
could read another model or field than the gateway has checked.

Source: RFC 7578.
"""

import re
from typing import Final

import msgspec

from fairlead_gateway.errors import BadRequest

FORM_TYPE: Final = b"multipart/form-data"
MAX_PARTS: Final = 64
"""Limit: parts of a form; 400."""
_BOUNDARY: Final = re.compile(rb';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;",]{1,70}))', re.IGNORECASE)
_NAME: Final = re.compile(
    rb'\r\ncontent-disposition:[ \t]*form-data;[ \t]*name="([^"\x00-\x1f]{1,256})"'
    rb'(?:;[ \t]*filename="([^"\x00-\x1f]{0,256})")?[ \t]*(?:;[^\r\n]*)?(?=\r\n|$)',
    re.IGNORECASE,
)
_TYPE: Final = re.compile(rb"\r\ncontent-type:[ \t]*([\w.+/-]{1,128})", re.IGNORECASE)
_MAX_HEAD_BYTES: Final = 4_096
"""Limit: the head of a part; 400."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Bytes that no text of a field has, since each takes six in JSON."""
_FLAGS: Final = {"true": True, "false": False}


class FormFiles:
    """The files of a form, with what its engine gets of their heads."""

    __slots__ = ("_files",)

    def __init__(self, files: list[tuple[bytes, bytes, bytes]]) -> None:
        self._files = files  # name and file name, type, content

    def encode(self, fields: bytes, boundary: str) -> bytes:
        """Returns a form of the fields of a JSON object and of the files.

        boundary: is in no file; clients must not know it before.
        """
        line, parts = f"--{boundary}\r\n".encode("latin-1"), []
        for name, value in msgspec.json.decode(fields, type=dict[str, object]).items():
            for item in value if isinstance(value, list) else [value]:
                text = item if isinstance(item, str) else msgspec.json.encode(item).decode()
                parts += [line, f'content-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()]
        for names, kind, content in self._files:
            parts += [line, b"content-disposition: form-data; %b\r\ncontent-type: %b\r\n\r\n" % (names, kind)]
            parts += [content, b"\r\n"]
        return b"".join([*parts, line[:-2], b"--\r\n"])


def read_form(content_type: bytes, body: bytes) -> tuple[bytes, FormFiles]:
    """Returns the fields of a form as a JSON object, and its files. Raises BadRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise BadRequest("the type of a form needs a boundary", param="content-type")
    parts = (b"\r\n" + body).split(b"\r\n--" + (found[1] or found[2]), MAX_PARTS)
    if len(parts) < 2 or parts[0] or not parts[-1].startswith(b"--") or len(parts) > MAX_PARTS:
        raise BadRequest(f"the body is no form of at most {MAX_PARTS} parts with this boundary", param="body")
    fields: dict[str, list[object]] = {}
    files: list[tuple[bytes, bytes, bytes]] = []
    for part in parts[1:-1]:
        head, end, content = part.partition(b"\r\n\r\n")
        names = _NAME.findall(head) if len(head) <= _MAX_HEAD_BYTES else []
        if not end or len(names) != 1:
            raise BadRequest(
                f"each part of a form needs one name, in a head of at most {_MAX_HEAD_BYTES} bytes", param="body"
            )
        name, file_name = names[0]
        if b"filename=" in head.lower():
            kind = _TYPE.search(head)
            line = b'name="%b"; filename="%b"' % (name, file_name)
            files.append((line, b"application/octet-stream" if kind is None else kind[1], content))
            continue
        if _CONTROL.search(content) is not None:
            raise BadRequest("a field of a form holds a control character", param="body")
        try:
            text = content.decode()
            fields.setdefault(name.decode(), []).append(_FLAGS.get(text, text))
        except UnicodeDecodeError:
            raise BadRequest("the fields of a form are not UTF-8", param="body") from None
    members = {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
    return msgspec.json.encode(members), FormFiles(files)
