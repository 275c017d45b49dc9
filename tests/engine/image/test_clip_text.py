"""Our CLIP text encoder and tokenizer against transformers' own: the same ids, the same numbers."""

import json
from pathlib import Path

import pytest
import torch

from sdbridge.engine.image.clip_text import ClipText, ClipTextProjected
from sdbridge.engine.image.clip_tokens import ClipTokenizer
from sdbridge.errors import SdbridgeError
from sdbridge.models.embedded_model import EMBEDDED_DIR

TEXTS = (
    "",
    "fire",
    "A photo of an ASTRONAUT riding a horse, 8k!!",
    "it's  they're\twe'll\nI'd don't o'clock",
    "neon grid in magenta -- (very detailed:1.3) [ocean]",
    "ünïcödé Straße 東京 🔥 ﬁne  ｆｕｌｌ e\u0301",
    "12 monkeys in 1995, #42 & 3.14",
    "a <|endoftext|> b <|startoftext|> c <|EndOfText|>",
    "wow! such! marks!?",
    "_under_score_ \\slash\\ /other/ ~tilde~ `tick`",
    "x" * 300,
)


def config(act: str, eos: int, width: int = 24) -> dict:
    return {
        "vocab_size": 1000, "hidden_size": width, "intermediate_size": 40, "projection_dim": 16,
        "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 77,
        "hidden_act": act, "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": eos,
    }  # fmt: skip


def ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    found = torch.randint(3, 990, (2, 77), generator=generator)
    found[0, 9:], found[1, 40:] = 999, 999
    return found


@pytest.mark.parametrize(
    ("act", "eos", "projected"), [("quick_gelu", 2, False), ("gelu", 999, False), ("gelu", 999, True)]
)
def test_the_encoder_gives_what_transformers_gives(act, eos, projected):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    theirs = kind(CLIPTextConfig(**config(act, eos))).eval()
    ours = (ClipTextProjected if projected else ClipText).from_config(config(act, eos)).eval()
    bare = {key.removeprefix("text_model."): value for key, value in theirs.state_dict().items()}
    state = {key: bare[key.removeprefix("text_model.")] for key in ours.state_dict()}
    assert len(state) == len([key for key in bare if not key.endswith("position_ids")])
    ours.load_state_dict(state)
    with torch.inference_mode():
        wanted, got = theirs(ids(), output_hidden_states=True), ours(ids())
    assert len(got.hidden_states) == len(wanted.hidden_states) == 4
    for mine, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(got.last_hidden_state, wanted.last_hidden_state)
    if projected:
        assert torch.equal(got.text_embeds, wanted.text_embeds)
    else:
        assert torch.equal(got.pooler_output, wanted.pooler_output)


def test_an_activation_that_no_clip_of_ours_has_is_refused():
    with pytest.raises(SdbridgeError, match=r"SDB-MODEL-PARTS.*swish"):
        ClipText.from_config(config("swish", 2))


def folder_with(tmp_path: Path, **files: object) -> Path:
    """The embedded model's vocabulary beside other statements about it."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((EMBEDDED_DIR / "tokenizer" / name).read_bytes())
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def mark(content: str, normalized: bool) -> dict:
    return {
        "content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False,
    }  # fmt: skip


SAID = (
    {},
    {"tokenizer_config": {"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}},
    {
        "special_tokens_map": {
            "bos_token": mark("<|startoftext|>", True),
            "eos_token": mark("<|endoftext|>", True),
            "unk_token": mark("<|endoftext|>", True),
            "pad_token": "<|endoftext|>",
        }
    },
)


@pytest.mark.parametrize("said", range(len(SAID)))
def test_the_tokenizer_gives_what_transformers_gives(tmp_path, said):
    from transformers import CLIPTokenizer

    folder = folder_with(tmp_path, **SAID[said])
    theirs, ours = CLIPTokenizer.from_pretrained(folder), ClipTokenizer(folder)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False, verbose=False).input_ids, text


def test_one_tokenizer_file_says_the_same(tmp_path):
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(EMBEDDED_DIR / "tokenizer").save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    two, one = ClipTokenizer(EMBEDDED_DIR / "tokenizer"), ClipTokenizer(tmp_path)
    assert [two.encode(text) for text in TEXTS] == [one.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "text"),
    [("vocab.json", "{"), ("vocab.json", '{"a": "b"}'), ("vocab.json", "{}"), ("merges.txt", "q zzz\n")],
)
def test_a_broken_vocabulary_is_an_error_that_can_be_caught(tmp_path, name, text):
    folder = folder_with(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(ValueError):
        ClipTokenizer(folder)
