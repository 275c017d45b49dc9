"""The tuner: the fastest is kept, a file that cannot be trusted never is, a full disk harms nothing."""

import json
import os
from pathlib import Path

import pytest
import torch

from sdbridge.engine.accelerate.kernels.linear import Problem, default_way
from sdbridge.engine.accelerate.kernels.linear_tuning import LinearTuning, MeasuredWays
from sdbridge.engine.accelerate.kernels.tuning import Progress, Timing, Tuner, identity_of, source_hash

CPU = torch.device("cpu")
HERE = {"card": "H200", "driver": "1"}
ONE = LinearTuning(Problem(64, 320, 320))
TWO = LinearTuning(Problem(256, 320, 320, bias=True))


class Stopwatch:
    """Gives each problem its last candidate as the fastest, and counts."""

    def __init__(self):
        self.asked = []

    def __call__(self, problem, device):
        self.asked.append(problem.key)
        names = problem.candidates()
        return [Timing(names[-1], 1.0), Timing(names[0], 2.0)]


def test_the_fastest_is_remembered_over_a_restart(tmp_path):
    file, watch, seen = tmp_path / "sub" / "choices.json", Stopwatch(), []
    tuner = Tuner(file, HERE, watch)
    assert tuner.choice(ONE) is None
    found = tuner.tune([ONE, TWO, ONE], CPU, seen.append)
    assert tuner.choice(ONE) == ONE.candidates()[-1] == found[ONE.key][0].candidate
    assert watch.asked == [ONE.key, TWO.key]
    assert seen[-1] == Progress(2, 2, TWO.key, Timing(TWO.candidates()[-1], 1.0))
    again = Tuner(file, HERE, watch)
    assert again.choice(TWO) == TWO.candidates()[-1]
    assert again.tune([ONE, TWO], CPU) == {} and len(watch.asked) == 2
    again.tune([ONE], CPU, again=True)
    assert len(watch.asked) == 3
    assert os.listdir(file.parent) == [file.name]  # no half-written neighbour


def spoil(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b"\xff\xfe\x00" * 50),
        lambda file: file.write_text("[1, 2]"),
        lambda file: file.write_text("null"),
        lambda file: file.write_text("[" * 100_000),
        lambda file: spoil(file, lambda c: c.pop("choices")),
        lambda file: spoil(file, lambda c: c.update(choices=3)),
        lambda file: spoil(file, lambda c: c["choices"].update({ONE.key: "library"})),
        lambda file: spoil(file, lambda c: c.update(identity={"card": "another"})),
        lambda file: spoil(file, lambda c: c.update(format=99)),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_one_line(tmp_path, caplog, damage):
    file = tmp_path / "choices.json"
    Tuner(file, HERE, Stopwatch()).tune([ONE], CPU)
    damage(file)
    caplog.set_level("INFO")
    tuner = Tuner(file, HERE, Stopwatch())
    assert tuner.choice(ONE) is None
    assert len(caplog.records) == 1
    tuner.tune([ONE], CPU)  # and written anew
    assert Tuner(file, HERE).choice(ONE) == ONE.candidates()[-1]


def test_a_way_of_another_kind_of_problem_is_not_taken():
    tuner = Tuner(None, HERE, lambda problem, device: [Timing("nothing of ours", 1.0)])
    tuner.tune([ONE], CPU)
    assert tuner.choice(ONE) is None


def test_a_folder_that_cannot_be_written_costs_the_file_only(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tuner = Tuner(tmp_path / "file" / "choices.json", HERE, Stopwatch())
    tuner.tune([ONE], CPU)
    assert tuner.choice(ONE) is not None
    assert "cannot be kept" in caplog.text


def test_a_problem_nothing_solves_keeps_its_default():
    tuner = Tuner(None, HERE, lambda problem, device: [])
    assert tuner.tune([ONE], CPU) == {ONE.key: []}
    assert tuner.choice(ONE) is None


def test_the_identity_names_what_a_time_depends_on():
    identity = identity_of(CPU)
    assert set(identity) == {"card", "driver", "torch", "triton", "source"}
    assert identity["source"] == source_hash() and len(source_hash()) == 16
    assert identity["torch"] == torch.__version__


def test_what_was_asked_for_is_what_is_tuned():
    watch = Stopwatch()
    ways = MeasuredWays(Tuner(None, HERE, watch))
    assert ways(ONE.problem) == default_way(ONE.problem)
    ways(TWO.problem), ways(ONE.problem)
    ways.tune(CPU)
    assert watch.asked == [ONE.key, TWO.key]
    assert ways(TWO.problem) == TWO.candidates()[-1]


@pytest.mark.gpu
def test_a_card_times_its_candidates(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    tuner = Tuner(Path(tmp_path) / "choices.json", identity_of(device))
    found = tuner.tune([ONE], device)
    assert len(found[ONE.key]) > 3
    assert tuner.choice(ONE) == found[ONE.key][0].candidate
