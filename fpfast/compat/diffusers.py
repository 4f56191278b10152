"""fpfast's solvers as a scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
from torch import Tensor

from fpfast import backends, ops
from fpfast import noise as noises
from fpfast.compat import levels as grids
from fpfast.compat.levels import LEVELS, Flow, Levels, Variance
from fpfast.compat.plan import PREDICTIONS, Plan, make_plan
from fpfast.compat.runs import Place, Runs
from fpfast.errors import bad, brief, dense, instance, integer, key, real, tensor, truth
from fpfast.reference import Key
from fpfast.solvers import SOLVERS

Generators = torch.Generator | Sequence[torch.Generator] | None

# What other schedulers' configurations may say that this one cannot do: the name, and the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "use_lu_lambdas": (False,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "timestep_type": ("discrete",),
    "snr_shift_scale": (1.0,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
REMEMBERED = 32  # plans
GRIDS = {f"use_{name}_sigmas": name for name in LEVELS}
FLAGS = (
    *("clip_sample", "rescale_betas_zero_snr", "set_alpha_to_one", "use_flow_sigmas", "use_dynamic_shifting"),
    *("shift_terminal", *GRIDS),
)


class FPFastScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler for any diffusers pipeline: every solver of ``fpfast.solvers.SOLVERS``, at any noise level.

        pipe.scheduler = FPFastScheduler.from_config(pipe.scheduler.config, solver="dpmpp_2m", noise=0.0)

    States are alpha x0 + std z with alpha^2 + std^2 = 1 (alpha = 1 - std for flow models), as the network takes them:
    so ``scale_model_input`` does nothing and ``init_noise_sigma`` is 1. Steps are integrated in float32, in one kernel
    a stage, with the noise of docs/noise.md under a seed drawn from ``generator``.

    Args:
        solver: a key of ``fpfast.solvers.SOLVERS``. "exponential" at noise 0 is DDIM and, in sigma, Euler's method;
            "ancestral" is DDPM; "heun" is Karras et al.'s.
        noise: lambda of the reverse process, 0 to 10^6; 0 is the probability-flow ODE. None: ``eta`` of each step,
            which pipelines set to 0 unless told otherwise (for solvers that keep nothing between steps; others need it
            here).
        flow_shift, shift: of flow models; see ``fpfast.compat.levels.shifted``.

    All other arguments mean what they mean in diffusers: the training schedule (``beta_schedule`` "linear",
    "scaled_linear", "squaredcos_cap_v2", or ``trained_betas``), ``prediction_type`` "epsilon", "sample", "v_prediction"
    or "flow_prediction", ``clip_sample``, how a run's timesteps are chosen and where it ends. Karras, exponential and
    Beta levels reach over all of the training's, as in diffusers' DPM-Solver; their timesteps are not rounded.

    Steps hold no position: it is found from the timestep, and what multistep and two-stage solvers keep belongs to the
    tensor that ``step`` returned. So threads may share a scheduler. A sample that was replaced between steps, as
    inpainting does, continues the last step that this thread made on a sample of its shape; where that was not
    the step before, a new run begins at its timestep.

    Raises ValueError for an argument out of range, and for configurations that ask for what is not here.
    """

    if TYPE_CHECKING:
        config: Any  # diffusers calls it a dict, but its keys are attributes

    _compatibles: ClassVar[list[str]] = [
        *(kind.name for kind in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
    ]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        solver: str = "dpmpp_2m",
        noise: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        final_sigmas_type: str | None = None,
        set_alpha_to_one: bool = True,
        use_flow_sigmas: bool = False,
        flow_shift: float | None = None,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
    ) -> None:
        key("prediction_type", prediction_type, PREDICTIONS)
        key("solver", solver, SOLVERS)
        key("timestep_spacing", timestep_spacing, ("linspace", "leading", "trailing"))
        key("time_shift_type", time_shift_type, ("exponential", "linear"))
        integer("steps_offset", steps_offset, 0, 10**7)
        for name in FLAGS:
            truth(name, self.config[name])
        _ = self._noise
        if final_sigmas_type is not None:
            key("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        if use_flow_sigmas and prediction_type != "flow_prediction":
            raise bad("prediction_type", "'flow_prediction' with use_flow_sigmas", repr(prediction_type))
        if clip_sample and prediction_type == "flow_prediction":
            raise bad("clip_sample", "False with flow_prediction", clip_sample)
        real("clip_sample_range", clip_sample_range, "a finite number that is not negative", low=0)
        if sum(bool(self.config[name]) for name in GRIDS) > 1:
            raise bad(", ".join(GRIDS), "at most one of them", "several")
        self.betas = grids.training_betas(self.config)
        self.alphas_cumprod = grids.cumulative(self.betas, rescale_betas_zero_snr)
        self.path: Variance | Flow
        if prediction_type == "flow_prediction":
            self.path = Flow(integer("num_train_timesteps", num_train_timesteps, 2))
        else:
            self.path = Variance(self.alphas_cumprod)
        self.init_noise_sigma = 1.0
        self.order = 1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._runs: Runs | None = None
        self._plans: dict[tuple[bytes, float], Plan] = {}
        self._begin: int | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the model that another scheduler's configuration describes.

        What that says of its own solver (``algorithm_type``, ``solver_order`` and so on) is replaced by ``solver`` and
        ``noise``. Raises ValueError where it asks for something else that is not here (see ``REFUSED``).
        """
        if config is not None:
            instance("config", config, Mapping, "a scheduler's configuration")
        known = dict(config or {})
        for name, harmless in REFUSED.items():
            value = known.get(name, harmless[0])
            if isinstance(value, Tensor | np.ndarray) or value not in harmless:
                raise bad(name, " or ".join(map(repr, harmless)), repr(value))
        if "shift" in known and "prediction_type" not in known:  # flow matching schedulers do not name it
            kwargs.setdefault("prediction_type", "flow_prediction")
        # Else what the other scheduler had by default would be replaced by what is default here.
        known.pop("_use_default_values", None)
        return super().from_config(known, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def begin_index(self) -> int | None:
        return self._begin

    @property
    def _noise(self) -> float | None:
        """The configured level, checked: a configuration may be changed later."""
        level = self.config.noise
        return None if level is None else real("noise", level, "a level from 0 to 10^6, or None", 0, 1e6)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where in ``timesteps`` a run begins whose timestep is there more than once (img2img pipelines call this)."""
        self._begin = integer("begin_index", begin_index, 0)
        if self._runs is not None:
            self._runs.forget()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Chooses the times of a run: a number of steps, or one's own timesteps or noise levels, descending.

        ``sigmas`` are std / alpha (std for flow models, to which the shift is then applied); a last level of 0 may be
        left out. ``mu`` is the logarithm of the shift where ``use_dynamic_shifting`` is on. Two-stage solvers have two
        timesteps a step; noise makes "heun" and "dpmpp_2m" evaluate at noisier times than asked for.

        Raises ValueError unless exactly one of the three is given (the number may repeat the length of the others).
        """
        given = [value for value in (timesteps, sigmas) if value is not None]
        if len(given) > 1 or (not given and num_inference_steps is None):
            raise bad("num_inference_steps, timesteps, sigmas", "one of them", f"{len(given)} sequences")
        if num_inference_steps is not None:
            num_inference_steps = integer("num_inference_steps", num_inference_steps, 1, 10**7)
        if device is not None:
            device = backends.usable("device", device)
        found = self._levels(num_inference_steps, timesteps, sigmas, mu)
        if given and num_inference_steps not in (None, len(found) - 1):
            raise bad("num_inference_steps", f"{len(found) - 1} as the sequence, or None", num_inference_steps)
        whole = self._plan(found, self._noise or 0.0)
        times = self.path.timestep(np.array([segment.level for segment in whole.segments]))
        exact = times.round()
        times = np.where(np.abs(times - exact) < 1e-6, exact, times)
        integral = isinstance(self.path, Variance) and bool((times == exact).all())
        self.timesteps = torch.from_numpy(times).to(device, torch.int64 if integral else torch.float32)
        self.sigmas = torch.from_numpy(found).float()
        self.num_inference_steps = len(found) - 1
        self.order = -(-len(whole.segments) // self.num_inference_steps)
        self._begin = None
        self._runs = Runs(whole, self.timesteps, self._plan)

    def _levels(
        self,
        steps: int | None,
        timesteps: Sequence[float] | Tensor | None,
        sigmas: Sequence[float] | Tensor | None,
        mu: float | None,
    ) -> Levels:
        config, count = self.config, int(self.config.num_train_timesteps)
        named = next((grid for name, grid in GRIDS.items() if config[name]), None)
        if named is not None and (timesteps is not None or sigmas is not None):
            raise bad("timesteps, sigmas", f"None, as use_{named}_sigmas chooses them", "a sequence")
        if sigmas is not None:
            found = grids.numbers("sigmas", sigmas)
            if found[-1] < 0 or found[0] <= 0:
                raise bad("sigmas", "levels that are not negative, the first positive", repr(sigmas))
        elif timesteps is not None:
            found = self.path.level(grids.numbers("timesteps", timesteps))
        elif isinstance(self.path, Flow) and config.use_flow_sigmas:
            assert steps is not None
            found = np.linspace(1, 1 / count, steps + 1)[:-1]  # as diffusers' UniPC has it
        elif isinstance(self.path, Flow):
            assert steps is not None
            # Shifted dynamically or not, diffusers begins with the training's levels, which are shifted unless it is.
            least = (
                1 / count if config.use_dynamic_shifting else float(grids.shifted(np.array(1 / count), self._shift(mu)))
            )
            found = np.linspace(1, least, steps)
        else:
            assert steps is not None
            found = self.path.level(grids.spaced(config.timestep_spacing, steps, count, int(config.steps_offset)))
        if isinstance(self.path, Flow):
            if sigmas is not None and found[-1] == 0:
                found = found[:-1]
            if timesteps is None:
                found = grids.shifted(found, self._shift(mu))
                if config.shift_terminal:
                    found = self._ending(found)
            if found[0] > 1:
                raise bad("sigmas", "levels of at most 1 for a flow model", found[0])
        elif mu is not None:
            raise bad("mu", "None for a model without flow_prediction", mu)
        if named is not None:
            most, least = (found[0], found[-1]) if isinstance(self.path, Flow) else self.path.sigmas[[-1, 0]]
            found = LEVELS[named](float(most), float(least), len(found))
        if found[-1] <= 0:
            return found
        zero = config.final_sigmas_type == "zero" if config.final_sigmas_type else config.set_alpha_to_one
        if zero or isinstance(self.path, Flow):
            return np.append(found, 0.0)
        # Where that is the last level already, the last step does nothing (but there is one, as in diffusers).
        return np.append(found, min(float(self.path.sigmas[0]), found[-1] * (1 - 1e-9)))

    def _shift(self, mu: float | None) -> float:
        """The shift of a flow model's levels."""
        if not self.config.use_dynamic_shifting:
            if mu is not None:
                raise bad("mu", "None without use_dynamic_shifting", mu)
            shift = self.config.flow_shift if self.config.flow_shift is not None else self.config.shift
        elif mu is None:
            raise bad("mu", "a number, as use_dynamic_shifting is on", mu)
        else:
            mu = real("mu", mu)
            shift = np.exp(mu) if self.config.time_shift_type == "exponential" else mu
        shift = real("shift", shift, "a positive number")
        if not shift > 0:
            raise bad("shift", "a positive number", shift)
        return shift

    def _ending(self, levels: Levels) -> Levels:
        last = real("shift_terminal", self.config.shift_terminal, "a level in (0, 1)")
        if not 0 < last < 1 or not levels[-1] < 1:
            raise bad("shift_terminal", "a level in (0, 1), and two steps or more", last)
        return grids.ending_at(levels, last)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample: states are as the network takes them."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_noise: float = 1.0,
        eta: float | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From the network's output at (sample, timestep) to the sample at the next timestep.

        Args:
            timestep: one of ``timesteps``; or one for each sample, for solvers that keep nothing from step to step.
            s_churn: 0. Churn is set by ``noise`` of the scheduler, since it changes where the network is evaluated.
            s_noise: multiplies the noise that is added.
            eta: the noise level, where the scheduler has none of its own; else it must agree with that.
            generator: of the noise, one or one for each sample; default: torch's.

        Raises ValueError for a timestep that is not of this run, or arguments that do not agree.
        """
        runs = self._runs
        if runs is None:
            raise bad("timestep", "set_timesteps to be called before", timestep)
        if real("s_churn", s_churn) != 0:
            raise bad("s_churn", "0 (say FPFastScheduler(..., noise=...), which chooses the times too)", s_churn)
        s_noise = real("s_noise", s_noise, "a finite number that is not negative", low=0)
        return_dict = truth("return_dict", return_dict)
        if not dense(sample) or not sample.is_floating_point():
            raise bad("sample", "a floating-point tensor (samples, ...)", brief(sample))
        if not dense(model_output) or model_output.shape != sample.shape:
            raise bad("model_output", f"shape {tuple(sample.shape)} as the sample", brief(model_output))
        positions = runs.find(timestep, sample, self._begin or 0)
        place, slots = self._place(runs, positions, sample, eta)
        plan = place.plan
        state = sample.contiguous() if sample.dtype == torch.float64 else sample.float().contiguous()
        if model_output.dtype not in (*ops.OPERAND_DTYPES, state.dtype) or model_output.device != sample.device:
            got = f"{model_output.dtype} on {model_output.device}"
            raise bad("model_output", f"16 bits or {state.dtype} on {sample.device}", got)
        backend = backends.pick("auto", state.device.type, state.dtype)
        here = [plan.segments[place.segment]] if len(positions) == 1 else [plan.segments[k] for k in positions]
        segment, rows, output = here[0], plan.rows(state.device, state.dtype), model_output.contiguous()
        if self.config.clip_sample:
            output = self._clipped(state, output, [each.level for each in here])
        slots = {**slots, segment.at: state, segment.output: output}
        seeds = _seeds(generator, state)
        for number, move in enumerate(segment.moves):
            row = rows[place.segment][number]
            if len(here) > 1:
                row = torch.stack([rows[k][number] for k in positions])
            if s_noise != 1:
                row = row * row.new_tensor([1, 1, 1, 1, s_noise])
            noisy = any(each.moves[number].row[4] != 0 for each in here)
            operands = [slots[name] for name in move.of]
            key = Key(seeds(), 0, move.stream, number) if noisy else None
            out = ops.combined(operands, row, key, backend)
            slots.update({to: slots[slot] for slot, to in move.keep} | {move.to: out})
        result = slots[segment.next].to(sample.dtype)
        runs.keep(place, slots, result, (sample, model_output))
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _place(
        self, runs: Runs, positions: list[int], sample: Tensor, eta: float | None
    ) -> tuple[Place, dict[str, Tensor]]:
        """The plan at the noise level asked for, where the sample is in it, and what its run kept."""
        plan, own, solver = runs.whole, self._noise, self.config.solver
        if eta is not None:
            eta = real("eta", eta, "a level from 0 to 10^6, or None", 0, 1e6)
        if eta is not None and eta != (own or 0.0):
            if own is not None:
                said = f"None or {own}, the scheduler's noise (pipelines say 0 unless given an eta: give them {own})"
                raise bad("eta", said, eta)
            plan = runs.at(eta)
            if not plan.stateless or [s.level for s in plan.segments] != [s.level for s in runs.whole.segments]:
                raise bad("eta", f"None with solver {solver!r} (say FPFastScheduler(..., noise={eta}))", eta)
        if plan.stateless:
            return Place(plan, 0, positions[0]), {}
        if len(positions) > 1:
            raise bad("timestep", f"one for all samples with solver {solver!r}, which keeps something", positions)
        return runs.resume(positions[0], sample)

    def _clipped(self, state: Tensor, output: Tensor, levels: list[float]) -> Tensor:
        """The denoiser, kept within clip_sample_range."""
        alpha, std = map(torch.from_numpy, self.path.marginal(np.array(levels)))
        row = torch.zeros(len(levels), 5, dtype=torch.float64)
        row[:, 0], row[:, 1] = PREDICTIONS[self.config.prediction_type](alpha, std)
        data = ops.combine(state, [output], row.to(state.device, state.dtype).squeeze(0))
        most = float(self.config.clip_sample_range)
        return data.clamp(-most, most)

    def _plan(self, levels: Levels, noise: float) -> Plan:
        """Remembered, as a pipeline asks for the same one in each call."""
        wanted = levels.tobytes(), noise
        if wanted not in self._plans:
            if len(self._plans) >= REMEMBERED:
                self._plans.clear()
            predicts = "sample" if self.config.clip_sample else self.config.prediction_type
            self._plans[wanted] = make_plan(self.path, predicts, self.config.solver, levels, noise)
        return self._plans[wanted]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + std z at a timestep for each sample (or one for all)."""
        _check_pair("original_samples", original_samples, noise)
        alpha, std = self._marginal(timesteps, original_samples)
        return alpha * original_samples + std * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as flow models' pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What "v_prediction" (alpha z - std x0) or "flow_prediction" (z - x0) should be, for training."""
        _check_pair("sample", sample, noise)
        if isinstance(self.path, Flow):
            return noise - sample
        alpha, std = self._marginal(timesteps, sample)
        return alpha * noise - std * sample

    def _marginal(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        given = tensor("timesteps", timesteps, "a number or a tensor of numbers", dtype=torch.float64)
        values = np.atleast_1d(given.detach().cpu().numpy())
        if values.shape not in ((1,), (len(x),)):
            raise bad("timesteps", f"one, or one for each of {len(x)} samples", values.shape)
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, std = self.path.marginal(self.path.level(values))
        first, second = (torch.from_numpy(c).to(x.device, x.dtype).reshape(shape) for c in (alpha, std))
        return first, second


def _check_pair(name: str, x: Any, noise: Any) -> None:
    """Raises ValueError unless the two, the first of which is called ``name``, can be added."""
    if not dense(x) or not x.is_floating_point():
        raise bad(name, "a floating-point tensor (samples, ...)", brief(x))
    fits = dense(noise) and noise.is_floating_point() and noise.device == x.device
    sizes = zip(x.shape[::-1], noise.shape[::-1], strict=False) if fits else ()
    if not fits or not all(a == b or 1 in (a, b) for a, b in sizes):
        raise bad("noise", f"a floating-point tensor that fits shape {tuple(x.shape)} on {x.device}", brief(noise))


def _seeds(generator: Generators, x: Tensor) -> Any:
    """A function that draws the seed of each noise: one, or one for each sample."""

    def draw() -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return noises.seed_tensor(generator, len(x), x.device)
        several = isinstance(generator, Sequence) and all(isinstance(one, torch.Generator) for one in generator)
        if not several or len(generator) != len(x):
            found = f"{len(generator)} generators" if several else repr(generator)
            raise bad("generator", f"one, or one for each of {len(x)} samples", found)
        return torch.stack([noises.seed_tensor(one, 1, x.device) for one in generator])

    return draw
