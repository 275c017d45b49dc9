"""CLIP's tokenizer: from a text to the ids that its encoder reads, by ``vocab.json`` and ``merges.txt``.

The ids are those of transformers' CLIPTokenizer (a test compares them), without importing transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

_START, _END = "<|startoftext|>", "<|endoftext|>"
#: English endings, words, single digits, and whatever else stands together; the two marks stay whole.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class ClipTokenizer:
    """Reads a checkpoint's ``tokenizer/`` folder. Raises OSError, or ValueError that says what is wrong."""

    def __init__(self, folder: Path) -> None:
        vocabulary, merges = _read(folder)
        self._marks = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
        special = _special_tokens(folder, self._marks)
        for mark in self._marks.values():
            if mark not in vocabulary:
                raise ValueError(f"its vocabulary of {len(vocabulary)} tokens has no {mark!r}")
        self._ids = {name: vocabulary[mark] for name, mark in self._marks.items()}
        bpe = models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            end_of_word_suffix="</w>",
            unk_token=self._marks["unk_token"],
        )
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.add_special_tokens(special)

    @property
    def bos_token_id(self) -> int:
        return self._ids["bos_token"]

    @property
    def eos_token_id(self) -> int:
        return self._ids["eos_token"]

    @property
    def pad_token_id(self) -> int:
        return self._ids["pad_token"]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of ``text``, however many; with ``add_special_tokens`` between the start and end marks."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids


def _read(folder: Path) -> tuple[Mapping[str, int], Sequence[tuple[str, str]]]:
    """Vocabulary and merges, checked: the library behind it fails in ways that nothing can catch."""
    if (folder / "vocab.json").is_file():
        vocabulary: Any = _json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs: Iterable[Any] = [line.split() for line in lines if line.strip() and line[:8] != "#version"]
    else:
        whole: Any = _json(folder / "tokenizer.json")
        inner = whole.get("model") if isinstance(whole, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("merges"), list):
            raise ValueError("tokenizer.json holds no byte-pair model")
        vocabulary = inner.get("vocab")
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in inner["merges"]]
        if isinstance(vocabulary, dict):
            added = whole.get("added_tokens") or ()
            vocabulary = {**vocabulary, **{token["content"]: token["id"] for token in added}}
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise ValueError("its vocabulary is no list of tokens with their numbers")
    merges: list[tuple[str, str]] = []
    for pair in pairs:
        if len(pair) != 2 or not {pair[0], pair[1], pair[0] + pair[1]} <= vocabulary.keys():
            raise ValueError(f"its merge {' '.join(map(str, pair))[:40]!r} is not in the vocabulary")
        merges.append((pair[0], pair[1]))
    return vocabulary, merges


def _special_tokens(folder: Path, marks: dict[str, str]) -> list[AddedToken]:
    """The marks; files beside the vocabulary may name them otherwise, and then ``marks`` is changed."""
    tokens: dict[str, AddedToken] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        given: Any = _json(folder / name) if (folder / name).is_file() else {}
        for mark in marks:
            value = given.get(mark) if isinstance(given, dict) else None
            if isinstance(value, dict) and isinstance(value.get("content"), str):
                flags = {flag: bool(value.get(flag)) for flag in ("lstrip", "rstrip", "single_word")}
                normalized = bool(value.get("normalized", True))
                tokens[mark] = AddedToken(value["content"], special=True, normalized=normalized, **flags)
                marks[mark] = value["content"]
            elif isinstance(value, str):
                tokens[mark] = AddedToken(value, special=True, normalized=False)
                marks[mark] = value
    for mark, content in marks.items():
        tokens.setdefault(mark, AddedToken(content, special=True, normalized=False))
    return list({token.content: token for token in tokens.values()}.values())


def _json(path: Path) -> object:
    found: object = json.loads(path.read_text(encoding="utf-8"))
    return found
