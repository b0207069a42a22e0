"""How the lines of a transcript follow on each other, and what is done where they do not.

Each line of a conversation names the one that it follows on. To resume, the CLI starts from a last
line and goes back from one to the next; what it does not come to this way is forgotten. Which line
is the last, a checkpoint says, which the CLI writes now and then. Where the disk was full, lines
are missing, and it comes no further than there. Where the CLI was killed, or could not write, the
checkpoint may be on a branch that it had left for good: what was said since lies on another.

So the file of a process that did not end well is mended before the next one reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from session_supervisor.spec import JsonObject

BEFORE = "supervisorBefore"
"""Field of a line that we made up: the id of the one that it comes right before, though that was
stored before it; None: it is where it belongs."""

_OF_CHAIN = frozenset({"user", "assistant", "attachment", "system"})
"""Types of the lines that make up a conversation."""

_CHECKPOINT = "last-prompt"


def parsed(line: str) -> JsonObject | None:
    """Return a line; None for one that was not written to its end, or is none of the CLI's."""
    try:
        entry: object = json.loads(line)
    except ValueError:  # the CLI was killed meanwhile, or the disk was full
        return None
    return cast("JsonObject", entry) if isinstance(entry, dict) else None


def uuid_of(entry: Mapping[str, Any]) -> str | None:
    """Return the id of a line, None if it has none."""
    uuid = entry.get("uuid")
    return uuid if isinstance(uuid, str) else None


def is_of_chain(entry: Mapping[str, Any]) -> bool:
    """Whether a line is one of those that follow on each other in the conversation itself."""
    return (
        uuid_of(entry) is not None
        and (entry.get("type") in _OF_CHAIN)
        and ("parentUuid" in entry or BEFORE in entry)
        and not entry.get("isSidechain")
    )


def whole(copied: Sequence[Any], here: Sequence[Any] = ()) -> list[Any]:
    """Return all lines of a conversation, such that from its end it can be gone back to its start.

    Args:
        copied: The copy, which may have lines that were made up.
        here: The original, of which either may lack something; what both have is as it is here.
    """
    lines = _linked(_woven(_ordered(_merged(*_sorted_out(copied, here)))))
    return lines + _checkpoint(lines)


def _sorted_out(copied: Sequence[Any], here: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Have what was made up in the copy alone, though the original has got some of it after all.

    The CLI says nothing of a line that it has written if it could not write the one behind it.
    """
    made = {one["uuid"] for one in copied if BEFORE in one}
    written = {uuid: one for one in here if (uuid := uuid_of(one)) in made}
    return (
        [
            {**written.get(one["uuid"], one), BEFORE: one[BEFORE]} if BEFORE in one else one
            for one in copied
        ],
        [one for one in here if uuid_of(one) not in made],
    )


def _merged(copied: Sequence[Any], here: Sequence[Any]) -> list[Any]:
    """Return all lines of both, each once and in their order."""
    names = list(map(_name, here))
    places = {name: n for n, name in enumerate(names) if uuid_of(here[n]) is not None}
    known = set(names)
    lines: list[Any] = []
    upto = 0
    for one in copied:
        name = _name(one)
        place = places.get(name, -1)
        if name not in known:
            lines.append(one)
        elif uuid_of(one) is None:  # there may be several that are the same
            place = upto
            while place < len(here) and uuid_of(here[place]) is None and names[place] != name:
                place += 1
            if place == len(here) or names[place] != name:
                continue
        if place >= upto:
            lines += here[upto : place + 1]
            upto = place + 1
    return [*lines, *here[upto:]]


def _ordered(lines: Sequence[Any]) -> list[Any]:
    """Put what follows on a line behind it: what was caught up with may be in front."""
    known = {one["uuid"] for one in lines if is_of_chain(one)}
    passed = set[str]()
    early: dict[str, list[Any]] = {}
    ordered: list[Any] = []
    for one in lines:
        parent = one.get("parentUuid") if is_of_chain(one) else None
        if parent is not None and parent in known and parent not in passed:
            early.setdefault(parent, []).append(one)
            continue
        following = [one]
        while following:
            next_one = following.pop()
            ordered.append(next_one)
            uuid = uuid_of(next_one) or ""
            passed.add(uuid)
            following += reversed(early.pop(uuid, ()))
    return ordered + [one for rest in early.values() for one in rest]  # these are in a circle


def _woven(lines: Sequence[Any]) -> list[Any]:
    """Put lines that were made up before those that they come before, if nothing follows on them.

    Else the CLI's own lines say where they belong.
    """
    parents = {one.get("parentUuid") for one in lines}
    late: dict[str, list[Any]] = {}
    passed = set[str]()
    for one in lines:
        before = one.get(BEFORE)
        if before in passed and one["uuid"] not in parents:
            late.setdefault(before, []).append(one)
        passed.add(uuid_of(one) or "")
    moved = {one["uuid"] for made in late.values() for one in made}
    woven: list[Any] = []
    for one in lines:
        if uuid_of(one) not in moved:
            woven += late.get(uuid_of(one) or "", ())
            woven.append(one)
    return woven


def _linked(lines: Sequence[Any]) -> list[Any]:
    """Have lines follow on the one before, where that which they name is not there or not all."""
    known = {uuid_of(one) for one in lines} | {None}
    linked: list[Any] = []
    last: Mapping[str, Any] = {}
    for one in lines:
        if is_of_chain(one):
            lost = one.get("parentUuid") not in known
            if lost or BEFORE in one or last.get(BEFORE) == one["uuid"]:
                one = {**one, "parentUuid": uuid_of(last)}
            last = one
        linked.append(one)
    return linked


def _checkpoint(lines: Sequence[Any]) -> list[Any]:
    """Return a checkpoint that lets the CLI go on from the last line, if it needs one."""
    parents = {one["uuid"]: one["parentUuid"] for one in lines if is_of_chain(one)}
    said = [
        one["leafUuid"] for one in lines if one.get("type") == _CHECKPOINT and "leafUuid" in one
    ]
    if not parents or not said:
        return []
    *_, last = parents
    back: str | None = last
    passed = set[str]()
    while back is not None and back not in passed:
        if back == said[-1]:
            return []
        passed.add(back)
        back = parents.get(back)
    session_id = next(one.get("sessionId") for one in lines if uuid_of(one) == last)
    return [{"type": _CHECKPOINT, "leafUuid": last, "sessionId": session_id}]


def _name(entry: Mapping[str, Any]) -> str:
    """Return what tells a line from others."""
    return uuid_of(entry) or json.dumps(entry, sort_keys=True)
