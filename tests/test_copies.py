"""A network on a GPU is recognised by way of a copy on the CPU, which keeps up with it."""

import pytest
import torch
from conftest import native
from torch import nn

from fpfast import fused
from fpfast.fused import Fused, Unsupported
from fpfast.network import MLP

pytestmark = native


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """As if every network were on a GPU."""
    monkeypatch.setattr(fused, "_on_cpu", lambda net: False)


def net() -> MLP:
    torch.manual_seed(0)
    return MLP(2, [8], activation="tanh")


def same_outputs(one: Fused) -> bool:
    x, t = torch.randn(5, 2), torch.full((5,), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(one(x, t), one.net(x, t))
    return True


def test_the_copy_stays_while_nothing_changes():
    one = net()
    compiled = Fused(one, 2)
    copy = compiled.here
    assert compiled.net is one
    assert copy is not one
    assert same_outputs(compiled)
    assert compiled.here is copy


def test_the_copy_takes_new_values():
    one = net()
    compiled = Fused(one, 2)
    copy = compiled.here
    with torch.no_grad():
        one.input.weight.mul_(2)
    assert same_outputs(compiled)
    assert compiled.here is copy
    assert torch.equal(copy.input.weight, one.input.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: setattr(one, "activation", nn.SiLU()),
        lambda one: setattr(one, "time_first", True),
        lambda one: setattr(one, "output", nn.Linear(8, 2)),
    ],
    ids=["activation", "attribute", "layer"],
)
def test_a_change_of_the_module_is_seen(change):
    one = net()
    compiled = Fused(one, 2)
    copy = compiled.here
    change(one)
    assert same_outputs(compiled)
    assert compiled.here is not copy


def test_a_network_that_has_moved_is_recognised_again():
    """Its parameters are the same objects then, on another device."""
    compiled = Fused(net(), 2)
    copy = compiled.here
    compiled._values = [value.to("meta") for value in compiled._values]
    assert same_outputs(compiled)
    assert compiled.here is not copy


def test_a_layer_that_is_not_known_is_seen_before_a_copy_is_made(monkeypatch):
    one = net()
    one.norm = nn.LayerNorm(8)
    monkeypatch.setattr(nn.Module, "cpu", lambda self: pytest.fail("it was copied"))
    with pytest.raises(Unsupported, match=r"norm \(LayerNorm\) is not one that the fused engine knows"):
        Fused(one, 2)


def test_what_sampling_remembers_does_not_keep_the_network():
    one = net()
    fused.recognised(one, 2, "output")
    known, state = fused._known[id(one)]
    assert known() is one
    assert "net" not in state
    key = id(one)
    del one, state
    assert key not in fused._known


def test_what_cannot_be_copied():
    one = net()
    one.handle = (i for i in range(3))
    with pytest.raises(Unsupported, match="cannot be copied to the CPU"):
        Fused(one, 2)


def test_hooks_are_refused_before_they_are_copied():
    one = net()
    one.register_forward_hook(lambda *_: None)
    with pytest.raises(Unsupported, match="has hooks"):
        Fused(one, 2)
