"""What the `check` command has found, for people and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look has found.

    Attributes:
        name: What was looked at.
        status: `fail`: the server would not start, or could not work; `warn`: it would, worse.
        detail: What was found.
        advice: What to do about it; empty if nothing.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def failed(findings: Sequence[Finding]) -> bool:
    """Return whether the server could not run so."""
    return any(one.status == "fail" for one in findings)


def as_json_text(findings: Sequence[Finding]) -> str:
    """Return them for programs."""
    report = {"ok": not failed(findings), "checks": [asdict(one) for one in findings]}
    return f"{json.dumps(report, indent=2)}\n"


def table(findings: Sequence[Finding], columns: int) -> str:
    """Return them for people, within so many columns."""
    width = max(len(one.name) for one in findings)
    columns = max(60, min(100, columns))
    lines: list[str] = []
    for one in findings:
        head = f"{one.status:<4}  {one.name:<{width}}  "
        for text, first in ((one.detail, head), (one.advice, f"{'':<{len(head)}}-> ")):
            lines += textwrap.wrap(
                text,
                columns,
                initial_indent=first,
                subsequent_indent=" " * len(first),
                break_long_words=False,
                break_on_hyphens=False,
            )
    verdict = "The server would not work so" if failed(findings) else "The server can run so"
    fails = sum(one.status == "fail" for one in findings)
    warnings = sum(one.status == "warn" for one in findings)
    lines += ["", f"{verdict}: {fails} failed, {warnings} to be looked at."]
    return "\n".join(lines) + "\n"
