"""Training, sampling, features and sweep on a GPU, as far as a CPU can tell: devices, types, what waits in a loop."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from fake_gpu import GPU, fake_gpu

from nafld_utils import ldm, networks, params, sweep
from nafld_utils.explain import explainers
from nafld_utils.ldm import autoencoder, autoencoder_training, denoiser, denoiser_training, gan, sampler
from nafld_utils.networks import feature_networks
from nafld_utils.sweep import gpu_training, training

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
SHAPE, NAME = (4, 8, 8), "resnet18.a1_in1k"
SMALL = {"model_channels": 32, "channel_mult": [1], "layers_per_block": 1}
GAN = {"batch_size": 4, "base_channels": 8, "max_channels": 16, "learning_rate": 1e-3, "penalty": 1.0}
GAN |= {"ema_decay": 0.9, "log_every": 100}


@functools.cache
def section():
    return params.load("smoke").section("ldm")


def network(name):
    return denoiser.build_denoiser(name, section()[name] | SMALL, SHAPE, 5, 0)


def conditions(name, n):
    return torch.arange(n) % 2 if name == "class" else torch.zeros(n, 16, 16, dtype=torch.uint8)


def schedule(name):
    return denoiser.schedule_options(section()[name], "v_prediction", 1000)


def train_denoiser(gpu, n, name="class", precision="bf16", validated=False):
    model, where = network(name).to(GPU, memory_format=torch.channels_last), conditions(name, 4)
    gpu.train(model)
    chosen = section() | {"steps": n, "log_every": 100, "batch_size": 4, "precision": precision, "min_snr_gamma": 5.0}
    pool = ldm.LatentPool(torch.randn(4, 1, *SHAPE), where if name == "class" else where[:, None], lambda m, _: m)
    noiser, held_out = DDPMScheduler(**schedule(name)), pool if validated else None
    steps = ldm.train(ldm.start_training(model, chosen), pool, held_out, chosen, "l2", noiser, 0, GPU)
    assert len(list(steps)) == n


def draw(gpu, n, scheduler="ddim", eta=1.0, name="semantic", precision="bf16"):
    model = network(name).to(GPU, memory_format=torch.channels_last)
    how = {"steps": 2 * n, "eta": eta, "guidance": 1.2, "scheduler": scheduler, "precision": precision}
    found = sampler.sample(model, schedule(name), conditions(name, 2), [0, 1], SHAPE, GPU, **how)
    assert (found.shape, found.dtype, found.device) == ((2, *SHAPE), torch.float32, GPU)


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


def train_autoencoder(gpu, n, kind="tiny", factor=8, phase="texture"):
    model = autoencoder.build(kind, factor, 32)
    backbone = Backbone()
    features = autoencoder_training.feature_maps(backbone)
    backbone.to(GPU)
    gpu.train(model)
    images, chosen = np.zeros((2, 64, 64), np.uint8), autoencoder_training.Phase(phase, n + 1, batch_size=2)
    # the last step is looked at and logged, as the first is
    autoencoder_training.train(images, model, kind, features, range(n + 1), chosen, GPU)


def encode(gpu, n):
    found = autoencoder.encode_images(stage(), np.zeros((2 * n, 32, 32), np.uint8), GPU, batch_size=2)
    assert (found.shape, found.dtype) == ((2 * n, 4, 4, 4), np.float32)


def decode(gpu, n):
    found = autoencoder.decode_latents(stage(), torch.zeros(2 * n, 4, 4, 4, device=GPU), GPU, batch_size=2)
    assert (found.shape, found.dtype) == ((2 * n, 32, 32), np.uint8)


def stage():
    return autoencoder.untrained("tiny", 8, 32, 1.0)


def pictures(n, side=32):
    return np.random.default_rng(0).integers(0, 255, (n, side, side), dtype=np.uint8)


def classifier():
    return networks.load(NAME, "random")


def parts():
    return networks.split(classifier(), NAME)


def features(gpu, n):
    found = networks.features(classifier(), pictures(2 * n), NAME, GPU, batch_size=2)
    assert (found.shape, found.dtype) == ((2 * n, 512), np.float32)


def inception(gpu, n):
    feature_networks._network.cache_clear()
    found, logits = feature_networks.extract(pictures(2 * n), "random", device=GPU, batch_size=2)
    assert (found.shape, logits.shape) == ((2 * n, 2048), (2 * n, 1008))


def prefix(gpu, n):
    found = training.prefix_features(parts()[0], pictures(2 * n), NAME, GPU, batch_size=2, precision="float16")
    assert (found.shape, found.dtype) == ((2 * n, 256, 2, 2), np.float16)


def views(on_gpu, n=6):
    stored = torch.zeros(n, 2, 256, 2, 2, dtype=torch.float16)
    return sweep.Views(stored.to(GPU) if on_gpu else stored.numpy(), np.arange(n) % 2)


def options(steps, precision="bf16"):
    return sweep.Options(steps, 4, 1e-3, 0.01, precision)


def train_tail(gpu, n, on_gpu=False, precision="bf16"):
    tail = sweep.fresh_tail(parts()[1], 0)
    gpu.train(tail)
    kept = [views(on_gpu), views(on_gpu)]
    found = sweep.train_tail(tail, kept, options(n, precision), 0, networks.Decoder(NAME), GPU)[1]
    assert found.shape == (n,)


def train_jobs(gpu, n):
    gpu_training._TRAINERS.clear()
    jobs = [gpu_training.Job(sweep.fresh_tail(parts()[1], i), [views(True), views(True)], i) for i in range(2)]
    made = gpu_training.Resident.__init__

    def ready(self, *args, **how):
        made(self, *args, **how)
        gpu.train(self.tail)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_training.Resident, "__init__", ready)
        found = gpu_training.train_jobs(jobs, networks.Decoder(NAME), options(n), GPU, (NAME, "paper"), record=False)
    gpu_training._TRAINERS.clear()
    for result in found:
        if isinstance(result, Exception):
            raise result
        assert result[1].shape == (n,)


def score(gpu, n):
    held_out = sweep.Views(views(True, 2 * n).features, np.arange(2 * n) % 2, views=np.zeros(2 * n, int))
    assert training.predict(parts()[1], held_out, networks.Decoder(NAME), GPU, batch_size=2).shape == (2 * n,)


def log_odds(gpu, n):
    found = explainers.log_odds(networks.GreyClassifier(*parts(), NAME), pictures(16 * n), GPU)
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
# what is called once a turn of the loop at least, whose result a fault is put behind
PATHS = {
    "the class model's training": (train_denoiser, CONV),
    "the semantic model's training": (functools.partial(train_denoiser, name="semantic"), CONV),
    "DDIM with noise": (draw, CONV),
    "DPM-Solver++": (functools.partial(draw, scheduler="dpmsolver++", eta=0.0), CONV),
    "UniPC": (functools.partial(draw, scheduler="unipc", eta=0.0), CONV),
    "the GAN's training": (train_gan, CONV),
    "the GAN's images": (draw_gan, CONV),
    "an autoencoder's training": (train_autoencoder, CONV),
    "encoding": (encode, CONV),
    "decoding": (decode, CONV),
    "features of a classifier": (features, CONV),
    "features of Inception-v3": (inception, CONV),
    "features of a frozen prefix": (prefix, CONV),
    "a tail's training, its views on the host": (train_tail, CONV),
    "a tail's training, its views on the GPU": (functools.partial(train_tail, on_gpu=True), CONV),
    "trainings side by side": (train_jobs, CONV),
    "scores": (score, CONV),
    "log-odds that are explained": (log_odds, CONV),
    "nearest frames by features": (near_features, DISTANCE),
    "nearest frames by pixels": (near_pixels, CONV),
    "distance of some frames": (apart, SPECTRUM),
}


def waits(path, n):
    with fake_gpu() as gpu:
        path(gpu, n)
    return gpu


@pytest.mark.parametrize("name", PATHS)
def test_no_turn_of_a_loop_waits_for_the_gpu_and_a_fault_put_in_is_found(name, monkeypatch):
    path, (module, function) = PATHS[name]
    few, more = waits(path, 1), waits(path, 2)
    loops = [line for line in more.waits if "nafld_utils" in line]
    assert len(few.waits) == len(more.waits), f"a turn waits: {loops}"
    given = getattr(module, function)

    def faulty(*args, **how):
        found = given(*args, **how)
        if found.device.type == "cuda":
            found.flatten()[0].item(), bool((found == found).all()), found.cpu()
            with pytest.raises(RuntimeError, match="the host and of the GPU meet"):
                found + torch.zeros(found.shape)
        return found

    monkeypatch.setattr(module, function, faulty)
    assert len(waits(path, 1).waits) >= len(few.waits) + 3, "each of three kinds, at each turn"


@pytest.mark.parametrize("path", [functools.partial(train_denoiser, validated=True), draw, train_tail])
def test_products_are_in_bfloat16_where_that_is_asked_for_and_else_in_full(path):
    for precision, wanted in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        with fake_gpu() as gpu:
            path(gpu, 2, precision=precision)
        assert {name for name, _ in gpu.types} >= ({"convolution"} | ({"addmm"} if path is not train_tail else set()))
        # attention without a GPU's kernel multiplies in full
        assert {kind for name, kind in gpu.types if name != "bmm"} == {wanted}, gpu.types


@pytest.mark.parametrize("path", [features, prefix, score, encode, decode, log_odds, train_gan, near_features])
def test_what_is_measured_or_stored_is_computed_in_full(path):
    with fake_gpu() as gpu:
        path(gpu, 2)
    assert {kind for _, kind in gpu.types} <= {torch.float32}


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


BACKWARD = {
    "tail": (meta_tail, CONV),
    "class": (lambda: meta_denoiser("class"), CONV),
    "semantic": (lambda: meta_denoiser("semantic"), CONV),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_pass_asks_the_device_for_no_number(name, monkeypatch):
    step, (module, function) = BACKWARD[name]
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
    model, z, t = network(name), torch.randn(2, *SHAPE), torch.tensor([3, 999])
    condition = model.condition(conditions(name, 2), torch.tensor([True, False]))
    found = whole(model)(z, t, condition)
    torch.testing.assert_close(found, model(z, t, condition))
    found.sum().backward()
    broken(model, lambda: whole(model)(z, t, condition), monkeypatch)


def test_the_loss_of_a_tail_is_one_graph(monkeypatch):
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
