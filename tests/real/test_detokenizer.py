"""The pieces of a detokenizer are together the text of all tokens, whatever the tokens are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import write_tiny_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from helixreal.serving import Tokenizer
from helixreal.serving.detokenizer import Detokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXT = "naïve 日本語 a😀b 🇨🇭 Grüße, 世界!"


def write_merged_bytes(folder):
    """Tokens of one byte, of several bytes that cut characters in two, and special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = []
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("日本", "😀", "é ", "ab"):
        spelled = spell.pre_tokenize_str(text)[0][0]
        for pair in (spelled[:2], spelled[1:3], spelled[-2:]):
            if pair not in vocabulary:
                vocabulary[pair] = len(vocabulary)
                merges.append((pair[0], pair[1]))
    tokenizer = HfTokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = spell
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_byte_fallback(folder):
    """As Llama 2: words that begin with a mark for a space, and tokens of single bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁Hello", "lo", "▁world", "é", "世", "▁▁", "!", REPLACEMENT]
    tokenizer = HfTokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(
    scope="module", params=[write_tiny_tokenizer, write_merged_bytes, write_byte_fallback]
)
def tokenizer(request, tmp_path_factory):
    return Tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


def size_of(tokenizer):
    return max(json.loads(tokenizer._tokenizer.to_str())["model"]["vocab"].values()) + 2


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("skip_special", [True, False])
def test_the_pieces_are_the_text_of_all_tokens(tokenizer, skip_special, data):
    any_token = st.integers(0, size_of(tokenizer))
    words = st.sampled_from([TEXT, "é", "a", "日本", "😀"]).map(
        lambda text: tokenizer.encode(text, plain=True)
    )
    repeated = st.builds(lambda token, count: [token] * count, any_token, st.integers(1, 40))
    parts = st.one_of(words, st.lists(any_token, max_size=6), repeated)
    tokens = [token for part in data.draw(st.lists(parts, max_size=8)) for token in part]
    made = Detokenizer(tokenizer, skip_special=skip_special)
    pieces = [made.add(token) for token in tokens] + [made.end()]
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special=skip_special)


def test_characters_come_whole_and_at_once(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    for text in ("naïve", "日本語", "a😀b", "🇨🇭"):
        made = Detokenizer(tokenizer)
        pieces = [made.add(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert not any(REPLACEMENT in piece for piece in pieces)


def test_characters_after_an_invalid_byte_come_whole(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    broken = tokenizer.encode("é")[:1]
    made = Detokenizer(tokenizer)
    pieces = [made.add(token) for token in broken + tokenizer.encode("日本")]
    assert [piece for piece in pieces if piece] == [REPLACEMENT, "日", "本"]


def test_broken_bytes_are_shown_as_such_in_the_end(tmp_path):
    tokenizer = Tokenizer(write_tiny_tokenizer(tmp_path))
    made = Detokenizer(tokenizer)
    token = tokenizer.encode("é")[0]
    assert made.add(token) == ""
    assert made.end() == REPLACEMENT


def test_a_long_stream_keeps_a_short_window(tokenizer):
    for token in range(0, 250, 9):
        made = Detokenizer(tokenizer)
        for _ in range(200):
            made.add(token)
        if token not in tokenizer.byte_tokens:
            assert len(made._window) < 30
