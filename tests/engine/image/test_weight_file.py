"""Names and files: what a person may type for a model beside the main one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbridge.engine.image.weight_file import find_weights, resolve
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog, embedded_model


def test_paths_catalog_ids_and_the_embedded_models_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loras").mkdir()
    file = tmp_path / "loras" / "ink.safetensors"
    file.write_bytes(b"x")
    assert resolve(str(file)) == file
    monkeypatch.setattr(embedded_model, "EMBEDDED_DIR", tmp_path)
    assert resolve("embedded/loras/ink.safetensors") == file
    known = next(entry.id for entry in catalog.entries() if entry.kind == "lora")
    with pytest.raises(SdbridgeError, match=f"sdbridge pull {known}"):
        resolve(known)
    monkeypatch.setattr(catalog, "local_path", lambda model: file if model == known else None)
    assert resolve(known) == file
    for wrong in ("embedded/nothing", "no-such-thing", ""):
        if wrong:
            with pytest.raises(SdbridgeError, match=f"SDB-FILE-MISSING.*{wrong}"):
                resolve(wrong)


def test_a_folder_gives_the_file_it_is_known_for_or_its_only_one(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert find_weights(tmp_path, "x.safetensors", "b.safetensors").name == "b.safetensors"
    with pytest.raises(SdbridgeError, match=r"a\.safetensors, b\.safetensors"):
        find_weights(tmp_path, "x.safetensors")
    (tmp_path / "b.safetensors").unlink()
    assert find_weights(tmp_path).name == "a.safetensors"
