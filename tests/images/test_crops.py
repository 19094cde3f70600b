"""Region, crops, maps and warp: pictures whose answer is known by eye, edges, second implementations."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import filters, transform

from nafld_utils import cohort, images, params, phantom
from nafld_utils.cohort import simulate
from nafld_utils.images import crops, semantic_maps


def sector(height=434, width=636, apex=(8, 318), half_angle=53.0, radius=358):
    y, x = np.indices((height, width))
    angle = np.degrees(np.arctan2(x - apex[1], y - apex[0]))
    return (np.abs(angle) <= half_angle) & (np.hypot(y - apex[0], x - apex[1]) <= radius)


def speckle(mask, seed=0, low=8, high=120):
    return np.where(mask, np.random.default_rng(seed).integers(low, high, mask.shape), 0).astype(np.uint8)


# ---------------------------------------------------------------- region


@pytest.mark.parametrize("radius", [0, 1, 5])
def test_a_mask_grows_and_shrinks_by_a_square_as_in_scipy_and_not_from_the_border(radius):
    mask = np.random.default_rng(0).random((40, 33)) < 0.8
    square = np.ones((2 * radius + 1,) * 2)
    assert np.array_equal(crops._dilate(mask, radius), ndimage.binary_dilation(mask, square))
    assert np.array_equal(crops._erode(mask, radius), ndimage.binary_erosion(mask, square, border_value=1))


def test_overlays_go_and_the_sector_stays_whole():
    mask = sector()
    frame = speckle(mask)
    frame[25:125, 611:631] = 200  # grey bar
    frame[405:408, 30:160] = 255  # ECG trace
    frame[60:70, 195:203] = 255  # digit
    frame[10:24, 340:343] = 230  # mark that touches the sector's edge
    frame[340:434, 300:302] = 200  # ECG spike that crosses the lower border
    region = images.region_mask(frame)
    assert (mask & ~region).sum() < 0.001 * mask.sum()
    assert (region & ~mask & (frame > 0)).sum() < 60
    assert not region[25:125, 611:631].any()
    assert not region[375:].any()


def test_dark_vessels_and_shadows_belong_to_the_sector():
    mask = sector()
    frame = speckle(mask)
    frame[180:220, 300:360] = 0  # vessel
    y, x = np.indices(mask.shape)
    frame[mask & (np.degrees(np.arctan2(x - 318, y - 8)) > 40) & (y < 180)] = 2  # shadow down the right edge
    region = images.region_mask(frame)
    assert region[180:220, 300:360].all()
    assert (mask & ~region).sum() < 0.003 * mask.sum()


def test_region_of_a_wider_sector_and_of_one_cut_by_the_frame():
    for mask in (sector(half_angle=60.2), sector(radius=500)[:300]):
        region = images.region_mask(speckle(mask))
        assert (mask ^ region).sum() < 0.002 * mask.sum()


def beam(centre, width, apex=(8, 318), shape=(434, 636)):
    """Pixels of a beam from the apex on, angles in degrees."""
    y, x = np.indices(shape)
    return np.abs(np.degrees(np.arctan2(x - apex[1], y - apex[0])) - centre) < width / 2


@pytest.mark.parametrize("beams", [[(0, 2)], [(-30, 10)], [(10, 30)], [(-20, 10), (20, 10)]])
def test_a_shadow_that_splits_the_sector_costs_none_of_it(beams):
    mask = sector()
    shadow = np.any([beam(*one) for one in beams], axis=0)
    frame = speckle(mask & ~shadow)
    frame[25:125, 611:631] = 200  # grey bar
    frame[405:408, 30:160] = 255  # ECG trace
    assert ndimage.label(frame[100:300] > 4)[1] > 1
    region = images.region_mask(frame)
    assert (mask & ~region).sum() < 0.02 * mask.sum()
    assert (region & ~mask).sum() < 60


@pytest.mark.parametrize("centre", [-15, 0])
def test_a_shadow_below_a_curved_probe_costs_none_of_its_field(centre):
    y, x = np.indices((434, 636))
    mask = sector(apex=(-67, 318)) & (np.hypot(y + 67, x - 318) > 150)
    region = images.region_mask(speckle(mask & ~beam(centre, 8, apex=(-67, 318))))
    assert (mask & ~region).sum() < 0.005 * mask.sum()


def test_a_band_of_shadow_in_a_linear_probes_field_costs_nothing():
    mask = np.zeros((300, 360), bool)
    mask[20:280, 30:330] = True
    frame = speckle(mask)
    frame[:, 150:200] = 0
    assert (images.region_mask(frame) == mask).all()


def test_neither_a_second_sector_nor_a_legend_beside_it_is_taken_for_a_part():
    first, second = sector(434, 900, (8, 225), 45, 300), sector(434, 900, (8, 660), 45, 290)
    assert (images.region_mask(speckle(first | second)) & second).sum() == 0
    field, legend = np.zeros((2, 434, 636), bool)
    field[20:420, 20:420], legend[20:120, 440:560] = True, True
    assert legend.sum() > crops.PIECE * field.sum()
    assert (images.region_mask(speckle(field | legend)) == field).all()


def test_simulated_overlays_are_removed():
    cohort = simulate(2, seed=11, n_frames=1)
    whole = phantom.sector_mask()
    for frame in cohort.pixels:
        region = images.region_mask(frame)
        assert (whole & ~region).sum() < 0.001 * whole.sum()
        assert (region & ~whole).sum() < 100


def test_hull_equals_scipys():
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 6) > 0.02
    points = np.argwhere(mask)
    inside = Delaunay(points[:]).find_simplex(np.argwhere(np.ones_like(mask))) >= 0
    found = crops._hull(mask)
    assert found[mask].all()
    assert (found ^ inside.reshape(mask.shape)).mean() < 0.002


def test_a_black_frame_is_refused_and_a_thin_region_kept():
    with pytest.raises(ValueError, match=r"above grey level 4 \(preprocess.threshold\), found none"):
        images.region_mask(np.zeros((50, 60), np.uint8))
    thin = np.zeros((50, 60), np.uint8)
    thin[20:23, 10:50] = 90
    assert (images.region_mask(thin) == (thin > 0)).all()


def test_region_of_every_real_frame(real_patients):
    """One patient's sector opens to 60 degrees, all others' to 53; two have an ECG spike through the sector."""
    from nafld_utils.cohort import description

    found, opening = real_patients, []
    for patient, frames in zip(found.patients["patient_id"], found.frames, strict=True):
        regions = np.stack([images.region_mask(frame) for frame in frames[::3]])
        agreed = regions.all(axis=0)
        assert (regions.any(axis=0) ^ agreed).sum() < 600, f"patient {patient}: frames disagree about the sector"
        assert 115_000 < agreed.sum() < 138_000, patient
        # Overlays: mark, grey bar, ECG, heart rate and time lie outside.
        assert not agreed[:16, 338:350].any(), patient
        assert not regions[:, 20:130, 608:634].any(), patient
        assert not regions[:, 372:].any(), patient
        row, column, half = description.sector_geometry(agreed)
        assert abs(row - 7) < 3, patient  # the mark touches the right edge and widens it by up to three pixels
        assert abs(column - 318) < 4, patient
        opening.append(half)
    assert np.median(opening) == pytest.approx(52.4, abs=0.5)
    assert np.sort(opening)[-1] == pytest.approx(59.9, abs=0.5)
    assert np.sort(opening)[-2] < 53.5


# ---------------------------------------------------------------- crop


def test_the_crop_is_centred_on_the_regions_box():
    region = np.zeros((100, 120), bool)
    region[10:50, 20:80] = True
    assert images.crop_corner(region, 32) == (14, 34)
    assert images.crop_corner(region, 64) == (-2, 18)


def test_cut_pads_with_black_beyond_the_frame():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    assert images.cut(image, (-1, 2), 3).tolist() == [[0, 0, 0], [3, 4, 0], [7, 8, 0]]
    assert images.cut(image, (0, 1), 2).tolist() == [[2, 3], [6, 7]]
    assert not images.cut(image, (9, 9), 2).any()


def test_extract_crop_keeps_original_spacing_and_grey_levels():
    frame = speckle(sector())
    frame[405:408, 30:160] = 255
    crop = images.extract_crop(frame)
    region = images.region_mask(frame)
    top, left = images.crop_corner(region, 320)
    assert crop.shape == (320, 320)
    inside = region[top : top + 320, left : left + 320]
    assert (crop[inside] == frame[top : top + 320, left : left + 320][inside]).all()
    assert not crop[~inside].any()


def test_scaling_is_linear():
    levels = np.arange(256, dtype=np.uint8)
    scaled = images.to_float(levels)
    assert scaled.dtype == np.float32
    assert (scaled[0], scaled[-1]) == (-1.0, 1.0)
    assert np.diff(scaled) == pytest.approx(2 / 255, abs=1e-6)


# ---------------------------------------------------------------- random resized crops


def test_boxes_have_the_distribution_of_torchvisions():
    import torch
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    ours = np.array([images.random_box((320, 300), (0.5, 1.0), (0.8, 1.25), rng) for _ in range(1500)])
    torch.manual_seed(0)
    picture = torch.zeros(1, 320, 300)
    theirs = np.array([RandomResizedCrop.get_params(picture, [0.5, 1.0], [0.8, 1.25]) for _ in range(1500)])
    for column in range(4):
        quantiles = [np.quantile(boxes[:, column], np.linspace(0.05, 0.95, 10)) for boxes in (ours, theirs)]
        assert np.abs(quantiles[0] - quantiles[1]).max() < 12, column


def test_boxes_stay_inside_keep_their_limits_and_are_their_generators():
    boxes = np.array(
        [images.random_box((320, 320), (0.64, 1), (0.9, 1.1), np.random.default_rng(i)) for i in range(500)]
    )
    top, left, height, width = boxes.T
    assert (boxes == np.rint(boxes)).all()
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 320
    assert (height * width / 320**2).min() > 0.63
    assert 0.89 < (width / height).min() < (width / height).max() < 1.12
    again = images.random_box((320, 320), (0.64, 1), (0.9, 1.1), np.random.default_rng(7))
    assert again == tuple(boxes[7])


def test_an_impossible_ratio_falls_back_to_the_largest_centred_box():
    box = images.random_box((100, 400), (1.0, 1.0), (0.9, 1.1), np.random.default_rng(0))
    assert box == (0.0, 145.0, 100.0, 110.0)


def test_resizing_the_whole_is_exact_and_a_box_is_what_was_cut():
    crop = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    assert (images.resize_box(crop, images.whole_box(crop), 64) == crop).all()
    assert (images.resize_box(crop, (8, 16, 32, 32), 32) == crop[8:40, 16:48]).all()


def test_resizing_agrees_with_torchvisions_resized_crop():
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    smooth = ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (320, 320)), 2).astype(np.uint8)
    ours = images.resize_box(smooth, (20, 10, 280, 290), 128)
    picture = torch.from_numpy(smooth)[None]
    theirs = resized_crop(picture, 20, 10, 280, 290, [128, 128], InterpolationMode.BILINEAR, antialias=True)[0].numpy()
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_labels_stay_labels_when_resized():
    labels = np.kron(np.array([[0, 4], [7, 2]], np.uint8), np.ones((50, 50), np.uint8))
    small = images.resize_box(labels, (3, 5, 90, 88), 30, labels=True)
    assert set(np.unique(small)) == {0, 2, 4, 7}


def test_rotation_keeps_the_boxs_centre_and_zero_degrees_the_image():
    crop = speckle(np.ones((65, 65), bool))
    box = (10.0, 20.0, 30.0, 30.0)
    assert (images.rotate_about(crop, box, 0.0) == crop).all()
    dot = np.zeros((65, 65), np.uint8)
    dot[24:27, 34:37] = 200
    turned = images.rotate_about(dot, box, 5.0)
    assert np.abs(np.array(ndimage.center_of_mass(turned)) - np.array(ndimage.center_of_mass(dot))).max() < 0.2
    dot = np.zeros((65, 65), np.uint8)
    dot[24:27, 54:57] = 200  # right of the centre goes up when the picture turns counter-clockwise
    assert ndimage.center_of_mass(images.rotate_about(dot, box, 5.0))[0] < 24


# ---------------------------------------------------------------- semantic maps


def stripes(levels, side=128):
    return np.repeat(np.asarray(levels, np.uint8), side // len(levels))[None].repeat(side, axis=0)


def test_five_bands_of_grey_become_the_five_classes_in_order():
    noise = np.random.default_rng(0).integers(0, 6, (125, 125))
    image = (stripes([10, 60, 110, 160, 210], 125) + noise).astype(np.uint8)
    for order in ("downsample_first", "threshold_first"):
        labels = semantic_maps.semantic_map(image, classes=5, size=125, order=order, blur=1)
        assert (labels == stripes([0, 1, 2, 3, 4], 125)).all()


def test_maps_agree_with_a_search_over_all_thresholds():
    image = ndimage.gaussian_filter(np.random.default_rng(1).uniform(0, 255, (64, 64)), 1.5)
    image = np.interp(image, (image.min(), image.max()), (0, 255)).astype(np.uint8)

    def between(a, b):
        parts = [image[image <= a], image[(image > a) & (image <= b)], image[image > b]]
        return sum(part.size * (part.mean() - image.mean()) ** 2 for part in parts if part.size)

    best = max(between(a, b) for a in range(40, 200, 3) for b in range(a + 3, 230, 3))
    labels = semantic_maps.semantic_map(image, classes=3, size=64, blur=1, bins=256)
    found = between(image[labels == 0].max(), image[labels == 1].max())
    assert found >= best * 0.999


def test_64_bins_give_nearly_the_map_of_256():
    frame = images.extract_crop(cohort.simulate(1, seed=3, n_frames=1).pixels[0])
    few, many = (semantic_maps.semantic_map(frame, bins=bins) for bins in (64, 256))
    assert few.shape == (128, 128)
    assert set(np.unique(few)) == {0, 1, 2, 3, 4}
    assert (few != many).mean() < 0.08


@pytest.mark.parametrize("image", [np.full((64, 64), 90), stripes([3, 200], 64), np.eye(64) * 9])
def test_images_of_fewer_levels_than_classes_get_a_map(image):
    labels = semantic_maps.semantic_map(image.astype(np.uint8), classes=5, size=64, blur=1)
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) == len(np.unique(image))


def test_one_bright_pixel_in_a_flat_image_does_not_break_the_thresholds():
    image = np.full((64, 64), 7, np.uint8)
    image[3, 3] = 255
    assert semantic_maps.semantic_map(image, size=64).max() <= 4


def test_map_and_image_share_the_crop():
    crop = images.extract_crop(cohort.simulate(1, seed=4, n_frames=1).pixels[0])
    settings = params.load("demo").preprocess
    box = (20.0, 40.0, 260.0, 270.0)
    image = images.resize_box(crop, box, 128)
    labels = semantic_maps.semantic_maps(image[None], settings)[0]
    small = images.resize_box(image, images.whole_box(image), settings.map_size)
    means = [small[labels == level].mean() for level in range(5)]
    assert (np.diff(means) > 0).all()
    assert np.corrcoef(small.ravel(), labels.ravel())[0, 1] > 0.85


# ---------------------------------------------------------------- warp


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_thresholds_are_skimages_also_where_bins_are_empty_or_divisions_equal(classes):
    rng = np.random.default_rng(classes)
    for repeat in range(150):
        bins = int(rng.integers(8, 33))
        counts = rng.poisson(rng.gamma(0.3, 30, bins))  # about a third of the bins are empty
        bordered = np.append(rng.integers(0, 2 * counts.sum()), counts)
        counts = (counts, counts + counts[::-1], counts // 20, bordered)[repeat % 4]  # drawn, equal halves, few, black
        image = np.repeat(np.arange(len(counts)), counts).astype(np.float32)
        if len(np.unique(image)) > classes:
            span = int(image.max() - image.min()) + 1
            wanted = filters.threshold_multiotsu(image, classes=classes, nbins=span)
            found, edges = np.histogram(image, span)
            centres = (edges[:-1] + edges[1:]) / 2
            assert (centres[semantic_maps._last_bins(found, classes)] == wanted).all()


def test_the_warp_is_affine_on_every_triangle_as_skimage_has_it():
    size, points = 61, 4
    displacement = np.random.default_rng(0).normal(0, 2, (points, points, 2))
    field = semantic_maps.warp_field(size, displacement)
    corners = np.linspace(0, size - 1, points)
    step = corners[1]
    for i in range(points - 1):
        for j in range(points - 1):
            for triangle in (((0, 0), (0, 1), (1, 0)), ((1, 1), (0, 1), (1, 0))):
                nodes = np.array([(i + a, j + b) for a, b in triangle])
                there = np.stack([corners[nodes[:, 0]], corners[nodes[:, 1]]], axis=1)
                moved = there + displacement[nodes[:, 0], nodes[:, 1]]
                affine = transform.AffineTransform.from_estimate(there, moved)
                middle = np.rint(there.mean(axis=0) + np.array([[0, 0], [1, -1], [-2, 1]]) * step / 20).astype(int)
                expected = affine(middle.astype(float)) - middle
                assert pytest.approx(expected, abs=1e-9) == field[:, middle[:, 0], middle[:, 1]].T


def test_no_strength_gives_the_map_back_and_no_new_label_appears():
    labels = np.random.default_rng(0).choice(np.array([0, 2, 4], np.uint8), (64, 64))
    assert (images.warp_map(labels, np.random.default_rng(0), strength=0.0) == labels).all()
    assert set(np.unique(images.warp_map(labels, np.random.default_rng(0), strength=0.1))) <= {0, 2, 4}


def test_the_warp_is_weak_random_and_its_generators():
    labels = (np.hypot(*(np.indices((128, 128)) - 64)) < 40).astype(np.uint8)
    first, second = (images.warp_map(labels, np.random.default_rng(i)) for i in (1, 2))
    assert (first != second).any()
    assert (images.warp_map(labels, np.random.default_rng(1)) == first).all()
    overlap = 2 * (first & labels).sum() / (first.sum() + labels.sum())
    assert 0.9 < overlap < 1.0


def test_two_thousand_maps_are_warped_within_a_minute():
    import time

    labels = np.zeros((128, 128), np.uint8)
    started = time.process_time()
    for i in range(40):
        images.warp_map(labels, np.random.default_rng(i))
    assert (time.process_time() - started) / 40 < 0.03
