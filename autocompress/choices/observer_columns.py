"""Where the observer of a tensor decides nothing: in policies, as rows of a search space, whose layers leave it in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.choices.space import OBSERVERS, SearchSpace, static_options
from autocompress.problem import Choices, Effect


@dataclass(frozen=True)
class ObserverColumns:
    """The columns of a space's observers.

    Attributes:
        askers: column to the columns of the layers that make its tensor integer, each with whether its options do; None where
            a layer with a single option does.
        best: column to its option of least effect.
    """

    askers: Mapping[int, Sequence[tuple[int, NDArray[np.bool_]]] | None]
    best: Mapping[int, int]

    @classmethod
    def of(cls, space: SearchSpace, effects: Mapping[str, Sequence[Effect]]) -> ObserverColumns:
        """The columns in the order of `SearchSpace.sizes`."""
        columns = {name: column for column, name in enumerate(space.sizes)}
        ours = {OBSERVERS + name: options for name, options in space.observers.items()}
        static = {layer: np.array([o in static_options(t) for o in t]) for layer, t in space.layers.items()}
        askers: dict[int, Sequence[tuple[int, NDArray[np.bool_]]] | None] = {
            columns[name]: [(columns[layer], static[layer]) for layer in options[0].layers]
            if columns.keys() >= set(options[0].layers)
            else None
            for name, options in ours.items()
        }
        least = {name: int(np.argmin([effect.divergence for effect in effects[name]])) for name in ours}
        return cls(askers, {columns[name]: index for name, index in least.items()})

    def canonical(self, choices: Choices) -> Choices:
        """The rows with the best observer wherever none is asked for, shape (N, parameters)."""
        rows = choices.copy()
        for column, askers in self.askers.items():
            if askers is not None:
                asked = np.any([static[choices[:, layer]] for layer, static in askers], axis=0)
                rows[~asked, column] = self.best[column]
        return rows
