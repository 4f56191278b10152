"""Training: what it converges to, that it is a function of its recipe, and what it says when something is wrong."""

import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import fpfast
from fpfast import batches, fused, losses, model, train
from fpfast.convnet import ConvNet
from fpfast.data import DATA, digit_images, draw
from fpfast.network import MLP
from fpfast.train import REGULARISERS, SCHEDULES, Recipe

QUICK = {"steps": 30, "batch_size": 32}


def perceptron(potential=False, seed=0, **options):
    torch.manual_seed(seed)
    return MLP(2, (16, 16), potential=potential, activation="softplus:5", **options)


def potential_score(compiled=True):
    net = perceptron(potential=True)
    return fpfast.Score(fpfast.fused.compile(net, 2) if compiled else net, fpfast.OU(), "potential")


def noise_score():
    return fpfast.Score(perceptron(), fpfast.VP(), "noise")


def weights(score):
    return torch.cat([p.detach().flatten() for p in score.module.parameters()])


@pytest.mark.parametrize("predicts", ["noise", "potential"])
def test_learns_a_gaussian(predicts):
    """Data N(m, c I) have the score -(x - alpha m) / (alpha^2 c + std^2); that of networks without training is 0."""
    mean, spread = torch.tensor([1.0, -0.5]), 0.6
    score = noise_score() if predicts == "noise" else potential_score()
    recipe = Recipe(steps=400, batch_size=256, learning_rate=1e-2, ema=0.99, time_law="beta")
    data = mean + spread * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    fit = train.fit(score, data, recipe, every=100)
    t = batches.TIME_LAWS["beta"](score.sde, batches.seeds(1, "validation", 0, 2000))
    x, _ = losses.perturb(score.sde, data[:2000], t, seed=2)
    alpha, std = (c.float()[:, None] for c in score.sde.marginal(t))
    want = std * (alpha * mean - x) / (alpha**2 * spread**2 + std**2)
    assert (std * fit.score(x, t) - want).square().mean() < 0.05 * want.square().mean()


def test_records():
    fit = train.fit(noise_score(), draw("moons", 100), Recipe(**QUICK), validation=draw("moons", 50, seed=1), every=12)
    assert [record.step for record in fit.history] == [12, 24, 30]
    assert all(math.isfinite(record.dsm) and record.validation > 0 for record in fit.history)
    assert all(record.regulariser == 0 for record in fit.history)
    data, recipe = draw("moons", 100), Recipe(**QUICK)
    first, _ = train.terms(noise_score(), recipe, batches.Batches(data, 32, 0)(0, 0, 32), 0)
    assert train.fit(noise_score(), data, recipe, every=1).history[0].dsm == pytest.approx(first.item(), rel=1e-6)


def test_a_network_with_a_part_called_net():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = perceptron(), nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return self.scale * self.net(x, t)

    score = fpfast.Score(Wrapper().eval(), fpfast.VP(), "noise")
    train.fit(score, draw("moons", 50).double(), Recipe(steps=3, batch_size=8))
    assert score.net.scale != 1
    assert not score.net.training


class Stopped(Exception):
    pass


def stopping(data, steps):
    """The data, until they have been asked for so many batches."""
    left = [steps + 1]  # the first batch tells data from others

    def draws(n, generator):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return data(n, generator)

    return draws


@pytest.mark.parametrize("stop", [1, 7, 20])
@pytest.mark.parametrize("kind", ["potential", "dropout"])
def test_resumed_runs_have_the_same_bits(tmp_path, kind, stop):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = perceptron(), nn.Dropout(0.2)

        def forward(self, x, t):
            return self.drop(self.inner(x, t))

    def score():
        return potential_score() if kind == "potential" else fpfast.Score(Dropping(), fpfast.VP(), "noise")

    regulariser = {"regulariser": "log_density", "box": 3.0, "fraction": 0.5} if kind == "potential" else {}
    recipe = Recipe(**QUICK, optimiser="adamw", weight_decay=0.01, warmup=5, **regulariser)
    whole = score()
    fit = train.fit(whole, DATA["blob"], recipe, every=4)
    path = tmp_path / "run.pt"
    parts = score()
    with pytest.raises(Stopped):
        train.fit(parts, stopping(DATA["blob"], stop), recipe, every=4, checkpoint_file=path)
    parts = score()
    with torch.no_grad():
        for p in parts.module.parameters():
            p.add_(1.0)  # what is there comes from the file
    torch.manual_seed(stop)
    again = train.fit(parts, DATA["blob"], recipe, every=4, checkpoint_file=path, resume=True)
    assert torch.equal(weights(whole), weights(parts))
    assert torch.equal(weights(fit.score), weights(again.score))
    assert fit.history == again.history
    finished = train.fit(score(), DATA["blob"], recipe, every=4, checkpoint_file=path, resume=True)
    assert torch.equal(weights(fit.score), weights(finished.score))


KILLED = """
import sys, torch, fpfast
from fpfast import train, data
from fpfast.network import MLP
torch.set_num_threads(1)
torch.manual_seed(0)
score = fpfast.Score(MLP(2, (16, 16)), fpfast.VP(), "noise")
fit = train.fit(score, data.DATA["moons"], train.Recipe(steps=400, batch_size=32), every=1,
                checkpoint_file=sys.argv[1], resume=True)
torch.save([p.detach() for p in [*score.net.parameters(), *fit.score.net.parameters()]], sys.argv[2])
"""


@pytest.mark.slow
def test_killed_runs_have_the_same_bits(tmp_path):
    """kill -9 at 20 moments, at each of which a checkpoint is being written or just was; all can be read."""

    def start(name):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / name), str(tmp_path / f"{name}.out")])

    assert start("whole.pt").wait() == 0
    randomness, kills, path = random.Random(0), 0, tmp_path / "killed.pt"
    while kills < 20:
        process = start("killed.pt")
        before = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.01)  # until it goes on
        time.sleep(randomness.uniform(0, 0.05))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert torch.load(path, weights_only=True)["step"] < 400
    assert start("killed.pt").wait() == 0
    for one, other in zip(*(torch.load(tmp_path / f"{name}.pt.out") for name in ("whole", "killed")), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("regulariser", [None, *(name for name in REGULARISERS if name != "fp_diffusion")])
def test_micro_batches_differ_in_the_order_of_sums_alone(regulariser, fraction):
    """But of "fp_diffusion": its second part is a norm over the batch, so it is another one for each micro-batch."""
    recipe = {**QUICK, "steps": 5, "regulariser": regulariser, "estimator": "hutchinson", "learning_rate": 1e-4,
              "fraction": fraction}  # fmt: skip
    found = []
    for micro_batch in (None, 10):
        score = noise_score() if regulariser == "score" else potential_score()
        train.fit(score, DATA["blob"], Recipe(**recipe, micro_batch=micro_batch, clip=0))
        found.append(weights(score))
    torch.testing.assert_close(found[0], found[1], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("box", [0.0, 2.0])
def test_regularisers_lower_themselves(regulariser, box):
    """Of a term of great weight less is left after some steps."""
    options = {"estimator": "martingale", "unbiased": False} if regulariser == "score" else {}
    recipe = Recipe(
        steps=60, batch_size=64, learning_rate=3e-3, regulariser=regulariser, weight=100.0, box=box, **options
    )
    fit = train.fit(potential_score(), DATA["blob"], recipe, every=10)
    assert fit.history[-1].regulariser < 0.7 * fit.history[0].regulariser


@pytest.mark.parametrize("regulariser", ["log_density", "score"])
def test_fused_and_plain_networks_have_one_gradient(regulariser):
    recipe = Recipe(**QUICK, regulariser=regulariser, estimator="exact", box=3.0)
    found = []
    for compiled in (True, False):
        score = potential_score(compiled)
        dsm, residual = train.terms(score, recipe, draw("blob", 32), 0)
        (dsm + residual).backward()
        net = score.module  # nothing depends on the last bias of a potential
        found.append(torch.cat([p.grad.flatten() for name, p in net.named_parameters() if name != "output.bias"]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_fp_diffusion_takes_the_perturbed_data():
    score, recipe = potential_score(), Recipe(**QUICK, regulariser="fp_diffusion")
    x0 = draw("blob", 32)
    _, residual = train.terms(score, recipe, x0, 2)
    keys, own = (batches.seeds(0, purpose, 64, 32) for purpose in ("data", "points"))
    _, x, t, _ = losses.dsm(score, x0, weighting="noise", t=batches.TIME_LAWS["uniform"](score.sde, keys), seed=keys,
                            return_points=True)  # fmt: skip
    assert residual.item() == pytest.approx(losses.fp_diffusion(score, x, t, seed=own).item(), rel=1e-6)


def test_averages():
    """w' = d w + (1 - d) theta, d = min(decay, (1 + n) / (10 + n)) after n steps, from the first weights on."""
    seen = []

    class Watched(MLP):
        def forward(self, x, t):
            if self.training:
                seen.append(torch.cat([p.detach().flatten() for p in self.parameters()]).double())
            return super().forward(x, t)

    torch.manual_seed(0)
    score, data = fpfast.Score(Watched(2, (16, 16)), fpfast.VP(), "noise"), draw("moons", 64)
    fit = train.fit(score, data, Recipe(steps=12, batch_size=8, ema=0.4))
    after = [*seen[1:], weights(score).double()]
    average = after[0]
    for n, theta in enumerate(after[1:], 1):
        decay = min(0.4, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * theta
    torch.testing.assert_close(weights(fit.score).double(), average, rtol=1e-5, atol=1e-6)
    plain = noise_score()
    fit = train.fit(plain, data, Recipe(**QUICK, ema=0))
    assert torch.equal(weights(fit.score), weights(plain))


def test_what_comes_out_is_compiled_if_what_went_in_is():
    for net, kind in ((MLP(2, (8,)), MLP), (fused.compile(MLP(2, (8,)), 2), fused.Fused)):
        fit = train.fit(fpfast.Score(net, fpfast.VP(), "noise"), DATA["moons"], Recipe(steps=2, batch_size=4))
        assert type(fit.score.net) is kind
        assert fit.score.module is not fpfast.Score(net, fpfast.VP(), "noise").module


def test_rates():
    recipe = Recipe(steps=100, learning_rate=0.5, warmup=10, schedule="linear")
    assert recipe.rate(0) == pytest.approx(0.05)
    assert recipe.rate(9) == recipe.rate(10) == pytest.approx(0.5)
    assert recipe.rate(55) == pytest.approx(0.25)
    for name, schedule in SCHEDULES.items():
        assert schedule(0) == 1
        assert schedule(1) == pytest.approx({"constant": 1, "staircase": 0.01}.get(name, 0))


def test_torchs_generator_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    score, _ = noise_score(), torch.manual_seed(5)
    train.fit(score, DATA["blob"], Recipe(steps=3, batch_size=8))
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("law", batches.TIME_LAWS)
def test_time_laws(law):
    sde = fpfast.EDM() if law == "log_normal" else fpfast.OU()
    t = batches.TIME_LAWS[law](sde, batches.seeds(3, "data", 0, 40_000))
    assert t.dtype == torch.float64
    assert sde.t_min <= float(t.min()) <= float(t.max()) <= sde.T
    if law == "log_normal":
        middle = t.log().mean(), t.log().std()
        assert middle == pytest.approx((-1.2, 1.2), abs=0.02)
    else:
        share = float((t - sde.t_min).mean() / (sde.T - sde.t_min))
        assert share == pytest.approx(1 / 2 if law == "uniform" else 1 / 3, abs=0.005)


def test_seeds_do_not_meet():
    every = [batches.seeds(seed, purpose, 0, 1000) for seed in (0, 1, 2, 2**31) for purpose in batches.PURPOSES]
    assert len(torch.cat(every).unique()) == 1000 * len(every)
    assert torch.equal(batches.seeds(7, "data", 0, 50)[20:], batches.seeds(7, "data", 20, 30))
    first = batches.Batches(DATA["blob"], 64, seed=0)
    assert not any(torch.equal(first(step, 0, 64), draw("blob", 64, seed=step)) for step in range(3))


def test_epochs():
    """All samples once in each epoch, in another order; places of a batch are places of one and the same."""
    data = torch.arange(10.0)[:, None]
    source = batches.Batches(data, 4, seed=1)
    seen = torch.cat([source(step, 0, 4) for step in range(5)])[:, 0]
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(torch.cat((source(2, 0, 1), source(2, 1, 3))), source(2, 0, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps: expected an integer in \[1, 9223372036854775807\], got 0"),
        ({"batch_size": 2.5}, "batch_size: expected an integer"),
        ({"micro_batch": 0}, "micro_batch: expected"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\)"),
        ({"fraction": 0}, r"fraction: expected a number in \(0, 1\]"),
        ({"optimiser": "sgdd"}, "optimiser: expected one of 'adam'"),
        ({"regulariser": "fp"}, "regulariser: expected one of 'log_density'"),
        ({"schedule": "step"}, "schedule: expected one of"),
        ({"time_law": "gamma"}, "time_law: expected one of"),
        ({"unbiased": "no"}, "unbiased: expected True or False"),
        ({"regulariser": ""}, "regulariser: expected one of"),
        ({"seed": 2**63}, r"seed: expected an integer in \[0, 9223372036854775807\]"),
        ({"regulariser": "fp_diffusion", "unbiased": False}, "unbiased: expected its default beside 'fp_diffusion'"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_bad_arguments(tmp_path):
    recipe, data = Recipe(steps=2, batch_size=4), draw("moons", 8)
    with pytest.raises(ValueError, match=r"data: expected float32 or float64 of shape \(N, ...\)"):
        train.fit(noise_score(), torch.zeros(3), recipe)
    with pytest.raises(ValueError, match="data: expected finite numbers"):
        train.fit(noise_score(), torch.full((3, 2), math.nan), recipe)
    with pytest.raises(ValueError, match="data: expected 4 samples"):
        train.fit(noise_score(), lambda n, g: torch.zeros(1, 2), recipe)
    with pytest.raises(TypeError, match=r"score: expected a network that is an nn.Module, got function"):
        train.fit(fpfast.Score(lambda x, t: x, fpfast.VP(), "noise"), data, recipe)
    with pytest.raises(ValueError, match="score: expected a network with parameters"):
        train.fit(fpfast.Score(nn.Identity(), fpfast.VP(), "noise"), data, recipe)
    with pytest.raises(TypeError, match=r"score: expected fpfast.Score"):
        train.fit(perceptron(), data, recipe)
    with pytest.raises(TypeError, match=r"recipe: expected fpfast.train.Recipe"):
        train.fit(noise_score(), data, {"steps": 2})
    for validation, message in (
        (torch.zeros(0, 2), "validation: expected float32 or float64 of shape"),
        (torch.full((2, 2), math.inf), "validation: expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            train.fit(noise_score(), data, recipe, validation=validation)
    with pytest.raises(ValueError, match="data: expected finite numbers"):
        train.fit(noise_score(), lambda n, g: torch.full((n, 2), math.nan), recipe)
    with pytest.raises(ValueError, match="resume: expected a checkpoint_file"):
        train.fit(noise_score(), data, recipe, resume=True)
    for name in ("run.bin", "no/run.pt"):
        with pytest.raises(ValueError, match=r"checkpoint_file: expected a name that ends in \.pt"):
            train.fit(noise_score(), data, recipe, checkpoint_file=tmp_path / name)
    score = noise_score()
    nn.init.constant_(score.net.output.bias, 1e30)
    with pytest.raises(RuntimeError, match="step 2: expected a finite loss, got inf"):
        train.fit(score, data, recipe)


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is NaN from the call on that is told."""

    @staticmethod
    def forward(ctx, x, poison):
        ctx.poison = poison
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (math.nan if ctx.poison else 1.0), None


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = perceptron(), 0

        def forward(self, x, t):
            self.calls += self.training
            return Poisoned.apply(self.inner(x, t), self.calls == 4)

    path, net = tmp_path / "run.pt", Net()
    with pytest.raises(RuntimeError, match=r"step 4: expected a finite loss, got .*, and weights that are not"):
        train.fit(fpfast.Score(net, fpfast.VP(), "noise"), draw("moons", 8), Recipe(steps=9, batch_size=4), every=2,
                  checkpoint_file=path)  # fmt: skip
    assert torch.load(path, weights_only=True)["step"] == 2


def test_records_after_a_resume_with_another_every(tmp_path):
    recipe, path = Recipe(steps=8, batch_size=4), tmp_path / "run.pt"
    whole = train.fit(noise_score(), DATA["moons"], recipe, every=1).history
    with pytest.raises(Stopped):
        train.fit(noise_score(), stopping(DATA["moons"], 4), recipe, every=3, checkpoint_file=path)
    rest = train.fit(noise_score(), DATA["moons"], recipe, every=5, checkpoint_file=path, resume=True).history
    assert [record.step for record in rest] == [3, 5, 8]
    for record, first in zip(rest, (0, 3, 5), strict=True):
        assert record.dsm == pytest.approx(sum(one.dsm for one in whole[first : record.step]) / (record.step - first))


def test_checkpoints_of_other_runs(tmp_path):
    path, data, recipe = tmp_path / "run.pt", draw("moons", 8), Recipe(steps=2, batch_size=4)
    train.fit(noise_score(), data, recipe, checkpoint_file=path)
    with pytest.raises(ValueError, match="checkpoint_file: expected a new file, or resume=True"):
        train.fit(noise_score(), data, recipe, checkpoint_file=path)
    with pytest.raises(ValueError, match=r"learning_rate: expected 0.001, as in the checkpoint .*, got 0.01"):
        train.fit(noise_score(), data, Recipe(steps=2, batch_size=4, learning_rate=0.01), checkpoint_file=path,
                  resume=True)  # fmt: skip
    other = data.clone()
    other[-1] += 1
    with pytest.raises(ValueError, match=r"data: expected '.*', as in the checkpoint"):
        train.fit(noise_score(), other, recipe, checkpoint_file=path, resume=True)
    for name, score in (
        ("sde", fpfast.Score(perceptron(), fpfast.VP(beta_max=5.0), "noise")),
        ("predicts", fpfast.Score(perceptron(), fpfast.VP(), "v")),
        ("network", fpfast.Score(MLP(2, (8,)), fpfast.VP(), "noise")),
        ("network", fpfast.Score(MLP(2, (16, 16), activation="tanh"), fpfast.VP(), "noise")),  # of the same weights
    ):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            train.fit(score, data, recipe, checkpoint_file=path, resume=True)
    content = torch.load(path, weights_only=True)
    del content["state"]["net"]["output.bias"]
    torch.save(content, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="checkpoint_file: expected a checkpoint of this network"):
        train.fit(noise_score(), data, recipe, checkpoint_file=tmp_path / "less.pt", resume=True)
    torch.save({"format": 1, "run": [1]}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="checkpoint_file: expected a checkpoint of fpfast"):
        train.fit(noise_score(), data, recipe, checkpoint_file=tmp_path / "other.pt", resume=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="checkpoint_file: expected a checkpoint of fpfast"):
        train.fit(noise_score(), data, recipe, checkpoint_file=path, resume=True)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_files(tmp_path, kind):
    torch.manual_seed(0)
    if kind == "mlp":
        score = potential_score()
        x = torch.randn(5, 2)
    else:
        score = fpfast.Score(ConvNet((1, 8, 8), width=8, time_scale=2.0), fpfast.VE(sigma_max=9.0), "noise")
        nn.init.normal_(score.net.leave.weight)
        x = torch.randn(5, 1, 8, 8)
    path = tmp_path / "score.safetensors"
    model.write(path, score)
    read = model.load(path)
    assert read.sde == score.sde
    assert torch.equal(read(x, 0.3), score(x, 0.3).detach())
    assert not read.net.training
    assert not any(p.requires_grad for p in read.net.parameters())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="file: expected weights"):
        model.load(path)
    with pytest.raises(ValueError, match="net: expected one of MLP, ConvNet, got Linear"):
        model.write(path, fpfast.Score(nn.Linear(2, 2), fpfast.VP(), "noise"))


def test_images():
    """A few steps on digits lower the loss of held-out ones; the output begins with 0, so the loss is that of 0."""
    x = digit_images()
    net = ConvNet((1, 8, 8), width=8)
    assert not net(x[:3], torch.rand(3)).any()
    recipe = Recipe(steps=12, batch_size=32, learning_rate=1e-2, ema=0)
    fit = train.fit(fpfast.Score(net, fpfast.VP(), "noise"), x[100:], recipe, validation=x[:100])
    assert fit.history[-1].validation < 0.8 * 64
    with pytest.raises(ValueError, match=r"shape: expected \(C, H, W\), H and W even, got \(1, 7, 8\)"):
        ConvNet((1, 7, 8))


PROCESSES = """
import sys, torch, fpfast
from fpfast import train, data, processes
from fpfast.network import MLP
torch.manual_seed(0)
score = fpfast.Score(fpfast.fused.compile(MLP(2, (16, 16), potential=True), 2), fpfast.OU(), "potential")
recipe = train.Recipe(steps=20, batch_size=49, learning_rate=1e-3, regulariser="log_density", box=3.0, fraction=0.3)
fit = train.fit(score, data.DATA["blob"], recipe, every=5, validation=data.draw("blob", 64))
one = processes.join()
x, total = torch.arange(7.0)[:, None], 7
share = one.share(total)
whole = one.gather(x[share.start : share.stop], total)
if one.first:
    assert torch.equal(whole, x)
    torch.save({"weights": [p.detach() for p in score.net.net.parameters()], "history": list(map(tuple, fit.history))},
               sys.argv[1])
processes.leave()
"""


def test_processes_share_a_run(tmp_path):
    """Two processes: training as in one but for the order of sums; samples bit for bit."""
    script, outputs = tmp_path / "run.py", []
    script.write_text(PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    sampling = ["sample", "--samples", "1001", "--steps", "10", "--first-sample", "3", "--out"]
    for name, start in (("one", [sys.executable]), ("two", many)):
        subprocess.run([*start, str(script), str(tmp_path / f"{name}.pt")], check=True, env=environment)
        outputs.append(torch.load(tmp_path / f"{name}.pt", weights_only=True))
        subprocess.run([*start, "-m", "fpfast", *sampling, str(tmp_path / f"{name}.npz")], check=True, env=environment,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    for one, two in zip(outputs[0]["weights"], outputs[1]["weights"], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    for one, two in zip(outputs[0]["history"], outputs[1]["history"], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
