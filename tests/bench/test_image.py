"""The image benches measure what they say, on a small model; their comparison with eager finds errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sdbridge.bench import image, process, start
from sdbridge.bench.compare import compare_with_eager, picks, psnr_db
from sdbridge.bench.drive import Drive, Recipe
from sdbridge.cli import app
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.models.small import build_small_checkpoint

USUAL = {
    "median_ms",
    "still_median_ms",
    "p95_ms",
    "p99_ms",
    "p99_over_median",
    "fps",
    "latency_ms",
    "peak_mb",
    "load_s",
    "warm_up_s",
    "first_frame_s",
    "full_speed_s",
    "compile_s",
    "upload_ms",
    "encode_ms",
    "denoise_ms",
    "decode_ms",
    "download_ms",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_checkpoint(tmp_path_factory.mktemp("small") / "m", distilled="turbo")


@pytest.mark.parametrize("case", [image.sd_turbo, image.sd15_everything, image.feature_bank])
def test_each_case_gives_the_usual_figures_on_a_small_model(folder: Path, case) -> None:
    found = case(seconds=0.1, model=folder, side=64)
    assert found.keys() >= USUAL
    assert found["median_ms"] <= found["p95_ms"] <= found["p99_ms"] <= found["worst_ms"]
    assert found["frames"] >= 30


def test_the_process_case_says_what_the_process_adds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SETTLE_S", 10_000.0)  # eager does not wait so long
    monkeypatch.setattr(process, "EAGER_SETTLE_S", 1.0)
    found = process.sd_turbo_process(seconds=0.3, model=folder, side=64)
    assert found["more_ms"] == found["median_ms"] - found["alone_median_ms"]
    assert found["latency_ms"] > 0 and not found["faults"]


@pytest.mark.slow  # processes that import torch
def test_a_config_is_measured_alone_and_through_its_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SETTLE_S", 10_000.0)  # eager does not wait so long
    monkeypatch.setattr(process, "EAGER_SETTLE_S", 1.0)
    file = tmp_path / "c.yaml"
    engine = {"kind": "image", "model": str(folder), "width": 64, "height": 64, "device": "cpu"}
    file.write_text(yaml.safe_dump({"engine": engine, "parameters": {"steps": 2}}))
    result = CliRunner().invoke(app, ["bench", str(file), "--seconds", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["cases"]) == {"engine", "engine-process"}
    assert found["cases"]["engine"].keys() >= USUAL and found["machine"]["torch"]
    latency_ms = found["cases"]["engine-process"]["latency_ms"]
    assert latency_ms > 0, "two steps: a frame pushes out another's picture"


@pytest.mark.slow  # processes that import torch
def test_the_start_case_starts_twice(folder: Path) -> None:
    found = start.sd_turbo_start(model=folder, side=64)
    for name in ("cold", "second"):
        assert 0 < found[f"{name}_imported_s"] < found[f"{name}_loaded_s"] < found[f"{name}_first_frame_s"]
        assert found[f"{name}_first_frame_s"] <= found[f"{name}_full_speed_s"]
        assert found[f"{name}_jump_db"] == 99.0


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(image.ONE_STEP, 64, 64),
        Recipe({**image.ONE_STEP, "frame_batch": 4}, 64, 64),
        Recipe({**image.FOUR_STEPS, **image.GUIDED}, 64, 64),
        Recipe({**image.ONE_STEP, "feature_bank.enabled": True}, 64, 64, endless=True),
    ],
    ids=["one step", "frame batch", "stream batch", "feature bank"],
)
def test_frames_of_a_long_run_are_found_again_by_a_short_replay(folder: Path, recipe: Recipe) -> None:
    config = EngineConfig(model=str(folder), options={"wait_for_prompts": True})
    engine = ImageEngine(config)
    engine.load(recipe.start_values())
    engine.warm_up(64, 64)
    engine.reset("hard")
    drive = Drive(engine, recipe, picks(8, 20, recipe.endless))
    drive.run(30)
    engine.unload()
    assert len(drive.kept) >= 8
    same = compare_with_eager(config, recipe, drive.kept)
    assert same["psnr_lowest_db"] > 60
    first = min(drive.kept)
    wrong = {**drive.kept, first: np.roll(drive.kept[first], 1, axis=0)}
    assert compare_with_eager(config, recipe, wrong)["psnr_lowest_db"] < 60


def test_one_step_is_at_the_noise_level_where_pictures_are_compared(folder: Path) -> None:
    engine = ImageEngine(EngineConfig(model=str(folder)))
    engine.load(Recipe(image.ONE_STEP, 64, 64).start_values())
    assert engine.painter.settings is not None
    assert engine.painter.settings.plan.timesteps == (359,)
    engine.unload()


def test_an_engine_that_overlaps_is_driven_two_deep() -> None:
    class Overlapping:
        """Verified against ``engine.interface.OverlappingEngine`` by the engine loop's own tests."""

        def __init__(self) -> None:
            self.inside: list = []
            self.deepest = 0
            self.changes: list[dict] = []

        def apply(self, changes, revision):
            self.changes.append(dict(changes))
            return ()

        @property
        def pending(self) -> int:
            return len(self.inside)

        def submit(self, chunk) -> None:
            self.inside.append(chunk)
            self.deepest = max(self.deepest, len(self.inside))

        def collect(self, wait: bool):
            chunk = self.inside.pop(0)
            return type(chunk)(tuple({"generated": entry["main"]} for entry in chunk.frames))

    engine = Overlapping()
    drive = Drive(engine, Recipe({}, 16, 16), frozenset({3, 20}))
    times = drive.run(25)
    assert engine.deepest == 2 and engine.pending == 0
    assert set(drive.kept) == {3, 20} and len(times) == 26
    drive.one()
    assert engine.pending == 0
    engine.changes.clear()
    drive.run(2)
    assert all("prompt.2.weight" in changes for changes in engine.changes)
    engine.changes.clear()
    assert image._still(drive, 0.0).keys() == {"still_median_ms"}
    assert engine.changes and not any(engine.changes) and not drive.still


def test_equal_pictures_are_told_from_nearly_equal_ones() -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    other = picture.copy()
    other[0, 0, 0] = 1
    assert psnr_db(picture, picture) == 99.0
    assert psnr_db(picture, other) == pytest.approx(10 * np.log10(255**2 * 192), abs=0.01)


def test_picks_are_spread_over_what_is_measured() -> None:
    assert sorted(picks(10, 80, False)) == [15, 25, 35, 45, 55, 65, 75, 85]
    assert max(picks(10, 500, True)) < 10 + 24
