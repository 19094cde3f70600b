"""Distances, the score, equal draws and the check of the condition: by eye, at the edges, then two ways agreeing."""

import numpy as np
import pandas as pd
import pytest
from scipy import linalg

from nafld_utils import networks
from nafld_utils.networks import feature_networks
from nafld_utils.quality import metric_tables


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- Frechet distance


def test_frechet_checkable_by_eye():
    """Equal spread: the squared distance of the means; equal means, spreads s and t: (s - t)² a dimension."""
    assert networks.frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]) == pytest.approx(9.0)
    assert networks.frechet_distance([[-1.0], [1.0]], [[-3.0], [3.0]]) == pytest.approx((np.sqrt(2) - np.sqrt(18)) ** 2)


def test_frechet_of_identical_sets_is_zero_also_when_rank_deficient():
    for shape in ((300, 8), (20, 500)):
        x = rng().normal(size=shape)
        scale = x.var(axis=0).sum()
        assert abs(networks.frechet_distance(x, x)) < 1e-10 * scale
        assert abs(networks.frechet_distance(x, rng(1).permutation(x))) < 1e-10 * scale


def test_frechet_of_one_repeated_image_is_the_spread_of_the_other_set():
    x = rng().normal(size=(40, 6))
    y = np.repeat(x.mean(axis=0, keepdims=True), 12, axis=0)
    assert networks.frechet_distance(x, y) == pytest.approx(np.cov(x, rowvar=False).trace())


def slow_frechet(a, b):
    """The definition, with an explicit matrix root of the product of covariances."""
    mean = a.mean(axis=0) - b.mean(axis=0)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(s)
    return mean @ mean + np.trace(s + t - 2 * np.real(linalg.sqrtm(root @ t @ root)))


def test_frechet_agrees_with_the_definition():
    a, b = rng(1).normal(size=(200, 12)) @ rng(2).normal(size=(12, 12)), rng(3).normal(size=(90, 12)) + 1
    assert networks.frechet_distance(a, b) == pytest.approx(slow_frechet(a, b), rel=1e-8)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 90, 32), (500, 400, 64), (30, 50, 128)])
def test_frechet_agrees_with_torchmetrics_and_torch_fidelity(n, m, d):
    """The two libraries' formulas, float64: `_compute_fid(mu, sigma, mu, sigma)`, `fid_statistics_to_metric`."""
    import torch
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    a, b = np.abs(rng(4).normal(size=(n, d))), np.abs(rng(5).normal(size=(m, d))) * 1.3
    stats = [{"mu": x.mean(axis=0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)]
    tensors = [torch.from_numpy(one[key]) for one in stats for key in ("mu", "sigma")]
    mine = networks.frechet_distance(a.astype(np.float32).astype(float), b.astype(np.float32).astype(float))
    assert networks.frechet_distance(a, b) == pytest.approx(float(_compute_fid(*tensors)), rel=1e-6)
    fidelity = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert networks.frechet_distance(a, b) == pytest.approx(fidelity, rel=1e-6)
    assert mine == pytest.approx(fidelity, rel=1e-5)  # features are stored as float32


def test_frechet_is_symmetric_and_grows_as_sets_shrink():
    a, b = rng(6).normal(size=(400, 64)), rng(7).normal(size=(400, 64))
    assert networks.frechet_distance(a, b) == pytest.approx(networks.frechet_distance(b, a), rel=1e-9)
    assert networks.frechet_distance(a[:40], b[:40]) > 2 * networks.frechet_distance(a, b)


@pytest.mark.parametrize("function", [networks.frechet_distance, networks.kernel_distance])
def test_bad_features_are_named(function):
    good = rng().normal(size=(10, 4))
    bad = good.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"validation images: expected finite .* 1 of 10 rows, the first is row 3"):
        function(good, bad, names=("semantic", "validation images"))
    with pytest.raises(ValueError, match=r"^semantic: expected features of shape \(n, d\) with n >= 2, found \(1, 4\)"):
        function(good[:1], good, names=("semantic", "validation images"))
    with pytest.raises(ValueError, match=r"^validation images: expected 4 features an image as in semantic, found 3"):
        function(good, good[:, :3], names=("semantic", "validation images"))
    with pytest.raises(ValueError, match=r"^the first set: expected features of shape"):
        function(good[0], good)


# ---------------------------------------------------------------- kernel distance and score


def slow_kernel(a, b):
    """Unbiased squared MMD by its double sums."""
    kernel = lambda x, y: (x @ y / a.shape[1] + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kernel_distance_agrees_with_double_sums():
    a, b = rng(1).normal(size=(12, 5)), rng(2).normal(size=(12, 5)) + 0.5
    assert networks.kernel_distance(a, b, n_subsets=2, subset_size=12) == pytest.approx(slow_kernel(a, b), rel=1e-9)


def test_kernel_distance_does_not_depend_on_size_and_vanishes_for_like_sets():
    a, b = rng(3).normal(size=(600, 16)), rng(4).normal(size=(600, 16))
    like = [networks.kernel_distance(a[:n], b[:n], 100, 50) for n in (60, 600)]
    far = [networks.kernel_distance(a[:n], b[:n] + 1, 100, 50) for n in (60, 600)]
    assert max(map(abs, like)) < 0.05 < 0.3 < min(far)
    assert far[0] == pytest.approx(far[1], rel=0.2)


def test_kernel_distance_takes_the_smaller_set_whole():
    a, b = rng(1).normal(size=(7, 5)), rng(2).normal(size=(30, 5))
    assert np.isfinite(networks.kernel_distance(a, b, n_subsets=3, subset_size=50))


def test_score_by_eye():
    """Sure and different: the number of classes; all alike, or all unsure: 1."""
    sure = 50.0 * np.eye(5)
    assert networks.inception_score(sure) == pytest.approx(5.0)
    assert networks.inception_score(np.repeat(sure[:1], 6, axis=0)) == pytest.approx(1.0)
    assert networks.inception_score(np.zeros((6, 5))) == pytest.approx(1.0)


def test_score_is_the_exponential_of_the_mean_divergence():
    logits = rng().normal(size=(40, 10))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    whole = np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean())
    assert networks.inception_score(logits) == pytest.approx(whole)
    with pytest.raises(ValueError, match=r"semantic: .* n >= 2, found \(1, 5\)"):
        networks.inception_score(logits[:1, :5], name="semantic")


def test_nearest_distance_and_typical_image():
    reference = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    assert networks.nearest_distance([[0.0, 0.0], [9.0, 9.0]], reference, k=2)[0] == pytest.approx(0.5)
    assert networks.typical([[0.0], [-30.0], [5.0], [40.0], [-4.0]]) == 4


# ---------------------------------------------------------------- one fold's table


def feature_set(name, role, n, labels, shift=0.0, seed=0):
    draw = rng(seed)
    labels = None if labels is None else np.asarray(labels)
    return metric_tables.FeatureSet(name, role, draw.normal(size=(n, 6)) + shift, draw.normal(size=(n, 9)), labels)


def fold():
    reference = feature_set("real_validation", "reference", 12, [0] * 4 + [1] * 8, seed=1)
    sets = [
        feature_set("real_training", "floor", 30, [0] * 9 + [1] * 21, seed=2),
        feature_set("semantic", "model", 40, [0] * 20 + [1] * 20, 0.8, seed=3),
        feature_set("noise", "ceiling", 25, None, 4.0, seed=4),
        feature_set("gaussian_semantic", "ceiling", 25, None, 3.0, seed=5),
    ]
    return reference, sets


def test_every_set_is_compared_at_one_size_and_class_mix():
    reference, sets = fold()
    assert metric_tables.common_counts(reference, sets, 0) == (9, 0)
    assert metric_tables.common_counts(reference, sets, 1) == (0, 20)
    assert metric_tables.common_counts(reference, sets, None) == (
        8,
        16,
    )  # noise is the smallest, one healthy to two fatty
    rows = metric_tables.draw_rows(sets[1].labels, 40, (8, 16), rng())
    assert len(set(rows)) == 24
    assert sets[1].labels[rows].sum() == 16
    assert len(set(metric_tables.draw_rows(None, 25, (8, 16), rng()))) == 24


def test_measure_orders_floor_model_ceiling_and_names_features():
    table = metric_tables.measure(*fold(), "lite0", rng(), n_subsets=5, subset_size=5)
    assert set(table["features"]) == {"EfficientNet-Lite0"}
    assert not any(
        word in name for name in networks.FEATURES["lite0"].metrics.values() for word in ("FID", "KID", "IS ")
    )
    equal = table[(table["sample"] == "equal") & (table["metric"] == "frechet")]
    for _, part in equal.groupby("class"):
        assert len(set(part["n_images"])) == 1
        value = part.set_index("model")["value"]
        assert value["real_training"] < value["semantic"] < value["gaussian_semantic"] < value["noise"]
    whole = table[(table["sample"] == "all") & (table["model"] == "semantic") & (table["class"] == "both")]
    assert set(whole["n_images"]) == {40}
    pd.testing.assert_frame_equal(table, metric_tables.measure(*fold(), "lite0", rng(), n_subsets=5, subset_size=5))


def test_a_set_is_compared_only_where_it_belongs():
    reference, sets = fold()
    for group, shift in ((0, 1.0), (None, 2.0)):
        one = feature_set("repeated_image", "ceiling", 40, None, shift, seed=6)
        sets.append(metric_tables.FeatureSet(one.name, one.role, one.features, one.logits, None, (group,)))
    table = metric_tables.measure(reference, sets, "lite0", rng(), 2, 4)
    part = table[(table["model"] == "repeated_image") & (table["metric"] == "frechet")]
    assert part["class"].tolist() == ["healthy", "both"]
    assert part["value"].is_monotonic_increasing


def test_a_class_with_too_few_images_is_named_not_averaged_away():
    reference, sets = fold()
    reference = feature_set("real_validation", "reference", 9, [0] + [1] * 8, seed=1)
    thin = metric_tables.measure(reference, sets, "lite0", rng(), 2, 4).assign(fold=1)
    whole = metric_tables.measure(*fold(), "lite0", rng(), 2, 4).assign(fold=0)
    assert thin.loc[(thin["class"] == "healthy"), "value"].isna().all()
    table = metric_tables.fold_intervals(pd.concat([whole, thin]))
    healthy = table[(table["class"] == "healthy") & (table["model"] == "semantic") & (table["metric"] == "frechet")]
    assert set(healthy["n"]) == {1}
    assert healthy["note"].str.startswith("fold 1: fewer than two images").all()


def test_fold_intervals_are_student_t_and_places_compare_with_every_own_ceiling():
    rows = []
    values = {
        ("semantic", "model"): [4.0, 5.0, 6.0],
        ("class", "model"): [4.0, 5.0, 6.0],
        ("real_training", "floor"): [1.0, 1.0, 1.0],
        ("noise", "ceiling"): [20.0, 20.0, 20.0],
        ("untrained_semantic", "ceiling"): [11.0, 11.0, 11.0],
        ("untrained_class", "ceiling"): [3.5, 9.5, 7.5],
    }
    for (model, role), numbers in values.items():
        for k, value in enumerate(numbers):
            rows.append({"model": model, "role": role, "fold": k, "value": value})
    facts = {"class": "both", "metric": "frechet", "features": "x", "sample": "equal", "n_images": 9, "n_reference": 9}
    table = metric_tables.fold_intervals(pd.DataFrame(rows).assign(**facts))
    row = table[table["model"] == "semantic"].iloc[0]
    assert row["mean"] == 5
    # t(0.975, 2) times the standard error of the logarithm, 1 / sqrt(3) / 5
    assert np.log(row["high"] / row["mean"]) == pytest.approx(4.302653 / np.sqrt(3) / 5, rel=1e-6)
    assert np.log(row["mean"] / row["low"]) == pytest.approx(4.302653 / np.sqrt(3) / 5, rel=1e-6)
    shares = pd.DataFrame(rows[:3]).assign(**facts | {"metric": "recall"}, value=[0.9, 1.0, 0.95])
    found = metric_tables.fold_intervals(shares).iloc[0]
    assert 0 < found["low"] < 0.95 < found["high"] < 1
    values = pd.DataFrame(rows).assign(**facts)
    places = metric_tables.against_references(values).set_index("model")
    assert places.loc["semantic", "ceiling"] == "untrained_semantic"
    assert places.loc["semantic", "place"] == pytest.approx(0.4)
    assert places.loc["semantic", "below_every_ceiling"]
    assert not places.loc["class", "below_every_ceiling"]  # below on average, not in every fold
    assert places.loc["class", "beyond"] == "untrained_class"
    d = np.array([4.0 - 3.5, 5.0 - 9.5, 6.0 - 7.5])
    half = 4.302653 * d.std(ddof=1) / np.sqrt(3)
    found = places.loc["class", list(metric_tables.DIFFERENCE)].astype(float).tolist()
    assert found == pytest.approx([d.mean(), d.mean() - half, d.mean() + half], rel=1e-6)


def test_a_model_is_compared_with_a_ceiling_fold_by_fold():
    """A model that is nearer by the same amount in every fold is nearer, however much the folds themselves differ."""
    facts = {"class": "both", "metric": "frechet", "sample": "equal"}
    folds = [100.0, 300.0, 900.0]
    values = {("semantic", "model"): [f - 5 - k for k, f in enumerate(folds)], ("real_training", "floor"): [1.0] * 3}
    values |= {("noise", "ceiling"): folds}
    rows = [
        {"model": m, "role": r, "fold": k, "value": v} for (m, r), each in values.items() for k, v in enumerate(each)
    ]
    table = pd.DataFrame(rows).assign(**facts)
    place = metric_tables.against_references(table).iloc[0]
    assert place["high"] > 900
    assert place["below_every_ceiling"]
    assert place["difference"] == -6
    one = metric_tables.against_references(table[table["fold"] == 1]).iloc[0]
    assert one["difference"] == -6
    assert np.isnan(one["difference_low"])
    assert not one["below_every_ceiling"]


def test_a_class_without_enough_images_has_a_row_and_no_place():
    facts = {"metric": "frechet", "sample": "equal", "fold": 0}
    sets = {"semantic": "model", "real_training": "floor", "noise": "ceiling"}
    rows = [
        {"model": m, "role": r, "class": c, "value": 5.0 if c == "both" else float("nan"), **facts}
        for c in ("fatty", "both")
        for m, r in sets.items()
    ]
    places = metric_tables.against_references(pd.DataFrame(rows)).set_index("class")
    assert places.index.tolist() == ["fatty", "both"]
    assert places.loc["fatty", ["mean", "place", "difference"]].isna().all()
    assert places.loc["fatty", "beyond"] == ""
    assert not places["below_every_ceiling"].any()


# ---------------------------------------------------------------- features


def test_lite0_features_and_logits_in_one_pass():
    import torch

    from nafld_utils import networks
    from nafld_utils.networks import backbones

    images = rng().integers(0, 256, (3, 64, 64), dtype=np.uint8)
    features, logits = networks.extract(images, "lite0", batch_size=2)
    assert (features.shape, logits.shape) == ((3, 1280), (3, 1000))
    model = networks.load(networks.LITE0, weights="bundled")
    with torch.inference_mode():
        wanted = model(backbones.to_input(images, networks.LITE0)).numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert not torch.is_grad_enabled() or np.isfinite(features).all()


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file in the published file's layout with random weights: the machinery, without its 95 MB download."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_inception_from_a_local_file_agrees_with_torchmetrics(inception_weights, monkeypatch):
    """torchmetrics' own extractor without antialiasing, on the same weights."""
    import torch
    from torchmetrics.image.fid import NoTrainInceptionV3

    from nafld_utils.artifacts import file_sha256

    monkeypatch.setattr(feature_networks, "INCEPTION_SHA256", file_sha256(inception_weights))
    images = rng().integers(0, 256, (3, 64, 64), dtype=np.uint8)
    features, logits = networks.extract(images, "inception", str(inception_weights), batch_size=2)
    assert (features.shape, logits.shape) == ((3, 2048), (3, 1008))
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_weights), antialias=False)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1)).numpy()
    np.testing.assert_allclose(features, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def test_a_weight_file_that_is_more_than_tensors_is_not_executed(tmp_path, monkeypatch):
    import torch

    from nafld_utils.artifacts import file_sha256

    class Payload:
        def __reduce__(self):
            return exec, ("raise SystemExit('a pickle was executed')",)

    path = tmp_path / "inception.pth"
    torch.save({"weight": Payload()}, path)
    monkeypatch.setattr(feature_networks, "INCEPTION_SHA256", file_sha256(path))
    with pytest.raises(ValueError, match=r"inception\.pth: expected weights, tensors only, found .*quality\.weights"):
        networks.extract(np.zeros((1, 64, 64), np.uint8), "inception", str(path))


def test_features_of_an_untrained_network_carry_its_name_and_are_the_same_at_every_call():
    images = rng().integers(0, 256, (2, 64, 64), dtype=np.uint8)
    first, logits = networks.extract(images, "random")
    feature_networks._network.cache_clear()
    assert np.array_equal(first, networks.extract(images, "random")[0])
    assert (first.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert all("untrained" in name for name in networks.FEATURES["random"].metrics.values())


def test_inception_refuses_other_content_and_a_missing_file(inception_weights, tmp_path):
    image = np.zeros((1, 64, 64), np.uint8)
    with pytest.raises(ValueError, match=r"expected SHA-256 6726825d\w{56} \(of the .*, found .*quality\.weights"):
        networks.extract(image, "inception", str(inception_weights))
    with pytest.raises(ValueError, match=r"found no file; set quality\.weights"):
        networks.extract(image, "inception", str(tmp_path / "absent.pth"))


def test_inception_without_network_says_what_to_do(tmp_path, monkeypatch):
    import torch

    def unplugged(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unplugged)
    with pytest.raises(ValueError, match=r"expected a download, found Network is unreachable; set quality\.weights"):
        feature_networks.inception_file()


def test_extract_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="expected one of inception, lite0, lite1, random, found 'clip'"):
        networks.extract(np.zeros((2, 8, 8), np.uint8), "clip")
    with pytest.raises(ValueError, match=r"expected grey images \(N, S, S\), uint8"):
        networks.extract(np.zeros((2, 8, 8), np.float32), "lite0")
