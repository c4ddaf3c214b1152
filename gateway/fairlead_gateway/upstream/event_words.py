"""The words in an event of a stream that tell what it holds.

Inside a JSON string a quote is escaped. So each word with plain quotes is a key of the event, or a
key and the start of its value.
"""

from typing import Final

from fairlead_gateway.native import FIND_WORDS

PROMPT_IDS_KEY: Final = b'"prompt_token_ids":['
IDS_KEY: Final = b'"token_ids":['
HIDDEN_IDS: Final = b'"token_ids":null'
WORDS: Final = (
    b'"usage"',
    b'"error"',
    b'"finish_reason":"',
    b'"finish_reason": "',
    PROMPT_IDS_KEY,
    IDS_KEY,
    HIDDEN_IDS,
    b'"tool_calls":[',
    b'"logprobs":{',
    b'"delta":{}',
    b'"text":""',
    b'"content":""',
    b'"reasoning',
    b'"tool_calls"',
    b'"refusal"',
    b'""',
)
"""Each begins with a quote; at most 32."""
USAGE: Final = 1
ERROR: Final = 1 << 1
FINISH: Final = 1 << 2 | 1 << 3
PROMPT_IDS: Final = 1 << 4
IDS: Final = 1 << 5
NO_IDS: Final = 1 << 6
TOOL_CALLS: Final = 1 << 7
LOG_PROBABILITIES: Final = 1 << 8
EMPTY_DELTA: Final = 1 << 9
EMPTY_TEXT: Final = 1 << 10
EMPTY_CONTENT: Final = 1 << 11
OTHER_PARTS: Final = 1 << 12 | 1 << 13 | 1 << 14
EMPTY_STRING: Final = 1 << 15
"""Bits of `words_of`."""


def words_of(event: bytes) -> int:
    if FIND_WORDS is not None:
        return FIND_WORDS(event, WORDS)
    return sum([1 << place for place, word in enumerate(WORDS) if event.find(word) >= 0])
