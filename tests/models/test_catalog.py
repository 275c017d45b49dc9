"""The catalog is consistent, and the bridge can read it without torch or the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sdbridge.models import catalog


def test_ids_are_unique_and_needs_exist() -> None:
    entries = catalog.entries()
    ids = [entry.id for entry in entries]
    assert len(ids) == len(set(ids))
    for entry in entries:
        assert entry.licence and entry.summary and entry.size_bytes > 0 and entry.files
        assert set(entry.needs) <= set(ids)
        assert not any(pattern.endswith((".bin", ".ckpt", ".pt")) for pattern in entry.files)
        if entry.main_file:
            assert {entry.main_file, str(Path(entry.main_file).with_suffix(".pth"))} & set(entry.files)


def test_it_is_found_by_id_and_by_repository() -> None:
    assert catalog.find("sd-turbo") is catalog.find("stabilityai/sd-turbo")
    assert catalog.find("sd-tubro") is None and catalog.nearest("sd-tubro") == "sd-turbo"
    assert catalog.unlisted("owner/name") is not None
    for bad in ("word", "../x", "a/../b", "/etc/passwd", "a/b/c", "C:/x"):
        assert catalog.unlisted(bad) is None, bad


def test_importing_the_catalog_and_the_downloader_loads_no_torch() -> None:
    code = (
        "import sys, sdbridge.models.catalog, sdbridge.models.download;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'diffusers', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_shipped_config_is_valid_and_names_models_that_can_be_had() -> None:
    from sdbridge.config import load_config

    folder = Path(__file__).resolve().parents[2] / "configs"
    for path in sorted(folder.glob("*.yaml")):
        config = load_config(path, environment={})
        model = config.engine.model
        assert model == "embedded" or model.startswith("~") or catalog.find(model), path
        for name, value in config.parameters.items():
            if name.startswith("lora.") and name.endswith(".file"):
                found = catalog.find(str(value))
                assert found is not None and found.kind == "lora", path
