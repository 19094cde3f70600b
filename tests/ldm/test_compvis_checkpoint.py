"""The original first stage in diffusers' clothes: names, values, and a forward pass that agrees with a plain one."""

import hashlib
import pickle

import pytest
import torch
from torch.nn import functional as F

from nafld_utils.ldm import compvis_checkpoint

MULT, CH, Z, CODES = (1, 2, 2, 4), 128, 4, 16384  # VQ-f8 as published


def original_state(seed=0):
    """Random weights under the names of the original code, in its shapes."""
    g = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, into, k):
        state[f"{name}.weight"] = torch.randn(out, into, k, k, generator=g) / (into * k * k) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=g)

    def norm(name, n):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(n, generator=g)
        state[f"{name}.bias"] = 0.1 * torch.randn(n, generator=g)

    def resnet(name, into, out):
        norm(f"{name}.norm1", into), conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out), conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name, n):
        norm(f"{name}.norm", n)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", n, n, 1)

    widths = [CH * m for m in MULT]
    conv("encoder.conv_in", CH, 3, 3)
    into = CH
    for level, width in enumerate(widths):
        for i in range(2):
            resnet(f"encoder.down.{level}.block.{i}", into, width)
            into = width
            if level == 3:
                attention(f"encoder.down.{level}.attn.{i}", width)
        if level < 3:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    for side, last in (("encoder", Z), ("decoder", None)):
        resnet(f"{side}.mid.block_1", 512, 512), attention(f"{side}.mid.attn_1", 512)
        resnet(f"{side}.mid.block_2", 512, 512)
        if last:
            norm("encoder.norm_out", 512), conv("encoder.conv_out", Z, 512, 3)
    conv("decoder.conv_in", 512, Z, 3)
    into = 512
    for level in (3, 2, 1, 0):
        for i in range(3):
            resnet(f"decoder.up.{level}.block.{i}", into, widths[level])
            into = widths[level]
            if level == 3:
                attention(f"decoder.up.{level}.attn.{i}", into)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", into, into, 3)
    norm("decoder.norm_out", CH), conv("decoder.conv_out", 3, CH, 3)
    conv("quant_conv", Z, Z, 1), conv("post_quant_conv", Z, Z, 1)
    state["quantize.embedding.weight"] = torch.randn(CODES, Z, generator=g)
    return state


class Plain:
    """The published network written as plain functions of the original weights."""

    def __init__(self, state):
        self.s = state

    def conv(self, name, x, **options):
        weight = self.s[f"{name}.weight"]
        return F.conv2d(x, weight, self.s[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.s[f"{name}.weight"], self.s[f"{name}.bias"], eps=1e-6)

    def resnet(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        return (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.s else x) + h

    def attention(self, name, x):
        n, c, h, w = x.shape
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", y).flatten(2) for part in ("q", "k", "v"))
        weights = torch.softmax(q.transpose(1, 2) @ k / c**0.5, dim=2)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view(n, c, h, w))

    def middle(self, side, x):
        x = self.attention(f"{side}.mid.attn_1", self.resnet(f"{side}.mid.block_1", x))
        return self.resnet(f"{side}.mid.block_2", x)

    def encode(self, x):
        x = self.conv("encoder.conv_in", x)
        for level in range(4):
            for i in range(2):
                x = self.resnet(f"encoder.down.{level}.block.{i}", x)
                x = self.attention(f"encoder.down.{level}.attn.{i}", x) if level == 3 else x
            if level < 3:  # one pixel of zeros to the right and below, then a stride of two
                name = f"encoder.down.{level}.downsample.conv"
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), self.s[f"{name}.weight"], self.s[f"{name}.bias"], stride=2)
        x = self.conv("encoder.conv_out", F.silu(self.norm("encoder.norm_out", self.middle("encoder", x))))
        return self.conv("quant_conv", x)

    def decode(self, latents):
        codes = self.s["quantize.embedding.weight"]
        nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, Z), codes).argmin(1)
        x = codes[nearest].view(*latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", x)))
        for level in (3, 2, 1, 0):
            for i in range(3):
                x = self.resnet(f"decoder.up.{level}.block.{i}", x)
                x = self.attention(f"decoder.up.{level}.attn.{i}", x) if level == 3 else x
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)))


@pytest.fixture(scope="module")
def state():
    return original_state()


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vq") / "model.ckpt"
    extra = {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state | extra, "epoch": 3, "global_step": 7}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_converted_vq_f8_agrees_with_a_plain_forward_pass(state, checkpoint):
    stage = compvis_checkpoint.load(*checkpoint, "vq", 8, 1.0)
    assert sum(p.numel() for p in stage.model.parameters()) == 67_717_295
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain = Plain(state)
    with torch.no_grad():
        latents = plain.encode(x)
        torch.testing.assert_close(stage.model.encode(x).latents, latents, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(stage.model.decode(latents).sample, plain.decode(latents), atol=5e-4, rtol=5e-4)


def test_only_a_file_with_the_stated_checksum_is_opened(checkpoint, tmp_path):
    path, sha256 = checkpoint
    with pytest.raises(ValueError, match=rf"expected SHA-256 {'0' * 64} .*, found {sha256}; compare it"):
        compvis_checkpoint.load(path, "0" * 64, "vq", 8, 1.0)
    with pytest.raises(ValueError, match="expected SHA-256 given"):
        compvis_checkpoint.load(path, None, "vq", 8, 1.0)
    with pytest.raises(ValueError, match="expected a latent diffusion checkpoint, found no file"):
        compvis_checkpoint.load(tmp_path / "none.ckpt", sha256, "vq", 8, 1.0)


class Payload:
    """What a malicious pickle does."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


def test_a_checkpoint_with_objects_besides_tensors_is_refused_and_not_executed(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}, "hook": Payload()}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="expected weights, tensors only"):
        compvis_checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest(), "vq", 8, 1.0)


def test_weights_of_another_network_are_named(state, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {name: v for name, v in state.items() if "up.3" not in name}}, path)
    with pytest.raises(ValueError, match="expected the weights of vq-f8, found others"):
        compvis_checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest(), "vq", 8, 1.0)


def test_the_first_stage_is_found_in_a_checkpoint_of_a_whole_model(state, checkpoint, tmp_path):
    path = tmp_path / "model.ckpt"
    whole = {f"first_stage_model.{name}": value for name, value in state.items()}
    others = {"model.diffusion_model.out.2.weight": torch.zeros(3), "cond_stage_model.embedding.weight": torch.zeros(3)}
    torch.save({"state_dict": whole | others}, path)
    found = compvis_checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest(), "vq", 8, 1.0)
    wanted = compvis_checkpoint.load(*checkpoint, "vq", 8, 1.0)
    for name, value in wanted.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.out.2.weight", "encoder.up.x", "encoder.down.0.attn", "encoder"]
)
def test_weights_without_a_first_stage_are_named(name, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {name: torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match="expected the weights of vq-f8, found others"):
        compvis_checkpoint.load(path, hashlib.sha256(path.read_bytes()).hexdigest(), "vq", 8, 1.0)
