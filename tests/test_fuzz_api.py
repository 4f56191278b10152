"""As test_fuzz.py, of the rest: drop-ins, training, files, SDEs, bounds, and what solvers are written with.

Long runs: pytest tests/test_fuzz_api.py --hypothesis-profile=long, and pytest -m slow tests/test_fuzz_api.py.
"""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import FIELD, SDES, Case, Image, calls, choice, complaint, complaints, network, scores, tensors
from torch import nn

import fpfast
from fpfast import data, losses, shards, solvers, train
from fpfast.batches import TIME_LAWS
from fpfast.compat import edm, k_diffusion, score_sde
from fpfast.likelihood import Likelihood

HERE = importlib.util.find_spec("diffusers") is not None
needs_diffusers = pytest.mark.skipif(not HERE, reason="diffusers is not installed (pip install 'fpfast[test]')")


def in_folder(call: Callable[..., Any]) -> Callable[..., Any]:
    """With a working directory of its own, in which there are some files."""

    @functools.wraps(call)
    def inside(**arguments: Any) -> Any:
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                return call(**arguments)
            finally:
                os.chdir(before)

    return inside


def mostly(right: Any, *others: Any) -> st.SearchStrategy[Any]:
    """What is right four times of five, so that calls come to an end; else one of others."""
    return st.integers(0, 4).flatmap(lambda k: choice(*others) if k == 4 else right)


# Drop-ins ------------------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """Has levels of its own, as networks of Karras et al. do, and takes what there is."""

    sigma_min, sigma_max = 0.01, 50.0

    def forward(self, state, sigma, *labels, **extra):
        return state / (1 + sigma.reshape(-1, *[1] * (state.ndim - 1)) ** 2)

    def round_sigma(self, sigma):
        return (sigma * 100).round() / 100


def denoiser(state, sigma, *labels, **extra):
    return 0.9 * state


def changes_its_input(state, sigma, *labels, **extra):
    return state.mul_(0.5)


STATES = tensors(3, 2, dtypes=(torch.float32, torch.float64, torch.float16))
NOISES = mostly(st.just(lambda *given: torch.randn(3, 2)), lambda *given: torch.zeros(2), lambda *given: None)
LEVELS = st.lists(st.floats(1e-3, 80), min_size=1, max_size=4, unique=True)
CHURNING = {"s_churn": st.floats(-1, 50), "s_tmin": st.floats(0, 1), "s_tmax": st.floats(0.5, 100)}
KARRAS = {
    "model": mostly(
        choice(denoiser, Denoiser()), lambda *given, **extra: None, lambda state, *given, **extra: state[:1]
    ),
    "x": STATES,
    "sigmas": st.one_of(
        LEVELS.map(lambda levels: torch.tensor([*sorted(levels, reverse=True), 0.0])),
        LEVELS.map(lambda levels: torch.tensor(sorted(levels, reverse=True), dtype=torch.float64)),
        st.lists(choice(0.0, 1.0, 1.0, 10.0), max_size=4).map(torch.tensor),
        choice(torch.tensor([10.0, 1.0, 0.1, 0.0]), torch.tensor([80.0, 5, 0.1], dtype=torch.float64)),
        choice(torch.tensor([3, 2, 1]), torch.tensor([1.0, 1e-3, 1e-5]), torch.tensor([5.0, 1.0, 0.0]).half()),
    ),
    "extra_args": choice(None, {}, {"seed": 3}, {"seed": [1, 2, 3]}, {"seed": "x"}, {1: 1}),
    "callback": choice(None, lambda told: None),
    "disable": choice(None, True, False, 1),
    **CHURNING,
    "s_noise": st.floats(-1, 2),
    "eta": st.floats(0, 2),
    "noise_sampler": NOISES,
    "solver_type": choice("midpoint", "heun"),
    "r": st.floats(0.1, 0.9),
}
ALL = "extra_args callback disable"
CHURNED = f"{ALL} s_churn s_tmin s_tmax s_noise"
NOISY = f"{ALL} eta s_noise noise_sampler"


class VPSDE:
    """Named as score_sde's are, and with what they have."""

    N, beta_0, beta_1 = 25, 0.1, 20.0
    sqrt_1m_alphas_cumprod = torch.linspace(0.1, 0.9, 25)


class subVPSDE(VPSDE):
    pass


class VESDE:
    N, sigma_min, sigma_max = 5, 0.01, 20.0


def changed(kind: type, **fields: Any) -> Any:
    made = kind()
    vars(made).update(fields)
    return made


def sampled(make: Callable[..., Any]) -> Callable[..., Any]:
    """What a maker of samplers returns, called."""

    def call(model: Any, z: Any = None, **arguments: Any) -> Any:
        sampler = make(**arguments)
        return sampler(model) if z is None else sampler(model, z)

    return call


def configured(sde: Any, shape: Any, inverse_scaler: Any, eps: Any, config: Any = None, **chosen: Any) -> Any:
    sampling = {"method": "pc", "predictor": "euler_maruyama", "corrector": "none", "snr": 0.16, "n_steps_each": 1}
    sampling |= {"probability_flow": False, "noise_removal": True}
    if config is None:
        config = SimpleNamespace(
            sampling=SimpleNamespace(**{name: chosen.get(name, value) for name, value in sampling.items()}),
            training=SimpleNamespace(continuous=chosen.get("continuous", True)),
            device=chosen.get("device", "cpu"),
        )
    return score_sde.get_sampling_fn(config, sde, shape, inverse_scaler, eps)


def coarse_ode_sampler(rtol: Any = 1e-3, atol: Any = 1e-3, device: Any = "cpu", **arguments: Any) -> Any:
    """Of tolerances at which a network in float32 is not at work for hours."""
    rtol, atol = (1e-3 if isinstance(tol, float) and 0 <= tol < 1e-4 else tol for tol in (rtol, atol))
    return score_sde.get_ode_sampler(rtol=rtol, atol=atol, device=device, **arguments)


SONG = {
    "sde": mostly(
        st.builds(changed, choice(VPSDE, subVPSDE, VESDE)),
        *(changed(VPSDE, N=n) for n in (2, 3, 1, "x", None, 2.5)),
        *(changed(subVPSDE, beta_0=beta) for beta in (None, "x", -1.0, numpy.float64(0.2), 1e308)),
        *(changed(VPSDE, sqrt_1m_alphas_cumprod=stds) for stds in (None, numpy.ones(25), torch.ones(2), "x")),
        *(changed(VESDE, sigma_max=sigma) for sigma in (0.001, 1e308, torch.tensor(10.0))),
    ),
    "shape": mostly(choice((3, 2), [3, 2]), (1, 1), (2, 1, 2, 2), (4,), (0, 2)),
    "inverse_scaler": choice(lambda x: x, lambda x: (x + 1) / 2),
    "eps": mostly(choice(1e-3, 1e-5, 0.5), 1.0, 1e-30),
    "model": mostly(choice(denoiser, Denoiser()), lambda x, labels: None, lambda x, labels: x[:1]),
    "predictor": mostly(st.sampled_from(sorted(score_sde.PREDICTORS)), None, "heun"),
    "corrector": choice(None, *score_sde.CORRECTORS),
    "snr": st.floats(0, 1),
    "n_steps": st.integers(1, 3),
    "n_steps_each": st.integers(1, 3),
    "probability_flow": st.booleans(),
    "continuous": st.booleans(),
    "denoise": st.booleans(),
    "noise_removal": st.booleans(),
    "device": st.just("cpu"),
    "method": choice("pc", "ode", "PC"),
}
ODE = {**SONG, "z": tensors(3, 2), "method": choice("RK45", "RK23", "BDF")}


def scheduler(**arguments: Any) -> Any:
    from fpfast.compat.diffusers import FPFastScheduler

    return FPFastScheduler(**arguments)


def from_config(config: Any = None, **arguments: Any) -> Any:
    from fpfast.compat.diffusers import FPFastScheduler

    return FPFastScheduler.from_config(config, **arguments)


def timesteps_set(scheduler: Any, chosen: Any, **arguments: Any) -> Any:
    made = from_config(scheduler)
    made.set_timesteps(**{**chosen, **arguments})
    return made.timesteps, made.sigmas


def stepped(scheduler: Any, count: int, place: int, timestep: Any = None, begin: Any = None, **arguments: Any) -> Any:
    made = from_config(scheduler)
    made.set_timesteps(count)
    if begin is not None:
        made.set_begin_index(begin)
    found = made.step(
        timestep=made.timesteps[place % len(made.timesteps)] if timestep is None else timestep, **arguments
    )
    return tuple(found) if isinstance(found, tuple) else (found.prev_sample,)


def by_scheduler(name: str) -> Callable[..., Any]:
    return lambda scheduler, **arguments: getattr(from_config(scheduler), name)(**arguments)


CONFIGS = {
    "num_train_timesteps": choice(2, 10, 1000),
    "beta_start": choice(1e-4, 0.01),
    "beta_end": choice(0.02, 0.5),
    "beta_schedule": choice("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": st.one_of(st.none(), choice([0.1, 0.2], numpy.linspace(0.1, 0.5, 10))),
    "prediction_type": choice("epsilon", "sample", "v_prediction", "flow_prediction"),
    "solver": st.sampled_from(sorted(fpfast.SOLVERS)),
    "noise": st.one_of(st.none(), st.floats(0, 2)),
    "clip_sample": st.booleans(),
    "clip_sample_range": st.floats(0, 2) | st.just(2**64),
    "timestep_spacing": choice("linspace", "leading", "trailing"),
    "steps_offset": choice(0, 1),
    **{name: st.booleans() for name in ("rescale_betas_zero_snr", "set_alpha_to_one", "use_flow_sigmas")},
    **{name: st.booleans() for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")},
    "use_dynamic_shifting": st.booleans(),
    "final_sigmas_type": choice(None, "zero", "sigma_min"),
    "flow_shift": st.one_of(st.none(), st.floats(0.1, 5)),
    "shift": st.floats(0.1, 5),
    "time_shift_type": choice("exponential", "linear"),
    "shift_terminal": st.one_of(st.none(), st.floats(0.01, 0.9)),
}
ITS = " ".join(CONFIGS)
SCHEDULERS = choice(
    *({"solver": name} for name in fpfast.SOLVERS if name != "pc"),
    *({"solver": name, "prediction_type": "flow_prediction"} for name in ("euler_maruyama", "heun", "dpmpp_2m")),
    *({"solver": name, "noise": 0.5} for name in ("euler_maruyama", "heun", "dpmpp_2m_sde", "ancestral")),
    {"solver": "exponential", "noise": 0.5, "clip_sample": True},
    {"solver": "pc", "noise": 1.0, "prediction_type": "v_prediction"},
    {"prediction_type": "flow_prediction", "use_dynamic_shifting": True},
    {"prediction_type": "flow_prediction", "shift_terminal": 0.1, "use_karras_sigmas": True},
    {"num_train_timesteps": 10, "use_beta_sigmas": True, "final_sigmas_type": "sigma_min"},
)
SAMPLES = tensors(3, 2, dtypes=(torch.float32, torch.float64, torch.float16))
LABELS = st.one_of(choice(0, 5, 999, 1000), st.lists(st.integers(0, 999), min_size=3, max_size=3).map(torch.tensor))
DESCENDING = st.lists(st.floats(0.5, 999), min_size=1, max_size=5, unique=True).map(
    lambda numbers: torch.tensor(sorted(numbers, reverse=True))
)
WAYS = {
    "num_inference_steps": st.integers(1, 8),
    "timesteps": st.one_of(choice([900, 500, 100], (999.0, 3.5), numpy.array([5, 2])), DESCENDING),
    "sigmas": st.one_of(choice([10.0, 1.0, 0.1, 0.0], (0.9, 0.5)), DESCENDING.map(lambda x: x / 1000)),
}
STEP = {
    "scheduler": SCHEDULERS,
    "device": choice(None, "cpu"),
    **WAYS,
    "chosen": st.one_of(*(st.fixed_dictionaries({name: way}) for name, way in WAYS.items())),
    "mu": st.floats(-1, 2),
    "model_output": SAMPLES,
    "sample": SAMPLES,
    "timestep": LABELS,
    "begin": st.integers(0, 3),
    "s_churn": choice(0.0, 0, 1.0),
    "s_noise": st.floats(0, 2),
    "eta": st.floats(0, 2),
    "generator": choice(None, torch.Generator(), [torch.Generator() for _ in range(3)]),
    "return_dict": st.booleans(),
}
FORWARD = {
    "scheduler": SCHEDULERS,
    "original_samples": SAMPLES,
    "sample": SAMPLES,
    "noise": SAMPLES,
    "timesteps": LABELS,
}

# Training ------------------------------------------------------------------------------------------------------------

RECIPE = {
    "steps": st.integers(1, 2),
    "batch_size": st.integers(1, 6),
    "seed": st.integers(0, 2**63 - 1),
    "micro_batch": st.one_of(st.none(), st.integers(1, 4)),
    "optimiser": st.sampled_from(sorted(train.OPTIMISERS)),
    "learning_rate": st.floats(0, 1),
    "weight_decay": st.floats(0, 1),
    "schedule": st.sampled_from(sorted(train.SCHEDULES)),
    "warmup": st.integers(0, 3),
    "clip": st.floats(0, 2),
    "ema": st.floats(0, 0.999),
    "weighting": st.sampled_from(sorted(losses.WEIGHTINGS)),
    "time_law": st.sampled_from(sorted(TIME_LAWS)),
    "regulariser": st.one_of(st.none(), st.sampled_from(sorted(train.REGULARISERS))),
    "weight": st.floats(0, 2),
    "residual_weighting": st.sampled_from(sorted(losses.WEIGHTINGS)),
    "box": st.floats(0, 3),
    "box_time_law": st.one_of(st.none(), st.sampled_from(sorted(TIME_LAWS))),
    "estimator": choice("auto", *fpfast.ESTIMATORS),
    "unbiased": st.booleans(),
    "fraction": st.floats(0.01, 1),
}


@in_folder
def fitted(score: Any, data: Any, recipe: Any, **arguments: Any) -> Any:
    """None would be a recipe of many steps."""
    found = train.fit(score, data, train.Recipe(steps=1) if recipe is None else recipe, **arguments)
    return tuple(torch.tensor([record.dsm, record.regulariser]) for record in found.history)


@st.composite
def recipes(draw):
    """Those that are right, of one or two steps."""
    some = draw(st.lists(st.sampled_from(sorted(RECIPE)), unique=True, max_size=4))
    chosen = {"steps": 2, "batch_size": 4, **{name: draw(RECIPE[name]) for name in some}}
    try:
        return train.Recipe(**chosen)
    except ValueError:
        return train.Recipe(steps=1, batch_size=3)


def trainable(potential: bool, sde: fpfast.sde.SDE) -> fpfast.Score:
    return fpfast.Score(network(potential, "silu"), sde, "potential" if potential else "noise")


TRAINABLE = st.builds(trainable, st.booleans(), st.sampled_from(SDES))
LEARNING = st.integers(0, 4).flatmap(lambda k: scores() if k == 4 else TRAINABLE)
DRAWN = choice(
    data.DATA["blob"],
    data.DATA["digits"],
    lambda n, generator: torch.zeros(n + 1, 2),
    lambda n, generator: None,
    lambda n, generator: torch.zeros(n, 2, dtype=torch.int64),
)

# Files ---------------------------------------------------------------------------------------------------------------


@in_folder
def to_folder(score: Any, shape: Any, folder: Any, **options: Any) -> Any:
    shards.sample_to_folder(score, shape, folder, **options)
    found = shards.sample_to_folder(score, shape, folder, **options)
    assert found.made == 0 or not isinstance(score.module, nn.Module)
    return tuple(shards.read(folder))


@in_folder
def read(folder: Any, manifest: Any = None) -> Any:
    """Of a run, whose manifest may be another one."""
    shards.sample_to_folder(trainable(False, fpfast.VP()), (3, 2), "run", steps=1, shard_samples=2)
    if manifest is not None:
        Path("run/manifest.json").write_text(manifest)
    return tuple(shards.read(folder))


@in_folder
def written(path: Any, score: Any) -> Any:
    fpfast.model.write(path, score)
    return fpfast.model.load(path)


@in_folder
def loaded(path: Any, cut: int = 0) -> Any:
    """Of a file whose end may be missing."""
    fpfast.model.write("x.safetensors", trainable(False, fpfast.VP()))
    content = Path("x.safetensors").read_bytes()
    Path("x.safetensors").write_bytes(content[: len(content) - cut])
    return fpfast.model.load(path)


@in_folder
def data_loaded(path: Any, holds: Any) -> Any:
    torch.save(holds, "x.pt")
    if isinstance(holds, torch.Tensor) and holds.layout == torch.strided and not holds.is_meta:
        numpy.save("x.npy", holds.detach().numpy())
    return data.load(path)


NAMES = choice("a", "a/b", ".", "", "x.pt", "x.npy", "x.npz", "x.safetensors", "a/x.safetensors", "nul\0", b"a", 3)
MANIFESTS = [
    *("", "{}", "[]", "null", '{"complete": true}', '{"complete": 1, "shards": [], "run": {"shape": 3}}'),
    *('{"complete": true, "shards": [3], "run": {"shape": [3, 2]}}', '{"complete": true, "shards": {}, "run": []}'),
    '{"complete": true, "shards": [{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}], "run": {"shape": [3, 2]}}',
    '{"complete": true, "shards": [{"a": "x", "b": 0, "c": "x", "d": 0, "e": ""}], "run": {"shape": [3, 2]}}',
    '{"complete": true, "shards": [{"a": "x", "b": 0, "c": 3, "d": 0, "e": ""}], "run": {"shape": [3, 2]}}',
]
SOME_POTENTIAL = st.builds(trainable, st.just(True), st.sampled_from(SDES))

# SDEs, bounds, tables ------------------------------------------------------------------------------------------------


def of_sde(name: str) -> Callable[..., Any]:
    return lambda sde, **arguments: getattr(sde, name)(**arguments)


def in_time(name: str) -> Callable[..., Any]:
    """Nothing is said of times beyond the ends, where a root may be that of a negative number."""

    def call(sde: Any, t: Any, **arguments: Any) -> Any:
        found, times = getattr(sde, name)(t=t, **arguments), torch.as_tensor(t, dtype=torch.float64)
        return found if bool(((times >= 0) & (times <= sde.T)).all()) else None

    return call


SHARE = st.floats(0, 1)  # of a tenth, which is in the time of every SDE here
IN_TIME = st.one_of(
    SHARE.map(lambda u: u * 0.1), st.lists(SHARE, min_size=3, max_size=3).map(lambda u: torch.tensor(u) / 10)
)
PRIOR = "seed first_sample device dtype backend"


def likelihood(value: Any, error: Any, latent: Any) -> Likelihood:
    return Likelihood(value, error, "exact", 3, latent)


def row(like: Any, coefficients: Any, z: Any = 0.0) -> Any:
    given = coefficients if isinstance(coefficients, list | tuple) else [coefficients]
    return solvers.make_row(like, *given, z=z)


def table(rows: Any, moments: Any, stage: Any, skip: Any = None) -> Any:
    made = solvers.make_table((stage, rows, moments), skip=skip)
    return made.coef, made.times


MOMENTS = st.builds(lambda t: solvers.Moments(t, trainable(False, fpfast.VP())), tensors(3, extreme=False))
LINES = tensors(3, dtypes=(torch.float64,))

CASES = {
    "sample_euler": Case(k_diffusion.sample_euler, "model x sigmas", CHURNED, parts="seed", finite=True, **KARRAS),
    "sample_heun": Case(k_diffusion.sample_heun, "model x sigmas", CHURNED, parts="seed", finite=True, **KARRAS),
    "sample_euler_ancestral": Case(
        k_diffusion.sample_euler_ancestral, "model x sigmas", NOISY, parts="seed", finite=True, **KARRAS
    ),
    "sample_dpmpp_2m": Case(k_diffusion.sample_dpmpp_2m, "model x sigmas", ALL, finite=True, **KARRAS),
    "sample_dpmpp_2m_sde": Case(
        k_diffusion.sample_dpmpp_2m_sde, "model x sigmas", f"{NOISY} solver_type", parts="seed", finite=True, **KARRAS
    ),
    "sample_dpmpp_sde": Case(
        k_diffusion.sample_dpmpp_sde, "model x sigmas", f"{NOISY} r", parts="seed", finite=True, **KARRAS
    ),
    "edm_sampler": Case(
        edm.edm_sampler,
        "net latents",
        "class_labels randn_like num_steps sigma_min sigma_max rho S_churn S_min S_max S_noise",
        finite=True,
        net=mostly(choice(denoiser, Denoiser()), changes_its_input, lambda x, *given: x[:1]),
        latents=STATES,
        class_labels=choice(None, torch.arange(3)),
        randn_like=mostly(choice(torch.randn_like, torch.zeros_like), lambda x: x[:1]),
        num_steps=st.integers(1, 5),
        sigma_min=st.floats(1e-3, 1),
        sigma_max=st.floats(1, 80),
        rho=st.floats(1, 10),
        S_churn=CHURNING["s_churn"],
        S_min=CHURNING["s_tmin"],
        S_max=CHURNING["s_tmax"],
        S_noise=st.floats(0, 2),
    ),
    "get_sampling_fn": Case(
        sampled(configured),
        "model sde shape inverse_scaler eps",
        "config method predictor corrector snr n_steps_each probability_flow noise_removal continuous device",
        parts="n_steps denoise VE",
        config=choice(None, SimpleNamespace(), SimpleNamespace(sampling=None)),
        **SONG,
    ),
    "get_pc_sampler": Case(
        sampled(score_sde.get_pc_sampler),
        "model sde shape predictor corrector inverse_scaler snr device",
        "n_steps probability_flow continuous denoise eps",
        parts="VE",
        **SONG,
    ),
    "get_ode_sampler": Case(
        sampled(coarse_ode_sampler),
        "model sde shape inverse_scaler",
        "denoise rtol atol method eps device continuous z",
        parts="VE",
        **ODE,
    ),
    "Recipe": Case(train.Recipe, "", " ".join(RECIPE), **RECIPE),
    "fit": Case(
        fitted,
        "score data recipe",
        "validation every checkpoint_file resume log_dir progress",
        parts=" ".join(["step", *RECIPE]),
        finite=True,
        score=LEARNING,
        data=st.one_of(tensors(5, 2), tensors(5, 2), DRAWN),
        recipe=recipes(),
        validation=tensors(3, 2),
        every=st.integers(1, 3),
        checkpoint_file=mostly(st.just("run.pt"), "a/run.pt", "nul\0", 3),
        resume=st.booleans(),
        log_dir=NAMES,
        progress=st.just(False),
    ),
    "gap": Case(
        fpfast.gap,
        "score data n nodes edge",
        "noise seed steps solver times final dtype batch_size",
        data=st.one_of(st.sampled_from(sorted(data.DATA)), tensors(12, 2)),
        n=st.integers(1, 6),
        nodes=st.integers(2, 8),
        edge=st.floats(3, 300),
        seed=st.integers(0, 2**63 - 2),
        parts="x",
    ),
    "certificate": Case(
        fpfast.certificate,
        "score dimension n steps nodes",
        "times edge seed",
        parts="x",
        score=mostly(SOME_POTENTIAL, trainable(False, fpfast.VP()), fpfast.Score(Image(), fpfast.OU(), "potential")),
        dimension=mostly(st.just(2), 1),
        n=st.integers(2, 4),
        steps=st.integers(1, 4),
        nodes=st.integers(3, 8),
        seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    ),
    "bits_per_dimension": Case(
        fpfast.bits_per_dimension,
        "found",
        "levels low high",
        finite=True,
        found=st.builds(likelihood, tensors(3), st.one_of(st.none(), tensors(3)), tensors(3, 2)),
    ),
    "sample_to_folder": Case(
        to_folder,
        "score shape folder",
        "seed first_sample shard_samples solver steps times noise dtype final backend batch_size on_nonfinite x graph",
        parts="samples",
        shape=mostly(choice((3, 2), (5, 2), [2, 2]), (1, 1), (0, 2)),
        folder=mostly(choice("a", "a/b", "."), "x.pt", "", "nul\0", b"a", 3),
        seed=st.integers(0, 2**64 - 1),
        shard_samples=st.integers(1, 3),
    ),
    "read": Case(
        read,
        "folder",
        "manifest",
        even="manifest",
        folder=mostly(st.just("run"), "a", "nul\0"),
        manifest=st.sampled_from(MANIFESTS),
    ),
    "model.write": Case(
        written,
        "path score",
        parts="file predicts guidance",
        path=mostly(st.just("x.safetensors"), "x.pt", "a/x.safetensors", 3),
    ),
    "model.load": Case(
        loaded,
        "path",
        "cut",
        parts="file",
        even="cut",
        path=st.one_of(st.just("x.safetensors"), NAMES),
        cut=st.integers(1, 3000),
    ),
    "data.load": Case(
        data_loaded, "path holds", path=mostly(choice("x.pt", "x.npy"), "x.npz", "a", "nul\0", 3), holds=tensors(3, 2)
    ),
    **{
        name: Case(in_time(name), "sde t", even="sde", t=IN_TIME, finite=name != "log_snr")
        for name in ("a", "g2", "alpha", "std", "marginal", "diffusion", "log_snr")
    },
    "drift": Case(in_time("drift"), "sde x t", even="sde", t=IN_TIME, finite=True),
    "prior": Case(of_sde("prior"), "sde shape", PRIOR, even="sde", finite=True),
    "prior_log_prob": Case(of_sde("prior_log_prob"), "sde x", even="sde", finite=True),
    "time_at": Case(
        of_sde("time_at"), "sde log_snr", even="sde", log_snr=st.one_of(st.floats(), tensors(4)), finite=True
    ),
    "SubVP": Case(fpfast.SubVP, "beta_min beta_max", parts="SubVP", beta_min=FIELD, beta_max=FIELD),
    "EDM": Case(fpfast.EDM, "T", parts="EDM", T=FIELD),
    "make_row": Case(
        row,
        "like coefficients",
        "z",
        like=LINES,
        coefficients=st.lists(st.one_of(LINES, st.floats(-2, 2)), max_size=5),
        z=LINES,
    ),
    "make_table": Case(
        table,
        "rows moments stage",
        "skip",
        parts="stages",
        rows=tensors(3, 5, dtypes=(torch.float64,)),
        moments=MOMENTS,
        stage=choice(solvers.Stage("x", ("x", "y"), at="x"), solvers.Stage("x", ("x",))),
        skip=choice(None, torch.tensor([False, False, True])),
    ),
}
SCHEDULER = {
    "FPFastScheduler": Case(scheduler, "", ITS, parts="betas", **CONFIGS),
    "from_config": Case(
        from_config,
        "config",
        ITS,
        parts="betas thresholding",
        config=mostly(SCHEDULERS, {"thresholding": True}, {"thresholding": torch.ones(2)}, {"x": 1}),
        **CONFIGS,
    ),
    "set_timesteps": Case(
        timesteps_set,
        "scheduler chosen",
        "num_inference_steps device timesteps sigmas mu",
        parts="noise shift shift_terminal",
        even="scheduler chosen",
        **STEP,
    ),
    "step": Case(
        stepped,
        "scheduler count place model_output sample",
        "timestep begin s_churn s_noise eta generator return_dict",
        parts="begin_index noise timesteps mu shift_terminal",
        even="scheduler count place",
        count=st.integers(1, 4),
        place=st.integers(0, 7),
        finite=True,
        **STEP,
    ),
    "add_noise": Case(
        by_scheduler("add_noise"), "scheduler original_samples noise timesteps", even="scheduler", **FORWARD
    ),
    "get_velocity": Case(by_scheduler("get_velocity"), "scheduler sample noise timesteps", even="scheduler", **FORWARD),
    "scale_model_input": Case(
        by_scheduler("scale_model_input"), "scheduler sample", "timestep", even="scheduler", **STEP
    ),
}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=needs_diffusers) for name in SCHEDULER)])
@settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(choices=st.data())
def test_right_or_refused(name, choices):
    case = {**CASES, **SCHEDULER}[name]
    assert complaint(case, choices.draw(calls(case), label="arguments")) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=needs_diffusers) for name in SCHEDULER)])
def test_each_odd_value(name):
    assert complaints({**CASES, **SCHEDULER}[name]) == []
