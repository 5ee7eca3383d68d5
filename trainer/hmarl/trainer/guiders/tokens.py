"""Actions as a guider's decoder is fed them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ActionTokens:
    """Tokens [L, C, N, E] of all agents' actions at many steps.

    Of discrete actions there are only so many: they lie in a table, and what is computed of a token alone (``map``) is
    computed of its rows, instead of once for every action.

    Attributes:
        rows: [K, E] the table, or [L, C, N, E] the tokens themselves.
        which: [L, C, N] int64, the row of each; None where the rows are the tokens.
    """

    rows: Tensor
    which: Tensor | None = None

    @property
    def each(self) -> Tensor:
        """[L, C, N, E]."""
        return self.rows if self.which is None else functional.embedding(self.which, self.rows)

    def map(self, function: Callable[[Tensor], Tensor]) -> ActionTokens:
        """[..., E] -> [..., any] of every token."""
        return replace(self, rows=function(self.rows))

    def ordered(self, order: Tensor) -> ActionTokens:
        """Agents in an order [N] int64."""
        if self.which is None:
            return ActionTokens(self.rows.index_select(-2, order))
        return ActionTokens(self.rows, self.which.index_select(-1, order))

    def before(self, start: Tensor) -> ActionTokens:
        """Of every agent the token of the one before it: of the first ``start`` [E]."""
        if self.which is None:
            first = start.expand(*self.rows.shape[:-2], 1, -1)
            return ActionTokens(torch.cat([first, self.rows[..., :-1, :]], dim=-2))
        first = torch.full_like(self.which[..., :1], len(self.rows))
        return ActionTokens(
            torch.cat([self.rows, start.unsqueeze(0)]), torch.cat([first, self.which[..., :-1]], dim=-1)
        )
