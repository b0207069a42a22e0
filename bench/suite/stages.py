"""A run, stage by stage; what was measured is there also when it is ended early."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import serving
from bench.suite import layer, scale, soak, tuning
from bench.suite.display import Display
from bench.suite.observed import TASKS_FILE
from bench.suite.options import LAYER, SCALE, SETTINGS, SOAK, TECHNIQUES, Choice
from bench.suite.profile import profiler
from bench.suite.results import LayerCell, Scale, Soak, Tuned
from bench.suite.runner import Outcome, Settings, carry_out, steps
from bench.suite.targets import BARE, OURS, NoTarget, Target, found, model_environment, ours, own
from bench.suite.trend import trends
from bench.suite.wire import Failed
from bench.turns import Way, bare_sdk


@dataclass(slots=True)
class Measured:
    """What a run has so far.

    Attributes:
        targets: Names of those that the scenarios are about.
        scenarios: What they gave.
        techniques: What our server gave with each technique, and without.
        layer: What the layer gave.
        tuned: What our server gave with one of its own settings changed.
        scale: What a server with many sessions gave.
        soak: What the long load gave.
        notes: What went wrong.
    """

    targets: list[str] = field(default_factory=list[str])
    scenarios: Outcome = field(default_factory=Outcome)
    techniques: Outcome = field(default_factory=Outcome)
    layer: list[LayerCell] = field(default_factory=list[LayerCell])
    tuned: list[Tuned] = field(default_factory=list[Tuned])
    scale: list[Scale] = field(default_factory=list[Scale])
    soak: list[Soak] = field(default_factory=list[Soak])
    notes: list[str] = field(default_factory=list[str])

    def fields(self) -> Mapping[str, object]:
        """Return it as `Results` takes it."""
        several = (self.scenarios, self.techniques)
        return {
            "targets": self.targets,
            "left_out": {**self.scenarios.left_out, **self.techniques.left_out},
            "cells": self.scenarios.cells,
            "layer": self.layer,
            "techniques": self.techniques.cells,
            "tuned": self.tuned,
            "scale": self.scale,
            "soak": self.soak,
            "profiles": [one for outcome in several for one in outcome.profiles],
            "notes": [*(note for outcome in several for note in outcome.notes), *self.notes],
        }


async def measure(
    choice: Choice,
    settings: Settings,
    home: Path,
    headers: Mapping[str, str],
    display: Display,
    measured: Measured,
) -> None:
    """Carry out a run.

    Raises:
        NoProfile: Profiles are asked for, and there is no profiler.
        NoTarget: A server cannot be measured, or none is left.
        NotReady: A server of ours did not come up.
    """
    if choice.profile:
        profiler()
    async with display.shown(), AsyncExitStack() as stack:
        if choice.urls:
            targets: Sequence[Target] = [
                await found(name, url, headers=headers) for name, url in choice.urls.items()
            ]
            await _scenarios(choice, settings, targets, None, display, measured)
            await _of_target(choice, settings, targets[0], display, measured)
            return
        pace = ("--tokens", str(choice.pace.tokens), "--delay-ms", str(choice.pace.delay_ms))
        model = await stack.enter_async_context(serving("bench.suite.model", pace))
        env = model_environment(model)
        if choice.plans:
            async with _own(choice, settings, home, env) as (targets, bare):
                await _scenarios(choice, settings, targets, bare, display, measured)
        if TECHNIQUES in choice.names:
            plans = choice.technique_plans
            async with own(choice.with_and_without, home, env) as targets:
                display.stage("techniques", steps(plans, len(targets), settings.rounds))
                await carry_out(plans, targets, settings, display, measured.techniques)
        if LAYER in choice.names:
            display.stage("layer", len(layer.WAYS) * len(choice.streams) * settings.rounds)
            for load in choice.streams:
                measured.layer += await layer.measure(
                    layer.WAYS, [load], display, rounds=settings.rounds, window_s=choice.window_s
                )
        if SETTINGS in choice.names:
            display.stage("settings", tuning.steps(settings.rounds))
            await tuning.measure(
                display, measured.tuned, rounds=settings.rounds, window_s=choice.window_s
            )
        if SCALE in choice.names:
            await _scale(choice, settings, home, env, display, measured)
        if SOAK in choice.names:
            tasks = home / "tasks"
            state = home / f"state-{uuid.uuid4().hex[:8]}"
            options = shlex.split(choice.own.get(OURS, ""))
            async with ours(state, options, {**env, TASKS_FILE: str(tasks)}) as server:
                target = await found(OURS, server.url, pid=server.pid)
                await _soak(choice, settings, target, tasks, display, measured)


async def _scale(
    choice: Choice,
    settings: Settings,
    home: Path,
    env: Mapping[str, str],
    display: Display,
    measured: Measured,
) -> None:
    """Do `scale` on each server of ours; what needs no CLI is measured once, for `ours`."""
    servers = choice.servers
    display.stage("scale", scale.STEPS_ONCE + scale.STEPS_OURS * len(servers))
    wanted = scale.Wanted(sessions=choice.sessions, asking=settings.asking, profile=choice.profile)
    made = await scale.make(wanted, home, display)
    for name, options in servers.items():
        told = shlex.split(options)
        one = await scale.on_ours(wanted, made, home, env, display, name=name, options=told)
        measured.scale.append(one)
        _say(display, scale.line_of(one))
    looks, profiles, notes = await scale.without_cli(wanted, made, display)
    if looks is not None:
        measured.scale[0] = one = measured.scale[0].model_copy(
            update={"looks": [*measured.scale[0].looks, looks]}
        )
        display.say(f"scale, {one.target}:{scale.line_of(one)[-1]}")
    measured.scenarios.profiles += profiles
    measured.notes += notes


async def _of_target(
    choice: Choice, settings: Settings, target: Target, display: Display, measured: Measured
) -> None:
    """Do what else can be done with a server of which only the API is known."""
    if SCALE in choice.names:
        display.stage("scale", scale.STEPS_TARGET)
        wanted = scale.Wanted(asking=settings.asking)
        try:
            one = await scale.on_target(wanted, target, display)
        except Failed as failure:
            raise NoTarget(f"{target.name} does not tell its sessions: {failure.code}.") from None
        measured.scale.append(one)
        _say(display, scale.line_of(one))
    if SOAK in choice.names:
        await _soak(choice, settings, target, None, display, measured)


@asynccontextmanager
async def _own(
    choice: Choice, settings: Settings, home: Path, env: Mapping[str, str]
) -> AsyncGenerator[tuple[Sequence[Target], Way | None]]:
    """Start what is measured, until the context ends."""
    asking = settings.asking
    async with AsyncExitStack() as stack:
        bare: Way | None = None
        if choice.bare:
            work = home / "bare"
            work.mkdir()
            bare = await stack.enter_async_context(bare_sdk(work, asking.tools or (), env))
            for _ in range(2):  # past its first turn, which takes longer
                await bare.turn(asking.prompt)
        yield await stack.enter_async_context(own(choice.own, home, env)), bare


async def _scenarios(
    choice: Choice,
    settings: Settings,
    targets: Sequence[Target],
    bare: Way | None,
    display: Display,
    measured: Measured,
) -> None:
    plans, outcome = choice.plans, measured.scenarios
    if not plans:
        measured.targets = [one.name for one in targets]
        return
    measured.targets = [one.name for one in targets] + ([BARE] if bare else [])
    display.stage("scenarios", steps(plans, len(measured.targets), settings.rounds))
    await carry_out(
        plans,
        targets,
        settings,
        display,
        outcome,
        bare=bare,
        profiled=OURS if choice.profile else None,
    )
    if all(one.name in outcome.gone for one in targets):
        raise NoTarget("No server is left to measure; what there was of them is reported.")


async def _soak(
    choice: Choice,
    settings: Settings,
    target: Target,
    tasks: Path | None,
    display: Display,
    measured: Measured,
) -> None:
    seconds = choice.minutes * 60
    display.stage("soak", round(seconds))
    wanted = soak.Wanted(
        seconds=seconds, rate=choice.rate, asking=settings.asking, seed=settings.seed
    )
    soaking = soak.Soaking(wanted, target, tasks)
    try:
        await soaking.run(display)
    finally:
        done = soaking.result()
        measured.soak.append(done)
        _say(display, soak.line_of(done, [str(one) for one in trends(done)]))
    if soaking.gone is not None:
        raise NoTarget(f"{target.name} was given up in the soak: {soaking.gone}.")


def _say(display: Display, lines: Sequence[str]) -> None:
    for line in lines:
        display.say(line)
