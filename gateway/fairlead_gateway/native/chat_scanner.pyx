# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Reads the body of a usual chat, message or response in one pass over its bytes.

Accepted is a body whose fields are in the table of its dialect, each at most once, and whose
messages hold text only. Keys are written without escapes. Every such body is valid for
`body_parser`, with the same values. Other bodies are left to it, in particular each invalid one.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint64_t

from fairlead_gateway.native.json_text cimport (
    MAX_DIGITS,
    Scan,
    Text,
    delimiter_behind,
    integer_value,
    is_named,
    is_utf8,
    skip_integer,
    skip_key,
    skip_literal,
    skip_number,
    skip_plain_string,
    skip_space,
    skip_string,
    skip_text_or_null,
    value_after,
)

cdef enum:
    MAX_SMALL_DIGITS = 9  # of integers that must fit 32 bits

cdef enum Kind:
    UNKNOWN
    MODEL
    MESSAGES
    INPUT
    CONTEXT
    SESSION_ID
    CACHE_KEY
    USER
    SAFETY_IDENTIFIER
    STREAM
    MAX_TOKENS
    MAX_COMPLETION_TOKENS
    SMALL_INTEGER
    NUMBER
    BOOLEAN
    FREE_TEXT

ctypedef struct Field:
    const char *name
    Py_ssize_t size
    Kind kind

cdef Field[24] CHAT_FIELDS = [
    Field(b"model", 5, MODEL),
    Field(b"messages", 8, MESSAGES),
    Field(b"max_tokens", 10, MAX_TOKENS),
    Field(b"temperature", 11, NUMBER),
    Field(b"stream", 6, STREAM),
    Field(b"top_p", 5, NUMBER),
    Field(b"user", 4, USER),
    Field(b"session_id", 10, SESSION_ID),
    Field(b"max_completion_tokens", 21, MAX_COMPLETION_TOKENS),
    Field(b"presence_penalty", 16, NUMBER),
    Field(b"frequency_penalty", 17, NUMBER),
    Field(b"repetition_penalty", 18, NUMBER),
    Field(b"min_p", 5, NUMBER),
    Field(b"seed", 4, SMALL_INTEGER),
    Field(b"top_k", 5, SMALL_INTEGER),
    Field(b"logprobs", 8, BOOLEAN),
    Field(b"ignore_eos", 10, BOOLEAN),
    Field(b"store", 5, BOOLEAN),
    Field(b"parallel_tool_calls", 19, BOOLEAN),
    Field(b"skip_special_tokens", 19, BOOLEAN),
    Field(b"include_reasoning", 17, BOOLEAN),
    Field(b"service_tier", 12, FREE_TEXT),
    Field(b"prompt_cache_key", 16, CACHE_KEY),
    Field(b"safety_identifier", 17, SAFETY_IDENTIFIER),
]
"""The accepted fields: all of them are listed as safe (`dialects`), and none but the context changes
the tokens of a prompt or where it is cached."""

cdef Field[9] MESSAGES_FIELDS = [
    Field(b"model", 5, MODEL),
    Field(b"messages", 8, MESSAGES),
    Field(b"max_tokens", 10, MAX_TOKENS),
    Field(b"system", 6, CONTEXT),
    Field(b"stream", 6, STREAM),
    Field(b"temperature", 11, NUMBER),
    Field(b"top_p", 5, NUMBER),
    Field(b"top_k", 5, SMALL_INTEGER),
    Field(b"session_id", 10, SESSION_ID),
]

cdef Field[12] RESPONSES_FIELDS = [
    Field(b"model", 5, MODEL),
    Field(b"input", 5, INPUT),
    Field(b"instructions", 12, CONTEXT),
    Field(b"stream", 6, STREAM),
    Field(b"max_output_tokens", 17, MAX_TOKENS),
    Field(b"prompt_cache_key", 16, CACHE_KEY),
    Field(b"store", 5, BOOLEAN),
    Field(b"temperature", 11, NUMBER),
    Field(b"top_p", 5, NUMBER),
    Field(b"user", 4, USER),
    Field(b"safety_identifier", 17, SAFETY_IDENTIFIER),
    Field(b"parallel_tool_calls", 19, BOOLEAN),
]

ctypedef struct TextRange:
    Text start
    Text end

ctypedef struct Chat:
    TextRange model
    TextRange session_id
    TextRange cache_key
    TextRange user
    TextRange safety_identifier
    TextRange messages
    TextRange context
    const Field *fields
    int field_count
    int64_t max_tokens
    int64_t max_completion_tokens
    int64_t limit
    bint stream


def scan_chat(bytes body not None, int64_t max_tokens):
    """Returns what a chat says; None if it is not accepted.

    The result: model, the name of the session, that of the user, the limit of the response's
    tokens, stream, where the text between the brackets of the messages begins and ends, and the
    same of the context. An absent value is None; an absent context has the ends 0 and 0.

    max_tokens: the largest limit that is accepted.
    """
    return _scanned(body, max_tokens, CHAT_FIELDS, 24)


def scan_messages(bytes body not None, int64_t max_tokens):
    """Returns what a request for a message says, like `scan_chat`; its context is `system`."""
    return _scanned(body, max_tokens, MESSAGES_FIELDS, 9)


def scan_responses(bytes body not None, int64_t max_tokens):
    """Returns what a request for a response says, like `scan_chat`; its context is
    `instructions`, and its input may be one text.
    """
    return _scanned(body, max_tokens, RESPONSES_FIELDS, 12)


cdef _scanned(bytes body, int64_t max_tokens, const Field *fields, int field_count):
    cdef Text start = <Text>PyBytes_AS_STRING(body)
    cdef Scan scan
    cdef Chat chat
    scan.end, scan.has_other_bytes = start + PyBytes_GET_SIZE(body), False
    chat.model.start = chat.model.end = chat.messages.start = chat.messages.end = NULL
    chat.session_id.start = chat.session_id.end = chat.user.start = chat.user.end = NULL
    chat.cache_key.start = chat.cache_key.end = NULL
    chat.safety_identifier.start = chat.safety_identifier.end = NULL
    chat.context.start = chat.context.end = start
    chat.fields, chat.field_count = fields, field_count
    chat.max_tokens = chat.max_completion_tokens = 0
    chat.limit, chat.stream = max_tokens, False
    if not _read_chat(start, &scan, &chat) or not is_utf8(&scan, start):
        return None
    cdef int64_t limit = chat.max_completion_tokens if chat.max_completion_tokens else chat.max_tokens
    return (
        _decoded(&chat.model),
        _decoded(&chat.session_id) or _decoded(&chat.cache_key),
        _decoded(&chat.user) or _decoded(&chat.safety_identifier),
        limit if limit else None,
        True if chat.stream else False,
        chat.messages.start - start,
        chat.messages.end - start,
        chat.context.start - start,
        chat.context.end - start,
    )


cdef inline _decoded(const TextRange *text):
    if text.start == NULL:
        return None
    return PyUnicode_DecodeUTF8(<const char *>text.start, text.end - text.start, NULL)


cdef bint _read_chat(Text at, Scan *scan, Chat *chat) noexcept nogil:
    cdef uint64_t seen = 0
    cdef Text name
    cdef int index
    at = skip_space(at)
    if at[0] != c"{":
        return False
    while True:
        name = skip_space(at + 1) + 1
        at = skip_key(name, scan)
        if at == NULL:
            return False
        index = 0
        while not is_named(name, at, chat.fields[index].name, chat.fields[index].size):
            index += 1
            if index == chat.field_count:
                return False
        if seen >> index & 1:
            return False
        seen |= <uint64_t>1 << index
        at = delimiter_behind(_read_field(chat.fields[index].kind, value_after(at), scan, chat), c"}")
        if at == NULL:
            return False
        if at[0] == c"}":
            return chat.model.start != NULL and chat.messages.start != NULL and skip_space(at + 1) == scan.end


cdef Text _read_field(Kind kind, Text at, Scan *scan, Chat *chat) noexcept nogil:
    """Reads a value into `chat` if it is needed there."""
    if kind == MESSAGES:
        return _read_messages(at, scan, &chat.messages, False)
    if kind == INPUT:
        return _read_input(at, scan, &chat.messages)
    if kind == CONTEXT:
        return _read_context(at, scan, &chat.context)
    if at[0] == c"n":
        return skip_literal(at, scan) if kind != MODEL else NULL
    if kind == STREAM or kind == BOOLEAN:
        if kind == STREAM:
            chat.stream = at[0] == c"t"
        return skip_literal(at, scan)
    if kind == NUMBER:
        return skip_number(at, MAX_DIGITS, 0)
    if kind == SMALL_INTEGER:
        return skip_integer(at, MAX_SMALL_DIGITS)
    if kind == MAX_TOKENS:
        return _read_limit(at, chat.limit, &chat.max_tokens)
    if kind == MAX_COMPLETION_TOKENS:
        return _read_limit(at, chat.limit, &chat.max_completion_tokens)
    if kind == MODEL:
        return _read_plain_text(at, scan, &chat.model)
    if kind == SESSION_ID:
        return _read_plain_text(at, scan, &chat.session_id)
    if kind == CACHE_KEY:
        return _read_plain_text(at, scan, &chat.cache_key)
    if kind == USER:
        return _read_plain_text(at, scan, &chat.user)
    if kind == SAFETY_IDENTIFIER:
        return _read_plain_text(at, scan, &chat.safety_identifier)
    return skip_text_or_null(at, scan)


cdef Text _read_plain_text(Text at, Scan *scan, TextRange *text) noexcept nogil:
    """Reads a text without escapes."""
    cdef Text end
    if at[0] != c'"':
        return NULL
    end = skip_plain_string(at + 1, scan)
    if end != NULL:
        text.start, text.end = at + 1, end - 1
    return end


cdef Text _read_limit(Text at, int64_t max_tokens, int64_t *limit) noexcept nogil:
    """Reads a limit from 1 to `max_tokens`."""
    cdef Text end
    if at[0] == c"-":
        return NULL
    end = skip_integer(at, MAX_DIGITS)
    if end != NULL:
        limit[0] = integer_value(at, end)
        if limit[0] < 1 or limit[0] > max_tokens:
            return NULL
    return end


cdef Text _read_input(Text at, Scan *scan, TextRange *text) noexcept nogil:
    """Reads a text, or items with text only."""
    cdef Text end
    if at[0] == c"[":
        return _read_messages(at, scan, text, True)
    if at[0] != c'"':
        return NULL
    end = skip_string(at + 1, scan)
    if end != NULL:
        text.start, text.end = at + 1, end - 1
    return end


cdef Text _read_context(Text at, Scan *scan, TextRange *text) noexcept nogil:
    """Reads a text, or parts with text only, with its quotes or brackets; null is none."""
    cdef Text end
    if at[0] == c"n":
        return skip_literal(at, scan)
    end = _skip_parts(at, scan) if at[0] == c"[" else skip_string(at + 1, scan) if at[0] == c'"' else NULL
    if end != NULL:
        text.start, text.end = at, end
    return end


cdef Text _read_messages(Text at, Scan *scan, TextRange *text, bint are_items) noexcept nogil:
    if at[0] != c"[":
        return NULL
    text.start = at + 1
    while True:
        at = delimiter_behind(_skip_message(skip_space(at + 1), scan, are_items), c"]")
        if at == NULL:
            return NULL
        if at[0] == c"]":
            text.end = at
            return at + 1


cdef Text _skip_message(Text at, Scan *scan, bint is_item) noexcept nogil:
    """Returns the end of a message whose content is a text, parts with text, or null.

    is_item: it is one of the items of a response's input, which have types.
    """
    cdef Text name, end
    cdef bint has_role = False
    if at[0] != c"{":
        return NULL
    while True:
        name = skip_space(at + 1) + 1
        end = skip_key(name, scan)
        if end == NULL:
            return NULL
        at = value_after(end)
        if is_named(name, end, b"role", 4):
            at = skip_string(at + 1, scan) if at[0] == c'"' else NULL
            has_role = True
        elif is_named(name, end, b"content", 7) and at[0] == c"[":
            at = _skip_parts(at, scan)
        elif is_item and is_named(name, end, b"type", 4):
            if not is_named(at + 1, at + 8, b"message", 7) or at[0] != c'"' or at[8] != c'"':
                return NULL
            at = skip_string(at + 1, scan)
        elif _is_text_field(name, end) or (at[0] == c"n" and _is_null_field(name, end)):
            at = skip_text_or_null(at, scan)
        else:
            return NULL
        at = delimiter_behind(at, c"}")
        if at == NULL:
            return NULL
        if at[0] == c"}":
            return at + 1 if has_role else NULL


cdef inline bint _is_text_field(Text name, Text end) noexcept nogil:
    """Returns whether a field of a message holds a text or null."""
    return (
        is_named(name, end, b"content", 7)
        or is_named(name, end, b"name", 4)
        or is_named(name, end, b"tool_call_id", 12)
        or is_named(name, end, b"reasoning_content", 17)
        or is_named(name, end, b"refusal", 7)
    )


cdef inline bint _is_null_field(Text name, Text end) noexcept nogil:
    """Returns whether a field of a message is accepted if it is null."""
    return (
        is_named(name, end, b"tool_calls", 10)
        or is_named(name, end, b"function_call", 13)
        or is_named(name, end, b"audio", 5)
    )


cdef Text _skip_parts(Text at, Scan *scan) noexcept nogil:
    """Returns the end of an array of parts, each of them only text."""
    while True:
        at = delimiter_behind(_skip_part(skip_space(at + 1), scan), c"]")
        if at == NULL:
            return NULL
        if at[0] == c"]":
            return at + 1


cdef Text _skip_part(Text at, Scan *scan) noexcept nogil:
    cdef Text name, end
    if at[0] != c"{":
        return NULL
    while True:
        name = skip_space(at + 1) + 1
        end = skip_key(name, scan)
        if end == NULL or not (is_named(name, end, b"type", 4) or is_named(name, end, b"text", 4)):
            return NULL
        at = delimiter_behind(skip_text_or_null(value_after(end), scan), c"}")
        if at == NULL:
            return NULL
        if at[0] == c"}":
            return at + 1
