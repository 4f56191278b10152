"""A copy of a network is remembered as long as the network is what it was."""

import pytest
import torch
from conftest import native
from torch import nn

from fpfast.copies import recognised_copy
from fpfast.fused import Unsupported
from fpfast.network import MLP

pytestmark = native


def net() -> MLP:
    torch.manual_seed(0)
    return MLP(2, [8], activation="tanh")


def test_nothing_changed():
    one, other = net(), net()
    first = recognised_copy(one, 2, "output")
    assert first.net is not one
    assert recognised_copy(other, 2, "output") is not first
    assert recognised_copy(one, 2, "output") is first


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.input.weight.data.mul_(2),
        lambda one: setattr(one, "activation", nn.SiLU()),
        lambda one: setattr(one, "time_first", True),
        lambda one: setattr(one, "output", nn.Linear(8, 2)),
    ],
    ids=["value", "activation", "attribute", "layer"],
)
def test_a_change_is_seen(change):
    one, x, t = net(), torch.randn(5, 2), torch.full((5,), 0.3)
    first = recognised_copy(one, 2, "output")
    change(one)
    second = recognised_copy(one, 2, "output")
    assert second is not first
    with torch.no_grad():
        torch.testing.assert_close(second(x, t), one(x, t))


def test_what_cannot_be_copied():
    one = net()
    one.handle = (i for i in range(3))
    with pytest.raises(Unsupported, match="cannot be copied to the CPU"):
        recognised_copy(one, 2, "output")
