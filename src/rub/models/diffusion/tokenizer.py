"""A CLIP tokenizer made offline: byte-level BPE with end-of-word marks, trained on the words that a suite uses."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
Merges = list[tuple[str, str]]


def train_vocabulary(texts: Iterable[str], size: int) -> tuple[dict[str, int], Merges]:
    """(token -> id, merges) of a byte-level BPE in CLIP's form; the two special tokens come last.

    Every text can be tokenised: all 256 bytes are in the vocabulary, alone and with the end-of-word mark; a word
    that occurs twice becomes one token, up to `size` tokens, at least 514.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trainer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trainer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in letters]
    settings: dict[str, Any] = {"end_of_word_suffix": "</w>", "min_frequency": 2, "show_progress": False}
    # Ties between merges go to the lower ids. Naming all letters here fixes their ids, which would otherwise follow the
    # random order of a hash map, so that the same texts gave another vocabulary each time.
    settings |= {"initial_alphabet": letters, "special_tokens": ends}
    trainer.train_from_iterator(sorted(texts), trainers.BpeTrainer(vocab_size=size - 2, **settings))
    made = json.loads(trainer.to_str())["model"]["merges"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in made]
    tokens = [*letters, *ends]
    known = set(tokens)
    kept: Merges = []
    for left, right in merges:
        if left in known and right in known:
            kept.append((left, right))
            if left + right not in known:
                known.add(left + right)
                tokens.append(left + right)
    return {token: place for place, token in enumerate([*tokens, BOS, EOS])}, kept


def make_tokenizer(vocabulary: dict[str, int], merges: Merges, length: int) -> "CLIPTokenizer":
    """Tokenizer of prompts padded by EOS to `length` tokens, as in Stable Diffusion 1.x; merges in order of rank."""
    from transformers import CLIPTokenizer

    given = {"unk_token": EOS, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "model_max_length": length}
    with tempfile.TemporaryDirectory() as folder:  # files are what every version of transformers reads
        write_vocabulary(vocabulary, merges, Path(folder))
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **given)
    return tokenizer


def write_vocabulary(vocabulary: dict[str, int], merges: Merges, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``, the layout that all versions of transformers read."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    (folder / "merges.txt").write_text(f"{lines}\n", encoding="utf-8")
