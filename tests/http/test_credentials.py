"""A credential is looked for until it is found, and not more often than it may be."""

from __future__ import annotations

import asyncio

import pytest

from session_http.credentials import Assumed, CredentialState, Watched

pytestmark = pytest.mark.anyio


class Looks:
    """Counts looks; finds something when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.found = False
        self.error: Exception | None = None
        self.now = 0.0
        self.owners: list[str] = []

    async def look(self, owner: str) -> CredentialState:
        self.count += 1
        self.owners.append(owner)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return CredentialState(authenticated=self.found, hint="log in")

    def watched(self) -> Watched:
        return Watched(self.look, interval_s=10.0, clock=lambda: self.now)


async def test_an_assumed_credential_is_there() -> None:
    assert (await Assumed().state()).authenticated
    assert (await Assumed(offline=True).state()).offline


async def test_a_missing_one_is_looked_for_again_after_a_while() -> None:
    looks = Looks()
    watched = looks.watched()
    assert not (await watched.state()).authenticated
    assert (await watched.state()).hint == "log in"
    assert looks.count == 1
    looks.now, looks.found = 10.0, True
    assert (await watched.state()).authenticated
    assert looks.count == 2


async def test_a_found_one_is_not_looked_for_again() -> None:
    looks = Looks()
    looks.found = True
    watched = looks.watched()
    for looks.now in (0.0, 100.0, 200.0):
        assert (await watched.state()).authenticated
    assert looks.count == 1


async def test_everybody_who_asks_at_once_waits_for_one_look() -> None:
    looks = Looks()
    watched = looks.watched()
    await asyncio.gather(*(watched.state() for _ in range(20)))
    assert looks.count == 1


async def test_a_look_that_fails_finds_nothing_and_is_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks = Looks()
    looks.error = OSError("no such program")
    watched = looks.watched()
    assert not (await watched.state()).authenticated
    assert "no such program" in caplog.text
    looks.error, looks.found, looks.now = None, True, 11.0
    assert (await watched.state()).authenticated


async def test_each_owner_s_is_looked_for_by_itself() -> None:
    looks = Looks()
    looks.found = True
    watched = looks.watched()
    assert (await watched.state("ada")).authenticated
    looks.found = False
    assert not (await watched.state("ben")).authenticated
    assert (await watched.state("ada")).authenticated
    assert looks.owners == ["ada", "ben"]


async def test_no_number_of_owners_fills_the_memory() -> None:
    looks = Looks()
    looks.found = True
    watched = looks.watched()
    for number in range(1_001):
        await watched.state(str(number))
    await watched.state("1000")
    assert looks.count == 1_001
    await watched.state("0")
    assert looks.owners[-1] == "0"
