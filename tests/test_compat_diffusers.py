"""The scheduler against those of diffusers, installed beside it; and what it must stand: threads, bad input."""

import copy
import threading

import pytest
import torch

import fpfast
from fpfast.solvers import SOLVERS

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'fpfast[test]')")
from diffusers.pipelines import DDIMPipeline, DDPMPipeline  # noqa: E402
from diffusers.schedulers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

pytest.importorskip("bench.drop_ins", reason="bench/ is not beside the tests (a wheel's install)")
from bench import drop_ins  # noqa: E402
from bench.drop_ins import KINDS, PAIRS, SCHEDULES, X, difference, network, run  # noqa: E402
from fpfast.compat.diffusers import FPFastScheduler  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PAIRS)
def test_as_theirs(name, schedule, kind):
    """To 1e-5 of the largest value, in the same steps.

    The cosine schedule begins at alpha = 5e-5. There float32 is too coarse for their x / alpha, so ours is held against
    its own run in float64 and theirs must be near; and too coarse, for both, for data found from predicted noise.
    """
    peer, ours, net, start = drop_ins.pair(name, schedule, kind)
    expected, got = run(peer, net, start), run(ours, net, X)
    assert peer.timesteps.tolist() == pytest.approx(ours.timesteps.tolist(), abs=1e-3)
    if schedule == "squaredcos_cap_v2" and (PAIRS[name][3] or kind == "epsilon"):
        assert difference(got, expected) < 2e-2
        if kind == "epsilon":
            return
        expected = run(ours, net, X.double())
    assert difference(got, expected) < 1e-5


@pytest.mark.parametrize("solver", ["euler_maruyama", "exponential", "ancestral"])
@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"shift": 2.0, "shift_terminal": 0.1}], ids=str)
def test_flow_as_theirs(solver, options):
    peer = FlowMatchEulerDiscreteScheduler(**options)
    ours = FPFastScheduler.from_config(peer.config, solver=solver)
    net = network(ours, "flow_prediction")
    expected, got = run(peer, net, X), run(ours, net, X)
    assert peer.timesteps.tolist() == pytest.approx(ours.timesteps.tolist(), abs=1e-3)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("asked", [{"sigmas": [1.0, 0.7, 0.4, 0.1]}, {"num_inference_steps": 7}], ids=str)
def test_dynamic_shift_as_theirs(asked, kind):
    peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    ours = FPFastScheduler.from_config(peer.config, solver="exponential")
    for scheduler in (peer, ours):
        scheduler.set_timesteps(**asked, mu=0.8)
    assert peer.sigmas.tolist() == pytest.approx(ours.sigmas.tolist(), abs=1e-6)
    with pytest.raises(ValueError, match=r"mu: expected a number, as use_dynamic_shifting is on"):
        ours.set_timesteps(**asked)


def test_copies_have_no_runs():
    scheduler = FPFastScheduler(solver="dpmpp_2m", noise=0.0)
    net = network(scheduler, "epsilon")
    expected = run(scheduler, net, X)
    scheduler.set_timesteps(16)
    x = X
    for t in scheduler.timesteps[:5]:
        x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
    other = copy.deepcopy(scheduler)
    assert torch.equal(run(other, net, X), expected)
    for t in scheduler.timesteps[5:]:
        x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
    assert torch.equal(x, expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_as_sample(solver, noise):
    """One run of fpfast.sample on the same times: the marginals agree (here: of a normal law, whose score is known)."""
    scheduler = FPFastScheduler(solver=solver, noise=noise, timestep_spacing="trailing")
    net = network_of_normal(scheduler)
    torch.manual_seed(1)
    x = run(scheduler, net, torch.randn(20000, 1, 1, 1), steps=100)
    assert float(x.var()) == pytest.approx(0.25, rel=0.08)
    assert abs(float(x.mean())) < 0.02


def network_of_normal(scheduler, std0=0.5):
    squares = torch.as_tensor(scheduler.alphas_cumprod).double()
    logs = ((1 - squares) / squares).sqrt().log()

    def net(x, t):
        low = t.double().floor().long().clamp(max=998)
        sigma = torch.lerp(logs[low], logs[low + 1], t.double() - low).exp()
        alpha = (1 + sigma**2).rsqrt()
        std = sigma * alpha
        return (std / (alpha**2 * std0**2 + std**2)).float().reshape(-1, 1, 1, 1) * x

    return net


def draws(solver):
    """If it has noise of its own: two seeds lead from one state to two."""
    score, options = fpfast.Score(lambda x, t: -x, fpfast.VP()), {"x": torch.ones(2, 2), "solver": solver, "steps": 3}
    return not torch.equal(*(fpfast.sample(score, (2, 2), noise=1.0, seed=seed, **options) for seed in (0, 1)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_seeds(solver):
    """One generator for each sample: a sample does not depend on the others. The same generator, the same bits."""
    scheduler = FPFastScheduler(solver=solver, noise=1.0)
    net = network(scheduler, "epsilon")

    def generators():
        return [torch.Generator().manual_seed(k) for k in range(5)]

    all_five = run(scheduler, net, X, generator=generators())
    assert torch.equal(all_five, run(scheduler, net, X, generator=generators()))
    last = run(scheduler, net, X[3:], generator=generators()[3:])
    assert torch.allclose(all_five[3:], last, atol=1e-5)
    other = run(scheduler, net, X, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(all_five, other, atol=1e-2) != draws(solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_image_to_image(solver):
    """A run from the middle is the run of the later times alone, from the same state."""
    scheduler = FPFastScheduler(solver=solver, noise=0.0, timestep_spacing="trailing")
    net = network(scheduler, "epsilon")
    scheduler.set_timesteps(10)
    begin = 4 * scheduler.order
    scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    x = scheduler.add_noise(X / 2, X, timesteps[:1])
    start, generators = x, [torch.Generator().manual_seed(0) for _ in range(2)]
    for t in timesteps:
        x = scheduler.step(net(x, t.expand(5)), t, x, generator=generators[0]).prev_sample
    alone = FPFastScheduler(solver=solver, noise=0.0)
    alone.set_timesteps(sigmas=scheduler.sigmas[4:-1])
    for t in alone.timesteps:
        start = alone.step(net(start, t.expand(5)), t, start, generator=generators[1]).prev_sample
    assert torch.allclose(x, start, atol=2e-4)


def test_replaced_samples_continue():
    """As inpainting has it: another tensor between steps, but the same run."""
    scheduler = FPFastScheduler(solver="dpmpp_2m", noise=0.0)
    net = network(scheduler, "epsilon")
    scheduler.set_timesteps(10)
    x = replaced = X
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
    for t in scheduler.timesteps:
        replaced = scheduler.step(net(replaced, t.expand(5)), t, replaced).prev_sample.clone()
    assert torch.equal(x, replaced)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "pc"])
def test_two_runs_in_turn_do_not_mix(solver):
    scheduler = FPFastScheduler(solver=solver, noise=0.0 if solver != "pc" else 1.0)
    net = network(scheduler, "epsilon")
    seeds = [1, 2]
    states = [X, X.flip(0)]
    alone = [
        run(scheduler, net, x, generator=torch.Generator().manual_seed(k)) for k, x in zip(seeds, states, strict=True)
    ]
    scheduler.set_timesteps(16)
    generators = [torch.Generator().manual_seed(k) for k in seeds]
    for t in scheduler.timesteps:
        for k in range(2):
            y = net(states[k], t.expand(5))
            states[k] = scheduler.step(y, t, states[k], generator=generators[k]).prev_sample
    assert all(torch.equal(a, b) for a, b in zip(states, alone, strict=True))


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "dpmpp_2m_sde"])
def test_threads_share_a_scheduler(solver):
    scheduler = FPFastScheduler(solver=solver, noise=0.0)
    net = network(scheduler, "epsilon")
    expected = [run(scheduler, net, X + k) for k in range(4)]
    scheduler.set_timesteps(16)
    found, barrier = {}, threading.Barrier(4)

    def work(k):
        x = X + k
        barrier.wait()
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
        found[k] = x

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[k], expected[k]) for k in range(4))


def test_a_timestep_for_each_sample():
    scheduler = FPFastScheduler(solver="exponential")
    scheduler.set_timesteps(10)
    y = torch.randn(5, 3, 2, 2)
    times = scheduler.timesteps[[0, 3, 3, 9, 1]]
    together = scheduler.step(y, times, X).prev_sample
    for k in range(5):
        assert torch.equal(together[k : k + 1], scheduler.step(y[k : k + 1], times[k], X[k : k + 1]).prev_sample)
    scheduler = FPFastScheduler(solver="dpmpp_2m")
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"timestep: expected one for all samples with solver 'dpmpp_2m'"):
        scheduler.step(y, times, X)


def test_clipping():
    peer = DDIMScheduler(clip_sample=True, clip_sample_range=0.4)
    ours = FPFastScheduler.from_config(peer.config, solver="exponential")
    net = network(ours, "epsilon")
    peer_x = run(peer, net, X, use_clipped_model_output=True)
    assert torch.allclose(run(ours, net, X), peer_x, atol=1e-5)
    assert float(peer_x.abs().max()) < 0.41


def test_forward_process():
    peer, ours = DDPMScheduler(prediction_type="v_prediction"), FPFastScheduler(prediction_type="v_prediction")
    t, z = torch.tensor([0, 10, 500, 998, 999]), torch.randn_like(X)
    assert torch.allclose(peer.add_noise(X, z, t), ours.add_noise(X, z, t), atol=1e-6)
    assert torch.allclose(peer.get_velocity(X, z, t), ours.get_velocity(X, z, t), atol=1e-6)
    assert len(peer) == len(ours)


def test_ddpm_noise():
    """The mean and the variance of DDPM's step."""
    peer, ours = DDPMScheduler(clip_sample=False), FPFastScheduler(solver="ancestral", noise=1.0)
    x, y = torch.full((200000, 1, 1, 1), 0.7), torch.full((200000, 1, 1, 1), -0.2)
    peer.set_timesteps(50)
    ours.set_timesteps(50)
    t = ours.timesteps[20]
    torch.manual_seed(0)
    a, b = peer.step(y, t, x).prev_sample, ours.step(y, t, x).prev_sample
    assert float(a.mean()) == pytest.approx(float(b.mean()), abs=4 * float(a.std()) / 200000**0.5)
    assert float(a.std()) == pytest.approx(float(b.std()), rel=0.02)
    assert float(ours.step(y, t, x, s_noise=2.0).prev_sample.std()) == pytest.approx(2 * float(b.std()), rel=0.02)


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def images(scheduler, kind, **options):
    pipe = kind(unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipe(batch_size=2, generator=generator, num_inference_steps=6, output_type="np", **options).images
    )


def test_pipelines():
    """DDPMPipeline with our scheduler and DDIMPipeline with theirs, on one U-Net: the same pictures."""
    ours = images(FPFastScheduler.from_config(DDPMScheduler().config, solver="exponential"), DDPMPipeline)
    theirs = images(DDIMScheduler(), DDIMPipeline, use_clipped_model_output=True)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_pipeline_is_saved_with_it(tmp_path):
    pipe = DDPMPipeline(unet(), FPFastScheduler(solver="heun", noise=0.5))
    pipe.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is FPFastScheduler
    assert (loaded.scheduler.config.solver, loaded.scheduler.config.noise) == ("heun", 0.5)


@pytest.mark.parametrize("kind", [PNDMScheduler, UniPCMultistepScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
def test_configurations(kind):
    scheduler = FPFastScheduler.from_config(kind(beta_start=0.001, beta_schedule="scaled_linear").config)
    assert scheduler.config.beta_start == 0.001
    assert scheduler.config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholding": True}, r"thresholding: expected False, got True"),
        ({"variance_type": "learned_range"}, r"variance_type: expected None or 'fixed_small'"),
        ({"beta_schedule": "sigmoid"}, r"beta_schedule: expected one of 'linear'"),
        ({"solver": "plms"}, r"solver: expected one of 'euler_maruyama'"),
        ({"prediction_type": "x"}, r"prediction_type: expected one of 'epsilon'"),
        ({"noise": -1.0}, r"noise: expected a level from 0 to 10"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, r"at most one of them"),
        ({"use_flow_sigmas": True}, r"prediction_type: expected 'flow_prediction' with use_flow_sigmas"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas: expected 1000 numbers"),
        ({"beta_end": 1.5}, r"beta_end: expected a number in \(0, 1\)"),
    ],
    ids=str,
)
def test_refused_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        FPFastScheduler.from_config(config)


def test_refused_steps():
    scheduler = FPFastScheduler(solver="exponential", noise=0.5)
    with pytest.raises(ValueError, match=r"timestep: expected set_timesteps to be called before"):
        scheduler.step(X, 10, X)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]
    for options, message in [
        ({"s_churn": 1.0}, r"s_churn: expected 0"),
        ({"s_noise": -1.0}, r"s_noise: expected a finite number"),
        ({"eta": 0.0}, r"eta: expected None or 0.5, the scheduler's noise"),
        ({"generator": [torch.Generator()]}, r"generator: expected one, or one for each of 5 samples"),
        ({"generator": 5}, r"generator: expected one, or one for each of 5 samples, got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            scheduler.step(X, t, X, **options)
    for wrong in (1, 900.5, torch.tensor([900, 900])):
        with pytest.raises(ValueError, match=r"timestep: expected one"):
            scheduler.step(X, wrong, X)
    with pytest.raises(ValueError, match=r"model_output: expected shape \(5, 3, 2, 2\)"):
        scheduler.step(X[:, :2], t, X)
    heun = FPFastScheduler(solver="heun")
    heun.set_timesteps(4)
    with pytest.raises(ValueError, match=r"sample: expected what step returned"):
        heun.step(X, heun.timesteps[1], X)
    flow = FPFastScheduler(prediction_type="flow_prediction", solver="euler_maruyama", noise=1.0)
    with pytest.raises(ValueError, match=r"noise: expected 0, or a solver other than 'euler_maruyama'"):
        flow.set_timesteps(4)
    for options in ({}, {"timesteps": [1, 2]}, {"timesteps": [1000]}, {"sigmas": [2.0, 1.0], "timesteps": [5]}):
        with pytest.raises(ValueError, match=r"expected"):
            scheduler.set_timesteps(**options)


def test_eta_is_the_level_where_none_is_set():
    scheduler = FPFastScheduler(solver="ancestral")
    net = network(scheduler, "epsilon")
    got = run(scheduler, net, X, eta=1.0, generator=torch.Generator().manual_seed(0))
    own = run(FPFastScheduler(solver="ancestral", noise=1.0), net, X, generator=torch.Generator().manual_seed(0))
    assert torch.equal(got, own)
    scheduler = FPFastScheduler(solver="heun")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"eta: expected None with solver 'heun'"):
        scheduler.step(X, scheduler.timesteps[0], X, eta=1.0)


def test_half_precision_and_gradients():
    scheduler = FPFastScheduler(solver="exponential")
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    assert scheduler.step(X.half(), t, X.half()).prev_sample.dtype == torch.float16
    y = X.clone().requires_grad_()
    scheduler.step(y, t, X).prev_sample.sum().backward()
    assert float(y.grad.abs().min()) > 0


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "dpmpp_2m_sde", "exponential"])
def test_buffers_may_be_used_again(solver):
    """A sample that is overwritten by what step returned, and a network that always answers in one place."""
    scheduler = FPFastScheduler(solver=solver, noise=0.0)
    net = network(scheduler, "epsilon")
    expected = run(scheduler, net, X)
    scheduler.set_timesteps(16)
    x, y = X.clone(), torch.empty_like(X)
    for t in scheduler.timesteps:
        y.copy_(net(x, t.expand(5)))
        x.copy_(scheduler.step(y, t, x).prev_sample)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "dpmpp_2m_sde", "exponential"])
def test_gradients_through_a_run(solver):
    """Of a network's parameter, against a difference in float64."""
    scheduler = FPFastScheduler(solver=solver, noise=0.0)

    def end(w):
        scheduler.set_timesteps(4)
        x = X.double()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(w * x), t, x).prev_sample
        return x.sum()

    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(w), w)
    with torch.no_grad():
        difference = (end(w + 1e-5) - end(w - 1e-5)) / 2e-5
    assert float(gradient) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_timesteps_by_value(solver):
    """Two-stage solvers have each twice; the number alone says where a run is."""
    scheduler = FPFastScheduler(solver=solver, noise=1.0, timestep_spacing="trailing")
    net = network(scheduler, "epsilon")
    expected = run(scheduler, net, X, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(16)
    x, generator = X, torch.Generator().manual_seed(0)
    for t in scheduler.timesteps.tolist():
        y = net(x, torch.full((5,), t))
        x = scheduler.step(y, t, x, generator=generator).prev_sample
    assert torch.equal(x, expected)


def test_set_begin_index_begins_another_run():
    scheduler = FPFastScheduler(solver="dpmpp_2m", noise=0.0)
    net = network(scheduler, "epsilon")
    found = []
    for abandoned in (False, True):
        scheduler.set_timesteps(10)
        x = X
        for t in scheduler.timesteps[:3] if abandoned else ():
            x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
        scheduler.set_begin_index(3)
        x = X.flip(0)
        for t in scheduler.timesteps[3:]:
            x = scheduler.step(net(x, t.expand(5)), t, x).prev_sample
        found.append(x)
    assert torch.equal(*found)


def test_zero_terminal_snr_of_every_schedule():
    for schedule in SCHEDULES:
        scheduler = FPFastScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        assert bool((scheduler.alphas_cumprod.diff() < 0).all())
        assert bool(run(scheduler, network(scheduler, "v_prediction"), X, steps=4).isfinite().all())


def test_flow_grids_are_those_of_unipc():
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    ours = FPFastScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
    assert torch.allclose(ours.timesteps, theirs.timesteps.float(), atol=1.0)  # theirs are cut to whole numbers
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-5)


def test_more_that_is_refused():
    with pytest.raises(ValueError, match=r"snr_shift_scale: expected 1\.0, got 3\.0"):
        FPFastScheduler.from_config({"snr_shift_scale": 3.0})
    scheduler = FPFastScheduler(solver="exponential")
    for sigmas in ([1.0, 0.5, -0.2], [0.0]):
        with pytest.raises(ValueError, match="sigmas: expected levels that are not negative, the first positive"):
            scheduler.set_timesteps(sigmas=sigmas)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="sample: expected a floating-point tensor"):
        scheduler.step(X.long(), scheduler.timesteps[0], X.long())


def test_a_level_set_in_the_configuration_later_is_taken():
    made = FPFastScheduler(solver="exponential")
    made.register_to_config(noise=1.0)
    made.set_timesteps(4)
    sample, output = torch.randn(3, 2), torch.randn(3, 2)
    other = FPFastScheduler(solver="exponential", noise=1.0)
    other.set_timesteps(4)
    steps = (
        one.step(output, one.timesteps[0], sample, generator=torch.Generator().manual_seed(3)).prev_sample
        for one in (made, other)
    )
    assert torch.equal(*steps)


def test_a_shift_that_is_not_used_may_be_none():
    FPFastScheduler(shift=None).set_timesteps(3)
    FPFastScheduler(shift=None, flow_shift=3.0, prediction_type="flow_prediction").set_timesteps(3)
