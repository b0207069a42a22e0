"""The results of a run: what is in the file, what the report shows, and what is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.report import Run
from bench.suite.histogram import Distribution

FORMAT = 1
"""Of the file; another number means that programs which read it must be changed."""

CARRIED = 0.98
"""Of the deltas that are offered, those that arrive where a server keeps up: what is due at the
edges of the window may arrive outside of it."""

T = TypeVar("T")


class NoResults(Exception):
    """A file does not hold the results of a run; the message says why."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Value):
    """One scenario on one target under one load, all rounds together.

    Attributes:
        scenario: Its name.
        target: Its name.
        mode: `closed`, `open` or `burst`.
        level: Users, visits due in a second, or visits at once.
        rounds: How many.
        seconds: That were measured, all rounds together.
        visits: That were due in them.
        completed: Of those, without an error.
        rate: Visits completed in a second; 0 for a burst.
        errors: Visits that failed, by code.
        times: By what was timed.
        medians: The same, of each round its median: what an interval is made from.
        rates: The rate of each round.
        cpu_s: Processor seconds of the server's tree for a completed visit, in each round.
        memory: Bytes that the server's tree held under the load, at the end of each round.
        memory_idle: Bytes that it held before each round.
        sessions: Sessions open when its memory was measured.
        events: That arrived.
        deltas: Pieces of text in them.
        client_cpu_us: Processor time of the load client for an event, microseconds.
        client_cpu_share: Share of one processor that the load client took.
        client_late: How long after they were due visits began.
    """

    scenario: str
    target: str
    mode: str
    level: float
    rounds: int
    seconds: float
    visits: int
    completed: int
    rate: float
    errors: dict[str, int]
    times: dict[str, Distribution]
    medians: dict[str, list[float]]
    rates: list[float]
    cpu_s: list[float]
    memory: list[int]
    memory_idle: list[int]
    sessions: int
    events: int
    deltas: int
    client_cpu_us: float
    client_cpu_share: float
    client_late: Distribution | None

    @property
    def key(self) -> tuple[str, str, float]:
        """What cells of different targets have in common."""
        return self.scenario, self.mode, self.level

    @property
    def failed(self) -> int:
        """Visits that failed."""
        return sum(self.errors.values())


class LayerCell(_Value):
    """The layer alone: many streams of one server without any CLI.

    Attributes:
        server: Which.
        streams: At the same time.
        offered: Deltas said in a second.
        rounds: How many.
        delivered: Deltas that arrived in a second, median of the rounds.
        events: Events that they came in, in a second, median of the rounds.
        cpu_us: Processor time of the server for an event, microseconds, in each round.
        cpu_us_delta: The same for a delta.
        server_cpu: Share of one processor that it took, in each round.
        lag: From when a delta was due to its arrival; None: no word arrived that told.
        lag_p99: Its 99th percentile, milliseconds, in each round that has one.
        whole: Streams whose text was whole.
        expected: Streams.
        errors: By code.
        client_cpu_us: Processor time of the load client for an event, microseconds.
        client_cpu_share: Share of one processor that the load client took.
    """

    server: str
    streams: int
    offered: float
    rounds: int
    delivered: float
    events: float
    cpu_us: list[float]
    cpu_us_delta: list[float]
    server_cpu: list[float]
    lag: Distribution | None
    lag_p99: list[float] = Field(default_factory=list[float])
    whole: int
    expected: int
    errors: dict[str, int]
    client_cpu_us: float
    client_cpu_share: float

    @property
    def carried(self) -> bool:
        """Whether the server kept up: lag of one that did not says how long it was measured."""
        return self.delivered >= CARRIED * self.offered and self.whole == self.expected


class Tuned(_Value):
    """Our server with one setting changed, or as it is, under one load.

    Attributes:
        load: What one of it is, in words.
        change: What was changed, in words.
        cpu_us: Processor time of the server for one, microseconds, in each round.
        p50: Of the time that one took, milliseconds, in each round.
        p99: The same.
        errors: By code.
    """

    load: str
    change: str
    cpu_us: list[float]
    p50: list[float]
    p99: list[float]
    errors: dict[str, int]


class Looks(_Value):
    """How soon a server answers looks at it while something is asked of it.

    Attributes:
        load: What is asked, in words.
        times: Of each look, by its request.
        done: What it did meanwhile, in words; empty: nothing.
        errors: By code.
    """

    load: str
    times: dict[str, Distribution]
    done: str
    errors: dict[str, int]


class Scale(_Value):
    """A server with many sessions whose processes were given up. Sizes are in bytes.

    Attributes:
        target: The server.
        sessions: That it has.
        made: What each added to the process that made it and gave up its process.
        found: What each added to a server that found it, as it started.
        file: What each takes in the database.
        start_s: Seconds until the server took requests, with all of them.
        start_empty_s: The same with none.
        looks: At it, under each load.
    """

    target: str
    sessions: int
    made: float | None
    found: float | None
    file: float | None
    start_s: float | None
    start_empty_s: float | None
    looks: list[Looks]


class Sample(_Value):
    """A server at a moment of a soak.

    Attributes:
        at_s: Seconds after the soak began.
        own: Memory that the server has taken for itself, bytes.
        pss: That, its files, and its share of what it has in common with others.
        tree_pss: The same of it and all its processes.
        processes: How many it has.
        descriptors: That it has open.
        threads: That it has.
        tasks: Of its event loop; None: it does not tell.
    """

    at_s: float
    own: int
    pss: int
    tree_pss: int
    processes: int
    descriptors: int
    threads: int
    tasks: int | None


class Minute(_Value):
    """Part of a soak.

    Attributes:
        at_s: Seconds after the soak began, at its beginning.
        completed: Visits that ended well in it.
        failed: Visits that did not.
        p50: Of the time to first text, milliseconds; None: there was none.
        p99: The same.
    """

    at_s: float
    completed: int
    failed: int
    p50: float | None
    p99: float | None


class Soak(_Value):
    """A load that goes on and on.

    Attributes:
        target: The server.
        rate: Visits due in a second.
        seconds: That it lasted.
        settled_s: Of them, those at the beginning that do not count.
        visits: That were due.
        completed: Of those, without an error.
        errors: By code.
        times: By what was timed.
        cpu_share: Share of one processor that the server with all its processes took.
        samples: Of the server; none of one that was not started here.
        minutes: One after the other.
    """

    target: str
    rate: float
    seconds: float
    settled_s: float
    visits: int
    completed: int
    errors: dict[str, int]
    times: dict[str, Distribution]
    cpu_share: float | None
    samples: list[Sample]
    minutes: list[Minute]


class Hot(_Value):
    """A function of a profile.

    Attributes:
        name: Its name.
        where: Its file.
        own: Share of the samples that it was running in.
        total: Share that it or something that it called was running in.
    """

    name: str
    where: str
    own: float
    total: float


class Profile(_Value):
    """Where the server's processor time went.

    Attributes:
        load: Under which load, in words.
        samples: How many.
        seconds: In which they were taken.
        functions: Those with the most samples, most of their own first.
    """

    load: str
    samples: int
    seconds: float
    functions: list[Hot]


class Results(_Value):
    """All of a run.

    Attributes:
        format: `FORMAT`.
        date: When it began, UTC.
        machine: Where it was made, by name.
        versions: Of what it measures and stands on, by distribution.
        settings: What it was told, by name.
        targets: Names, first the one that the others are compared with.
        left_out: Scenarios that a target does not offer, and why, by `scenario, target`.
        cells: Of all scenarios.
        layer: Of the layer alone.
        techniques: One-off queries and starts of our server, with each technique and without.
        tuned: Of our server with one of its own settings changed.
        scale: Of a server with many sessions.
        soak: Of a long load.
        profiles: Where processor time went.
        notes: What went wrong, and where it was ended early.
        others: Runs whose results are in here too: when, and what they were told.
    """

    format: int = FORMAT
    date: datetime
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    targets: list[str]
    left_out: dict[str, str]
    cells: list[Cell]
    layer: list[LayerCell]
    techniques: list[Cell] = []
    tuned: list[Tuned] = []
    scale: list[Scale] = []
    soak: list[Soak] = []
    profiles: list[Profile] = []
    notes: list[str] = []
    others: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, run: Run, **measured: Any) -> Results:
        """Put circumstances and measurements together."""
        return cls(
            date=run.date,
            machine=dataclasses.asdict(run.machine),
            versions=dict(run.versions),
            settings=dict(run.settings),
            **measured,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not (
            self.cells or self.layer or self.techniques or self.tuned or self.scale or self.soak
        )

    def write(self, path: Path) -> None:
        """Write them to a file, which is replaced."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            NoResults: It cannot be read, or holds something else.
        """
        try:
            results = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise NoResults(f"{path} cannot be read: {error.strerror}.") from None
        except (ValidationError, UnicodeDecodeError):
            raise NoResults(f"{path} does not hold results of `python -m bench`.") from None
        if results.format != FORMAT:
            raise NoResults(f"{path} has format {results.format}; this program reads {FORMAT}.")
        return results


def together(runs: Sequence[Results]) -> Results:
    """Return the results of several runs as one; where two have a load, the later given counts.

    Args:
        runs: At least one. Circumstances are the first's; those of the others are kept beside.
    """
    first, *others = runs
    if not others:
        return first

    told: Mapping[str, dict[str, Any]] = {
        f"{one.date:%Y-%m-%d %H:%M} UTC": {
            **{k: v for k, v in one.settings.items() if first.settings.get(k) != v},
            "load": one.machine.get("load"),
            "scheduling": one.machine.get("scheduling"),
        }
        for one in others
    }
    return first.model_copy(
        update={
            "targets": list(dict.fromkeys(name for run in runs for name in run.targets)),
            "left_out": {key: why for run in runs for key, why in run.left_out.items()},
            "cells": _latest((run.cells for run in runs), lambda one: one.key),
            "layer": _latest((run.layer for run in runs), lambda one: (one.streams, one.offered)),
            "techniques": _latest((run.techniques for run in runs), lambda one: one.key),
            "tuned": _latest((run.tuned for run in runs), lambda one: one.load),
            "scale": _latest((run.scale for run in runs), lambda one: (one.target, one.sessions)),
            "soak": _latest((run.soak for run in runs), lambda one: one.target),
            "profiles": _latest((run.profiles for run in runs), lambda one: one.load),
            "notes": [note for run in runs for note in run.notes],
            "others": {**first.others, **told},
        }
    )


def _latest(runs: Iterable[Sequence[T]], key: Callable[[T], object]) -> list[T]:
    """Return what all runs have; of one key only the last run's, so that none mixes two."""
    found: dict[object, list[T]] = {}
    for run in runs:
        mine: dict[object, list[T]] = {}
        for one in run:
            mine.setdefault(key(one), []).append(one)
        found.update(mine)
    return [one for some in found.values() for one in some]
