"""The token that is the broker's password: fetched by OAuth 2 client credentials (RFC 6749, 4.4), and the next in time.

The only file that knows the token endpoint. A failure here is none of the broker's, and its text says so; nothing that
the service says is repeated, because it may repeat what it was sent.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit, urlunsplit

import httpx2
from pydantic import SecretStr

from config import OAuthConfig
from mqtt_failures import FailureKind, LinkFailedError
from sanitizer import add_known, hide_secrets, shortened

CONNECT_TIMEOUT_S: Final = 5.0
TIMEOUT_S: Final = 10.0
"""For everything together: connecting, asking, and the answer to its end."""

LARGEST_ANSWER: Final = 64 * 1024
"""Bytes; as many as an MQTT password can have."""

USUAL_LIFETIME_S: Final = 300.0
"""That of a token of which neither the service nor it itself says when it expires."""

_DUE: Final = 0.8
"""The part of its lifetime after which a token is renewed."""
_SPARE_S: Final = 10.0
"""So long before it expires it is renewed at the latest, unless that is in the first half of its lifetime."""
_SOONEST_S: Final = 1.0
"""No service is asked again sooner, whatever lifetimes it gives."""

_A_YEAR_S: Final = 31_536_000
_MANY: Final = 100
_WORDS: Final = 200
_TOKEN: Final = re.compile(r"[ -~]{1,65535}")  # RFC 6749, A.12; MQTT 5.0, 1.5.6
_SECONDS: Final = re.compile(r"[0-9]{1,10}")

_REFUSED: Final = {400, 401, 403}
_ADVICE: Final = {
    "invalid_client": "Check MQTT_OAUTH_CLIENT_ID and MQTT_OAUTH_CLIENT_SECRET.",
    "invalid_scope": "Check MQTT_OAUTH_SCOPE.",
    "unauthorized_client": "There, allow this client the grant type client_credentials.",
    "unsupported_grant_type": "It has to support the grant type client_credentials: check MQTT_OAUTH_TOKEN_URL.",
    "invalid_grant": "There, allow this client the grant type client_credentials.",
    "invalid_request": "Check MQTT_OAUTH_TOKEN_URL, and whether it wants MQTT_OAUTH_SCOPE.",
    "access_denied": "There, allow this client what MQTT_OAUTH_SCOPE asks for.",
}
"""By the error code of RFC 6749, 5.2. No other one is told: it could be any text."""
_CHECK_URL: Final = "Check MQTT_OAUTH_TOKEN_URL."


@dataclass(frozen=True, slots=True)
class Token:
    """A password that expires."""

    password: SecretStr
    lifetime_s: float
    asked: float
    """When it was asked for, on the monotonic clock; and the same in epoch seconds."""
    asked_at: float

    @property
    def age_s(self) -> float:
        """For how long there has been this token, or a little less."""
        return max(time.monotonic() - self.asked, time.time() - self.asked_at)  # a machine may have slept

    @property
    def due_in_s(self) -> float:
        """In how many seconds it is time for the next one; 0 when it is."""
        due_s = _DUE * self.lifetime_s
        if self.lifetime_s >= 2 * _SPARE_S:
            due_s = min(due_s, self.lifetime_s - _SPARE_S)
        return max(0.0, max(due_s, _SOONEST_S) - self.age_s)

    @property
    def expired(self) -> bool:
        """Whether it is of no use any more."""
        return self.age_s >= self.lifetime_s


class TokenSource:
    """The tokens of one client, one after the other. Made anywhere; `aclose` ends its connections."""

    def __init__(self, config: OAuthConfig) -> None:
        self.token: Token | None = None
        """The last one, unless it was dropped."""
        self._config = config
        self._http: httpx2.AsyncClient | None = None
        self._fetched = 0

    @property
    def url(self) -> str:
        """The token endpoint for people to read."""
        scheme, host, path, *_ = urlsplit(self._config.token_url)
        return urlunsplit((scheme, host, path, "", ""))

    async def aclose(self) -> None:
        """Close the connections to the service."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def renew(self, config: OAuthConfig) -> None:
        """Use the secret of `config` from the next token on."""
        self._config = config

    def drop(self) -> None:
        """Forget the token: the broker does not accept it."""
        self.token = None

    async def usable(self) -> Token:
        """Return the token there is, or a new one when it is time for that.

        Raises:
            LinkFailedError: As for `fetch`, and there is none that has not expired.
        """
        token = self.token
        if token is not None and token.due_in_s > 0 and not token.expired:
            return token
        try:
            return await self.fetch()
        except LinkFailedError:
            if token is None or token.expired:
                raise
            return token

    async def fetch(self) -> Token:
        """Get a new token in place of the one there is.

        Raises:
            LinkFailedError: There is none; of the kind `login` where the service refuses this client, else `network`.
        """
        asked, asked_at = time.monotonic(), time.time()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, body = await self._ask()
        except TimeoutError:
            raise self._failed(f"did not answer within {TIMEOUT_S:g} s", "It may be busy or down.") from None
        except httpx2.RequestError as exc:
            raise self._unreachable(exc) from exc
        except httpx2.InvalidURL:  # the library is stricter than the settings are
            raise self._failed("has an address that cannot be asked", _CHECK_URL) from None
        answer = _json_object(body)
        if status != httpx2.codes.OK or answer is None or "access_token" not in answer:
            raise self._refusal(status, answer)
        password = answer["access_token"]
        if not isinstance(password, str) or not _TOKEN.fullmatch(password):
            raise self._failed("gave a token that can be no password (access_token)", _CHECK_URL)
        # Compiling what hides it takes long: 30 ms for a token of 1 KB (measured).
        await asyncio.to_thread(self._hide, password)
        if str(answer.get("token_type")).lower() != "bearer":
            raise self._failed("gave a token that is none for whoever bears it (token_type)", _CHECK_URL)
        lifetime_s = _lifetime_s(answer.get("expires_in"), password, asked_at)
        if lifetime_s is None:
            advice = "Check its clock and the one of this machine."
            raise self._failed("gave a token that has expired or never will (expires_in)", advice)
        self.token = Token(SecretStr(password), lifetime_s, asked, asked_at)
        return self.token

    async def _ask(self) -> tuple[int, bytes]:
        """Ask once; a redirect is an answer, and the secret does not follow it."""
        config = self._config
        form = {"grant_type": "client_credentials"}
        if config.scope:
            form["scope"] = config.scope
        # RFC 6749, 2.3.1: both are encoded as in a form before they are joined.
        login = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret.get_secret_value())}"
        headers = {
            "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # what is small on the way can be large here
        }
        body = bytearray()
        async with self._client().stream("POST", config.token_url, data=form, headers=headers) as response:
            async for part in response.aiter_raw():
                body += part
                if len(body) > LARGEST_ANSWER:
                    raise self._failed(f"answered with more than {LARGEST_ANSWER} bytes", _CHECK_URL)
        return response.status_code, bytes(body)

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:  # proxies and authorities are those of the environment, as with every such client
            try:
                self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S))
            except (ImportError, OSError, ValueError):  # a proxy has a password: its text is not quoted
                advice = "Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
                raise self._failed("cannot be asked with the environment's proxy or authorities", advice) from None
        return self._http

    def _hide(self, password: str) -> None:
        """Have a token hidden wherever it appears.

        Known values are never forgotten, and each makes the next one slower to learn. After many it is enough where the
        sanitizer knows a token by its form, as it does a JWT.
        """
        self._fetched += 1
        if self._fetched <= _MANY or password in hide_secrets(password):
            add_known(password)

    # What can be wrong.

    def _failed(self, what: str, advice: str, kind: FailureKind = "network") -> LinkFailedError:
        return LinkFailedError(f"The token service {self.url} {what}: this is not the broker. {advice}", kind)

    def _unreachable(self, exc: httpx2.RequestError) -> LinkFailedError:
        if isinstance(exc, httpx2.ConnectTimeout):
            reason = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        elif isinstance(exc, httpx2.ConnectError):  # the words of the system or of OpenSSL
            reason = shortened(str(exc), _WORDS) or "no connection"
        elif isinstance(exc, httpx2.ProxyError):
            reason = "the proxy refuses"
        else:  # such an error can quote what came
            reason = "it broke off, or speaks no HTTP"
        return self._failed(
            f"could not be reached ({reason})", "Check MQTT_OAUTH_TOKEN_URL, the network and the proxy."
        )

    def _refusal(self, status: int, answer: Mapping[str, Any] | None) -> LinkFailedError:
        """Say what an answer without a token means."""
        error = answer.get("error") if answer else None
        code = error if isinstance(error, str) and error in _ADVICE else ""
        if status >= 500 or error in {"server_error", "temporarily_unavailable"}:  # noqa: PLR2004
            return self._failed(f"has trouble of its own (HTTP {status})", "It is asked again.")
        if code or status in _REFUSED:
            told = f"HTTP {status}, {code}" if code else f"HTTP {status}"
            advice = _ADVICE[code or ("invalid_request" if status == httpx2.codes.BAD_REQUEST else "invalid_client")]
            return self._failed(f"refuses a token ({told})", advice, "login")
        if status == httpx2.codes.OK:
            return self._failed("answered with something that is no token", _CHECK_URL)
        if 300 <= status < 400:  # noqa: PLR2004
            what = f"sends us to another address, where the secret does not go (HTTP {status})"
            return self._failed(what, _CHECK_URL)
        if status == httpx2.codes.TOO_MANY_REQUESTS:
            return self._failed(f"was asked too often (HTTP {status})", "It is asked again.")
        return self._failed(f"does not give tokens at this address (HTTP {status})", _CHECK_URL)


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lifetime_s(expires_in: object, password: str, now: float) -> float | None:
    """Say how long a token lives, by the service's word or by its own; None where that makes no sense."""
    if expires_in is None:
        expiry = _expiry(password)
        if expiry is None:
            return USUAL_LIFETIME_S
        # Compared before it is subtracted: an integer of JSON can be too large for that.
        expires_in = min(expiry, now + _A_YEAR_S) - now
    elif isinstance(expires_in, str) and _SECONDS.fullmatch(expires_in):  # as some services write it
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float) or not expires_in > 0:
        return None
    return float(min(expires_in, _A_YEAR_S))


def _expiry(password: str) -> float | None:
    """Read when a JWT expires (RFC 7519, 4.1.4); None where there is none to read. It is the broker who verifies it."""
    _, _, rest = password.partition(".")
    claims, _, _ = rest.partition(".")
    try:
        found = _json_object(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except ValueError:
        return None
    expiry = found.get("exp") if found else None
    return expiry if isinstance(expiry, int | float) and not isinstance(expiry, bool) else None
