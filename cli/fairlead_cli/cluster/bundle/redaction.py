"""Redaction of objects and logs. Pure.

Only what is known to be harmless stays. These are removed:

- values of environment variables, and foreign annotations and labels;
- arguments that are long or have spaces, and command lines after their first word;
- last messages of engines, which may hold prompts.

In the remaining texts, known values of Secrets, what looks like a key, token or password, and long
words of random characters are replaced.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from fairlead.settings import settings_table

REDACTED_PLACEHOLDER: Final = "[redacted]"
PROMPT_LINE_PLACEHOLDER: Final = "[a line that may hold a prompt was left out]"
_MIN_SECRET_CHARACTERS: Final = 6
"""Shorter values of Secrets (``1``, ``true``, ``admin``) would match everywhere."""
_MAX_ARGUMENT_CHARACTERS: Final = 128
_WORDS: Final = (
    r"(?:api[_-]?key|token|secret|passw(?:or)?d|pepper|credential|authorization|signature|private[_-]?key"
    r"|(?:access|account|encryption|master|shared)[_-]?key)"
)
_SECRET_WORD: Final = re.compile(_WORDS)
_CAMEL_CASE_SECRET: Final = re.compile(r"[a-z][A-Za-z0-9]*(?:Key|Token|Secret|Password)")
_QUERY_SIGNATURE: Final = "sig"
"""The parameter of an Azure URL that opens a blob to its bearer."""
_TEXT_SECRETS: Final = frozenset({"password", "passwd", "authorization"})
"""Capitalised words before a colon are secrets only if they are listed here.

Why: ``MissingSecret: pod a waits`` is the reason of a condition.
"""
_TEXT_SEPARATORS: Final = frozenset(" \t\r\n:")
_AFTER_PREFIX: Final = rf"\1{REDACTED_PLACEHOLDER}"
_PATTERNS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", REDACTED_PLACEHOLDER),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", REDACTED_PLACEHOLDER),
        (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}", rf"\1 {REDACTED_PLACEHOLDER}"),
        (
            r"\b(?:sk-|sk_live_|rk_live_|hf_|gh[pousr]_|github_pat_|glpat-|xox[abpr]-|nvapi-|gsk_|r8_|npm_|pypi-|hvs\.|ya29\.|fl_|xai-|GOCSPX-|dckr_(?:pat|oat)_|pplx-|sq0csp-|shpat_|lsv2_|AGE-SECRET-KEY-)[\w-]{8,}",
            REDACTED_PLACEHOLDER,
        ),
        (r"\bAIza[\w-]{16,}|\bSG\.[\w-]{16,}\.[\w-]{16,}", REDACTED_PLACEHOLDER),
        (r"(?i)\b((?:requirepass|masterauth)\s++)(?!\[redacted\])\S+", _AFTER_PREFIX),
        (
            r"(?i)\b(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/)[^\s\"'<>]+",
            _AFTER_PREFIX,
        ),
        (
            r"""(?i)((?<![\w-])(?:proxy-)?authorization\\*+["']?+\s*+[:=,]?+\s*+(?:b(?=["']))?+\\*+["']?+[a-z][a-z0-9-]*\s++)(?!\[redacted\])[^\s"'\\]+""",
            _AFTER_PREFIX,
        ),
        (
            r"""(?i)((?<![\w-])(?:(?:x-)?api-key|x-goog-api-key|x-auth-token|ocp-apim-subscription-key)\\*+["']?+\s*+[:=,]?+\s*+\\*+["']?+)(?!\[redacted\])[^\s"',:=\\]+""",
            _AFTER_PREFIX,
        ),
        (r"""((?<![\w-])(?:-u|--user|--proxy-user)[= ]["']?[^\s:"']+:)[^\s"']+""", _AFTER_PREFIX),
        (r"""(?i)([?&](?:key|auth|code|password|pwd|pass)=)[^&\s"'<>]+""", _AFTER_PREFIX),
        (r"""(?i)((?<![\w-])(?:pwd|pass|passphrase)=["']?)(?!\[redacted\])[^\s"',;&]+""", _AFTER_PREFIX),
        (r"""(["']_?auth\\*+["']\s*+:\s*+\\*+["'])[^"'\\]+""", _AFTER_PREFIX),
        (r"\bdapi[0-9a-f]{16,}(?:-\d+)?", REDACTED_PLACEHOLDER),
        (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", REDACTED_PLACEHOLDER),
        (r"\b((?:hf|oci|docker-pullable)://)[^/\s@]*@", rf"\1{REDACTED_PLACEHOLDER}@"),
        (
            r"""(?i)\b((?:set-)?cookie\\*["']?\s*[:=,]\s*+(?:b(?=["']))?+\\*+["']?+)(?!\[redacted\])[^\r\n"'\\]+""",
            _AFTER_PREFIX,
        ),
        (
            rf"""(?i)((?<![\w-])--?(?:[a-z0-9]+[_-])*{_WORDS}\\*["']?,?\s++(?:b(?=["']))?+\\*+["']?+)(?!\[redacted\])(?!-)[^\s"',\]\\]+""",
            _AFTER_PREFIX,
        ),
        (r"(ended with exit code [^,]*, \d+ times): .*", rf"\1: {REDACTED_PLACEHOLDER}"),
    )
)
_ADDRESS: Final = re.compile(r"""(?<!\bhf)(?<!\boci)(?<!\bdocker-pullable)://[^\s"'<>]*+""")
"""An address after its scheme. Weights and images name a revision or a digest after ``@``."""
_ASSIGNED_NAME: Final = re.compile(r"""(?<![\w-])(?P<name>[\w-]++)(?P<separator>\\*["']?\s*[=:]\s*)""")
"""A name before ``=`` or ``:``; possessive, so that time grows with a line's length only."""
_ASSIGNED_VALUE: Final = re.compile(
    r"""
    (?:(?i:bearer|basic|digest|negotiate|token)\s+)?+  # the scheme of an Authorization header
    (?!\[redacted\])
    (?:
        b?"(?P<double>(?:[^"\\\n]|\\.)*)
      | b?'(?P<single>(?:[^'\\\n]|\\.)*)
      | \\+["'](?P<escaped>[^"'\\\n]*)
      | (?P<listed>[\[({][^\])}\n]*[\])}]?)
      | (?P<bare>[^\s"',;&}\]]+)
    )""",
    re.VERBOSE,
)
_RANDOM_WORD: Final = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{24,}+={0,2}")
_RANDOM_CHANGES: Final = 0.4
"""The share of neighbours of different kinds from which a word counts.

Why: of random letters and digits 62% differ, of names such as `Qwen3-30B-A3B-Instruct` a quarter.
The kinds are lower case, upper case and digit.
"""
_HARMLESS_VALUE: Final = re.compile(r"(?i)null|none|true|false|")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_COUNT_NAME: Final = re.compile(rf"{_WORDS}s$|token(?:s|[_-])|(?:per|max|min)[_-]token$")
"""Names after which a number counts something: ``max_tokens``, ``eos_token_id``."""
_PROMPT: Final = re.compile(
    r"""["'](?:messages|prompt|input|inputs|content|text|completion|system|instructions)["']\s*:|\b(?:prompt|messages|content)\s*[=:]\s*['"\[{]|\bprompt\s*[=:]\s*(?![\d\s])\S|(?i:\btokeni[sz]\w+)\s+["']"""
)
_SENSITIVE: Final = re.compile(rf"(?i){_WORDS}|auth|(?:^|[-_])key(?:$|[-_])")
_SHOWN_KEY_PREFIXES: Final = (
    *("fairlead.io/", "app.kubernetes.io/", "helm.sh/", "meta.helm.sh/", "deployment.kubernetes.io/"),
    "apps.kubernetes.io/",
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
        return _RANDOM_WORD.sub(_redact_random, _redact_assigned_values(_ADDRESS.sub(_redact_credentials, text)))

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


def _redact_random(word: re.Match[str]) -> str:
    """Returns a placeholder for a word whose characters change between kinds as at random."""
    kinds = ["a" if char.islower() else "A" if char.isupper() else "0" if char.isdigit() else "" for char in word[0]]
    changes = sum(1 for before, after in pairwise(kinds) if before and after and before != after)
    is_random = {"a", "A", "0"} <= set(kinds) and changes >= _RANDOM_CHANGES * len(kinds)
    return REDACTED_PLACEHOLDER if is_random else word[0]


def _redact_credentials(address: re.Match[str]) -> str:
    """Returns the address without what precedes its last ``@``; a password may contain one."""
    rest = address[0]
    digest = rest.find("@sha256:")
    end = rest.rfind("@") if digest < 0 else rest.rfind("@", 0, digest)
    return rest if end < 0 else f"://{REDACTED_PLACEHOLDER}{rest[end:]}"


def _redact_assigned_values(text: str) -> str:
    """Redacts the values after names of secrets: ``password=12345678``, ``"api_key": ["a"]``."""
    shown: list[str] = []
    copied = 0
    for assignment in _ASSIGNED_NAME.finditer(text):
        if assignment.start() < copied or not _is_secret_name(assignment["name"], assignment["separator"]):
            continue
        value = _ASSIGNED_VALUE.match(text, assignment.end())
        if value is None or value.lastgroup is None or _is_harmless(assignment["name"], value[value.lastgroup]):
            continue
        shown += (text[copied : value.start(value.lastgroup)], REDACTED_PLACEHOLDER)
        copied = value.end(value.lastgroup)
    return "".join([*shown, text[copied:]])


def _is_secret_name(name: str, separator: str) -> bool:
    lowered = name.lower()
    if lowered == _QUERY_SIGNATURE:
        return "=" in separator
    if _CAMEL_CASE_SECRET.fullmatch(name):
        return True
    if not _SECRET_WORD.search(lowered):
        return False
    is_name = name in (lowered, name.upper()) or "-" in name or lowered in _TEXT_SECRETS
    return is_name or not _TEXT_SEPARATORS.issuperset(separator)


def _is_harmless(name: str, value: str) -> bool:
    if _NUMBER.fullmatch(value):
        return _COUNT_NAME.search(name.lower()) is not None
    return _HARMLESS_VALUE.fullmatch(value) is not None


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
    # The last words of a container may quote a request.
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
