"""What doctor says about an acceleration that has to be installed on purpose."""

from __future__ import annotations

import pytest

from sdbridge.doctor import model


@pytest.mark.parametrize(
    ("here", "grade", "word"),
    [
        ((), "note", "not installed"),
        (("tensorrt",), "note", "onnx and onnxscript"),
        (("tensorrt", "onnx", "onnxscript"), "good", "installed"),
    ],
)
def test_tensorrt_is_looked_for_only_when_asked_for(monkeypatch, here, grade, word) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: object() if name in here else None)
    assert not list(model.check_acceleration("auto"))
    (finding,) = model.check_acceleration("tensorrt")
    assert finding.grade == grade and word in finding.text
