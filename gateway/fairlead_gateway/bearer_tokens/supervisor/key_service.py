"""Keeps the key sets of all issuers up to date, and sends them to the workers.

A key set is read at the start and then at an interval. It is also read when a token names a key
that is not in it, at most every ten seconds: anyone can send such tokens. If a key set cannot
be read, the last one stays in use. Its age is in the warnings.

Reads key sets (JWKS, RFC 7517): the public keys that may verify tokens. Pure.

Symmetric keys, keys for encryption, weak keys and unknown curves are left out. So a key set
that holds a shared secret by mistake lets no one sign with it.
"""

import asyncio
import base64
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead.errors import BadInput, FairleadError, Unavailable, first_line
from fairlead.limits import Limits
from fairlead.runtime import http_client
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.units import format_duration
from fairlead_gateway.bearer_tokens.messages import (
    ALGORITHMS,
    BEARER_TOKEN_BYTES,
    JWKS_UNKNOWN_KEY_SECONDS,
    SigningKey,
    TokenIssuer,
)
from fairlead_gateway.bearer_tokens.supervisor.issuer_file import IssuerConfig, parse_issuer_file

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_MIN_RSA_BITS: Final = 2_048
_MAX_RSA_BITS: Final = 8_192
_MAX_RSA_EXPONENT_BYTES: Final = 4
_CURVES: Final[Mapping[tuple[str, str], tuple[str, int]]] = {
    ("EC", "P-256"): ("ES256", 32),
    ("EC", "P-384"): ("ES384", 48),
    ("EC", "P-521"): ("ES512", 66),
    ("OKP", "Ed25519"): ("EdDSA", 32),
}
"""Key type and curve → the algorithm, and the bytes of a coordinate."""
JWKS_BYTES: Final = 512 * 1024
"""Limit: a key set (JWKS) of an issuer; real ones have a few kB."""
JWKS_KEYS: Final = 64
"""Limit: keys of an issuer's key set; the rest is not used."""
_RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_MAX_KEY_ID: Final = 256

JWKS_TIMEOUT_SECONDS: Final = 5.0
"""Limit: an issuer's response with its key set."""
JWKS_REFRESH_SECONDS: Final = 300.0
"""Limit: interval at which key sets are read again; files: 2 s."""
JWKS_STALE_SECONDS: Final = 900.0
"""Limit: a key set that is older gets a warning; it stays in use."""

KeySetReader = Callable[[IssuerConfig], Awaitable[bytes]]
_FILE_SECONDS: Final = 2.0


def parse_key_set(content: bytes, algorithms: Sequence[str], max_keys: int = JWKS_KEYS) -> tuple[SigningKey, ...]:
    """Returns the keys of a key set that may verify tokens signed with one of the algorithms.

    Raises BadInput if the content is not a key set, or holds no such key.
    """
    try:
        found: Any = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        raise BadInput("the key set is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise BadInput("the key set has no list `keys`")
    keys = [key for entry in entries[:max_keys] if (key := _signing_key(entry, algorithms)) is not None]
    if not keys:
        raise BadInput(f"none of the {len(entries)} keys can verify tokens of {', '.join(algorithms)}")
    return tuple(keys)


def _signing_key(entry: Any, algorithms: Sequence[str]) -> SigningKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    key_id, key_type, curve = entry.get("kid"), entry.get("kty"), entry.get("crv")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > _MAX_KEY_ID):
        return None
    if key_type == "RSA":
        possible: tuple[str, ...] = _RSA_ALGORITHMS
        numbers = _rsa_numbers(entry)
    elif isinstance(key_type, str) and isinstance(curve, str) and (key_type, curve) in _CURVES:
        algorithm, size = _CURVES[key_type, curve]
        possible, numbers = (algorithm,), _coordinates(entry, key_type, size)
    else:
        return None
    stated = entry.get("alg")
    usable = tuple(name for name in possible if name in algorithms and stated in (None, name))
    if numbers is None or not usable:
        return None
    return SigningKey(key_id, key_type, curve if key_type != "RSA" else None, usable, numbers)


def _rsa_numbers(entry: Mapping[str, Any]) -> dict[str, bytes] | None:
    modulus, exponent = _decode(entry.get("n")), _decode(entry.get("e"))
    if modulus is None or exponent is None or len(exponent) > _MAX_RSA_EXPONENT_BYTES:
        return None
    bits, public_exponent = int.from_bytes(modulus, "big").bit_length(), int.from_bytes(exponent, "big")
    if not _MIN_RSA_BITS <= bits <= _MAX_RSA_BITS or public_exponent < 3 or public_exponent % 2 == 0:
        return None
    return {"n": modulus, "e": exponent}


def _coordinates(entry: Mapping[str, Any], key_type: str, size: int) -> dict[str, bytes] | None:
    numbers: dict[str, bytes] = {}
    for name in ("x", "y") if key_type == "EC" else ("x",):
        value = _decode(entry.get(name))
        if value is None or len(value) != size:
            return None
        numbers[name] = value
    return numbers


def _decode(text: Any) -> bytes | None:
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return None
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


_log = logging.getLogger("fairlead.gateway")


@dataclass(slots=True)
class _IssuerState:
    """The last key set of an issuer, and when and why it could not be read.

    read_at, tried_at: monotonic seconds of the last success and of the last try.
    """

    config: IssuerConfig
    keys: tuple[SigningKey, ...] = ()
    read_at: float | None = None
    tried_at: float | None = None
    problem: str | None = None
    has_unknown_key: asyncio.Event = field(default_factory=asyncio.Event)


class IssuerKeyService:
    """The key sets of the issuers in a file.

    read_key_set: returns the content of an issuer's key set; raises FairleadError or OSError.
    pause_seconds: between readings for tokens whose key is unknown.
    on_changed: called with all issuers after each change.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        limits: Limits,
        read_key_set: KeySetReader | None = None,
        pause_seconds: float = JWKS_UNKNOWN_KEY_SECONDS,
    ) -> None:
        self.path = path
        self.on_changed: Callable[[Sequence[TokenIssuer]], None] = _ignore
        self._clock = clock
        self._limits = limits
        self._read_key_set = read_key_set or fetch_key_set
        self._pause_seconds = pause_seconds
        self._states: dict[str, _IssuerState] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_running = False

    async def load(self) -> None:
        """Reads the file again and follows its issuers. Raises FairleadError if it is not valid.

        The key set of an issuer that stays the same stays in use.
        """
        configs = await asyncio.to_thread(self._read_file)
        before = self._states
        states = {config.issuer: before.get(config.issuer) for config in configs}
        self._states = {
            config.issuer: state
            if (state := states[config.issuer]) is not None and state.config == config
            else _IssuerState(config)
            for config in configs
        }
        if any(self._states.get(issuer) is not state for issuer, state in before.items()):
            self.on_changed(self.issuers())  # an issuer that is gone does not wait for a new one
        new = [state for state in self._states.values() if state.tried_at is None]
        await asyncio.gather(*[self._refresh(state) for state in new])
        self.on_changed(self.issuers())
        if self._is_running:
            await self._restart()

    def start(self) -> None:
        """Starts to follow the key sets."""
        self._is_running = True
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow(state)) for state in self._states.values()]

    async def stop(self) -> None:
        """Ends all tasks."""
        self._is_running = False
        for task in self._tasks:
            await cancel_and_wait(task)
        self._tasks = []

    def issuers(self) -> list[TokenIssuer]:
        """Returns all issuers with the keys that are known, for the workers."""
        return [
            TokenIssuer(state.config.issuer, tuple(state.config.audiences), state.keys, state.config.token_type)
            for state in self._states.values()
        ]

    def on_unknown_key(self, issuer: str) -> None:
        """Reads the key set of an issuer soon: a token named a key that is not in it."""
        state = self._states.get(issuer)
        if state is not None:
            state.has_unknown_key.set()

    def warnings(self) -> list[str]:
        """Returns a text for each key set that is missing or old."""
        now = self._clock.now()
        texts = []
        for state in self._states.values():
            name = f"the key set of the token issuer {state.config.issuer}"
            if state.read_at is None and state.tried_at is not None:
                texts.append(f"{name} could not be read, its tokens are refused: {state.problem}")
            elif state.read_at is not None and now - state.read_at > JWKS_STALE_SECONDS:
                age = format_duration(now - state.read_at)
                texts.append(f"{name} is {age} old and stays in use: {state.problem or 'it is not read again'}")
        return texts

    async def _restart(self) -> None:
        await self.stop()
        self.start()

    def _read_file(self) -> tuple[IssuerConfig, ...]:
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise Unavailable(f"cannot read {self.path}: {error.strerror or error}") from error
        return parse_issuer_file(raw, self.path, self._limits)

    async def _follow(self, state: _IssuerState) -> None:
        is_file = state.config.jwks_file is not None
        interval = _FILE_SECONDS if is_file else JWKS_REFRESH_SECONDS
        while True:
            await self._wait(state, interval)
            if await self._refresh(state):
                self.on_changed(self.issuers())

    async def _wait(self, state: _IssuerState, interval: float) -> None:
        """Waits for the next reading: an interval, or a shorter one after an unknown key."""
        try:
            async with asyncio.timeout(interval):
                await state.has_unknown_key.wait()
        except TimeoutError:
            return
        tried_at = state.tried_at if state.tried_at is not None else -self._pause_seconds
        await asyncio.sleep(max(0.0, tried_at + self._pause_seconds - self._clock.now()))

    async def _refresh(self, state: _IssuerState) -> bool:
        """Reads a key set, and returns whether it has changed. On an error, the last one stays."""
        state.has_unknown_key.clear()
        state.tried_at = self._clock.now()
        try:
            content = await self._read_key_set(state.config)
            keys = parse_key_set(content, state.config.algorithms or ALGORITHMS)
        except (FairleadError, OSError, ValueError) as error:
            problem = f"{state.config.source}: {first_line(error)}"
            if problem != state.problem:
                _log.warning("the key set of the token issuer %s was not read: %s", state.config.issuer, problem)
            state.problem = problem
            return False
        state.problem, state.read_at = None, self._clock.now()
        has_changed, state.keys = keys != state.keys, keys
        return has_changed


async def fetch_key_set(config: IssuerConfig, max_bytes: int = JWKS_BYTES) -> bytes:
    """Returns the content of an issuer's key set: of a file, or the response of a server.

    Raises OSError if a file cannot be read, Unavailable without a complete response.
    """
    if config.jwks_file is not None:
        return await asyncio.to_thread(_read_bounded, Path(config.jwks_file), max_bytes)
    assert config.jwks_url is not None
    headers = {"accept": "application/jwk-set+json, application/json"}  # a Kubernetes API server knows the first only
    if config.token_file is not None:
        token = await asyncio.to_thread(_read_bounded, Path(config.token_file), BEARER_TOKEN_BYTES)
        headers["authorization"] = f"Bearer {token.decode('ascii').strip()}"
    context = partial(ssl.create_default_context, cafile=config.ca_file)
    return await http_client.fetch(
        config.jwks_url,
        timeout_seconds=JWKS_TIMEOUT_SECONDS,
        max_bytes=max_bytes,
        headers=headers,
        rules=http_client.ConnectionRules(tls_context=context),
    )


def _ignore(issuers: Sequence[TokenIssuer]) -> None:
    del issuers


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise Unavailable(f"{path} has more than {max_bytes:,} bytes")
    return content
