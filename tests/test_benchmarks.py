"""The benchmark: its rows and ratios, and the study for one GPU, tried on a CPU at a size that means nothing."""

import math

import pandas as pd
import pytest
import torch

from nafld_utils import benchmarks, diffusion, gpu_study, params, speed

CPU = torch.device("cpu")


def test_timing_scales_and_counts_operations():
    settings = params.load("smoke").section("ldm")
    denoiser = diffusion.build_denoiser("class", settings["class"], (4, 8, 8), 5, 0)
    options = diffusion.schedule_options(settings["class"], "v_prediction", 1000)
    flops = diffusion.forward_flops(denoiser, (4, 8, 8), 64)
    step = speed.time_training(denoiser, (4, 8, 8), settings, options, CPU, 64, n_images=2)
    assert step.flops == 3 * 2 * flops
    assert step.seconds > 0
    assert math.isnan(step.memory_gib)
    how = {"scheduler": "ddim", "eta": 0.0}
    one, two = (
        speed.time_sampling(denoiser, (4, 8, 8), options, CPU, 64, 8, 40, 2, guidance=guidance, **how)
        for guidance in (1.0, 2.0)
    )
    assert one.flops == 40 * flops
    assert two.flops == 2 * one.flops
    assert two.seconds > one.seconds


def test_matrix_rate_is_of_the_order_of_a_machine():
    assert 1e8 < speed.matrix_rate(CPU, torch.float32, 256) < 1e15


def test_a_plain_ddim_loop_draws_what_the_project_draws():
    from nafld_utils import sampling

    settings = params.load("smoke").section("ldm.class")
    denoiser = diffusion.build_denoiser("class", settings, (4, 8, 8), 5, 0).eval()
    options = diffusion.schedule_options(settings, "v_prediction", 1000)
    seeds, labels = [3, 4], torch.tensor([0, 1])
    z = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    plain = benchmarks.plain_sampling(denoiser, options, labels, z, 6, 1.7)
    ours = sampling.sample(denoiser, options, labels, seeds, (4, 8, 8), 6, 0.0, 1.7, CPU)
    torch.testing.assert_close(plain, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_table_compares_each_way_with_the_plain_one():
    found = benchmarks.table("demo", CPU)
    assert len(found) == 2 * 5
    plain = found[found["how"].str.startswith(benchmarks.PLAIN)]
    assert (plain["times faster than plain"] == 1).all()
    fast = found[found["how"].str.contains("DPM-Solver")]
    assert (fast["times faster than plain"] > 5).all(), "25 times fewer steps and one batch for both passes"
    assert found["share of matrix rate"].between(0, 2).all()


@pytest.mark.slow
def test_the_gpu_study_runs_whole_on_a_small_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    small = params.flat(params.load("smoke").model_dump(mode="json", by_alias=True))
    keep = ("cohort.", "folds.", "preprocess.", "ldm.class.", "ldm.prediction", "ldm.steps", "ldm.batch", "ldm.log")
    changes = {key: value for key, value in small.items() if key.startswith(keep)}
    changes |= {"sampling.n_images": 8, "sampling.steps": 2, "sampling.n_compared": 4, "engine.compile": False}
    changes |= {"sampling.compared_steps": [2], "sampling.compared_guidance": [1.2], "ldm.preview_every": 0}
    changes |= {"autoencoder.class.base_channels": 32, "autoencoder.class.train_steps": 2, "engine.min_free_gib": 0.0}
    run = gpu_study.study(3, None, changes)
    gpu_study.fold(run, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "class_distances.csv")
    assert table["set"].tolist() == ["synthetic", "reconstructions of held-out images", "real training images"]
    assert (table["frechet"] > 0).all()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"class_{name}"
        for name in (
            "cost.csv", "curve.csv", "distances.csv", "features.npy", "grid.npy", "reconstruction.csv", "samplers.csv"
        )
    }  # fmt: skip
