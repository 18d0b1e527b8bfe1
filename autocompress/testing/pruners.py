"""The contract of `Pruner`."""

from __future__ import annotations

import copy

import pytest
import torch

from autocompress.components import (
    Pruner,
)
from autocompress.policy import LayerPolicy
from autocompress.tensors.sparsity import share_removed, weight_mask
from autocompress.testing.layers import make_stats
from autocompress.testing.round_trip import check_settings
from autocompress.testing.weights import Case, WeightContract, half_mask


class PrunerContract(WeightContract):
    """The promises of `Pruner`, on every kind of weight."""

    @pytest.fixture
    def pruner(self) -> Pruner:
        """The component under test."""
        raise NotImplementedError("a subclass of PrunerContract gives the fixture `pruner`")

    def test_scores_every_weight(self, pruner: Pruner, case: Case) -> None:
        """One finite float32 score for each weight."""
        score = pruner.score(case[0], make_stats(*case))
        assert score.shape == case[0].shape
        assert score.dtype == torch.float32
        assert score.isfinite().all()

    @pytest.mark.parametrize("samples", [1, 2])
    def test_scores_without_gradients(self, pruner: Pruner, case: Case, samples: int) -> None:
        """Scores stay finite where the loss does not depend on the layer, and with few samples."""
        weight, layer = case
        stats = make_stats(weight, layer, torch.zeros(samples, *weight.shape))
        assert pruner.score(weight, stats).isfinite().all()

    def test_scores_every_channel(self, pruner: Pruner, case: Case) -> None:
        """One finite score for each slice along either axis, the same whenever it is asked for."""
        for axis in (0, 1) if case[0].numel() else ():
            score = pruner.channel_score(case[0], make_stats(*case), axis)
            assert score.shape == (case[0].shape[axis],)
            assert score.dtype == torch.float32
            assert score.isfinite().all()
            assert torch.equal(score, copy.deepcopy(pruner).channel_score(case[0], make_stats(*case), axis))

    @pytest.mark.parametrize("structure", ["unstructured", "2:4"])
    def test_reaches_the_sparsity(self, pruner: Pruner, case: Case, structure: str) -> None:
        """What is removed is what was asked for, to one weight, however many scores are equal."""
        stats, layer = make_stats(*case), case[1]
        policy = LayerPolicy(pruner=pruner.name, sparsity=0.4, structure=structure)
        mask = weight_mask(pruner.score(case[0], stats), layer, policy)
        share = 0.4 if structure == "unstructured" else share_removed(layer, structure)
        assert not mask.numel() or int((~mask).sum()) == round(share * mask.numel())
        assert not pruner.update(case[0], mask, stats)[~mask].any()

    def test_update_keeps_removed_weights_at_zero(self, pruner: Pruner, case: Case) -> None:
        """What is left has the weight's shape and is exactly 0 where the mask is False."""
        for mask in (half_mask(case[0]), torch.zeros(case[0].shape, dtype=torch.bool)):
            updated = pruner.update(case[0], mask, make_stats(*case))
            assert updated.shape == case[0].shape
            assert updated.isfinite().all()
            assert not updated[~mask].any()

    def test_is_deterministic(self, pruner: Pruner, case: Case) -> None:
        """Equal input gives equal scores, whatever was drawn before; the global random state stays as it is."""
        first = pruner.score(case[0], make_stats(*case))
        torch.rand(1)
        state = torch.get_rng_state()
        assert torch.equal(first, copy.deepcopy(pruner).score(case[0], make_stats(*case)))
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_leaves_its_input_alone(self, pruner: Pruner, case: Case) -> None:
        """Weight and mask are not written to."""
        mask, stats = half_mask(case[0]), make_stats(*case)
        weight_before, mask_before = case[0].clone(), mask.clone()
        pruner.score(case[0], stats)
        pruner.update(case[0], mask, stats)
        assert torch.equal(case[0], weight_before)
        assert torch.equal(mask, mask_before)

    def test_settings_survive_a_round_trip(self, pruner: Pruner) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(pruner)
