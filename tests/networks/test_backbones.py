"""Networks: the bundled weights compute what their own network computes, input, prefix and tail, refusals."""

import hashlib
import importlib.resources

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nafld_utils import networks
from nafld_utils.networks import backbone_weights, backbones

LITE = "tf_efficientnet_lite0"
# First five logits of the weight packages' own network on `reference_image`, and the size it was written for.
REFERENCE = {
    "tf_efficientnet_lite0": (224, [-0.7362798, 0.1102339, -0.4076648, -2.1526661, -0.9706251]),
    "tf_efficientnet_lite2": (260, [-0.7884980, 0.3335060, -1.4862683, -1.6178496, -0.9285784]),
}


def reference_image(size):
    ramp = torch.linspace(0, 1, size)
    return torch.outer(ramp, 1 - ramp) * 2 - 1


def logits(model, images, name):
    with torch.inference_mode():
        return model.eval()(backbones.to_input(images, name)).numpy()


def noise(n=3, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def lite():
    return networks.load(LITE)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("name", REFERENCE)
def test_bundled_weights_compute_what_their_own_network_computes(name):
    size, wanted = REFERENCE[name]
    found = logits(networks.load(name), reference_image(size)[None], name)
    np.testing.assert_allclose(found[0, :5], wanted, atol=2e-4)


def test_the_look_alike_without_tf_takes_the_weights_and_is_wrong():
    """Why only tf_ names are offered: the same keys fit and other features come out."""
    timm = pytest.importorskip("timm")
    size, wanted = REFERENCE[LITE]
    other = timm.create_model("efficientnet_lite0")
    other.load_state_dict(networks.load(LITE).state_dict())
    found = logits(other, reference_image(size)[None], LITE)
    assert np.abs(found[0, :5] - wanted).max() > 0.1


def test_every_key_of_the_weight_files_is_renamed_onto_one_key():
    for name, bundle in backbone_weights.BUNDLED.items():
        path = importlib.resources.files(bundle.package).joinpath(bundle.file)
        state = torch.load(str(path), weights_only=True)
        own = networks.load(name, "random").state_dict()
        renamed = backbone_weights.rename_lite(state)
        assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}


def test_a_strange_key_is_named():
    with pytest.raises(ValueError, match=r"_extra\.weight"):
        backbone_weights.rename_lite({"_extra.weight": torch.zeros(1)})


def test_a_changed_weight_file_is_refused(monkeypatch):
    changed = backbone_weights.BUNDLED[LITE]._replace(sha256="0" * 64)
    monkeypatch.setitem(backbone_weights.BUNDLED, LITE, changed)
    with pytest.raises(
        ValueError, match=r"expected SHA-256 0{64} \(of efficientnet-lite0-.*\), found 579344248a93e230"
    ):
        networks.load(LITE)


def test_a_missing_weight_package_is_named(monkeypatch):
    monkeypatch.setitem(
        backbone_weights.BUNDLED, LITE, backbone_weights.BUNDLED[LITE]._replace(package="no_such_package")
    )
    with pytest.raises(ValueError, match="no-such-package"):
        networks.load(LITE)


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("tf_efficientnet_lit0", "bundled", "nearest is tf_efficientnet_lite0"),
        ("resnet50.tv_in2k", "hub", r"nearest is resnet50\.tv2?_in1k"),
        ("resnet18", "bundled", "found them only for tf_efficientnet_lite0"),
        (LITE, "bundeled", "found no such file"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(name, weights, words):
    with pytest.raises(ValueError, match=words):
        networks.load(name, weights)


def test_the_commit_of_weights_from_the_hub_is_printed_and_known(monkeypatch, tmp_path):
    huggingface = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    file = tmp_path / "models--timm--resnet18.tv_in1k" / "snapshots" / commit / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(timm.create_model("resnet18").state_dict(), file)
    (file.parents[2] / "refs").mkdir()
    (file.parents[2] / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: load_file(file))
    said = []
    monkeypatch.setattr(networks.backbone_weights, "announce", said.append)
    found = networks.load("resnet18.tv_in1k", "hub").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in load_file(file).items())
    assert said == [f"weights of resnet18.tv_in1k: timm/resnet18.tv_in1k at commit {commit}"]
    assert networks.hub_facts("resnet18.tv_in1k", "hub") == {"hub": f"timm/resnet18.tv_in1k at commit {commit}"}
    assert networks.hub_facts("resnet18.tv_in1k", "random") == {}
    assert networks.hub_facts("resnet50.a1_in1k", "hub") == {"hub": "timm/resnet50.a1_in1k at commit not known"}


def test_hub_without_network_says_so_at_once(monkeypatch, tmp_path):
    huggingface = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", _offline)
    with pytest.raises(ValueError, match=r"weights of resnet18\.tv_in1k: expected them from the hub"):
        networks.load("resnet18.tv_in1k", "hub")


def _offline(*args, **kwargs):
    raise OSError("outgoing traffic has been disabled")


def test_a_local_file_gives_the_same_network_and_another_networks_file_is_refused(tmp_path, lite):
    from safetensors.torch import save_file

    path = tmp_path / "lite.safetensors"
    save_file(lite.state_dict(), path)
    copy = networks.load(LITE, str(path))
    assert all(torch.equal(a, b) for a, b in zip(copy.state_dict().values(), lite.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="check the network's name"):
        networks.load("resnet18", str(path))


def test_random_weights_and_new_heads_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (networks.load("resnet18", "random", num_classes=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)
    assert not a.training


# ---------------------------------------------------------------- input


def test_black_and_white_are_the_ends_of_the_range():
    images = np.array([[[0, 255]]], dtype=np.uint8)
    expected = torch.tensor([-1.0, 1.0])
    assert torch.equal(networks.to_input(images, LITE)[0, :, 0], expected.expand(3, 2))
    assert torch.equal(networks.to_input(np.array([[[-1.0, 1.0]]]), LITE)[0, :, 0], expected.expand(3, 2))


def test_each_network_gets_its_own_normalisation():
    white = np.full((1, 2, 2), 255, np.uint8)
    imagenet = networks.to_input(white, "resnet50.tv_in1k")[0, :, 0, 0]
    np.testing.assert_allclose(imagenet, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)
    assert networks.normalisation("tf_efficientnetv2_s.in1k") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(N, H, W\)"),
        (np.full((1, 2, 2), 1.5), "outside or NaN"),
        (np.full((1, 2, 2), np.nan), "outside or NaN"),
    ],
)
def test_bad_images_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        networks.to_input(images, LITE)


@pytest.mark.parametrize("stated", [None, "", "0" * 64])
def test_a_pickle_is_opened_only_after_its_checksum_matched(tmp_path, lite, monkeypatch, stated):
    path = tmp_path / "tf_efficientnet_lite0.pth"
    torch.save(lite.state_dict(), path)
    beside = tmp_path / f"{path.name}.sha256"
    if stated is not None:
        beside.write_text(stated)
    opened, real = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **how: opened.append(how) or real(*args, **how))
    with pytest.raises(ValueError, match=rf"expected SHA-256 {stated or 'given'} \(in tf_.*\.pth\.sha256 beside it"):
        networks.load("tf_efficientnet_lite0", str(tmp_path))
    assert opened == []
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    found = networks.load("tf_efficientnet_lite0", str(tmp_path)).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in lite.state_dict().items())
    assert opened == [{"map_location": "cpu", "weights_only": True}]


def test_a_read_only_memory_map_is_fine(tmp_path):
    np.save(tmp_path / "a.npy", noise())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert torch.equal(networks.to_input(mapped, LITE), networks.to_input(noise(), LITE))


# ---------------------------------------------------------------- prefix and tail


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "tf_efficientnetv2_b0"])
@pytest.mark.parametrize("freeze", ["paper", "all", "none"])
def test_tail_after_prefix_is_the_network(name, freeze):
    model = networks.load(name, "random", num_classes=2)
    inputs = networks.to_input(noise(2), name)
    with torch.no_grad():
        wanted = model(inputs)
        prefix, tail = networks.split(model, name, freeze)
        torch.testing.assert_close(tail(prefix(inputs)), wanted, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in prefix.parameters())
    assert all(p.requires_grad for p in tail.parameters())


def test_the_papers_freezing_by_counting_weights():
    """ResNet-50: stem and layers 1 to 3; EfficientNet: stem and the first five stages of blocks."""
    model = networks.load("resnet50", "random")
    prefix, _ = networks.split(model, "resnet50")
    frozen = sum(p.numel() for p in prefix.parameters())
    parts = [model.conv1, model.bn1, model.layer1, model.layer2, model.layer3]
    assert frozen == sum(p.numel() for part in parts for p in part.parameters())
    _, tail = networks.split(networks.load(LITE), LITE)
    assert not isinstance(tail[0], torch.nn.Conv2d)
    assert sum(p.numel() for p in tail.parameters()) == 3_951_240


def test_frozen_all_trains_the_linear_layer_alone():
    model = networks.load("resnet18", "random", num_classes=2)
    _, tail = networks.split(model, "resnet18", "all")
    assert sum(p.numel() for p in tail.parameters()) == 512 * 2 + 2


def test_a_wrong_stage_to_freeze_names_the_nearest():
    with pytest.raises(ValueError, match="nearest is layer3"):
        networks.split(networks.load("resnet18", "random"), "resnet18", "layr3")


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="ResNet or an EfficientNet"):
        backbones.stages(networks.load("mobilenetv3_small_050", "random", num_classes=2))


# ---------------------------------------------------------------- inference


def test_features_are_the_heads_input_and_do_not_depend_on_the_batch(lite):
    images = noise(5)
    found = networks.features(lite, images, LITE)
    assert found.shape == (5, 1280)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, networks.features(lite, images, LITE, batch_size=2), atol=1e-4)
    weight, bias = (p.detach().numpy() for p in lite.classifier.parameters())
    np.testing.assert_allclose(found @ weight.T + bias, logits(lite, images, LITE), atol=1e-3)


def test_no_image_is_an_error(lite):
    with pytest.raises(ValueError, match="at least one"):
        networks.features(lite, noise(0), LITE)
