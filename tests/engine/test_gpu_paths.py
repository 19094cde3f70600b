"""Training, sampling, features and sweep on a GPU, as far as a CPU can tell: devices, types, what waits in a loop."""

import contextlib
import functools
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from fake_gpu import GPU, TF32, fake_gpu

from nafld_utils import ldm, networks, params, sweep
from nafld_utils.explain import explainers
from nafld_utils.ldm import (
    autoencoder,
    autoencoder_training,
    denoiser,
    denoiser_training,
    denoiser_units,
    gan,
    over_training_units,
    sampler,
)
from nafld_utils.networks import backbone_weights, feature_networks
from nafld_utils.sweep import gpu_training, training

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
SHAPE, NAME = (4, 8, 8), "resnet18.a1_in1k"
SMALL = {"model_channels": 32, "channel_mult": [1], "layers_per_block": 1}
GAN = {"batch_size": 4, "base_channels": 8, "max_channels": 16, "learning_rate": 1e-3, "penalty": 1.0}
GAN |= {"ema_decay": 0.9, "log_every": 100}
# of each kind of autoencoder, with fewer layers
TINY = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8,) * 4)
TINY |= dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * 4)
SHALLOW = {
    ("vq", 4): ((1, 1), False, {"latent_channels": 3, "num_vq_embeddings": 16}),
    ("kl", 8): ((1, 1), False, {"latent_channels": 4}),
}
FACTORS = {"tiny": 8, "vq": 4, "kl": 8}


@functools.cache
def section():
    return params.load("smoke").section("ldm")


def network(name, **other):
    return denoiser.build_denoiser(name, section()[name] | SMALL | other, SHAPE, 5, 0)


def conditions(name, n):
    return torch.arange(n) % 2 if name == "class" else torch.zeros(n, 16, 16, dtype=torch.uint8)


def schedule(name, prediction="v_prediction"):
    return denoiser.schedule_options(section()[name], prediction, 1000)


def train_denoiser(gpu, n, name="class", precision="bf16", prediction="v_prediction", looked_at=False):
    model, where = network(name).to(GPU, memory_format=torch.channels_last), conditions(name, 4)
    gpu.train(model)
    chosen = section() | {"steps": n, "log_every": 100, "batch_size": 4, "precision": precision, "min_snr_gamma": 5.0}
    pool = ldm.LatentPool(torch.randn(4, 1, *SHAPE), where if name == "class" else where[:, None], lambda m, _: m)
    state, noiser = ldm.start_training(model, chosen), DDPMScheduler(**schedule(name, prediction))
    assert len(list(ldm.train(state, pool, pool, chosen, "l2", noiser, 0, GPU))) == n
    if looked_at:
        with state.with_average() as average:
            walk = denoiser_units.PREVIEW | {"steps": n, "precision": precision}
            drawn(average, name, schedule(name, prediction), **walk)


def draw(gpu, n, name="semantic", precision="bf16", prediction="v_prediction", **walk):
    model = network(name).to(GPU, memory_format=torch.channels_last)
    walk = {"steps": 2 * n, "eta": 1.0, "guidance": 1.2, "precision": precision} | walk
    drawn(model, name, schedule(name, prediction), **walk)


def drawn(model, name, options, **walk):
    found = sampler.sample(model, options, conditions(name, 2), [0, 1], SHAPE, GPU, **walk)
    assert (found.shape, found.dtype, found.device) == ((2, *SHAPE), torch.float32, GPU)


def draw_checkpoint(gpu, n):
    """What a model draws while it is trained, `n` times as many images as it draws at once."""
    data = SimpleNamespace(seed=0, ldm=SimpleNamespace(checked_images=64 * n, precision="bf16"))
    data.preprocess = SimpleNamespace(image_size=64)
    frames = SimpleNamespace(stage=stage().to(GPU), device=GPU, data=None)
    replaced = {"training_unit": mock.Mock(), "load_weights": lambda _: (network("class").state_dict(), {})}
    units = {"new_denoiser": lambda *_: network("class"), "schedule_options": lambda *_: schedule("class")}
    units["PREVIEW"] = denoiser_units.PREVIEW | {"steps": 1}
    with mock.patch.multiple(over_training_units, **replaced), mock.patch.multiple(denoiser_units, **units):
        found = over_training_units.draw(SimpleNamespace(settings=data), "class", 0, 10, frames)
    assert (found.shape, found.dtype) == ((64 * n, 64, 64), np.uint8)


def train_gan(gpu, n):
    state = gan.start_training((2, 16, 16), GAN, 0, GPU)
    gpu.train(state.generator, state.discriminator)
    assert len(list(gan.train(state, torch.randn(6, 2, 16, 16), np.arange(6) % 2, GAN, n, 0, GPU))) == n


def draw_gan(gpu, n):
    model = gan.Generator((2, 16, 16), 8, 16).to(GPU).eval()
    assert gan.sample(model, np.arange(n) % 2, list(range(n)), GPU).shape == (n, 2, 16, 16)


class Backbone(torch.nn.Module):
    """What `feature_maps` reads of an EfficientNet, each of one layer; the losses ask for seven maps."""

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 1) for _ in range(5))
        self.conv_head, self.bn2 = torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4)


@contextlib.contextmanager
def shallow():
    """Autoencoders have fewer layers."""
    with mock.patch.dict(autoencoder.TINY_OPTIONS, TINY), mock.patch.dict(autoencoder.PUBLISHED, SHALLOW):
        yield


@shallow()
def train_autoencoder(gpu, n, kind="tiny", phase="texture"):
    model = autoencoder.build(kind, FACTORS[kind], 32)
    backbone = Backbone()
    features = autoencoder_training.feature_maps(backbone)
    backbone.to(GPU)
    gpu.train(model)
    images, chosen = np.zeros((2, 64, 64), np.uint8), autoencoder_training.Phase(phase, n + 1, batch_size=2)
    # the last step is looked at and logged, as the first is
    autoencoder_training.train(images, model, kind, features, range(n + 1), chosen, GPU)


@shallow()
def stage(kind="tiny"):
    return autoencoder.untrained(kind, FACTORS[kind], 32, 1.0)


def reconstruct(gpu, n, kind="tiny"):
    """Encoding and decoding, as many images at once as an encoder takes."""
    images = np.zeros((32 * n, 32, 32), np.uint8)
    found = autoencoder.reconstruct(stage(kind), images, GPU)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)


def pictures(n, side=32):
    return np.random.default_rng(0).integers(0, 255, (n, side, side), dtype=np.uint8)


def parts(freeze="paper"):
    return networks.split(networks.load(NAME, "random"), NAME, freeze)


def extract(gpu, n, kind="random"):
    feature_networks._network.cache_clear()
    load = networks.load
    with mock.patch.object(backbone_weights, "load", lambda name, **_: load(name, "random")):
        found, logits = feature_networks.extract(pictures(2 * n), kind, device=GPU, batch_size=2)
    feature_networks._network.cache_clear()
    assert (found.shape[1], len(logits)) == (feature_networks.FEATURES[kind].width, 2 * n)


def prefix(gpu, n):
    found = training.prefix_features(parts()[0], pictures(2 * n), NAME, GPU, batch_size=2, precision="float16")
    assert (found.shape, found.dtype) == ((2 * n, 256, 2, 2), np.float16)


def views(on_gpu, n=6, stored=None):
    stored = torch.zeros(n, 2, 256, 2, 2, dtype=torch.float16) if stored is None else stored
    return sweep.Views(stored.to(GPU) if on_gpu else stored.numpy(), np.arange(n) % 2)


def options(steps, precision="bf16", first=0):
    return sweep.Options(steps, 4, 1e-3, 0.01, precision, first)


def train_tail(gpu, n, on_gpu=False, precision="bf16", freeze="paper", first=False, looked_at=False):
    tail = sweep.fresh_tail(parts(freeze)[1], 0)
    gpu.train(tail)
    pixels = torch.zeros(6, 2, 32, 32, dtype=torch.uint8) if freeze == "none" else None
    kept = [views(on_gpu, stored=pixels), views(on_gpu, stored=pixels)]
    chosen = options(2 * n, precision, first=n) if first else options(n, precision)
    watch = look if looked_at else None
    found = sweep.train_tail(tail, kept, chosen, 0, networks.Decoder(NAME), GPU, watch)[1]
    assert found.shape == (chosen.steps,)


def look(step, tail):
    """Scores before the first step, as simulated-only trainings are looked at."""
    if step == 0:
        scores_of(tail, 1)


def train_jobs(gpu, n, precision="bf16"):
    gpu_training._TRAINERS.clear()
    jobs = [gpu_training.Job(sweep.fresh_tail(parts()[1], i), [views(True), views(True)], i) for i in range(2)]
    made = gpu_training.Resident.__init__

    def ready(self, *args, **how):
        made(self, *args, **how)
        gpu.train(self.tail)

    chosen = options(n, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_training.Resident, "__init__", ready)
        found = gpu_training.train_jobs(jobs, networks.Decoder(NAME), chosen, GPU, (NAME, "paper"), record=False)
    gpu_training._TRAINERS.clear()
    for result in found:
        if isinstance(result, Exception):
            raise result
        assert result[1].shape == (n,)


def score(gpu, n):
    scores_of(parts()[1], n)


def scores_of(tail, n):
    held_out = sweep.Views(views(True, 2 * n).features, np.arange(2 * n) % 2, views=np.zeros(2 * n, int))
    assert training.predict(tail, held_out, networks.Decoder(NAME), GPU, batch_size=2).shape == (2 * n,)


def classifier():
    frozen, tail = parts()
    return networks.GreyClassifier(frozen, sweep.fresh_tail(tail, 0), NAME)


def log_odds(gpu, n):
    found = explainers.log_odds(classifier(), pictures(16 * n), GPU)
    assert found.shape == (16 * n,)


def near_features(gpu, n):
    found = networks.nearest_features(np.zeros((2 * n, 5)), np.zeros((6, 5)), np.arange(6) // 2, GPU, chunk=2)
    assert (found.distance.shape, found.row.dtype) == ((2 * n, 3), np.int32)


def near_pixels(gpu, n):
    found = networks.nearest_pixels(pictures(2 * n), pictures(4), np.arange(4) // 2, GPU, chunk=2)
    assert found.distance.shape == (2 * n, 2)


def apart(gpu, n):
    rows = np.zeros((2 * n, 2), int)
    assert networks.pixels_apart(pictures(2 * n, 64), rows, GPU, chunk=2).shape == (2 * n, 2)
    assert networks.pixels_apart(pictures(2 * n, 64), rows, GPU, captions=True, chunk=2).shape == (2 * n, 2)


CONV, DISTANCE, SPECTRUM = (torch.nn.functional, "conv2d"), (torch, "cdist"), (torch.fft, "rfft2")
FULL, ROUNDED, HALF = {torch.float32}, {TF32}, {torch.bfloat16}


class Path(NamedTuple):
    """A loop of some turns, the types of its products, and what each turn calls, whose result a fault is put behind."""

    run: functools.partial
    types: set
    called: tuple = CONV


def path(run, types, called=CONV, **how):
    return Path(functools.partial(run, **how), types, called)


PATHS = {
    "the class model's training": path(train_denoiser, HALF),
    "the semantic model's training, of noise": path(
        train_denoiser, HALF, name="semantic", prediction="epsilon", looked_at=True
    ),
    "DDIM with noise": path(draw, HALF),
    "DDIM of the class model, without noise and guidance": path(
        draw, HALF, name="class", prediction="epsilon", eta=0.0, guidance=1.0
    ),
    "DPM-Solver++ without conditions": path(draw, HALF, scheduler="dpmsolver++", eta=0.0, null=True),
    "UniPC": path(draw, HALF, scheduler="unipc", eta=0.0),
    "images of a checkpoint": path(draw_checkpoint, HALF | FULL),
    "the GAN's training": path(train_gan, ROUNDED),
    "the GAN's images": path(draw_gan, FULL),
    "the small autoencoder's training": path(train_autoencoder, ROUNDED | FULL),
    "a VQ autoencoder's training": path(train_autoencoder, ROUNDED | FULL, kind="vq", phase="structure"),
    "a KL autoencoder's training": path(train_autoencoder, ROUNDED | FULL, kind="kl", phase="polish"),
    "the small autoencoder's copies": path(reconstruct, FULL),
    "a VQ autoencoder's copies": path(reconstruct, FULL, kind="vq"),
    "a KL autoencoder's copies": path(reconstruct, FULL, kind="kl"),
    "features and logits of EfficientNet-Lite0": path(extract, FULL, kind="lite0"),
    "features and logits of Inception-v3": path(extract, FULL),
    "features of a frozen prefix": path(prefix, FULL),
    "a tail's training, its views on the host": path(train_tail, HALF),
    "a tail's training, its views on the GPU, and a look": path(train_tail, HALF | FULL, on_gpu=True, looked_at=True),
    "a tail's training, added images first": path(train_tail, HALF, on_gpu=True, first=True),
    "a whole network's training": path(train_tail, HALF, on_gpu=True, freeze="none"),
    "trainings side by side": path(train_jobs, HALF),
    "scores": path(score, FULL),
    "log-odds that are explained": path(log_odds, FULL),
    "nearest frames by features": path(near_features, FULL, DISTANCE),
    "nearest frames by pixels": path(near_pixels, FULL),
    "distance of some frames": path(apart, FULL, SPECTRUM),
}


class Trace(NamedTuple):
    """What a `FakeGPU` saw of a path; ``waits`` are the path's own, ``faults`` those of the fault put in."""

    waits: list
    faults: list
    products: set


@functools.cache
def traced(name, n):
    """`Trace` of `n` turns; the fault put behind each call of what a turn calls waits thrice and changes nothing."""
    one, faults = PATHS[name], []
    module, function = one.called
    given = getattr(module, function)

    def faulty(*args, **how):
        found = given(*args, **how)
        if found.device.type == "cuda":
            number, before = found.detach().as_strided((1,), (1,)), gpu.waits
            gpu.waits = faults
            number.item()
            bool(number == number)
            number.cpu()
            gpu.waits = before
            with pytest.raises(RuntimeError, match="the host and of the GPU meet"):
                number + torch.zeros(1)
        return found

    with fake_gpu() as gpu, mock.patch.object(module, function, faulty):
        one.run(gpu, n)
    return Trace(gpu.waits, faults, gpu.products)


@pytest.mark.parametrize("name", PATHS)
def test_no_turn_of_a_loop_waits_for_the_gpu_and_a_fault_put_in_is_found(name):
    few, more = traced(name, 1), traced(name, 2)
    loops = [line for line in more.waits if "nafld_utils" in line]
    assert len(few.waits) == len(more.waits), f"a turn waits: {loops}"
    assert 0 < len(few.faults) < len(more.faults), "at each turn"
    assert len(few.faults) % 3 == len(more.faults) % 3 == 0, "a number, a truth and a copy asked for at each call"


@pytest.mark.parametrize("name", PATHS)
def test_products_are_in_bfloat16_where_that_is_asked_for_and_what_is_measured_or_stored_is_in_full(name):
    wanted, products = PATHS[name].types, traced(name, 2).products
    if wanted >= HALF:  # beside which attention without a GPU's kernel multiplies in fp32
        products = {(product, kind) for product, kind in products if product != "bmm"}
    assert {kind for _, kind in products} == wanted, products


@pytest.mark.parametrize("run", [train_denoiser, draw, train_tail, train_jobs])
@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_products_of_fp32_are_rounded_where_that_is_asked_for_and_else_in_full(run, precision):
    with fake_gpu() as gpu:
        run(gpu, 1, precision=precision)
    assert {kind for _, kind in gpu.products} == (ROUNDED if precision == "tf32" else FULL)


@pytest.mark.filterwarnings("ignore:The set_(bad|over|under) function:PendingDeprecationWarning")
def test_attributions_are_computed_in_full():
    """The explainer's own loop brings every batch's gradient to the host."""
    with fake_gpu() as gpu:
        found = explainers.attributions(classifier(), pictures(2), pictures(1), 2, 0, GPU)
    assert found.shape == (1, 32, 32)
    assert {kind for _, kind in gpu.products} == FULL


def meta_tail():
    tail = sweep.fresh_tail(parts()[1], 0).to("meta")
    decoder = networks.Decoder(NAME)
    stored, labels = torch.empty(4, 256, 2, 2, dtype=torch.float16, device="meta"), torch.zeros(4, device="meta").long()
    training.loss_on(tail, decoder, stored, labels, options(1)).backward()
    return tail


def meta_denoiser(name):
    model, where = network(name).to("meta"), conditions(name, 4)
    chosen = section() | {"accumulate": 2, "precision": "fp32", "min_snr_gamma": None}
    noise, steps = torch.empty(4, *SHAPE, device="meta"), torch.zeros(4, device="meta").long()
    batch = denoiser_training.Batch(noise, where.to("meta"), noise, steps, steps.bool())
    denoiser_training._gradient(model, DDPMScheduler(**schedule(name)), batch, chosen, "l1")
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return model


def meta_gan():
    state = gan.start_training((2, 16, 16), GAN, 0, torch.device("meta"))
    real, y = torch.empty(4, 2, 16, 16, device="meta"), torch.zeros(4, device="meta").long()
    assert "penalty" in gan._step(state, real, y, GAN, torch.Generator())
    return torch.nn.ModuleList([state.generator, state.discriminator])


@shallow()
def meta_autoencoder(kind, phase):
    features = autoencoder_training.feature_maps(Backbone().to("meta"))
    model, x = autoencoder.build(kind, FACTORS[kind], 32).to("meta"), torch.empty(2, 1, 32, 32, device="meta")
    autoencoder_training._optimizer(model, autoencoder_training.Phase(phase, 1))
    loss_of = autoencoder_training.ReconstructionLoss(phase, features, x)
    autoencoder_training._loss(model, kind, x, loss_of, torch.Generator())[0].backward()
    return model


BACKWARD = {
    "tail": meta_tail,
    "class": lambda: meta_denoiser("class"),
    "semantic": lambda: meta_denoiser("semantic"),
    "GAN": meta_gan,
    "small autoencoder": lambda: meta_autoencoder("tiny", "texture"),
    "VQ autoencoder": lambda: meta_autoencoder("vq", "structure"),
    "KL autoencoder": lambda: meta_autoencoder("kl", "polish"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_pass_asks_the_device_for_no_number(name, monkeypatch):
    step, (module, function) = BACKWARD[name], CONV
    for room in (training, denoiser_training):  # torch has no autocast there
        monkeypatch.setattr(room, "autocast", lambda *_, **__: contextlib.nullcontext())
    assert all(p.grad is not None for p in step().parameters() if p.requires_grad)
    given = getattr(module, function)

    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope * slope.sum().item()

    monkeypatch.setattr(module, function, lambda *args, **how: Asking.apply(given(*args, **how)))
    with pytest.raises(RuntimeError, match=r"cannot be called on meta tensors"):
        step()


def whole(function):
    """Compiled as one graph, which a break in it refuses."""
    return torch.compile(function, fullgraph=True, backend="eager")


@pytest.mark.parametrize("name", ["class", "semantic"])
def test_a_denoiser_is_one_graph(name, monkeypatch):
    levels = [1, 1] if name == "semantic" else [1]
    model, z, t = network(name, channel_mult=levels), torch.randn(2, *SHAPE), torch.tensor([3, 999])
    condition = model.condition(conditions(name, 2), torch.tensor([True, False]))
    found = whole(model)(z, t, condition)
    torch.testing.assert_close(found, model(z, t, condition))
    found.sum().backward()
    broken(model, lambda: whole(model)(z, t, condition), monkeypatch)


def test_the_loss_of_a_tail_is_one_graph(monkeypatch):
    """The rest of its step is none: torch compiles neither a backward pass nor an optimizer into a whole graph."""
    tail, decoder = sweep.fresh_tail(parts()[1], 0).eval(), networks.Decoder(NAME)
    given = tail, decoder, torch.randn(4, 256, 2, 2).half(), torch.tensor([0, 1, 0, 1]), options(1)
    torch.testing.assert_close(whole(training.loss_on)(*given), training.loss_on(*given))
    training.in_training(tail, options(1))
    whole(training.loss_on)(*given).backward()
    assert all(p.grad is not None for p in tail.parameters())
    broken(tail, lambda: whole(training.loss_on)(*given), monkeypatch)


def broken(module, call, monkeypatch):
    """The same with a number asked for in its first layer, which no graph can hold."""
    torch.compiler.reset()
    layer = next(part for part in module.modules() if isinstance(part, torch.nn.Conv2d))
    forward = layer.forward

    def asking(x):
        return forward(x) if x.sum() > 0 else forward(-x)

    monkeypatch.setattr(layer, "forward", asking)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        call()
    torch.compiler.reset()
