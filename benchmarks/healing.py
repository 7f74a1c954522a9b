"""What healing wins back, against no repair and against ReplaceMe (arXiv 2505.02819), on the same text.

    python benchmarks/healing.py MODEL PLAN TEXT [--blocks 3 6 9]

PLAN removes at least as many blocks as are asked for. Two kinds of text: TEXT, and the documentation that
comes with Python; 48 windows of each are only measured on. The gap is what leaving blocks out costs in
perplexity; the fraction of it that is closed is printed. ReplaceMe fits one linear map for each gap, from the
output of the feed-forward before it, on the original model's states; the map is multiplied into `down_proj`.
Weights are kept in float32, so that all methods are compared before rounding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import DOWN, OUT, block_prefix
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.compute.compute import Compute, compute_on
from tinysleb.heal.choose_blocks import choose_healed
from tinysleb.heal.healed_weights import Healed, HealedTensors, unrounded
from tinysleb.heal.text import HealingText, Source, self_source, split_windows
from tinysleb.heal.walk import heal
from tinysleb.model.blocks import load_block
from tinysleb.model.chunks import chunks
from tinysleb.model.forward import advance, down_inputs, embed, out_inputs, product
from tinysleb.model.positions import block_positions
from tinysleb.plan import Plan, Round, perplexity
from tinysleb.search.cuts import removable
from tinysleb.search.evaluate import evaluate
from tinysleb.search.run import search
from tinysleb.sublayers import block_cut, sublayers_of, whole_blocks
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import from_text

LENGTH = 256
MEASURED = 48
"""Windows of each kind that are only measured on."""
SELECTION = 16
"""Windows of Python's documentation from which ReplaceMe chooses its blocks."""
KILO = 1024
"""Tokens in what the rows call 1 k."""
REPLACE_ME_RIDGE = 1e-3


class Bench:
    def __init__(self, model: Path, text: Path) -> None:
        source = open_model(model)
        self.weights: Weights = unrounded(source)
        self.compute: Compute = compute_on("auto", "auto", "6GiB")
        tokenizer, rows = open_tokenizer(source), source.config.vocab_size
        kinds = {
            kind: from_text(tokenizer, files, LENGTH, None, 0, rows).tokens
            for kind, files in (("text", [text]), ("docs", []))
        }
        self.measured = {kind: windows[:MEASURED] for kind, windows in kinds.items()}
        self.fit = {kind: windows[MEASURED:] for kind, windows in kinds.items()}
        begin = time.monotonic()
        sampled = HealingText((), None, 32 * KILO, 32 * KILO, seed=0, length=LENGTH)
        self.fit["sampled"] = self_source(
            source, sampled, self.compute, lambda _line: None, lambda _done: None
        ).fit
        count = self.fit["sampled"].numel()
        print(f"sampling {count} tokens (and those held back): {time.monotonic() - begin:.0f} s", flush=True)
        self.original = self.perplexities(self.weights)

    def perplexities(self, weights: Weights) -> dict[str, float]:
        def one(windows: Tensor) -> float:
            return perplexity(evaluate(weights, windows, self.compute, lambda _done: None).loss)

        return {kind: one(windows) for kind, windows in self.measured.items()}

    def mixed(self, **tokens: int) -> Tensor:
        return torch.cat([self.fit[kind][: count // LENGTH] for kind, count in tokens.items()])

    def row(self, what: str, removed: Sequence[int], windows: Tensor | None, peer: bool = False) -> None:
        kept = [index for index in range(self.weights.config.blocks) if index not in removed]
        shortened = Shortened(self.weights, whole_blocks(kept))
        before = self.perplexities(shortened)
        with tempfile.TemporaryDirectory() as folder:
            tensors = HealedTensors(Path(folder))
            begin = time.monotonic()
            if windows is not None:
                if peer:
                    replace_me(self.weights, kept, windows, self.compute, tensors)
                else:
                    parts, stack = split_windows(windows), sublayers_of(shortened.kept)
                    heal(self.weights, stack, *parts, self.compute, tensors, lambda _done: None)
            seconds = time.monotonic() - begin
            after = self.perplexities(Healed(shortened, tensors))
        cells = []
        for kind, original in self.original.items():
            gap = (before[kind] - after[kind]) / (before[kind] - original)
            cells.append(f"{before[kind]:>9.1f} -> {after[kind]:>6.1f} {gap:>6.0%}")
        print(f"{what:<44}{'  '.join(cells)} {seconds:>6.0f} s", flush=True)


@torch.inference_mode()
def replace_me(
    weights: Weights, kept: Sequence[int], windows: Tensor, compute: Compute, tensors: HealedTensors
) -> None:
    """The linear map T of section 3 for each gap: least squares from the feed-forward's output M to what the
    states L after the gap lack of the states Y before it was added: T = (M'M + a)⁻¹ M'(L - Y)."""
    config = weights.config
    positions = block_positions(config, windows.shape[1], compute.device)
    hidden = embed(weights, windows.to(compute.device))
    pending: tuple[int, Tensor, Tensor, Tensor] | None = None
    for index in range(config.blocks):
        block = load_block(weights, index, compute.dtype, compute.device)
        if index in kept and index + 1 < config.blocks and index + 1 not in kept:
            parts = []
            for a, b in chunks(len(hidden), 8):
                mixed = out_inputs(hidden[a:b], block, config, positions[index])
                states = hidden[a:b] + product(mixed, block, OUT, config)
                parts.append((states, down_inputs(states, block, config)))
            before, inputs = (torch.cat(items).flatten(0, 1) for items in zip(*parts, strict=True))
            down = block[f"{DOWN}.weight"]
            pending = (index, before, F.linear(inputs, down).float(), down.float())
        advance(hidden, block, config, positions[index])
        if pending is not None and index not in kept and (index + 1 == config.blocks or index + 1 in kept):
            at, before, outputs, down = pending
            gram = (outputs.T @ outputs).double()
            gram.diagonal().add_(REPLACE_ME_RIDGE * gram.diagonal().mean())
            cross = (outputs.T @ (hidden.flatten(0, 1) - before)).double()
            merged = torch.linalg.solve(gram, cross).float().T @ down
            name = block_prefix(kept.index(at)) + f"{DOWN}.weight"
            tensors.add(
                name, merged.shape, encode(merged, GGMLQuantizationType.F32), GGMLQuantizationType.F32
            )
            pending = None


def contiguous(bench: Bench, count: int) -> list[int]:
    """The run of blocks whose input and output are nearest in angle, which is how ReplaceMe chooses."""
    windows = bench.fit["docs"][:SELECTION]
    plan = search(bench.weights, windows, remove=count, metric="cosine", compute=bench.compute)
    return sorted(cut[0] // 2 for cut in plan.cuts)


def by_healed_loss(bench: Bench, removed: Sequence[int]) -> list[int]:
    """The blocks that `--search healed` would choose after a search that found `removed`."""
    blocks, begin = bench.weights.config.blocks, time.monotonic()
    plan = Plan(blocks, len(removed), {}, rounds=tuple(Round(block_cut(index), 0.0, {}) for index in removed))
    sources = [
        Source(kind, bench.fit[kind][: count // LENGTH], bench.measured["docs"][:0])
        for kind, count in (("docs", 16 * KILO), ("sampled", 16 * KILO))
    ]
    with tempfile.TemporaryDirectory() as folder:
        chosen, finalists = choose_healed(
            bench.weights,
            plan,
            removable(blocks, 1, 1),
            sources,
            bench.compute,
            Path(folder),
            lambda _done: None,
        )
    for choice in finalists:
        print(f"    {choice.removed}: {perplexity(choice.loss):.2f} on docs and sampled text")
    print(f"    chosen in {time.monotonic() - begin:.0f} s")
    return sorted(cut[0] // 2 for cut in chosen.cuts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--blocks", type=int, nargs="*", default=[3, 6, 9])
    options = parser.parse_args()
    removed = json.loads(options.plan.read_text())["removed"]
    bench = Bench(options.model, options.text)
    shown = ", ".join(f"{kind} {value:.1f}" for kind, value in bench.original.items())
    print(f"original model: {shown}\n{'':<44}{'text':>25}{'docs':>27}")
    six = removed[:6]
    bench.row("6: 16 k of the text", six, bench.mixed(text=16 * KILO))
    bench.row("6: 48 k of the text", six, bench.mixed(text=48 * KILO))
    bench.row("6: 16 k of the docs", six, bench.mixed(docs=16 * KILO))
    bench.row("6: 16 k sampled", six, bench.mixed(sampled=16 * KILO))
    bench.row("6: 32 k sampled", six, bench.mixed(sampled=32 * KILO))
    bench.row("6: 16 k sampled + 16 k docs", six, bench.mixed(sampled=16 * KILO, docs=16 * KILO))
    bench.row("6: 32 k sampled + 16 k docs", six, bench.mixed(sampled=32 * KILO, docs=16 * KILO))
    broad = bench.mixed(sampled=16 * KILO, docs=8 * KILO, text=8 * KILO)
    bench.row("6: the broad 32 k: 16 k sampled, 8 k of each", six, broad)
    for count in options.blocks:
        rivals = {
            "searched": removed[:count],
            "contiguous": contiguous(bench, count),
            "by the healed loss": by_healed_loss(bench, removed[:count]),
        }
        for name, chosen in rivals.items():
            print(f"{count} blocks, {name}: {sorted(chosen)}")
            bench.row("    not repaired", chosen, None)
            bench.row("    ReplaceMe's maps, the broad 32 k", chosen, broad, peer=True)
            bench.row("    healed, the broad 32 k", chosen, broad)


if __name__ == "__main__":
    main()
