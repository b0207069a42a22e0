"""What the command can be told, and what it makes of it."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.arguments import Parser, amount, count, positive
from bench.suite import layer
from bench.suite.load import Times
from bench.suite.runner import Plan, Settings, plans_of
from bench.suite.scenarios import SCENARIOS, Asking, Mode
from bench.suite.targets import BARE, BASELINE, OURS, Pace
from bench.suite.wire import Client
from bench.turns import MODEL

LAYER, TECHNIQUES, SETTINGS, SCALE = "layer", "techniques", "settings", "scale"
SOAK = "soak"

FURTHER: Mapping[str, str] = {
    TECHNIQUES: "our server with a pool and recycling, and without",
    LAYER: "streams of our server, and of others, without any CLI",
    SETTINGS: "the layer with one of the server's own settings changed",
    SCALE: "thousands of sessions on one server",
    SOAK: "mixed load for long, and whether the server grows",
}
"""What can be asked for beside the scenarios."""

ASKED_FOR = (SETTINGS, SOAK)
"""Of these, what is only done when it is named."""

WITHOUT: Mapping[str, str] = {
    "without recycling": "--no-recycle",
    "without the pool": "--no-pool",
}
"""Our server without one technique each, and what it is told."""

LONG_TOKENS = 2_000
"""Of the answer that is interrupted."""

LEVELS: Mapping[str, Sequence[tuple[Mode, float]]] = {
    "oneoff": [("closed", 1), ("closed", 2), ("closed", 4), ("open", 1), ("open", 2)],
    "chat": [("closed", 2)],
    "starts": [("closed", 1)],
    "readers": [("burst", 10), ("burst", 200)],
    "wake": [("closed", 1)],
    "storm": [("burst", 4), ("burst", 8)],
    "interrupts": [("closed", 1)],
    "mixed": [("open", 0.5)],
}
"""The loads of each scenario where none are chosen: what two cores can be asked for."""

TECHNIQUE_PLANS = ("oneoff", "starts")
"""Scenarios, by one user, that tell what a technique gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the command was told, apart from how long and how often.

    Attributes:
        names: Scenarios, and what else is asked for.
        levels: Loads of each scenario.
        urls: Servers that run already, by name; none: our own.
        own: Servers to start, by name, with their options.
        key_from: Variable with the API key of the former.
        bare: Whether a bare SDK client takes part.
        pace: Of the offline model.
        streams: Streams of the layer, and deltas in a second that they are offered.
        window_s: Seconds for which the layer is measured each time.
        sessions: Of `scale`.
        minutes: Of `soak`.
        rate: Visits due in a second, of `soak`.
        profile: Whether our server is profiled.
    """

    names: tuple[str, ...]
    levels: Mapping[str, Sequence[tuple[Mode, float]]]
    urls: Mapping[str, str]
    own: Mapping[str, str]
    key_from: str | None
    bare: bool
    pace: Pace
    streams: tuple[layer.Load, ...]
    window_s: float
    sessions: int
    minutes: float
    rate: float
    profile: bool

    @property
    def plans(self) -> Sequence[Plan]:
        """All scenarios that are asked for, under all their loads."""
        return plans_of([name for name in self.names if name in SCENARIOS], self.levels)

    @property
    def servers(self) -> Mapping[str, str]:
        """Servers of ours to start, by name, with their options; `ours` first."""
        return {name: told for name, told in self.own.items() if name != BASELINE}

    @property
    def with_and_without(self) -> Mapping[str, str]:
        """Those, and `ours` without one technique each."""
        told = self.own.get(OURS, "")
        without = {name: f"{told} {option}".strip() for name, option in WITHOUT.items()}
        return {OURS: told, **without, **self.servers}

    @property
    def technique_plans(self) -> Sequence[Plan]:
        """What tells what a technique gives."""
        once: Sequence[tuple[Mode, float]] = [("closed", 1.0)]
        levels: Mapping[str, Sequence[tuple[Mode, float]]]
        levels = dict.fromkeys(map(str, TECHNIQUE_PLANS), once)
        return plans_of(TECHNIQUE_PLANS, levels)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = Parser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [SCENARIO ...] [OPTION ...]",
        description="Put load on servers that speak the reference's API, and report what they do.\n"
        "Without --target: on our own and on the baseline, with the offline model.",
        epilog=_epilog(),
    )
    made.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"which of those below (all but {' and '.join(ASKED_FOR)})",
    )
    where = made.add_argument_group("targets")
    where.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a server that runs already; twice: both, turn about. It is asked real questions",
    )
    where.add_argument("--key-from", metavar="VARIABLE", help="variable with their API key")
    where.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=OPTIONS",
        help="start our server with these options besides; repeatable, to compare settings",
    )
    where.add_argument("--no-baseline", action="store_true", help="do without the baseline")
    where.add_argument("--no-bare", action="store_true", help="do without the bare SDK client")
    load = made.add_argument_group("load")
    load.add_argument(
        "--users", type=count, nargs="+", metavar="N", help="closed load: users at once"
    )
    load.add_argument(
        "--rate", type=positive, nargs="+", metavar="N", help="open load: visits due in a second"
    )
    load.add_argument(
        "--burst", type=count, nargs="+", metavar="N", help="of storm and readers: at once"
    )
    load.add_argument("--seconds", type=positive, default=6.0, help="measured, each time (6)")
    load.add_argument("--warmup", type=amount, default=2.0, help="seconds before that (2)")
    load.add_argument("--ramp", type=amount, default=1.0, help="seconds of growing load (1)")
    load.add_argument("--rounds", type=count, default=3, help="on each target (3)")
    load.add_argument("--quick", action="store_true", help="one short round of each: does it run?")
    load.add_argument("--probe", type=amount, default=5.0, help="looks at /health a second (5)")
    load.add_argument("--seed", type=count, default=1, help="of what is left to chance (1)")
    asked = made.add_argument_group("what is asked")
    asked.add_argument("--prompt", help="the question, for --target")
    asked.add_argument("--long-prompt", help="one whose answer can be interrupted, for --target")
    asked.add_argument("--model", help=f"model of sessions ({MODEL}; with --target the server's)")
    asked.add_argument("--tools", nargs="*", default=["Read"], help="tools of sessions (Read)")
    asked.add_argument("--turns", type=count, default=3, help="questions of a chat (3)")
    asked.add_argument("--tokens", type=count, default=20, help="deltas of an answer (20)")
    asked.add_argument("--delay-ms", type=amount, default=20.0, help="between two deltas (20)")
    alone = made.add_argument_group("layer, scale and soak")
    alone.add_argument("--streams", type=count, default=1_000, help="at the same time (1000)")
    alone.add_argument(
        "--deltas",
        type=count,
        nargs="+",
        metavar="N",
        default=[30_000],
        help="offered in a second (30000)",
    )
    alone.add_argument("--window", type=positive, default=5.0, help="seconds of the layer (5)")
    alone.add_argument("--sessions", type=count, default=10_000, help="of scale (10000)")
    alone.add_argument("--minutes", type=positive, default=30.0, help="of soak (30)")
    alone.add_argument("--soak-rate", type=positive, default=0.5, help="its visits a second (0.5)")
    made.add_argument(
        "--profile",
        action="store_true",
        help="also show where our server's processor time goes, in a further round (py-spy)",
    )
    made.add_argument(
        "--out",
        type=Path,
        default=Path("bench-results") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}",
        help="results and report go to OUT.json and OUT.html (bench-results/ and the time)",
    )
    return made


def _epilog() -> str:
    about = {name: one.about for name, one in SCENARIOS.items()} | dict(FURTHER)
    lines = [
        textwrap.fill(f"{name:11} {what}", 96, initial_indent="  ", subsequent_indent=" " * 14)
        for name, what in about.items()
    ]
    return "\n".join(
        (
            "scenarios:",
            *lines,
            "",
            "python -m bench compare BEFORE AFTER  says what differs between two runs",
            "python -m bench report RESULTS...     makes the report again, of several runs as one",
        )
    )


def choice_of(told: argparse.ArgumentParser, options: argparse.Namespace) -> Choice:
    """Return what was chosen; what cannot be ends the program."""
    known = (*SCENARIOS, *FURTHER)
    unknown = [name for name in options.scenarios if name not in known]
    if unknown:
        told.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    if len(options.target) > 2:
        told.error("--target can be given twice, not more")
    urls = dict(_named(one, number) for number, one in enumerate(options.target, start=1))
    if len(urls) < len(options.target):
        told.error("the two targets need different names")
    for url in urls.values():
        try:
            Client(url)
        except ValueError as error:
            told.error(str(error))
    starting = {LAYER, TECHNIQUES, SETTINGS} & {*options.scenarios}
    if urls and (options.server or starting or options.profile):
        told.error(
            "--target is about servers that run; --server, --profile, `layer`, `techniques` and "
            "`settings` are about such as are started"
        )
    if options.scenarios == [SOAK] and any(not one.startswith("ours=") for one in options.server):
        told.error("a soak is of one server: give it options as --server 'ours=--a b'")
    names = options.scenarios or [
        *SCENARIOS,
        *(
            name
            for name in FURTHER
            if name not in ASKED_FOR and not (urls and name in (LAYER, TECHNIQUES, SCALE))
        ),
    ]
    if options.quick and not options.scenarios:
        names = [name for name in names if name not in (TECHNIQUES, SCALE)]
    servers = {OURS: ""}
    for one in options.server:
        name, equals, text = one.partition("=")
        if not equals or not name or name in (BARE, BASELINE):
            told.error(f"--server {one!r}: give it a name and its options, as nopool='--a b'")
        try:
            shlex.split(text)
        except ValueError as error:
            told.error(f"--server {one!r}: {error} in its options")
        servers[name] = text
    if not options.no_baseline:
        servers[BASELINE] = ""
    many = [layer.Load(streams=options.streams, offered=one) for one in options.deltas]
    return Choice(
        names=tuple(names),
        levels={name: _levels(name, options) for name in SCENARIOS},
        urls=urls,
        own={} if urls else servers,
        key_from=options.key_from,
        bare=not urls and not options.no_bare and "oneoff" in names,
        pace=Pace(tokens=options.tokens, delay_ms=options.delay_ms),
        streams=tuple(dict.fromkeys((layer.LIGHT, layer.EVEN, *many))),
        window_s=min(options.window, 2.0) if options.quick else options.window,
        sessions=options.sessions,
        minutes=options.minutes,
        rate=options.soak_rate,
        profile=options.profile,
    )


def _named(text: str, number: int) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if equals and "/" not in name:
        return name, url
    return f"target {number}", text


def _levels(name: str, options: argparse.Namespace) -> Sequence[tuple[Mode, float]]:
    """Return the loads of a scenario: those that were chosen, else its own."""
    if SCENARIOS[name].mode == "burst":
        given: Mapping[Mode, Sequence[float]] = {"burst": options.burst or ()}
    else:
        given = {"closed": options.users or (), "open": options.rate or ()}
    chosen: Sequence[tuple[Mode, float]] = [
        (mode, level) for mode, levels in given.items() for level in levels if level
    ]
    return chosen or (LEVELS[name][:1] if options.quick else LEVELS[name])


def settings_of(options: argparse.Namespace) -> Settings:
    """Return how loads are carried out."""
    times = Times(ramp_s=options.ramp, warmup_s=options.warmup, measured_s=options.seconds)
    if options.quick:
        times = Times(ramp_s=0.0, warmup_s=0.0, measured_s=min(options.seconds, 2.0))
    return Settings(
        times=times,
        rounds=1 if options.quick else options.rounds,
        asking=_asking(options),
        probe_hz=options.probe,
        seed=options.seed,
    )


def _asking(options: argparse.Namespace) -> Asking:
    default = Asking()
    if options.target:
        return Asking(
            prompt=options.prompt or default.prompt,
            long_prompt=options.long_prompt or default.long_prompt,
            model=options.model,
            tools=tuple(options.tools) or None,
            turns=options.turns,
        )
    # The offline model does as the prompt says.
    pace = f"[[slow tokens={options.tokens} delay_ms={options.delay_ms:g}]]"
    long = f"[[slow tokens={LONG_TOKENS} delay_ms={options.delay_ms:g}]]"
    return Asking(
        prompt=f"{default.prompt} {pace}",
        long_prompt=f"{default.long_prompt} {long}",
        words=options.tokens,
        model=options.model or MODEL,
        tools=tuple(options.tools) or None,
        turns=options.turns,
    )


def told_of(choice: Choice, settings: Settings) -> Mapping[str, object]:
    """Return what a run was told, for its file: no key, and no more than tells runs apart."""
    times, asking = settings.times, settings.asking
    return {
        "scenarios": list(choice.names),
        "own": dict(choice.own),
        "targets": dict(choice.urls),
        "rounds": settings.rounds,
        "seconds": times.measured_s,
        "warmup_s": times.warmup_s,
        "ramp_s": times.ramp_s,
        "probe_hz": settings.probe_hz,
        "seed": settings.seed,
        "prompt": asking.prompt,
        "model": asking.model,
        "tools": None if asking.tools is None else list(asking.tools),
        "turns": asking.turns,
        "tokens": choice.pace.tokens,
        "delay_ms": choice.pace.delay_ms,
        "profile": choice.profile,
        **({"sessions": choice.sessions} if SCALE in choice.names else {}),
        **({"minutes": choice.minutes, "soak_rate": choice.rate} if SOAK in choice.names else {}),
    }
