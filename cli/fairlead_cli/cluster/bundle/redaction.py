"""What of objects and logs may be shown to others. Pure.

What is not known to be harmless goes: values of environment variables, of annotations and labels that are neither ours nor
Kubernetes', of arguments that are long or have spaces, command lines behind their first word, what engines wrote last (it may hold
prompts). What stays is scrubbed as text: of values of Secrets that are known, and of what has the form of a key, token or password.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fairlead.settings import settings_table

REDACTED_PLACEHOLDER: Final = "[redacted]"
PROMPT_LINE_PLACEHOLDER: Final = "[a line that may hold a prompt was left out]"
_MIN_SECRET_CHARACTERS: Final = 6
"""Shorter values of Secrets (``1``, ``true``, ``admin``) would be found everywhere."""
_MAX_ARGUMENT_CHARACTERS: Final = 128
_WORDS: Final = r"(?:api[_-]?key|token|secret|passw(?:or)?d|pepper|credential|authorization|signature|private[_-]?key)"
_UPPER: Final = r"(?:API_?KEY|TOKEN|SECRET|PASSW(?:OR)?D|PEPPER|CREDENTIAL|AUTHORIZATION|SIGNATURE|PRIVATE_?KEY)"
_VALUE: Final = r"""(?!\[redacted\]|\d+(?:\.\d+)?\b|null\b|none\b|true\b|false\b)[^\s"',;&}\]]+"""
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED_PLACEHOLDER,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), REDACTED_PLACEHOLDER),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {REDACTED_PLACEHOLDER}"),
    (re.compile(r"\b(?:sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abpr]-)[\w-]{8,}"), REDACTED_PLACEHOLDER),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED_PLACEHOLDER),
    (re.compile(r"(://)[^/\s@]*@"), rf"\1{REDACTED_PLACEHOLDER}@"),
    (
        re.compile(rf"(?<![A-Za-z])([a-z0-9_.-]*{_WORDS}[a-z0-9_.-]*[\"']?\s*[=:]\s*[\"']?){_VALUE}"),
        rf"\1{REDACTED_PLACEHOLDER}",
    ),
    (re.compile(rf"\b([A-Z0-9_]*{_UPPER}[A-Z0-9_]*[\"']?\s*[=:]\s*[\"']?){_VALUE}"), rf"\1{REDACTED_PLACEHOLDER}"),
    (
        re.compile(rf"\b([a-z]+(?:Key|Token|Secret|Password)[\"']?\s*[=:]\s*[\"']?){_VALUE}"),
        rf"\1{REDACTED_PLACEHOLDER}",
    ),
    (re.compile(r"(ended with exit code [^,]*, \d+ times): .*"), rf"\1: {REDACTED_PLACEHOLDER}"),
)
_PROMPT: Final = re.compile(
    r"""["'](?:messages|prompt|input|inputs|content|text|completion|system|instructions)["']\s*:|\b(?:prompt|messages|content)\s*[=:]\s*['"\[{]"""
)
_SENSITIVE: Final = re.compile(rf"(?i){_WORDS}|auth|(?:^|[-_])key(?:$|[-_])")
_SHOWN_KEY_PREFIXES: Final = (
    *(
        "fairlead.io/",
        "app.kubernetes.io/",
        "helm.sh/",
        "meta.helm.sh/",
        "deployment.kubernetes.io/",
        "apps.kubernetes.io/",
    ),
    *("leaderworkerset.sigs.k8s.io/", "pod-template-hash", "controller-revision-hash", "kubernetes.io/metadata.name"),
)
_CONTENT_FIELDS: Final = frozenset({"data", "binaryData", "stringData"})
"""Of Secrets and ConfigMaps; the ``data`` of ControllerRevisions is looked into, and elsewhere the word means something else."""
_ALWAYS_REDACTED_FIELDS: Final = frozenset({"managedFields", "binaryData", "stringData"})


class Scrubber:
    """Takes values of Secrets, and what looks like one, out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({one for one in secrets if len(one) >= _MIN_SECRET_CHARACTERS}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def scrub_text(self, text: str) -> str:
        """A text without them."""
        if self._known is not None:
            text = self._known.sub(REDACTED_PLACEHOLDER, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text

    def scrub_value(self, value: Any) -> Any:
        """The same for every text in a structure; its names stay."""
        if isinstance(value, dict):
            return {name: self.scrub_value(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.scrub_value(one) for one in value]
        return self.scrub_text(value) if isinstance(value, str) else value

    def scrub_log(self, text: str) -> str:
        """Lines of a log; one that may hold a prompt goes as a whole."""
        return "\n".join(
            PROMPT_LINE_PLACEHOLDER if _PROMPT.search(line) else line for line in self.scrub_text(text).split("\n")
        )


def redact_manifest(found: Mapping[str, Any], scrub: Scrubber) -> dict[str, Any]:
    """An object as it may be shown."""
    shown = {name: _value(name, value, scrub) for name, value in found.items() if name not in _CONTENT_FIELDS}
    if found.get("kind") == "ControllerRevision" and isinstance(found.get("data"), dict):
        shown["data"] = _value("data", found["data"], scrub)
    return shown


def _value(name: str, value: Any, scrub: Scrubber) -> Any:
    """By the name of the field that holds it."""
    if name in _ALWAYS_REDACTED_FIELDS:
        return _managers(value) if name == "managedFields" else REDACTED_PLACEHOLDER
    if name in ("annotations", "labels", "matchLabels") and isinstance(value, dict):
        return {
            key: scrub.scrub_text(str(one)) if key.startswith(_SHOWN_KEY_PREFIXES) else REDACTED_PLACEHOLDER
            for key, one in value.items()
        }
    if name == "env" and isinstance(value, list):
        return [_variable(one, scrub) for one in value]
    if name in ("args", "command") and isinstance(value, list):
        return list(_arguments(name, value, scrub))
    if name == "httpHeaders":
        return REDACTED_PLACEHOLDER
    if name == "terminated" and isinstance(value, dict):
        return {
            key: REDACTED_PLACEHOLDER if key == "message" else _value(key, one, scrub) for key, one in value.items()
        }
    if isinstance(value, dict):
        return {key: _value(key, one, scrub) for key, one in value.items()}
    if isinstance(value, list):
        return [_value(name, one, scrub) for one in value]
    return scrub.scrub_text(value) if isinstance(value, str) else value


def _managers(entries: Any) -> Any:
    """Who wrote when, which tells who fights whom; not what."""
    shown = ("manager", "operation", "subresource", "time")
    if not isinstance(entries, list):
        return REDACTED_PLACEHOLDER
    return [{key: one[key] for key in shown if key in one} for one in entries if isinstance(one, dict)]


def _variable(one: Any, scrub: Scrubber) -> Any:
    """References stay (they name, and hold nothing); values only of our own settings that are no secrets."""
    if not isinstance(one, dict) or "value" not in one:
        return _value("", one, scrub) if isinstance(one, dict) else REDACTED_PLACEHOLDER
    shown = scrub.scrub_text(str(one["value"])) if one.get("name") in _shown_variables() else REDACTED_PLACEHOLDER
    return {**{key: _value(key, rest, scrub) for key, rest in one.items() if key != "value"}, "value": shown}


def _shown_variables() -> frozenset[str]:
    return frozenset(row.variable for row in settings_table() if not row.secret) | {"PYTHONHASHSEED", "HF_HOME", "HOME"}


def _arguments(name: str, words: list[Any], scrub: Scrubber) -> Iterator[str]:
    """Switches stay with short values; a value of its own word is judged by the switch before it."""
    before = ""
    for position, word in enumerate(map(str, words)):
        switch, equals, value = word.partition("=")
        if name == "command" and position and not word.startswith("-"):
            yield REDACTED_PLACEHOLDER
        elif not word.startswith("-"):
            yield _argument(before, word, scrub)
        else:
            yield f"{switch}={_argument(switch, value, scrub)}" if equals else _argument("", word, scrub)
        before = word if word.startswith("-") and not equals else ""


def _argument(switch: str, value: str, scrub: Scrubber) -> str:
    if _SENSITIVE.search(switch) or len(value) > _MAX_ARGUMENT_CHARACTERS or any(char.isspace() for char in value):
        return REDACTED_PLACEHOLDER
    return scrub.scrub_text(value)
