"""Does the embedded model's module say where things are, in words that training knew, without torch?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdbridge.models import embedded_model
from sdbridge.models.demand import on_disk
from sdbridge.models.embedded_model import DEMO_CUES, EMBEDDED_DIR, SYNONYMS, VOCABULARY, is_present

MIB = 2**20


def test_importing_it_takes_no_torch() -> None:
    code = "import sys, sdbridge.models.embedded_model; print({'torch', 'diffusers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_the_vocabulary_is_as_large_as_promised() -> None:
    assert len(set(VOCABULARY.materials)) >= 24
    assert len(set(VOCABULARY.palettes)) >= 10
    assert {"circle", "horizon", "blobs", "face"} <= set(VOCABULARY.compositions)
    assert set(SYNONYMS) <= set(VOCABULARY.words())


def test_the_demo_asks_only_for_words_that_it_knows() -> None:
    known = {part for word in VOCABULARY.words() for part in word.split()} | {"in", "a", "of"}
    for cue in DEMO_CUES:
        assert set(cue.prompt.split()) <= known, cue.prompt


def test_the_demo_config_asks_only_for_words_that_it_knows() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    prompts = [config["parameters"]["prompt"], *(cue["values"]["prompt"] for cue in config["cues"])]
    known = {part for word in VOCABULARY.words() for part in word.split()} | {"in", "a", "of"}
    assert len(prompts) > 4
    for prompt in prompts:
        assert set(prompt.split()) <= known, prompt


def test_a_folder_without_weights_is_not_present(tmp_path) -> None:
    assert not is_present(tmp_path)


@pytest.mark.skipif(not is_present(), reason="the embedded weights are not in this checkout")
class TestShippedFiles:
    def test_all_of_it_is_at_most_24_mb(self) -> None:
        assert sum(f.stat().st_size for f in EMBEDDED_DIR.rglob("*") if f.is_file()) <= 24 * MIB

    def test_every_known_word_is_one_token(self) -> None:
        vocabulary = json.loads((EMBEDDED_DIR / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
        for word in VOCABULARY.words():
            for part in word.split():
                assert f"{part}</w>" in vocabulary, part

    def test_the_weights_are_halves_and_no_pickles(self) -> None:
        from safetensors import safe_open

        assert not [f for f in EMBEDDED_DIR.rglob("*") if f.suffix in {".bin", ".pt", ".ckpt", ".pth"}]
        for path in EMBEDDED_DIR.rglob("*.safetensors"):
            with safe_open(path, "pt") as opened:
                kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "I64"}, path

    def test_the_card_beside_the_weights_states_licence_and_origin(self) -> None:
        card = (EMBEDDED_DIR / "README.md").read_text(encoding="utf-8")
        assert "Apache-2.0" in card
        assert "from scratch" in card

    def test_the_side_parts_lie_where_the_module_says(self) -> None:
        for path in (
            *(embedded_model.controlnet_dir(kind) / "config.json" for kind in ("canny", "color")),
            *(embedded_model.lora_path(style) for style in VOCABULARY.styles),
            embedded_model.IP_ADAPTER_DIR / "ip_adapter.safetensors",
        ):
            if path.parent.exists():
                assert path.is_file(), path


@pytest.mark.parametrize("part", embedded_model.PARTS, ids=lambda part: part.id)
def test_every_part_that_the_page_offers_is_there_and_found_by_its_name(part: embedded_model.Part) -> None:
    assert part.path.exists() and on_disk(part.id) == part.path


def test_every_lora_and_network_in_the_package_is_offered() -> None:
    folders = {path.name for path in EMBEDDED_DIR.glob("controlnet_*")} | {"ip_adapter"}
    files = {f"loras/{path.name}" for path in (EMBEDDED_DIR / "loras").iterdir()}
    assert {part.id for part in embedded_model.PARTS} == {"embedded"} | {
        f"embedded/{n}" for n in folders | files
    }
