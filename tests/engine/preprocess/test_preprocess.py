"""Every preprocessor: shape, range, batching, live settings; canny against OpenCV; networks' real loaders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from sdbridge.engine.preprocess.base import Settings, gaussian_blur, sobel
from sdbridge.engine.preprocess.canny import Canny
from sdbridge.engine.preprocess.normal import normals
from sdbridge.engine.preprocess.registry import PREPROCESSORS, make_preprocessor
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.groups.conditioning import PREPROCESSORS as NAMES

CPU = torch.device("cpu")
PLAIN = [name for name, entry in PREPROCESSORS.items() if entry.network != "depth"]


def scene(seed: int, height: int = 192, width: int = 256) -> np.ndarray:
    """A picture with shapes, a gradient, texture and noise: uint8 RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 / height, columns * 255 / width, 90 + 0 * rows], axis=-1)
    for _ in range(14):
        centre = rng.integers(0, [width, height])
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        if rng.random() < 0.5:
            cv2.circle(image, centre.tolist(), int(rng.integers(6, 50)), colour, -1, cv2.LINE_AA)
        else:
            corner = (centre + rng.integers(8, 70, 2)).tolist()
            cv2.rectangle(image, centre.tolist(), corner, colour, int(rng.choice([-1, 3])))
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def f1(ours: np.ndarray, theirs: np.ndarray, reach: int = 1) -> float:
    """Share of edge pixels that have a partner within ``reach`` pixels, both ways."""
    kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
    near_theirs = cv2.dilate(theirs.astype(np.uint8), kernel) > 0
    near_ours = cv2.dilate(ours.astype(np.uint8), kernel) > 0
    precision = (ours & near_theirs).sum() / max(1, ours.sum())
    recall = (theirs & near_ours).sum() / max(1, theirs.sum())
    return float(2 * precision * recall / max(1e-9, precision + recall))


def test_the_table_and_the_parameter_choices_agree() -> None:
    assert tuple(PREPROCESSORS) == NAMES


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high"), [(100, 200), (50, 150), (102, 306)])
def test_canny_agrees_with_opencv(seed: int, low: int, high: int) -> None:
    image = scene(seed)
    theirs = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), low, high) > 0
    settings = Settings(low=low / 1020, high=high / 1020, detail=1.0)
    ours = Canny()(tensor(image), settings)[0, 0].numpy() > 0.5
    assert f1(ours, theirs, reach=0) >= 0.9
    assert f1(ours, theirs, reach=1) >= 0.97


def test_canny_with_blur_agrees_with_opencv_after_the_same_blur() -> None:
    image = scene(7)
    plane = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    blurred = cv2.GaussianBlur(plane, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    theirs = cv2.Canny(blurred, 60, 120) > 0
    ours = Canny()(tensor(image), Settings(60 / 1020, 120 / 1020, 0.5))[0, 0].numpy() > 0.5
    assert f1(ours, theirs, reach=1) >= 0.9


def test_swapped_thresholds_are_put_in_order() -> None:
    image = tensor(scene(1))
    assert torch.equal(Canny()(image, Settings(0.3, 0.1)), Canny()(image, Settings(0.1, 0.3)))


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_equals_its_pictures_one_by_one(name: str) -> None:
    preprocessor = make_preprocessor(name, None, CPU, torch.float32)
    batch = torch.cat([tensor(scene(seed, 64, 96)) for seed in (1, 2, 3)])
    together = preprocessor(batch, Settings())
    assert together.shape == batch.shape
    assert together.min() >= 0 and together.max() <= 1 and together.isfinite().all()
    alone = torch.cat([preprocessor(one[None], Settings()) for one in batch])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(8, 8), (40, 24), (1, 1)])
def test_small_flat_and_odd_pictures_are_no_special_case(name: str, shape: tuple[int, int]) -> None:
    preprocessor = make_preprocessor(name, None, CPU, torch.float32)
    for value in (0.0, 1.0):
        control = preprocessor(torch.full((1, 3, *shape), value), Settings())
        assert control.shape == (1, 3, *shape) and control.isfinite().all()


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("canny", Settings(0.05, 0.1), Settings(0.3, 0.6)),
        ("canny", Settings(detail=0.0), Settings(detail=1.0)),
        ("scribble", Settings(0.02, 0.05), Settings(0.4, 0.8)),
        ("lineart", Settings(low=0.0), Settings(low=0.6)),
        ("softedge", Settings(detail=0.0), Settings(detail=1.0)),
        ("color", Settings(detail=0.0), Settings(detail=1.0)),
        ("tile", Settings(detail=0.0), Settings(detail=0.5)),
    ],
)
def test_settings_change_the_control_image(name: str, one: Settings, other: Settings) -> None:
    preprocessor = make_preprocessor(name, None, CPU, torch.float32)
    image = tensor(scene(5, 96, 96))
    assert not torch.equal(preprocessor(image, one), preprocessor(image, other))


def test_colour_grid_holds_the_mean_of_each_cell() -> None:
    image = tensor(scene(3, 64, 64))
    control = make_preprocessor("color", None, CPU, torch.float32)(image, Settings(detail=0.5))
    assert torch.allclose(control[0, :, 0, 0], image[0, :, :8, :8].mean(dim=(1, 2)), atol=1e-6)
    assert torch.equal(control[..., :8, :8], control[..., :1, :1].expand(-1, -1, 8, 8))


def test_invert_and_grey() -> None:
    image = tensor(scene(3, 32, 32))
    assert torch.equal(make_preprocessor("invert", None, CPU, torch.float32)(image, Settings()), 1 - image)
    plain = make_preprocessor("grey", None, CPU, torch.float32)(image, Settings())
    assert torch.equal(plain[:, 0], plain[:, 2])


def test_lineart_and_scribble_draw_where_the_line_is() -> None:
    paper = np.full((128, 128, 3), 255, np.uint8)
    cv2.line(paper, (20, 64), (108, 64), (0, 0, 0), 3)
    for name in ("lineart", "scribble", "softedge"):
        control = make_preprocessor(name, None, CPU, torch.float32)(tensor(paper), Settings())[0, 0]
        assert control[60:69, 64].max() > 0.5, name
        assert control[20, 64] < 0.1, name


def test_blur_keeps_the_mean_and_sobel_matches_opencv() -> None:
    plane = scene(2)[..., 0].astype(np.float32)
    across, down = sobel(torch.from_numpy(plane)[None, None])
    kind = {"ksize": 3, "borderType": cv2.BORDER_REPLICATE}
    assert np.array_equal(across[0, 0].numpy(), cv2.Sobel(plane, cv2.CV_32F, 1, 0, **kind))
    assert np.array_equal(down[0, 0].numpy(), cv2.Sobel(plane, cv2.CV_32F, 0, 1, **kind))
    theirs = cv2.GaussianBlur(plane, (0, 0), 2.0, borderType=cv2.BORDER_REPLICATE)
    ours = gaussian_blur(torch.from_numpy(plane)[None, None], 2.0)[0, 0].numpy()
    assert np.abs(ours - theirs).max() < 2.0  # OpenCV cuts its kernel a little elsewhere


def test_normals_of_a_slope_lean_against_it() -> None:
    rising = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)  # nearer towards the right
    found = normals(rising)[0, :, 32, 32] * 2 - 1
    assert found[0] < -0.05 and abs(float(found[1])) < 1e-5 and abs(float(found.norm()) - 1) < 1e-5


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory):
    """A Depth-Anything network of true architecture and toy size, saved as the real ones are."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=32,
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8,
            head_hidden_size=8,
        )
    )
    folder = tmp_path_factory.mktemp("depth")
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["depth", "normal"])
def test_depth_networks_load_from_a_folder_and_run(name: str, depth_folder) -> None:
    preprocessor = make_preprocessor(name, depth_folder, CPU, torch.float32)
    batch = torch.cat([tensor(scene(seed, 64, 96)) for seed in (1, 2)])
    control = preprocessor(batch, Settings(detail=0.0))
    assert control.shape == batch.shape and control.isfinite().all()
    if name == "depth":
        assert control.amin(dim=(1, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-5)
        assert control.amax(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_depth_network_read_by_us_is_the_librarys(depth_folder, monkeypatch) -> None:
    from transformers import AutoModelForDepthEstimation

    from sdbridge.engine.image import parts
    from sdbridge.engine.preprocess.depth import Depth

    monkeypatch.setattr(parts, "_read_by_library", None)  # not asked
    ours = Depth.from_folder(depth_folder, CPU, torch.float32).network
    theirs = AutoModelForDepthEstimation.from_pretrained(str(depth_folder)).eval()
    assert type(ours) is type(theirs)
    pixels = torch.rand(1, 3, 28, 42)
    with torch.no_grad():
        a, b = (network(pixel_values=pixels).predicted_depth for network in (ours, theirs))
    assert torch.equal(a, b)


def test_a_depth_network_comes_without_holding_frames_up(depth_folder, monkeypatch) -> None:
    from sdbridge.engine.image import gentle_imports
    from sdbridge.engine.preprocess.depth import Depth

    asked: list[None] = []
    monkeypatch.setattr(gentle_imports, "give_way", lambda: asked.append(None))
    Depth.from_folder(depth_folder, CPU, torch.float32)
    assert len(asked) > 100, "its config alone is as many calls"


def test_hed_loads_its_published_layout_and_runs(tmp_path) -> None:
    from safetensors.torch import save_file

    from sdbridge.engine.preprocess.softedge import STAGES

    torch.manual_seed(0)
    weights = {"norm": torch.full((1, 3, 1, 1), 120.0)}
    for index, (a, b, count) in enumerate(STAGES, start=1):
        for conv, channels in enumerate([a] + [b] * (count - 1)):
            weights[f"block{index}.convs.{conv}.weight"] = torch.randn(b, channels, 3, 3) * 0.02
            weights[f"block{index}.convs.{conv}.bias"] = torch.zeros(b)
        weights[f"block{index}.projection.weight"] = torch.randn(1, b, 1, 1)
        weights[f"block{index}.projection.bias"] = torch.zeros(1)
    save_file(weights, tmp_path / "ControlNetHED.safetensors")
    control = make_preprocessor("softedge", tmp_path, CPU, torch.float32)(
        tensor(scene(1, 32, 48)), Settings()
    )
    assert control.shape == (1, 3, 32, 48) and control.min() >= 0 and control.max() <= 1
    del weights["norm"]
    save_file(weights, tmp_path / "ControlNetHED.safetensors")
    with pytest.raises(SdbridgeError, match=r"SDB-PREPROCESS-NETWORK.*ControlNetHED.*norm"):
        make_preprocessor("softedge", tmp_path, CPU, torch.float32)


def test_a_missing_or_foreign_depth_network_is_named(tmp_path) -> None:
    with pytest.raises(SdbridgeError, match="SDB-PREPROCESS-NETWORK"):
        make_preprocessor("depth", None, CPU, torch.float32)
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(SdbridgeError, match=f"SDB-PREPROCESS-NETWORK.*{tmp_path.name}"):
        make_preprocessor("normal", tmp_path, CPU, torch.float32)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (OSError(), "OSError"),
        (RuntimeError("too small\nand pages more"), "too small. "),
        (SdbridgeError("SDB-FILE-BROKEN", "it is cut off"), "it is cut off. "),
    ],
)
def test_why_a_depth_network_cannot_be_loaded_is_a_line(tmp_path, monkeypatch, fault, told) -> None:
    from sdbridge.engine.preprocess.depth import Depth

    def fail(*arguments):
        raise fault

    monkeypatch.setattr(Depth, "from_folder", fail)
    with pytest.raises(SdbridgeError, match=rf"SDB-PREPROCESS-NETWORK.*transformers can load: {told}"):
        make_preprocessor("depth", tmp_path, CPU, torch.float32)


def test_growing_is_the_same_on_host_and_device() -> None:
    """The two ways to follow weak edges agree; the device's way runs here on the processor's pooling."""
    from torch.nn import functional as nn

    from sdbridge.engine.preprocess.canny import GROWTH, grow

    draw = torch.Generator().manual_seed(0)
    weak = torch.rand(2, 1, 60, 80, generator=draw) < 0.45
    strong = weak & (torch.rand(2, 1, 60, 80, generator=draw) < 0.02)
    pooled = strong.float()
    for _ in range(GROWTH):
        pooled = nn.max_pool2d(pooled, 3, stride=1, padding=1) * weak.float()
    assert torch.equal(grow(strong, weak), pooled)


def test_canny_keeps_its_map_when_its_accelerated_form_overwrites_its_own() -> None:
    plain, quick = Canny(), Canny()
    kept: list[torch.Tensor] = []

    def wrap(run, name):
        def again(*tensors: torch.Tensor) -> torch.Tensor:
            made = run(*tensors)
            if not kept:
                kept.append(made.clone())
            return kept[0].copy_(made)

        return again

    quick.accelerate(wrap)
    draw = torch.Generator().manual_seed(4)
    pictures = [torch.rand(1, 3, 32, 32, generator=draw) for _ in range(2)]
    maps = [quick(picture, Settings()) for picture in pictures]
    assert kept and not torch.equal(maps[0], maps[1])
    for mine, picture in zip(maps, pictures, strict=True):
        assert torch.equal(mine, plain(picture, Settings()))


def test_moving_values_hand_canny_tensors_of_the_same_shapes_and_the_edges_are_the_same() -> None:
    """Another shape would be captured again."""
    seen: set[tuple[torch.Size, ...]] = set()
    canny = Canny()

    def wrap(run, name):
        def noted(*tensors: torch.Tensor) -> torch.Tensor:
            seen.add(tuple(tensor.shape for tensor in tensors))
            return run(*tensors)

        return noted

    canny.accelerate(wrap)
    image, plain = tensor(scene(1, 96, 80)), Canny()
    for low, high, detail in ((0.1, 0.3, 0.5), (0.0, 1.0, 0.5), (0.3, 0.2, 0.55)):
        canny(image, Settings(low, high, detail))
    for detail in [step / 10 for step in range(11)]:
        settings = Settings(detail=detail)
        off = (canny(image, settings) != plain(image, settings)).float().mean()
        assert off == 0 if detail == 1.0 else off < 0.002
    assert len(seen) == 1
