"""The engine gets a local path, and the page sees the download while it lasts."""

import pytest

from sdbridge import model_supply
from sdbridge.engine.interface import EngineConfig, Progress
from sdbridge.errors import SdbridgeError
from sdbridge.model_supply import ModelSupply


def test_a_model_becomes_a_local_path_and_its_download_is_seen(monkeypatch, tmp_path):
    supply = ModelSupply()
    seen = []

    def resolve(model, on_progress):
        on_progress(Progress("pull sd-turbo", 1.0, 4.0, "unet", 3.0))
        seen.extend(supply.progress())
        return tmp_path / model

    monkeypatch.setattr(model_supply, "resolve_model", resolve)
    config = supply.prepare(EngineConfig(kind="image", model="sd-turbo"))
    assert config.model == str(tmp_path / "sd-turbo")
    assert [(p.stage, p.done, p.total, p.left_s) for p in seen] == [("pull sd-turbo", 1.0, 4.0, 3.0)]
    assert supply.progress() == ()


def test_a_failed_download_leaves_no_bar_behind(monkeypatch):
    supply = ModelSupply()

    def resolve(model, on_progress):
        on_progress(Progress("pull", 1.0, 4.0))
        raise SdbridgeError("SDB-MODEL-MISSING", "there is none")

    monkeypatch.setattr(model_supply, "resolve_model", resolve)
    with pytest.raises(SdbridgeError):
        supply.prepare(EngineConfig(kind="image", model="x"))
    assert supply.progress() == ()


def test_other_kinds_are_left_alone():
    config = EngineConfig(kind="passthrough", model="anything")
    assert ModelSupply().prepare(config) is config
