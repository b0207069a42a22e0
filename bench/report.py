"""The report of a run: plain tables for people, JSON with machine and versions for programs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DISTRIBUTIONS = (
    "claude-session-supervisor",
    "claude-agent-sdk",
    "anyio",
    "fastapi",
    "granian",
    "hypercorn",
    "pydantic",
    "starlette",
    "uvicorn",
    "uvloop",
)
"""Whose versions a report names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a run was made on, in general terms.

    Attributes:
        system: Operating system and its release.
        processor: Model of the processor.
        cores: Processors that this process may use.
        memory_mb: Memory of the machine, 2**20 bytes.
        python: Implementation and version.
        load: Load average over one minute when the run began.
        scheduling: `normal` or `real-time`, which others' work on the machine does not slow down.
    """

    system: str
    processor: str
    cores: int
    memory_mb: int
    python: str
    load: float
    scheduling: str

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine as it is now."""
        return cls(
            system=f"{platform.system()} {platform.release().partition('-')[0]}",
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
            python=f"{platform.python_implementation()} {platform.python_version()}",
            load=round(os.getloadavg()[0], 2),
            scheduling=(
                "real-time"
                if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
                else "normal"
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The circumstances of a run; begin with `begin`.

    Attributes:
        benchmark: Its name.
        date: When it began, UTC.
        machine: Where.
        versions: Of what it measures and stands on, by distribution.
        settings: What it was told, by name.
    """

    benchmark: str
    date: datetime
    machine: Machine
    versions: Mapping[str, str]
    settings: Mapping[str, object]

    @classmethod
    def begin(cls, benchmark: str, settings: Mapping[str, object]) -> Run:
        """Note the circumstances now."""
        return cls(
            benchmark=benchmark,
            date=datetime.now(UTC),
            machine=Machine.here(),
            versions=_versions(),
            settings=settings,
        )

    def heading(self) -> str:
        """Return the circumstances in a few lines."""
        machine = self.machine
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return (
            f"{self.benchmark}, {self.date:%Y-%m-%d %H:%M} UTC\n"
            f"{machine.cores} cores of {machine.processor}, {machine.memory_mb} MB, "
            f"{machine.system}, {machine.python}, load {machine.load}, "
            f"{machine.scheduling} scheduling\n"
            f"{versions}\n{settings}"
        )

    def write(self, path: Path, results: object) -> None:
        """Write circumstances and results to a file.

        Args:
            path: The file, which is replaced.
            results: Dataclasses, mappings, sequences and plain values.
        """
        content = {**dataclasses.asdict(self), "results": results}
        path.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in plain text: the first column flush left, numbers flush right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, Mapping):
        return {str(name): content for name, content in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from source, or an optional one that is not installed
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
