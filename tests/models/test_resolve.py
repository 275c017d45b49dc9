"""What ``engine.model`` may say, and where each leads; nothing here reaches a network."""

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, download, embedded_model, resolve
from sdbridge.models.resolve import resolve_model


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def pulled(monkeypatch, tmp_path):
    asked = []

    def pull(model, on_progress):
        asked.append(model)
        return tmp_path / "pulled"

    monkeypatch.setattr(download, "pull", pull)
    return asked


@pytest.mark.parametrize("name", ["", "embedded"])
def test_the_embedded_model_is_the_package_s_own(monkeypatch, name):
    monkeypatch.setattr(embedded_model, "is_present", lambda: True)
    assert resolve_model(name) == embedded_model.EMBEDDED_DIR


def test_without_embedded_weights_a_stand_in_is_built_once_and_said(monkeypatch, caplog):
    monkeypatch.setattr(embedded_model, "is_present", lambda: False)
    folder = resolve_model("embedded")
    assert (folder / "unet" / "config.json").exists()
    assert "RANDOM weights" in caplog.text
    caplog.clear()
    monkeypatch.setattr(resolve.subprocess, "run", None)
    assert resolve_model("embedded") == folder and not caplog.text


def test_a_path_that_exists_is_itself(tmp_path, pulled):
    file = tmp_path / "my.safetensors"
    file.write_bytes(b"")
    assert resolve_model(str(file)) == file and not pulled


def test_a_catalog_id_that_is_not_here_is_pulled(pulled, tmp_path):
    entry = catalog.entries()[0]
    assert resolve_model(entry.id) == tmp_path / "pulled" and pulled == [entry.id]


def test_a_hugging_face_id_is_pulled(pulled):
    resolve_model("someone/some-model")
    assert pulled == ["someone/some-model"]


@pytest.mark.parametrize("name", ["/no/such/model", "models/none.safetensors", "sd-trubo", "a/b/c"])
def test_what_is_nowhere_is_refused_without_asking_the_network(name, pulled):
    with pytest.raises(SdbridgeError, match="SDB-MODEL-MISSING"):
        resolve_model(name)
    assert not pulled
