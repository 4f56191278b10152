"""Solvers of a user's own: what they may do means the same wherever it runs, what could not is refused."""

import pytest
import torch

import fpfast
from fpfast import trajectory
from fpfast.network import MLP
from fpfast.solvers import SOLVERS, Plan, Stage, Table, make_row, make_table
from fpfast.tables import carried
from fpfast.times import grid

STEPS = 9


def score(guidance=None):
    torch.manual_seed(0)
    net = MLP(2, [8, 8], activation="tanh").requires_grad_(False)
    return fpfast.Score(net, fpfast.VP(), predicts="noise", guidance=guidance)


def lazy(plan: Plan) -> Table:
    """Euler's method that calls the network at every other step, and takes its last output in between."""
    a, b = plan.now.drift(0.0)
    table = make_table((Stage("x", ("x", "y"), at="x"), make_row(plan.h, 1 - plan.h * a, -plan.h * b), plan.now))
    table.evaluate[1::2] = False
    return table


def before(plan: Plan) -> Table:
    """A stage keeps the state before another changes it in place: x' = x/2 + 0.3 u + 0.2 (the x before), noisy u."""
    h = plan.h
    return make_table(
        (Stage("u", ("x", "y"), at="x", keep=(("x", "old"),)), make_row(h, 0.9, 0.05), plan.now),
        (Stage("x", ("x", "u")), make_row(h, 0.5, 0.3), plan.now),
        (Stage("x", ("x", "old")), make_row(h, 1.0, 0.2), plan.now),
    )


def two_states(plan: Plan) -> Table:
    """A state beside x that every step changes, and the next one reads."""
    h, first = plan.h, torch.ones_like(plan.h)
    first[0] = 0
    return make_table(
        (Stage("m", ("x", "y", "old"), at="x"), make_row(h, 0.1, 0.1, 0.8 * first), plan.now),
        (Stage("x", ("x", "m"), keep=(("m", "old"),)), make_row(h, 0.95, 0.1, z=0.1 * plan.noisy), plan.now),
    )


OWN = {"lazy": lazy, "before": before, "two_states": two_states}


def by_hand(name, of, x):
    """The same in torch, without noise, in float64."""
    t = grid(of.sde, None, STEPS)
    net, x, m, y = of.net.double(), x.double(), torch.zeros_like(x).double(), None
    for i in range(STEPS):
        at = t[i].expand(len(x))
        if name == "lazy":
            y = net(x, at) if i % 2 == 0 else y
            p, q = of.affine(t[i])
            a, g2 = of.sde.a(t[i]), of.sde.g2(t[i])
            x = x - (t[i] - t[i + 1]) * (a * x - g2 / 2 * (p * x + q * y))
        elif name == "before":
            u, old = 0.9 * x + 0.05 * net(x, at), x
            x = 0.5 * x + 0.3 * u + 0.2 * old
        else:
            m = 0.1 * x + 0.1 * net(x, at) + 0.8 * m
            x = 0.95 * x + 0.1 * m
    return x


@pytest.mark.parametrize("name", OWN)
def test_engine_and_loop_do_what_one_would_by_hand(name):
    options = {"solver": OWN[name], "steps": STEPS, "noise": 0.0}
    if name == "two_states":
        options["solver"] = lambda plan: without_noise(two_states(plan))
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    exact = by_hand(name, score(), x).float()
    for backend in ("auto", "reference"):
        got = fpfast.sample(score(), (40, 2), x=x, backend=backend, **options)
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)


def without_noise(table):
    table.coef[..., 4] = 0
    return table


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("cut", ["callback", "work"])
def test_bits_do_not_depend_on_where_the_engine_returns(name, cut, monkeypatch):
    options = {"solver": OWN[name], "steps": STEPS, "seed": 0}
    whole, info = fpfast.sample(score(), (40, 2), return_info=True, **options)
    assert info.fused
    if cut == "work":
        monkeypatch.setitem(trajectory.WORK, "cpu", 1)
    else:
        options["callback"] = lambda *_: None
    assert torch.equal(fpfast.sample(score(), (40, 2), **options), whole)


def test_what_steps_leave_for_the_next():
    found = {
        name: carried(of(Plan(score(), torch.linspace(1, 0.1, 5).double(), 0.0, False))) for name, of in OWN.items()
    }
    assert found == {"lazy": ["x", "y"], "before": ["x"], "two_states": ["x", "old"]}


def one(stage, row=None, change=None):
    def solver(plan):
        table = make_table((stage, make_row(plan.h, 1.0) if row is None else row(plan), plan.now))
        return table if change is None else change(table)

    return solver


def late(plan):
    c = torch.ones_like(plan.h)
    c[0] = 0
    return make_row(plan.h, 1.0, 0.1, c)


EULER = Stage("x", ("x", "y"), at="x")
REFUSED = {
    "never written": (one(Stage("x", ("x", "y", "ghost"), at="x"), late), "written before they are read, got ghost"),
    "an output as a state": (one(EULER._replace(keep=(("y", "old"),))), "keep to slots of the same kind"),
    "a state as an output": (one(EULER._replace(keep=(("x", "y_x"),))), "keep to slots of the same kind"),
    "kept where it is written": (one(EULER._replace(keep=(("x", "x"),))), "that the stage neither writes nor keeps"),
    "exchanged": (one(EULER._replace(keep=(("x", "b"), ("b", "c")))), "that the stage neither writes nor keeps"),
    "first of an output": (one(Stage("x", ("y", "x"), at="x")), "whose to, first of and at do not"),
    "evaluated at an output": (one(Stage("x", ("x", "y"), at="y")), "whose to, first of and at do not"),
    "evaluate of integers": (
        one(EULER, None, lambda table: Table(table.stages, table.coef, table.times, table.evaluate.int())),
        "evaluate of dtype torch.bool",
    ),
    "lists": (
        one(EULER, None, lambda table: Table(table.stages, [[1.0]], table.times, table.evaluate)),
        "coef of shape",
    ),
    "no stage": (
        lambda plan: Table((), torch.zeros(3, 0, 5), torch.zeros(3, 0), torch.zeros(3, 0).bool()),
        "one stage",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    solver, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"solver: expected .*{message}"):
        fpfast.sample(score(), (4, 2), solver=solver, steps=3, seed=0)


def test_a_name_in_the_table_is_looked_up_each_time(monkeypatch):
    def still(plan):
        return make_table((Stage("x", ("x",)), make_row(plan.h, 1.0), plan.now))

    def half(plan):
        return make_table((Stage("x", ("x",)), make_row(plan.h, 0.5), plan.now))

    found = []
    for solver in (still, half):
        monkeypatch.setitem(SOLVERS, "mine", solver)
        found.append(fpfast.sample(score(), (4, 2), solver="mine", steps=1, seed=0))
    assert torch.equal(found[1], 0.5 * found[0])
    monkeypatch.setitem(SOLVERS, "mine", one(Stage("x", ("x", "u")), lambda plan: make_row(plan.h, 1.0, 1.0)))
    with pytest.raises(ValueError, match="written before they are read, got u"):
        fpfast.sample(score(), (4, 2), solver="mine", steps=1, seed=0)


class Constant(fpfast.Score):
    """Says 7, whatever the network does."""

    def outputs(self, x, t):
        return tuple(y * 0 + 7 for y in super().outputs(x, t))


def test_a_score_of_a_class_of_its_own_has_the_last_word():
    plain = score()
    own = Constant(plain.net, plain.sde, "noise")
    x, info = fpfast.sample(own, (5, 2), steps=4, seed=0, return_info=True)
    assert not info.fused
    assert "Constant may say something else than its network" in info.not_fused
    assert torch.equal(x, fpfast.sample(own, (5, 2), steps=4, seed=0, backend="reference"))
    function = fpfast.Score(lambda x, t: torch.full_like(x, 7.0), plain.sde, "noise")
    points = torch.randn(5, 2)
    for estimator in ("exact", "hutchinson"):
        found = [fpfast.log_likelihood(s, points, steps=5, estimator=estimator, seed=0).value for s in (own, function)]
        torch.testing.assert_close(found[0], found[1])
