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


@pytest.mark.parametrize(
    ("choice", "here", "grade", "words"),
    [
        ("auto", "", "good", "PyTorch's own"),
        ("auto", "0.0.33", "good", "xFormers 0.0.33 is here"),
        ("pytorch", "0.0.33", "good", "PyTorch's own"),
        ("xformers", "0.0.33", "good", "xFormers 0.0.33, on CUDA"),
        ("xformers", "", "note", "not installed: PyTorch's own attention"),
    ],
)
def test_the_attention_that_would_run(monkeypatch, choice, here, grade, words) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: object() if here and name == "xformers" else None)
    monkeypatch.setattr(model, "version", lambda name: here)
    (finding,) = model.check_attention(choice)
    assert finding.grade == grade and words in finding.text and bool(finding.step) == (grade == "note")
