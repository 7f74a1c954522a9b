"""Ids of special tokens, and how to generate: what is written loads in llama.cpp and in transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from real_files.conditions import Condition, check, rows
from real_files.outputs import (
    TOKENIZER,
    as_gguf,
    model,
    text,
    values,
)

PAD, EOS, BOS = (f"{TOKENIZER}{name}_token_id" for name in ("padding", "eos", "bos"))


@rows(
    Condition(
        "a padding id of -1", model(values("config.json", pad_token_id=-1)),
        "transformers loads it, as Llama 2 had it; the converter ends on purpose (llama.cpp 4489)",
        as_gguf("the id of the pad token is left out: -1 is none of the 512 tokens", absent=(PAD,)),
    ),
    Condition(
        "an end-of-text id beyond the vocabulary",
        model(values("config.json", eos_token_id=9999), "byte-level"),
        "transformers loads it; the converter warns and skips it; the one of tokenizer_config.json stays",
        as_gguf("the id of the eos token is left out: 9999", tokenizer__ggml__eos_token_id=2),
    ),
    Condition(
        "an end-of-text id below zero", model(values("config.json", eos_token_id=-1)),
        "transformers loads it; the converter ends with a ValueError",
        as_gguf("the id of the eos token is left out: -1"),
    ),
    Condition(
        "several end-of-text ids", model(values("config.json", eos_token_id=[2, 5])),
        "transformers stops at each; the converter passes over the list, as GGUF has one",
        as_gguf(absent=(EOS,)),
    ),
    Condition(
        "no ids of special tokens", model(values("config.json", bos_token_id=None, eos_token_id=None)),
        "both load it; llama.cpp then takes 1 and 2, as it does for SentencePiece",
        as_gguf(absent=(BOS, EOS)),
    ),
)  # fmt: skip
def test_special_tokens(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


SEVEN_TENTHS = float(np.float32(0.7))
GENERATION = "generation_config.json"
TEMPERATURE = "general.sampling.temp"


@rows(
    Condition(
        "`top_k` 50.0", model(values(GENERATION, top_k=50.0)),
        "transformers loads it; converter: struct.error, an integer is asked for (its issue 14243)",
        as_gguf(general__sampling__top_k=50),
    ),
    Condition(
        "`temperature` as a text", model(values(GENERATION, temperature="0.7")),
        "transformers loads it; the converter: `struct.error: required argument is not a float`",
        as_gguf("`temperature` is '0.7', a text; taken as 0.7", general__sampling__temp=SEVEN_TENTHS),
    ),
    Condition(
        "`min_p` as a list", model(values(GENERATION, min_p=[1])),
        "transformers loads it; the converter ends with a struct.error",
        as_gguf("`min_p` is not used: it is [1]", absent=("general.sampling.min_p",)),
    ),
    Condition(
        "a temperature that is not a number", model(values(GENERATION, temperature=math.nan)),
        "transformers loads it; the converter writes it, and llama.cpp samples with it",
        as_gguf("`temperature` is not used: it is nan", absent=(TEMPERATURE,)),
    ),
    Condition(
        "`top_k` beyond 32 bits", model(values(GENERATION, top_k=10**12)),
        "the converter ends with a struct.error",
        as_gguf("`top_k` is not used", absent=("general.sampling.top_k",)),
    ),
    Condition(
        "null in every key", model(values(GENERATION, temperature=None, top_k=None, top_p=None)),
        "both load it; nothing is said of what is not there",
        as_gguf(absent=(TEMPERATURE,)),
    ),
    Condition(
        "a temperature without sampling", model(values(GENERATION, do_sample=False, temperature=0.5)),
        "transformers 4 loads it and refuses to save it (its issue 29988); copied as it is",
        as_gguf(general__sampling__temp=0.5),
    ),
    Condition(
        "a file that is cut off", model(text(GENERATION, '{"top_k": 5')),
        "transformers and the converter go on without it; so do we, and say so",
        as_gguf("generation_config.json is not valid JSON", absent=("general.sampling.top_k",)),
    ),
)  # fmt: skip
def test_how_to_generate(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
