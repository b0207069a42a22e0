"""The certificate that the server shows, and how it speaks TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: what HTTP/2 demands, and all that TLS 1.3 has."""


class BadCertificate(Exception):
    """The certificate or its key cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate and its key, from files; to be loaded before it is served with.

    Attributes:
        cert: PEM file of the certificate, followed by those that vouch for it.
        key: PEM file of its private key, without a passphrase.
        context: What connections are made with.
    """

    cert: Path
    key: Path
    context: ssl.SSLContext = field(
        default_factory=lambda: _context(), init=False, repr=False, compare=False
    )

    def load(self) -> None:
        """Read the files, also again: connections that come from now on see what they say.

        Raises:
            BadCertificate: They cannot be used; then nothing has changed.
        """
        # A context is left with half of a pair that does not fit.
        self._load_into(_context())
        self._load_into(self.context)

    def offer(self, protocols: list[str]) -> None:
        """Say which protocols clients may choose from, the preferred one first."""
        self.context.set_alpn_protocols(protocols)

    def _load_into(self, context: ssl.SSLContext) -> None:
        for path, what in ((self.cert, "certificate"), (self.key, "key")):
            try:
                path.read_bytes()
            except OSError as error:
                raise BadCertificate(
                    f"The TLS {what} {path} cannot be read: {error.strerror}."
                ) from error
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except _HasPassphrase:
            raise BadCertificate(
                f"The TLS key {self.key} has a passphrase. Give a key without one, readable only "
                "by the server's user."
            ) from None
        except (OSError, ValueError) as error:
            raise BadCertificate(
                f"The TLS certificate {self.cert} and the key {self.key} cannot be used: "
                f"{_why(error)}."
            ) from error


class _HasPassphrase(Exception):
    pass


def _no_passphrase() -> str:
    # Without it OpenSSL asks at the terminal, and the server seems to hang.
    raise _HasPassphrase


def _why(error: Exception) -> str:
    match getattr(error, "reason", None):
        case "KEY_VALUES_MISMATCH":
            return "they do not belong together"
        case str() as reason:
            return reason.replace("_", " ").lower()
        case _:
            return "one of them is no PEM file of its kind"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # A client of TLS 1.2 could have us compute new keys as often as it likes.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context
