"""Redaction of objects and logs. Pure.

Only what is known to be harmless stays. These are removed:

- values of environment variables, and foreign annotations and labels;
- arguments that are long or have spaces, and command lines after their first word;
- last messages of engines, which may hold prompts.

In the remaining texts, known values of Secrets, and what looks like a key, token or password, are
replaced.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fairlead.settings import settings_table

REDACTED_PLACEHOLDER: Final = "[redacted]"
PROMPT_LINE_PLACEHOLDER: Final = "[a line that may hold a prompt was left out]"
_MIN_SECRET_CHARACTERS: Final = 6
"""Shorter values of Secrets (``1``, ``true``, ``admin``) would match everywhere."""
_MAX_ARGUMENT_CHARACTERS: Final = 128
_WORDS: Final = r"(?:api[_-]?key|token|secret|passw(?:or)?d|pepper|credential|authorization|signature|private[_-]?key)"
_PASSWORD_WORDS: Final = r"(?:passw(?:or)?d|api[_-]?key|secret|pepper|credential|private[_-]?key)"
_UPPER: Final = r"(?:API_?KEY|TOKEN|SECRET|PASSW(?:OR)?D|PEPPER|CREDENTIAL|AUTHORIZATION|SIGNATURE|PRIVATE_?KEY)"
_VALUE: Final = r"""(?!\[redacted\]|\d+(?:\.\d+)?\b|null\b|none\b|true\b|false\b)[^\s"',;&}\]]+"""
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED_PLACEHOLDER,
    ),
    (re.compile(r"\beyJ[\w-]{8,4096}\.[\w-]{8,}\.[\w-]*"), REDACTED_PLACEHOLDER),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {REDACTED_PLACEHOLDER}"),
    (
        re.compile(r"\b(?:sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abpr]-|nvapi-|AIza|dapi)[\w-]{8,}"),
        REDACTED_PLACEHOLDER,
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED_PLACEHOLDER),
    (re.compile(r"(://)[^\s\"'<>]{0,2048}@"), rf"\1{REDACTED_PLACEHOLDER}@"),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*[:=])[^\r\n]+"), rf"\1 {REDACTED_PLACEHOLDER}"),
    (re.compile(r"(?i)([?&]sig=)[^&\s\"']+"), rf"\1{REDACTED_PLACEHOLDER}"),
    (
        re.compile(rf"(?i)(?<![\w-])(--?[a-z0-9-]{{0,64}}{_WORDS}[a-z0-9-]{{0,64}}\s+)(?!-){_VALUE}"),
        rf"\1{REDACTED_PLACEHOLDER}",
    ),
    (re.compile(rf"(?i)({_PASSWORD_WORDS}[\"']?\s*[=:]\s*[\"']?)\d[^\s\"',;&}}\]]*"), rf"\1{REDACTED_PLACEHOLDER}"),
    (
        re.compile(rf"(?<![A-Za-z])([a-z0-9_.-]{{0,64}}{_WORDS}[a-z0-9_.-]{{0,64}}[\"']?\s*[=:]\s*[\"']?){_VALUE}"),
        rf"\1{REDACTED_PLACEHOLDER}",
    ),
    (
        re.compile(rf"\b([A-Z0-9_]{{0,64}}{_UPPER}[A-Z0-9_]{{0,64}}[\"']?\s*[=:]\s*[\"']?){_VALUE}"),
        rf"\1{REDACTED_PLACEHOLDER}",
    ),
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
"""Content of Secrets and ConfigMaps. The ``data`` of ControllerRevisions is redacted; elsewhere the
word has other meanings.
"""
_ALWAYS_REDACTED_FIELDS: Final = frozenset({"managedFields", "binaryData", "stringData"})


class Scrubber:
    """The replacer of secrets in texts: known values, and what looks like a key, token or password.

    secrets: the known values.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({value for value in secrets if len(value) >= _MIN_SECRET_CHARACTERS}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def scrub_text(self, text: str) -> str:
        """Returns the text with a placeholder for every secret."""
        if self._known is not None:
            text = self._known.sub(REDACTED_PLACEHOLDER, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def scrub_value(self, value: Any) -> Any:
        """Returns a structure with every text in it scrubbed; the names of fields stay."""
        if isinstance(value, dict):
            return {name: self.scrub_value(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.scrub_value(item) for item in value]
        return self.scrub_text(value) if isinstance(value, str) else value

    def scrub_log(self, text: str) -> str:
        """Returns a scrubbed log; a placeholder replaces each line that may contain a prompt."""
        return "\n".join(
            PROMPT_LINE_PLACEHOLDER if _PROMPT.search(line) else line for line in self.scrub_text(text).split("\n")
        )


def redact_manifest(object_: Mapping[str, Any], scrub: Scrubber) -> dict[str, Any]:
    """Returns a Kubernetes object without prompts, secrets and foreign settings."""
    shown = {name: _value(name, value, scrub) for name, value in object_.items() if name not in _CONTENT_FIELDS}
    if object_.get("kind") == "ControllerRevision" and isinstance(object_.get("data"), dict):
        shown["data"] = _value("data", object_["data"], scrub)
    return shown


def _value(name: str, value: Any, scrub: Scrubber) -> Any:
    """Redacts a value by the name of its field."""
    if name in _ALWAYS_REDACTED_FIELDS:
        return _managers(value) if name == "managedFields" else REDACTED_PLACEHOLDER
    if name in ("annotations", "labels", "matchLabels") and isinstance(value, dict):
        return {
            key: scrub.scrub_text(str(item)) if key.startswith(_SHOWN_KEY_PREFIXES) else REDACTED_PLACEHOLDER
            for key, item in value.items()
        }
    if name == "env" and isinstance(value, list):
        return [_variable(item, scrub) for item in value]
    if name in ("args", "command") and isinstance(value, list):
        return list(_arguments(name, value, scrub))
    if name == "httpHeaders":
        return REDACTED_PLACEHOLDER
    if name == "terminated" and isinstance(value, dict):
        return {
            key: REDACTED_PLACEHOLDER if key == "message" else _value(key, item, scrub) for key, item in value.items()
        }
    if isinstance(value, dict):
        return {key: _value(key, item, scrub) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(name, item, scrub) for item in value]
    return scrub.scrub_text(value) if isinstance(value, str) else value


def _managers(entries: Any) -> Any:
    """Returns ``managedFields`` with managers and times, which show competing writers, but no
    fields.
    """
    shown = ("manager", "operation", "subresource", "time")
    if not isinstance(entries, list):
        return REDACTED_PLACEHOLDER
    return [{key: entry[key] for key in shown if key in entry} for entry in entries if isinstance(entry, dict)]


def _variable(variable: Any, scrub: Scrubber) -> Any:
    """Returns an environment variable; only references and values of harmless settings stay."""
    if not isinstance(variable, dict) or "value" not in variable:
        return _value("", variable, scrub) if isinstance(variable, dict) else REDACTED_PLACEHOLDER
    shown = (
        scrub.scrub_text(str(variable["value"])) if variable.get("name") in _shown_variables() else REDACTED_PLACEHOLDER
    )
    return {**{key: _value(key, item, scrub) for key, item in variable.items() if key != "value"}, "value": shown}


def _shown_variables() -> frozenset[str]:
    return frozenset(row.variable for row in settings_table() if not row.secret) | {"PYTHONHASHSEED", "HF_HOME", "HOME"}


def _arguments(name: str, arguments: list[Any], scrub: Scrubber) -> Iterator[str]:
    """Yields the arguments; only switches with short values stay.

    A value in an argument of its own is redacted by the switch before it.
    """
    previous_switch = ""
    for position, argument in enumerate(map(str, arguments)):
        switch, equals, value = argument.partition("=")
        if name == "command" and position and not argument.startswith("-"):
            yield REDACTED_PLACEHOLDER
        elif not argument.startswith("-"):
            yield _argument(previous_switch, argument, scrub)
        else:
            yield f"{switch}={_argument(switch, value, scrub)}" if equals else _argument("", argument, scrub)
        previous_switch = argument if argument.startswith("-") and not equals else ""


def _argument(switch: str, value: str, scrub: Scrubber) -> str:
    if _SENSITIVE.search(switch) or len(value) > _MAX_ARGUMENT_CHARACTERS or any(char.isspace() for char in value):
        return REDACTED_PLACEHOLDER
    return scrub.scrub_text(value)
