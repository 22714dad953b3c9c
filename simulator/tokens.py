"""Passwords that are signed and expire: JSON Web Tokens."""

import time
from dataclasses import dataclass
from typing import Literal

from simulator.packets import PacketError, Reason


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which tokens let a client in.

    Attributes:
        key: What they are signed with: the common secret (HS256), or the public key in PEM (RS256, ES256).
        algorithm: The only way of signing that is taken, whatever a token says of itself.
        audience: Whom a token has to be for; None does not mind.
    """

    key: str
    algorithm: Literal["HS256", "RS256", "ES256"] = "HS256"
    audience: str | None = None

    def check(self, password: bytes) -> float:
        """Return when a token expires, in epoch seconds; a `PacketError` says why it lets nobody in."""
        import jwt  # noqa: PLC0415 - it loads a library of cryptography, which only brokers with tokens need

        try:
            claims = jwt.decode(
                password.decode(),
                self.key,
                algorithms=[self.algorithm],
                audience=self.audience,
                # The library cuts off fractions of a second.
                options={"require": ["exp"], "verify_exp": False, "verify_aud": self.audience is not None},
            )
            expiry = float(claims["exp"])
        except jwt.InvalidAudienceError:
            raise PacketError(Reason.NOT_AUTHORIZED, "the token is for others") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise PacketError(Reason.BAD_USER_NAME_OR_PASSWORD, "the password is no token that is signed") from None
        if expiry <= time.time():
            raise PacketError(Reason.NOT_AUTHORIZED, "the token has expired")
        return expiry
