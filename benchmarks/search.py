"""One SLEB round on a real model: tinysleb's sweep against the naive loop over transformers.

    python benchmarks/search.py models/SmolLM2-135M-Instruct.Q4_1.gguf

Same process, same windows, same dtype. The naive loop runs the whole model once per candidate, window
by window, as the authors' code does; it is timed on some candidates and scaled to all: each costs the same.
Needs the test extra.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tinysleb.calibration import from_text
from tinysleb.memory import Budget, resident_bytes
from tinysleb.open_model import open_model
from tinysleb.plan import Plan, Round
from tinysleb.search import Compute, removable, search
from tinysleb.tokenizer import open_tokenizer
from tinysleb.weights import Weights


def naive_losses(model: Any, candidates: list[int], tokens: Tensor) -> dict[int, float]:
    layers = model.model.layers
    losses = {}
    for candidate in candidates:
        model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(layers) if i != candidate)
        with torch.no_grad():
            total = 0.0
            for window in tokens.split(1):
                logits = model(window, use_cache=False).logits[:, :-1]
                total += F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten()).item()
        losses[candidate] = total / len(tokens)
    model.model.layers = layers
    return losses


def one_round(weights: Weights, tokens: Tensor, dtype: torch.dtype, exact: bool) -> Round:
    blocks = weights.config.blocks
    compute = Compute(torch.device("cpu"), dtype, Budget(4 * 2**30, resident_bytes()))
    rounds = search(
        weights, tokens, Plan(blocks, 1, {}), compute,
        allowed=removable(blocks, 1, 1), exact=exact, progress=lambda *_: None,
    )  # fmt: skip
    return next(iter(rounds)).rounds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-length", type=int, default=1024)
    parser.add_argument("--naive-candidates", type=int, default=4, help="how many to time")
    options = parser.parse_args()

    weights = open_model(options.model)
    tokens = from_text(
        open_tokenizer(weights), [], options.window_length, options.windows, 0, weights.config.vocab_size
    ).tokens
    candidates = list(removable(weights.config.blocks, 1, 1))
    some = candidates[:: max(1, len(candidates) // options.naive_candidates)][: options.naive_candidates]
    print(f"one round, {len(candidates)} candidates, {options.windows} x {options.window_length} tokens")
    print(f"{'dtype':<10}{'naive, s':>10}{'exact, s':>10}{'ratio':>7}{'racing, s':>11}{'ratio':>7}  removed")
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(
            options.model.parent, gguf_file=options.model.name, dtype=dtype
        )
        naive_losses(model, some[:1], tokens[:1])
        begin = time.perf_counter()
        expected = naive_losses(model, some, tokens)
        naive = (time.perf_counter() - begin) * len(candidates) / len(some)
        exact, raced = (one_round(weights, tokens, dtype, exact) for exact in (True, False))
        worst = max(abs(exact.candidates[i].loss - loss) for i, loss in expected.items())
        print(
            f"{str(dtype)[6:]:<10}{naive:>10.1f}{exact.seconds:>10.1f}{naive / exact.seconds:>6.1f}x"
            f"{raced.seconds:>11.1f}{naive / raced.seconds:>6.1f}x  {exact.removed}, {raced.removed}; "
            f"largest difference of a loss {worst:.1e}"
        )


if __name__ == "__main__":
    main()
