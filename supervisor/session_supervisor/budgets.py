"""What may be spent: by a session in all its turns, and by an owner in all that it ever had.

What a turn costs is known when it has ended. So a budget stops no turn that runs, but the next one;
and turns that run at the same time may go beyond it together. (A session's own budget is given to
its agent as well, which stops in the middle of a turn.)
"""

from __future__ import annotations

from collections.abc import Mapping

from session_supervisor.errors import BudgetExceeded

LEAST_USD = 0.01
"""Less than this no agent is given."""


def check_budget(whose: str, budget_usd: float | None, spent_usd: float) -> None:
    """Refuse a further turn where all that may be spent has been.

    Args:
        whose: Who spends it, for the message: `You`, `The session`.
        budget_usd: What may be spent, US dollars; None: any amount.
        spent_usd: What has been.

    Raises:
        BudgetExceeded: Nothing is left.
    """
    if budget_usd is not None and spent_usd >= budget_usd:
        raise BudgetExceeded(whose, budget_usd, spent_usd)


def conversation_budget(
    budget_usd: float | None, *, spent_usd: float, conversation_usd: float
) -> float | None:
    """Return what a session's conversation may have cost at the most, as its agent counts.

    To the agent a conversation that began anew has cost less than the session.

    Args:
        budget_usd: What the session may spend, US dollars; None: any amount.
        spent_usd: What it has.
        conversation_usd: What its agent said last that the conversation has cost.
    """
    if budget_usd is None:
        return None
    # Where nothing is left, no turn begins; but a process may be wanted all the same.
    return round(conversation_usd + max(budget_usd - spent_usd, LEAST_USD), 9)


class Spending:
    """What each owner has spent, also for sessions that are gone."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def restore(self, spent: Mapping[str, float]) -> None:
        """Go on from what the store knows."""
        self._spent = dict(spent)

    def of(self, owner: str) -> float:
        """Return what an owner has spent, US dollars."""
        return self._spent.get(owner, 0.0)

    def add(self, owner: str, usd: float) -> None:
        """Note what a turn has cost; the store learns of it by the session's total."""
        if usd:
            self._spent[owner] = round(self.of(owner) + usd, 9)
