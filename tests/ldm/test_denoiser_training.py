"""Training of the denoisers: what a step reads, a loop that learns, resumes to the bit and survives kill -9."""

import copy
import math
import os
import signal
import traceback
from types import SimpleNamespace

import faulty
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from project import call
from safetensors.torch import load_file, save_file

from nafld_utils import artifacts, engine, ldm, params, phantom, preprocessing
from nafld_utils.images import extract_crop, resize_box, whole_box
from nafld_utils.ldm import (
    autoencoder,
    denoiser,
    denoiser_training,
    denoiser_units,
    latent_pools,
    resumable,
    sampler,
)
from nafld_utils.params import merging

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def tiny(conditioning, seed=0, **changes):
    network = params.load("smoke").section(f"ldm.{conditioning}") | changes
    return denoiser.build_denoiser(conditioning, network, SHAPE, 5, seed)


def settings(**changes):
    base = params.load("smoke").section("ldm")
    return base | {"steps": 12, "log_every": 1, "warmup_steps": 2, "batch_size": 4} | changes


def pool(conditioning, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moments = torch.randn(n, 2, *SHAPE, generator=generator)
    maps = torch.randint(5, (n, 2, 16, 16), generator=generator, dtype=torch.uint8)
    conditions = maps if conditioning == "semantic" else torch.arange(n) % 2
    return ldm.LatentPool(moments, conditions, lambda m, noise: m)


def noiser(conditioning, prediction="v_prediction"):
    network = params.load("smoke").section(f"ldm.{conditioning}")
    return DDPMScheduler(**denoiser.schedule_options(network, prediction, 1000))


def fit(conditioning, training=None, stop=None, seed=3, **changes):
    chosen = settings(**changes)
    training = training or ldm.start_training(tiny(conditioning), chosen)
    loss = chosen[conditioning]["loss"]
    data = pool(conditioning)
    for state in ldm.train(training, data, data, chosen, loss, noiser(conditioning), seed, CPU):
        if state.step == stop:
            break
    return training


def unit(tmp_path, hash_="a" * 64):
    return artifacts.Unit(tmp_path / "fold0", hash_)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("conditioning", ["semantic", "class"])
def test_training_resumes_to_the_bit_through_a_checkpoint_file(conditioning, layout, tmp_path):
    def start(seed=0):
        return ldm.start_training(tiny(conditioning, seed).to(memory_format=layout), settings())

    whole = fit(conditioning, training=start())
    interrupted = fit(conditioning, training=start(), stop=7)
    resumable.checkpoint(interrupted, unit(tmp_path))
    resumed = start(seed=99)
    assert resumable.resume(resumed, unit(tmp_path))
    assert resumed.step == 7
    parameters = list(resumed.denoiser.parameters())
    for parameter, shadow in zip(parameters, resumed.ema.shadow_params, strict=True):
        moments = {key: value for key, value in resumed.optimizer.state[parameter].items() if key != "step"}
        assert {shadow.stride(), *(value.stride() for value in moments.values())} == {parameter.stride()}, "one layout"
    fit(conditioning, training=resumed)
    found = resumed.tensors()
    for name, value in whole.tensors().items():
        assert torch.equal(value, found[name]), name
    assert whole.facts() == resumed.facts()


def test_another_torch_between_two_starts_of_a_training_is_noticed_and_noted(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(resumable.engine, "notice", said.append)
    resumable.checkpoint(fit("class", stop=3), unit(tmp_path))
    same = ldm.start_training(tiny("class"), settings())
    assert resumable.resume(same, unit(tmp_path))
    assert (said, same.versions) == ([], [torch.__version__])
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    later = ldm.start_training(tiny("class"), settings())
    assert resumable.resume(later, unit(tmp_path))
    assert later.versions == [same.versions[0], "99.0.0"]
    assert f"begun with torch {same.versions[0]} and goes on with torch 99.0.0" in said[0]
    resumable.checkpoint(later, unit(tmp_path))
    monkeypatch.undo()
    third = ldm.start_training(tiny("class"), settings())
    monkeypatch.setattr(resumable.engine, "notice", said.append)
    assert resumable.resume(third, unit(tmp_path))
    assert third.versions == later.versions, "a third start, with the first version, hides nothing"


def test_a_damaged_checkpoint_is_removed_and_the_one_before_is_used(tmp_path):
    resumable.checkpoint(fit("class", stop=3), unit(tmp_path))
    resumable.checkpoint(fit("class", stop=6), unit(tmp_path))
    newest = sorted(unit(tmp_path).work.glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    training = ldm.start_training(tiny("class"), settings())
    assert resumable.resume(training, unit(tmp_path))
    assert training.step == 3
    assert not newest.exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    resumable.checkpoint(fit("class", stop=3), unit(tmp_path))
    other = unit(tmp_path, "b" * 64)
    unit(tmp_path).work.rename(other.work)
    with pytest.raises(ValueError, match=r"checkpoint of these settings \(b{12}\), found one of others \(a{12}\)"):
        resumable.resume(ldm.start_training(tiny("class"), settings()), other)


def test_a_pickle_is_never_opened_as_a_weight_file(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "averaged.safetensors")
    with pytest.raises(ValueError, match="expected safetensors weights, found a pickle, which is never opened"):
        artifacts.load_weights(tmp_path / "averaged.safetensors")
    with pytest.raises(ValueError, match="found no file"):
        artifacts.load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_last_checkpoints_are_kept(tmp_path, keep):
    training = fit("class", stop=1)
    for step in (1, 2, 3, 4):
        training.step = step
        resumable.checkpoint(training, unit(tmp_path), keep)
    names = [f"step-{step:08d}.safetensors" for step in (1, 2, 3, 4)]
    assert [p.name for p in sorted(unit(tmp_path).work.iterdir())] == names[-keep:]


def test_average_differs_from_the_raw_weights_after_ten_steps_and_keeps_every_name():
    training = fit("semantic", stop=10)
    raw, averaged = training.denoiser.state_dict(), training.averaged()
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_the_paper_profile_states_the_decay_that_its_average_has_at_the_last_step():
    paper = params.load("paper").section("ldm")
    average = ldm.start_training(tiny("class"), settings(ema_decay=paper["ema_decay"])).ema
    decay = average.get_decay(paper["steps"])
    assert decay == pytest.approx(20_000 / 20_009)
    assert f"{decay:.5f} at step {paper['steps']:,}" in (merging.PARAMS_DIR / "paper.yaml").read_text(encoding="utf-8")


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [row["learning_rate"] for row in fit("class").curve]
    assert rates[1] == max(rates)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


STEPS = [("l1", "epsilon", None), ("l2", "epsilon", 5.0), ("l2", "v_prediction", None), ("l1", "v_prediction", 5.0)]


@pytest.mark.parametrize(("loss", "prediction", "gamma"), STEPS)
def test_one_step_agrees_with_a_plain_diffusers_loop(loss, prediction, gamma):
    """Noise, target, norm and weight written out."""
    chosen = settings(condition_dropout=0.0, min_snr_gamma=gamma)
    training = ldm.start_training(tiny("class"), chosen)
    plain = copy.deepcopy(training.denoiser)
    data = pool("class")
    next(ldm.train(training, data, None, chosen, loss, noiser("class", prediction), 3, CPU))

    generator = torch.Generator().manual_seed(artifacts.unit_seed(3, "step", 0))
    latents, labels = data.batch(4, generator)
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(1000, (4,), generator=generator)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha = (1 - betas).cumprod(0)[t][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    predicted = plain.unet(noisy, t, plain.embed(labels)[:, None]).sample
    wanted = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    error = (predicted - wanted).abs() if loss == "l1" else (predicted - wanted) ** 2
    if gamma:
        snr = alpha / (1 - alpha)
        error = error * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    assert training.curve[0]["loss"] == pytest.approx(error.mean().item(), rel=1e-6)


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (0.1, 0.9), (1.0, 0.0)])
def test_conditions_are_dropped_as_often_as_the_setting_says(dropout, kept):
    chosen = settings(condition_dropout=dropout, batch_size=4000)
    keep = denoiser_training.draw_batch(pool("class"), chosen, 1000, 3, 0).keep
    assert keep.double().mean() == pytest.approx(kept, abs=0.02 if 0 < kept < 1 else 0)


def test_three_steps_update_the_weights_as_a_plain_loop_of_adamw_does():
    """With a decay and a clip that matter: `settings` of the paper would hide an update without them."""
    chosen = settings(weight_decay=0.5, gradient_clip=0.05, learning_rate=1e-2, warmup_steps=2)
    training = ldm.start_training(tiny("class"), chosen)
    plain, data, process = copy.deepcopy(training.denoiser), pool("class"), noiser("class")
    steps = ldm.train(training, data, None, chosen, "l2", process, 3, CPU)
    for _ in range(3):
        next(steps)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.5)
    for step in range(3):
        for group in optimizer.param_groups:  # two steps of warm-up, then half a cosine down to the last of 12
            group["lr"] = 1e-2 * (step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / (12 - 2))) / 2)
        batch = denoiser_training.draw_batch(data, chosen, 1000, 3, step)
        optimizer.zero_grad()
        condition = plain.condition(batch.conditions, batch.keep)
        latents, noise, t = batch.latents, batch.noise, batch.timesteps
        denoiser.diffusion_loss(plain, process, latents, condition, noise, t, "l2").backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        assert norm > 0.05, "the clip does something"
        optimizer.step()
    found, wanted, begun = (torch.cat([p.detach().flatten() for p in network.parameters()])
                            for network in (training.denoiser, plain, tiny("class")))  # fmt: skip
    assert (found - wanted).norm() < 1e-3 * (wanted - begun).norm()


def test_held_out_images_change_no_weight():
    with_them, without = fit("class"), ldm.start_training(tiny("class"), settings())
    data = pool("class")
    for _ in ldm.train(without, data, None, settings(), "l2", noiser("class"), 3, CPU):
        pass
    assert not math.isnan(with_them.curve[-1]["validation"])
    assert all(math.isnan(row["validation"]) for row in without.curve)
    found = without.tensors()
    assert all(torch.equal(value, found[name]) for name, value in with_them.tensors().items())


def test_a_loss_that_is_not_finite_stops_before_the_update():
    chosen = settings()
    training = ldm.start_training(tiny("class"), chosen)
    before = training.tensors()
    data = pool("class")
    data.moments[:] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan and its gradient nan at step 0"):
        next(ldm.train(training, data, None, chosen, "l2", noiser("class"), 0, CPU))
    assert all(torch.equal(value, before[name]) for name, value in training.tensors().items())


def test_a_look_some_steps_later_finds_the_weights_before_the_step_that_was_not_finite(tmp_path, monkeypatch):
    """As on a GPU: the latents of the third step are not finite, and the fifth is looked at."""
    chosen = settings(log_every=100)
    whole = ldm.start_training(tiny("class"), chosen)
    steps = ldm.train(whole, pool("class"), None, chosen, "l2", noiser("class"), 0, CPU)
    next(steps), next(steps)
    kept = whole.tensors()
    late, drawn = ldm.start_training(tiny("class"), chosen), []

    def spoilt(*args):
        drawn.append(draw(*args))
        latents = drawn[-1].latents * (float("nan") if len(drawn) == 3 else 1.0)
        return drawn[-1]._replace(latents=latents)

    draw = denoiser_training.draw_batch
    monkeypatch.setattr(denoiser_training, "draw_batch", spoilt)
    monkeypatch.setattr(resumable, "LOOK", 5)
    note = resumable.State.note
    there = SimpleNamespace(type="cuda")
    monkeypatch.setattr(resumable.State, "note", lambda self, found, now, device: note(self, found, now, there))
    with pytest.raises(FloatingPointError, match=r"loss is nan and its gradient nan at step 2; .* weights before"):
        list(ldm.train(late, pool("class"), None, chosen, "l2", noiser("class"), 0, CPU))
    assert (len(drawn), late.step) == (6, 2)
    assert late.recent == whole.recent
    found = late.tensors()
    assert all(torch.equal(value, found[name]) for name, value in kept.items() if not name.startswith("ema."))
    late.unseen.append((7, {"loss": torch.tensor(float("inf")), "gradient": torch.tensor(1.0)}))
    with pytest.raises(FloatingPointError, match=r"loss is inf and its gradient 1\.0 at step 7"):
        resumable.checkpoint(late, unit(tmp_path))
    assert not unit(tmp_path).work.exists()


def validation(denoiser, data, precision="fp32"):
    batch = denoiser_training.validation_batch(data, 1000, 0)
    return denoiser_training.validation_loss(denoiser, noiser("class"), batch, settings(precision=precision), "l2")


def test_validation_loss_is_the_same_at_every_call_and_missing_without_images():
    denoiser, data = tiny("class"), pool("class")
    first = validation(denoiser, data)
    torch.rand(3)
    assert validation(denoiser, data) == first
    assert math.isnan(validation(denoiser, None))


def test_validation_is_weighed_as_training_is():
    denoiser, data = tiny("class"), pool("class")
    batch, process = denoiser_training.validation_batch(data, 1000, 0), noiser("class")
    found = denoiser_training.validation_loss(denoiser, process, batch, settings(min_snr_gamma=5.0), "l2")
    with torch.no_grad():
        condition = denoiser.condition(batch.conditions, batch.keep)
        parts = batch.latents, condition, batch.noise, batch.timesteps
        wanted = ldm.denoiser.diffusion_loss(denoiser.eval(), process, *parts, "l2", 5.0)
    assert found == pytest.approx(wanted.item())
    assert found != pytest.approx(validation(denoiser, data), rel=0.01)


def test_the_validation_batch_is_drawn_once_a_training():
    drawn, data = [], pool("semantic")

    class Counted(ldm.LatentPool):
        def batch(self, size, generator):
            drawn.append(size)
            return super().batch(size, generator)

    held_out = Counted(data.moments, data.conditions, data.draw)
    chosen = settings(steps=3)
    training = ldm.start_training(tiny("semantic"), chosen)
    process = noiser("semantic")
    for _ in ldm.train(training, data, held_out, chosen, "l1", process, 3, CPU):
        pass
    assert drawn == [32]
    generator = torch.Generator().manual_seed(artifacts.unit_seed(3, "validation"))
    latents, maps = data.batch(32, generator)
    noise, t = torch.randn(latents.shape, generator=generator), torch.linspace(0, 999, 32).long()
    with torch.no_grad():
        denoiser = training.denoiser.eval()
        wanted = ldm.denoiser.diffusion_loss(denoiser, process, latents, denoiser.condition(maps), noise, t, "l1")
    assert training.curve[-1]["validation"] == wanted.item(), "to the bit"


def test_parts_of_a_batch_add_up_to_its_gradient():
    whole, parts = fit("semantic", stop=3), fit("semantic", stop=3, accumulate=2)
    assert parts.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], rel=1e-5)
    assert parts.curve[-1]["gradient_norm"] == pytest.approx(whole.curve[-1]["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("high", True))],
)
def test_gradients_are_computed_in_the_arithmetic_of_the_loss_and_autocast_ends_before_them(
    precision, expected, monkeypatch
):
    monkeypatch.setattr(engine.precision, "GPU", "cpu")
    seen = {"forward": [], "backward": []}

    def look(way):
        flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        seen[way].append((*flags, torch.is_autocast_enabled("cpu")))

    denoiser = tiny("class")
    denoiser.unet.conv_in.register_forward_hook(lambda *_: look("forward"))
    denoiser.unet.conv_in.weight.register_hook(lambda _: look("backward"))
    chosen, data, process = settings(precision=precision, accumulate=2), pool("class"), noiser("class")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    batch = denoiser_training.draw_batch(data, chosen, 1000, 0, 0)
    denoiser_training._gradient(denoiser, process, batch, chosen, "l2")
    assert seen["forward"] == [(*expected, precision == "bf16")] * 2
    assert seen["backward"] == [(*expected, False)] * 2
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    validation(denoiser, data, precision)
    options = ldm.denoiser.schedule_options(params.load("smoke").section("ldm.class"), "v_prediction", 1000)
    labels = torch.tensor([0, 1])
    sampler.sample(denoiser, options, labels, [1, 2], SHAPE, CPU, steps=1, eta=0.0, guidance=1.0, precision=precision)
    assert seen["forward"][2:] == [(*expected, precision == "bf16")] * 2, "validation and sampling"


def test_oversampling_draws_both_classes_alike_whatever_their_numbers():
    labels = torch.tensor([0] * 3 + [1] * 27)
    generator = torch.Generator().manual_seed(0)
    rows = latent_pools.draw_rows(30, 6000, generator, labels)
    counts = torch.bincount(rows, minlength=30).double()
    assert counts[:3].sum() / 6000 == pytest.approx(0.5, abs=0.03)
    assert counts[:3].min() > 800, "each of three healthy images in a sixth of the draws"
    assert counts[3:].min() > 60, "each of 27 fatty images in a fifty-fourth"
    plain = latent_pools.draw_rows(30, 6000, generator)
    assert (plain < 3).double().mean() == pytest.approx(0.1, abs=0.02)


def test_a_look_at_averaged_weights_leaves_the_training_as_it_was():
    training = fit("class", stop=5)
    before, average = training.tensors(), training.averaged()
    with training.with_average() as denoiser:
        assert all(torch.equal(value, average[name]) for name, value in denoiser.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in training.tensors().items())


def test_a_preview_is_drawn_in_the_runs_precision_and_compiles_nothing(monkeypatch):
    run = SimpleNamespace(settings=params.load("smoke", {"ldm.precision": "tf32"}))
    images = SimpleNamespace(images=pd.DataFrame({"fold": [0, 1, 1, 1, 1]}))
    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda _: images)
    drawn, compiled = [], []
    sample = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *args, **how: drawn.append(how) or sample(*args, **how))

    def backend(module, inputs):
        compiled.append(inputs)
        return module.forward

    training = ldm.start_training(tiny("class"), settings())
    ldm.compile_network(training.denoiser, backend)
    monkeypatch.setitem(ldm.PREVIEW, "steps", 1)
    look = denoiser_units._preview(run, "class", 0, training, autoencoder.load_shipped())
    assert look.shape == (ldm.N_PREVIEW, 64, 64)
    assert [how["precision"] for how in drawn] == ["tf32"]
    assert compiled == []
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch asks inputs of a graph for it
def test_validation_of_a_compiled_training_makes_no_graph_of_its_own():
    compiled = []

    def backend(module, inputs):
        compiled.append(inputs)
        return module.forward

    chosen, data = settings(), pool("class")
    training = ldm.start_training(tiny("class", channel_mult=[1]), chosen)
    ldm.compile_network(training.denoiser, backend)
    steps = ldm.train(training, data, data, chosen, "l2", noiser("class"), 3, CPU)
    for _ in range(3):
        next(steps)
    assert len(training.curve) == 3
    assert len(compiled) == 1, "the step's"
    torch.compiler.reset()


def four_images(shipped):
    """Simulated patients' crops as latents, (4, 4, 8, 8), and as the autoencoder gives them back."""
    patients = [phantom.simulate_patient(3, index, fat, 1)[0][0] for index, fat in enumerate((1, 20, 45, 80))]
    crops = [extract_crop(frame) for frame in patients]
    images = np.stack([resize_box(crop, whole_box(crop), 64) for crop in crops])
    latents = shipped.draw(torch.from_numpy(ldm.encode_images(shipped, images, CPU)))
    return latents, ldm.decode_latents(shipped, latents, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conditioning", "levels", "n", "steps", "batch", "rate"),
    [("semantic", [1, 2], 4, 240, 24, 8e-3), ("class", [1], 2, 300, 8, 5e-3)],
)
def test_the_training_code_learns_images_by_heart(conditioning, levels, n, steps, batch, rate):
    """Four images told by their maps, two by their class: the loss falls to near zero, and they come back."""
    shipped = autoencoder.load_shipped()
    latents, images = (part[:n] for part in four_images(shipped))
    conditions = torch.arange(n)
    if conditioning == "semantic":
        conditions = conditions.to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 16, 16).contiguous()
    data = ldm.LatentPool(latents[:, None], conditions, lambda moments, noise: moments)
    rates = {"learning_rate": rate, "warmup_steps": 10, "condition_dropout": 0.0, "log_every": 50}
    chosen = settings(steps=steps, batch_size=batch, **rates)
    training = ldm.start_training(tiny(conditioning, channel_mult=levels), chosen)
    for _ in ldm.train(training, data, None, chosen, "l2", noiser(conditioning), 0, CPU):
        pass
    losses = [row["loss"] for row in training.curve]
    assert losses[-1] < 0.07 < 0.4 < losses[0]
    options = denoiser.schedule_options(params.load("smoke").section(f"ldm.{conditioning}"), "v_prediction", 1000)
    asked = conditions[:, 0] if conditioning == "semantic" else conditions
    drawn = sampler.sample(
        training.denoiser, options, asked, range(5, 5 + n), SHAPE, CPU, steps=20, eta=0.0, guidance=1.0
    )
    error = (drawn[:, None] - latents[None]).square().mean((2, 3, 4))
    assert error.argmin(1).tolist() == list(range(n))
    assert error.diagonal().max() < 0.05 * latents.var()
    apart = np.abs(ldm.decode_latents(shipped, drawn, CPU)[:, None].astype(float) - images).mean((2, 3))
    assert apart.argmin(1).tolist() == list(range(n)), "as images too"


# ---------------------------------------------------------------- kill -9

STEPS = 54


def train_until_killed(folder, die_after, die_in_write):
    """Train with a checkpoint a step; SIGKILL after a step, or with half a checkpoint on disk."""
    torch.set_num_threads(1)
    here = unit(folder)
    chosen = settings(steps=STEPS, log_every=5)
    training = ldm.start_training(tiny("class"), chosen)
    resumable.resume(training, here)
    data = pool("class")
    for written, state in enumerate(ldm.train(training, data, data, chosen, "l2", noiser("class"), 3, CPU)):
        if state.step == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if written == 1 and die_in_write:
            safetensors.torch.save_file = write_half_and_die  # as parts.save_state finds it
        resumable.checkpoint(state, here)
    save_file(training.tensors(), folder / "end.safetensors")


def write_half_and_die(tensors, path, metadata):
    save_file(tensors, path, metadata=metadata)
    with open(path, "r+b") as handle:
        handle.truncate(os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def forked(*arguments):
    """`train_until_killed` in a fork of this process, which has imported everything; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train_until_killed(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_again_and_again(whole, killed):
    """Train one model undisturbed; kill the other fifty times in a write and three times between two."""
    torch.set_num_threads(1)
    tiny("class")  # imports what a denoiser is made of
    assert forked(whole, None, False) == 0
    between = sorted(np.random.default_rng(0).choice(np.arange(5, 45), 3, replace=False).tolist())
    writes = 0
    while writes < 50:
        step = newest_step(killed)
        if between and step >= between[0] - 1:
            assert forked(killed, between.pop(0), False) == -signal.SIGKILL
            assert newest_step(killed) == step, "the step after the last checkpoint is lost, no more"
            continue
        assert forked(killed, None, True) == -signal.SIGKILL
        assert newest_step(killed) == step + 1, "a half-written checkpoint was picked up, or a whole one was not"
        writes += 1
    assert not between
    assert forked(killed, None, False) == 0


@pytest.mark.faults
@pytest.mark.promise("checkpoints")
def test_fifty_kills_in_the_midst_of_a_write_and_three_between_change_nothing(tmp_path, record_property):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    # one process without threads and windows, and from it a fork a kill
    process = faulty.context().Process(target=call, args=(__file__, "kill_again_and_again", whole, killed))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    ends = [load_file(folder / "end.safetensors") for folder in (whole, killed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    record_property("cases", 50 + 3)


def newest_step(folder):
    names = [path.stem for path in unit(folder).work.glob("step-*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)
