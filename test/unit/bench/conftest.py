"""A scripted server and a tokenizer folder for the tests of the measuring tools."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scripted_server import ScriptedServer  # noqa: E402
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer():
    """200 words; `</s>` is special."""
    vocab = {"</s>": 0, **{f"w{i}": i for i in range(1, 200)}}
    words = Tokenizer(models.WordLevel(vocab, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    eos = AddedToken("</s>", special=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos)
    tokenizer.chat_template = "{% for m in messages %}w5 {{ m['content'] }} {% endfor %}w6"
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def server(tokenizer_folder):
    with ScriptedServer(tokenizer_folder) as running:
        yield running
