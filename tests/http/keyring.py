"""Keys for tests, and the headers that carry them."""

from __future__ import annotations

from pathlib import Path

from session_http import keyfile
from session_http.keyfile import NewKey, Role
from session_http.keys import KeyRing


class Keys:
    """A key file with a key for each of some owners, and the ring that has read it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "keys.toml"
        self.made: dict[str, NewKey] = {}
        self.file.write_text("")
        self.file.chmod(0o600)
        self.ring = KeyRing(file=self.file)

    def add(
        self,
        owner: str,
        *,
        name: str | None = None,
        roles: tuple[Role, ...] = ("user",),
        max_sessions: int | None = None,
        max_turns: int | None = None,
        budget_usd: float | None = None,
        requests_per_minute: int | None = None,
    ) -> NewKey:
        """Make a key, and let it hold."""
        made = keyfile.new_key(
            owner,
            roles=roles,
            max_sessions=max_sessions,
            max_turns=max_turns,
            budget_usd=budget_usd,
            requests_per_minute=requests_per_minute,
        )
        self.made[name or owner] = made
        keyfile.append(self.file, made.key)
        self.ring.reload()
        return made

    def rewrite(self, *keys: keyfile.Key) -> None:
        """Let these keys alone hold."""
        self.file.write_text("\n".join(keyfile.render(key) for key in keys))
        self.ring.reload()

    def of(self, name: str) -> dict[str, str]:
        """Return the headers of somebody's requests."""
        return {"authorization": f"Bearer {self.made[name].token}"}
