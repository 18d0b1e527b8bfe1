"""What a search tries before it asks its sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autocompress.choices.seeds import Shares, seed_policies, uniform_policies
from autocompress.choices.space import SearchSpace
from autocompress.network.allocation import allocate
from autocompress.policy import Policy
from autocompress.prediction.proposals import table_proposals
from autocompress.problem import Problem
from autocompress.trials.trial import Bench

STARTS = ("none", "uniform", "rules", "tables")
PROPOSALS = 8
"""Policies that the tables propose."""


def start_batches(start: str, bench: Bench, space: SearchSpace, problem: Problem, most: int) -> Iterator[Sequence[Policy]]:
    """Policies to try first, at most `most`. The next batch is asked for once the one before is measured.

    Args:
        start: one of `STARTS`. With `tables` the first answers are there before the tables are measured, which takes minutes.
    """
    if start == "rules":
        yield seed_policies(space, bench.graph.layers, _uneven_shares(bench, space))[:most]
    if start in ("uniform", "tables"):
        uniform = uniform_policies(space)[:most]
        yield uniform
        left = min(PROPOSALS, most - len(uniform))
        if start == "tables" and left > 0:
            yield [space.policy(problem.indices(row)) for row in table_proposals(problem, left)]


def _uneven_shares(bench: Bench, space: SearchSpace) -> list[Shares]:
    """For each pruner and share that the space offers, that share of all channels together."""
    groups = {name: group for name, group in bench.groups.items() if name in space.channels}
    ways = {(option.pruner, option.sparsity) for options in space.channels.values() for option in options}
    layers = {entry.module for group in groups.values() for entry in group.entries}
    return [
        (pruner, allocate(groups, bench.graph.layers, {name: bench.database.score(pruner, name) for name in layers}, share))
        for pruner, share in sorted(ways, key=str)
        if pruner is not None
    ]
