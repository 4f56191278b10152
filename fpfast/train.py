"""Training a score: denoising score matching with a Fokker-Planck regulariser.  OPTIMISERS, SCHEDULES, REGULARISERS

    fit = fpfast.train.fit(fpfast.Score(net, fpfast.VP(), "noise"), data, fpfast.train.Recipe(steps=20_000))
    fpfast.sample(fit.score, (1000, 2))

A run is a function of its recipe, data and first weights: batches, times, noise and probes are keyed by the seed and by
the step (fpfast/batches.py). So a run that goes on from a checkpoint ends with the bits of one that was never stopped
(on the CPU, with as many threads and processes), and processes that share batches differ from one in the order of sums
alone, but where a network or a regulariser looks at a batch as a whole (batch norm, "fp_diffusion") or draws (dropout).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fpfast import checkpoint, losses
from fpfast.batches import TIME_LAWS, Batches, Draw, checked, network_seed, seeds
from fpfast.divergence import ESTIMATORS
from fpfast.errors import as_path, bad, flag, instance, integer, key, real
from fpfast.fused import Fused
from fpfast.processes import Processes, join
from fpfast.sample import Bar
from fpfast.score import Score

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

# Of the learning rate at a share u in [0, 1] of the run.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "staircase": lambda u: 1.0 if u < 0.25 else 0.1 if u < 0.9 else 0.01,  # of Deveney et al. (arXiv 2311.15996)
}


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome of a run, beside data and first weights.

    steps, batch_size, seed; micro_batch: at most so many samples at a time, their gradients summed up.
    optimiser, learning_rate, weight_decay; schedule: of the learning rate, after ``warmup`` steps of linear growth;
    clip: the largest norm of the gradient, 0 for any. ema: decay of the weights' exponential average, at most
    (1 + n) / (10 + n) after n steps; 0 for none.
    weighting: lambda(t) of the denoising loss (``fpfast.losses.WEIGHTINGS``); time_law: a key of ``TIME_LAWS``.
    regulariser: a key of ``REGULARISERS`` or None, multiplied by ``weight``, weighted by ``residual_weighting`` in time
    (but "fp_diffusion", which has a weighting of its own); box: its points are uniform in [-box, box]^d, 0: they are
    the perturbed data; box_time_law: of their times, None: ``time_law``; fraction: of a batch's points that are used,
    the first ones; estimator, unbiased: as :func:`fpfast.losses.fp_regulariser` has them.

    Raises ValueError for what is out of range.
    """

    steps: int = 10_000
    batch_size: int = 512
    seed: int = 0
    micro_batch: int | None = None
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    clip: float = 1.0
    ema: float = 0.999
    weighting: str = "noise"
    time_law: str = "uniform"
    regulariser: str | None = None
    weight: float = 1.0
    residual_weighting: str = "noise"
    box: float = 0.0
    box_time_law: str | None = None
    estimator: str = "auto"
    unbiased: bool = True
    fraction: float = 1.0

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:  # plain numbers, which a checkpoint can hold
            object.__setattr__(self, name, value)

        for name, low in (("steps", 1), ("batch_size", 1), ("seed", 0), ("warmup", 0), ("micro_batch", 1)):
            if getattr(self, name) is not None or name != "micro_batch":
                keep(name, integer(name, getattr(self, name), low, 2**63 - 1))
        for name in ("learning_rate", "weight_decay", "clip", "weight", "box"):
            keep(name, real(name, getattr(self, name), "a finite number of at least 0", 0))
        keep("ema", real("ema", self.ema, "a number in [0, 1)", 0))
        keep("fraction", real("fraction", self.fraction, "a number in (0, 1]", math.ulp(0.0)))
        if self.ema >= 1:
            raise bad("ema", "a number in [0, 1)", self.ema)
        if self.fraction > 1:
            raise bad("fraction", "a number in (0, 1]", self.fraction)
        flag("unbiased", self.unbiased)
        tables: dict[str, Any] = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "time_law": TIME_LAWS}
        tables |= {"weighting": losses.WEIGHTINGS, "residual_weighting": losses.WEIGHTINGS}
        tables |= {"estimator": ("auto", *ESTIMATORS)}
        if self.regulariser is not None:
            tables["regulariser"] = REGULARISERS
        if self.box_time_law is not None:
            tables["box_time_law"] = TIME_LAWS
            if not self.box:
                raise bad("box", "a positive number beside box_time_law", self.box)
        for name, table in tables.items():
            key(name, getattr(self, name), table)
        if self.regulariser == "fp_diffusion":
            for name in ("estimator", "unbiased", "residual_weighting"):
                if getattr(self, name) != getattr(Recipe, name):
                    raise bad(name, "its default beside 'fp_diffusion', which has its own", getattr(self, name))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        grown = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        after = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * grown * SCHEDULES[self.schedule](after)

    def average(self, averages: Any, weights: Any, steps: Any) -> None:
        """Moves averages towards the weights; less of the first ones remains than ``ema`` alone would leave."""
        decay = min(self.ema, (1 + int(steps)) / (10 + int(steps))) if self.ema else 0.0
        torch._foreach_lerp_(averages, weights, 1 - decay)


class At(NamedTuple):
    """Where a regulariser is taken: points, times, the score there if it is known, and a seed for each."""

    x: Tensor
    t: Tensor
    value: Tensor | None
    seeds: Tensor


def _of_form(form: str) -> Callable[[Score, Recipe, At], Tensor]:
    def regulariser(score: Score, recipe: Recipe, at: At) -> Tensor:
        return losses.fp_regulariser(
            score,
            at.x,
            at.t,
            form=form,
            estimator=recipe.estimator,
            unbiased=recipe.unbiased,
            weighting=recipe.residual_weighting,
            seed=at.seeds,
            value=at.value if form == "score" and recipe.estimator in losses.WITH_VALUE else None,
        )

    return regulariser


def _fp_diffusion(score: Score, recipe: Recipe, at: At) -> Tensor:
    return losses.fp_diffusion(score, at.x, at.t, seed=at.seeds)


REGULARISERS: dict[str, Callable[[Score, Recipe, At], Tensor]] = {
    "log_density": _of_form("log_density"),
    "score": _of_form("score"),
    "fp_diffusion": _fp_diffusion,
}


class Record(NamedTuple):
    """Means over the steps since the last record, and the denoising loss of held-out data with averaged weights."""

    step: int
    dsm: float
    regulariser: float
    validation: float | None


class Fit(NamedTuple):
    """What a run ends with: the score with averaged weights (the last ones where ``ema`` is 0), and its records.

    Its network is compiled if that of the score which was trained is.
    """

    score: Score
    history: list[Record]


def terms(score: Score, recipe: Recipe, x0: Tensor, step: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """What data x0, the samples ``first`` ... of a step's batch, add to (denoising loss, regulariser); with graphs.

    Both are means over the whole batch: summed over its parts, they do not depend on how it was cut.
    """
    place = step * recipe.batch_size + first
    keys = seeds(recipe.seed, "data", place, len(x0))
    t = TIME_LAWS[recipe.time_law](score.sde, keys).to(x0.device)
    dsm, x, t, s = losses.dsm(score, x0, weighting=recipe.weighting, t=t, seed=keys, return_points=True)
    dsm = dsm * (len(x0) / recipe.batch_size)
    points = max(1, round(recipe.fraction * recipe.batch_size))  # of the whole batch
    count = min(points - first, len(x0))
    if recipe.regulariser is None or count <= 0:
        return dsm, dsm.new_zeros(())
    own = seeds(recipe.seed, "points", place, count)
    if recipe.box:
        x = losses.box((count, *x0.shape[1:]), recipe.box, seed=own).to(x0)
        law = TIME_LAWS[recipe.box_time_law or recipe.time_law]
        at = At(x, law(score.sde, own).to(x0.device), None, own)
    else:
        at = At(x[:count], t[:count], s[:count], own)
    return dsm, REGULARISERS[recipe.regulariser](score, recipe, at) * (count / points)


def fit(
    score: Score,
    data: Tensor | Draw,
    recipe: Recipe | None = None,
    *,
    validation: Tensor | None = None,
    every: int = 500,
    checkpoint_file: str | Path | None = None,
    resume: bool = False,
    log_dir: str | Path | None = None,
    progress: bool = False,
) -> Fit:
    """Trains the network of a score, in place.

    Args:
        score: its network is an ``nn.Module`` (or one that ``fpfast.fused.compile`` has recognised: exact residuals
            then come from the fused engine).
        data: a tensor (N, ...), taken in shuffled epochs, or a function (n, generator) -> n samples. They become
            float32, or float64 for a network of that.
        recipe: see :class:`Recipe`.
        validation: held-out data, (M, ...): its denoising loss is in the records.
        every: so many steps between records, validations, checkpoints. All are made before the first step too, so that
            what is wrong with them shows at once.
        checkpoint_file: a ``.pt`` file, replaced as a whole each time.
        resume: go on from ``checkpoint_file`` if it is there. Without it a file that is there is an error.
        log_dir: a folder for TensorBoard.
        progress: a progress bar on stderr.

    Under torchrun each process takes its share of every batch; gradients are summed over all.

    Raises ValueError for arguments that do not fit, also for a checkpoint of another recipe; RuntimeError when the loss
    is no longer finite; ModuleNotFoundError for ``log_dir`` without tensorboard.
    """
    recipe = Recipe() if recipe is None else recipe
    every, resume, progress = integer("every", every, 1), flag("resume", resume), flag("progress", progress)
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe: expected fpfast.train.Recipe(...), got {type(recipe).__name__}")
    module = score.module
    if not isinstance(module, nn.Module):
        raise TypeError(f"score: expected a network that is an nn.Module, got {type(module).__name__}")
    if score.sde.t_min >= score.sde.T:
        raise bad("score", f"an SDE with a T above t_min = {score.sde.t_min}", score.sde.T)
    if recipe.regulariser == "log_density" and score.predicts != "potential":
        raise bad("regulariser", "'score' for a network that is no potential", repr(recipe.regulariser))
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise bad("score", "a network with parameters that ask for gradients", "none")
    batches = Batches(data, recipe.batch_size, recipe.seed)
    validation = None if validation is None else checked("validation", validation)
    run = _Run(score, module, parameters, batches, recipe, validation, every)
    if recipe.batch_size < run.processes.count:
        raise bad("batch_size", f"a sample for each of the {run.processes.count} processes", recipe.batch_size)
    with _log(log_dir, run.processes) as log, _as_it_was(module, run.processes.device):
        run.begin(checkpoint_file, resume)
        run.go(checkpoint_file, log, progress)
    return Fit(run.averaged, run.history)


class _Run:
    def __init__(
        self,
        score: Score,
        module: nn.Module,
        parameters: list[nn.Parameter],
        batches: Batches,
        recipe: Recipe,
        validation: Tensor | None,
        every: int,
    ) -> None:
        self.score, self.module, self.parameters = score, module, parameters
        self.batches, self.recipe, self.validation, self.every = batches, recipe, validation, every
        self.dtype = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32  # of the state
        self.processes: Processes = join(parameters[0].device)
        self.processes.agree([*module.parameters(), *module.buffers()])
        self.optimiser = OPTIMISERS[recipe.optimiser](
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.ema = AveragedModel(module, multi_avg_fn=recipe.average)
        averaged = score.net.of(self.ema.module) if isinstance(score.net, Fused) else self.ema.module
        self.averaged = Score(averaged, score.sde, score.predicts, score.guidance)
        self.step, self.history = 0, list[Record]()

    @property
    def state(self) -> dict[str, Any]:
        return {"net": self.module, "ema": self.ema, "optimiser": self.optimiser}

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before."""
        score = {"sde": repr(self.score.sde), "predicts": self.score.predicts, "guidance": self.score.guidance}
        score |= {"network": " ".join(repr(self.module).split())}
        return {**asdict(self.recipe), **score, "data": self.batches.mark}

    def begin(self, path: str | Path | None, resume: bool) -> None:
        self.module.train()
        self.ema.module.eval().requires_grad_(False)
        if resume and path is None:
            raise bad("resume", "a checkpoint_file to go on from", "none")
        if path is not None and checkpoint.there(path, resume):
            self.step, history = checkpoint.load(path, self.identity, self.state)
            self.history = [Record(*record) for record in history]
        self.processes.wait()  # the first one is going to replace what the others have read

    def go(self, path: str | Path | None, log: Any, progress: bool) -> None:
        recipe, since = self.recipe, self.step
        sums = torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        if self.step == 0:
            self.record(sums, path, log)
        bar = Bar(total=recipe.steps, initial=self.step, disable=not (progress and self.processes.first), unit="step")
        with bar:
            while self.step < recipe.steps:
                sums += self.advance()
                bar.update()
                if self.step % self.every == 0 or self.step == recipe.steps:
                    self.record(sums / (self.step - since), path, log)
                    sums, since = torch.zeros_like(sums), self.step
                    bar.set_postfix(dsm=f"{self.history[-1].dsm:.4g}", refresh=False)

    def advance(self) -> Tensor:
        """One step. Returns what this process's share adds to (denoising loss, regulariser), float64."""
        recipe, sums = self.recipe, torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        _reseed(network_seed(recipe.seed, self.step), self.processes.device)
        self.optimiser.zero_grad(set_to_none=True)
        share = self.processes.share(recipe.batch_size)
        together = recipe.micro_batch or len(share)
        for first in range(share.start, share.stop, together):
            x0 = self.batches(self.step, first, min(together, share.stop - first))
            dsm, residual = terms(self.score, recipe, x0.to(self.processes.device, self.dtype), self.step, first)
            (dsm + recipe.weight * residual).backward()
            sums += torch.stack((dsm.detach(), residual.detach()))
        for p in self.parameters:  # all processes must have the same ones
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.processes.add(cast(Tensor, p.grad) for p in self.parameters)
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.optimiser.step()
        self.ema.update_parameters(self.module)
        self.step += 1
        return sums

    def record(self, means: Tensor, path: str | Path | None, log: Any) -> None:
        """``means``: this process's part of them."""
        self.processes.add([means])
        self.processes.agree([*self.module.buffers(), *self.ema.buffers()])  # such as means of the data in layers
        dsm, residual = means.tolist()
        broken = [name for name, p in self.module.named_parameters() if not bool(p.isfinite().all())]
        held_out = None if self.validation is None or broken else self.validate(self.validation)
        for name, value in (("loss", dsm + self.recipe.weight * residual), ("validation loss", held_out or 0.0)):
            if broken or not math.isfinite(value):
                got = f"{value}, and weights that are not: {broken[:3]}" if broken else value
                raise RuntimeError(
                    f"step {self.step}: expected a finite {name}, got {got}; a lower learning_rate helps"
                )
        if self.step:
            self.history.append(Record(self.step, dsm, residual, held_out))
        if not self.processes.first:
            return
        if log is not None and self.step:
            for name, value in self.history[-1]._asdict().items():
                if name != "step" and value is not None:
                    log.add_scalar(name, value, self.step)
        if path is not None:
            checkpoint.save(path, self.identity, self.step, self.state, self.history)

    @torch.no_grad()
    def validate(self, x0: Tensor) -> float:
        """The denoising loss at times and with noise that are the same at every validation."""
        keys, share = seeds(self.recipe.seed, "validation", 0, len(x0)), self.processes.share(len(x0))
        total = torch.zeros(1, dtype=torch.float64, device=self.processes.device)
        for start in range(share.start, share.stop, self.recipe.batch_size):
            part = slice(start, min(start + self.recipe.batch_size, share.stop))
            x = x0[part].to(self.processes.device, self.dtype)
            t = TIME_LAWS[self.recipe.time_law](self.score.sde, keys[part]).to(x.device)
            loss = losses.dsm(self.averaged, x, weighting=self.recipe.weighting, t=t, seed=keys[part])
            total += loss.double() * (len(x) / len(x0))
        self.processes.add([total])
        return float(total)


def _reseed(seed: int, device: torch.device) -> None:
    """torch.manual_seed, which takes 1 ms, much of a small network's step, where not only the CPU's is to be seeded."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextmanager
def _as_it_was(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Leaves torch's generators, and the modes of the network's parts, as they were."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _log(folder: str | Path | None, processes: Processes) -> Iterator[Any]:
    if folder is None or not processes.first:
        yield None
        return
    folder = as_path("log_dir", folder)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("log_dir: expected tensorboard, got none; pip install tensorboard") from error
    with SummaryWriter(folder) as log:
        yield log
