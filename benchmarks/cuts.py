"""Which cuts are best, at the same cost: ways to choose them, unhealed and healed in closed form.

    python benchmarks/cuts.py MODEL TEXT [--blocks 3 6 9] [--ways "block" "half refined" …]

A way is a kind of cut, and `perplexity` or `refined`, or both. Chosen on the search's default windows, half
of which the model writes; healed on the default text and as much that the model writes; measured on the first
windows of TEXT, and on windows of Python's documentation. Cuts of another kind than blocks go on until they
save what so many blocks do, in bytes read for a token with 2,048 in the cache. Speed:
`benchmarks/llama_cpp.py`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch

from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.compute.compute import Compute, compute_on
from tinysleb.heal.healed_weights import Healed, HealedTensors, unrounded
from tinysleb.heal.text import HealingText, self_source, split_windows
from tinysleb.heal.walk import heal
from tinysleb.plan import DIVERGENCE, PERPLEXITY, Plan
from tinysleb.search.cost import CACHE_BYTES, Costs, generation_costs
from tinysleb.search.cuts import ATTENTION, CONTEXT, removable
from tinysleb.search.evaluate import evaluate
from tinysleb.search.exchange import exchange
from tinysleb.search.original import ask_original
from tinysleb.search.run import search
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import DEFAULT_WINDOWS, WINDOW_LENGTH, from_text, interleave

WAYS = ("block", "block refined", "half", "half refined", "half perplexity", "attention", "any")
LENGTH, MEASURED = 1024, 8
HEALED_TOKENS = 32768


class Bench:
    """A model, and windows to search on, to heal on, and to measure on."""

    def __init__(self, path: Path, text: Path) -> None:
        self.weights: Checkpoint = open_model(path)
        self.compute: Compute = compute_on("auto", "auto", "6GiB")
        tokenizer, rows = open_tokenizer(self.weights), self.weights.config.vocab_size
        unseen = from_text(tokenizer, [text], LENGTH, MEASURED, None, rows).tokens
        docs = from_text(tokenizer, [], LENGTH, MEASURED, 0, rows).tokens
        self.measured = {"text": unseen, "docs": docs}
        half, searched = HEALED_TOKENS // 2, DEFAULT_WINDOWS // 2
        given = from_text(tokenizer, [], WINDOW_LENGTH, half // WINDOW_LENGTH, 1, rows).tokens
        wanted = HealingText([], None, HEALED_TOKENS, half, 0, WINDOW_LENGTH)
        sampled = self_source(self.weights, wanted, self.compute, lambda _line: None, lambda _done: None)
        self.fit = torch.cat([given, sampled.fit])
        self.tokens = interleave([given[:searched], sampled.fit[:searched]])

    def perplexities(self, weights: Weights) -> str:
        found = (evaluate(weights, each, self.compute).perplexity for each in self.measured.values())
        return "  ".join(f"{each:>8.2f}" for each in found)

    def healed(self, plan: Plan) -> str:
        with tempfile.TemporaryDirectory() as folder:
            tensors = HealedTensors(Path(folder))
            parts = split_windows(self.fit)
            heal(unrounded(self.weights), plan.stack, *parts, self.compute, tensors, lambda _done: None)
            return self.perplexities(Healed(Shortened(self.weights, plan.kept), tensors))


def search_by(bench: Bench, way: str, blocks: int, costs: Costs) -> Plan:
    """The plan for what costs as much as so many blocks, and perhaps more."""
    kind, *how = way.split()
    each = costs.attention if kind == ATTENTION else costs.block
    most = bench.weights.config.blocks - 2
    remove = min(most, math.ceil(blocks * costs.block / each - 1e-9)) if kind == ATTENTION else blocks
    score = PERPLEXITY if "perplexity" in how else DIVERGENCE
    return search(bench.weights, bench.tokens, remove=remove, cut=kind, score=score, compute=bench.compute)


def beginning(plan: Plan, saving: float, costs: Costs) -> Plan:
    """The first rounds of a plan that save so much."""
    counts = range(1, len(plan.rounds) + 1)
    enough = [n for n in counts if costs.saved(plan.cuts[:n]) >= saving * (1 - 1e-6)]
    count = enough[0] if enough else len(plan.rounds)
    return plan.first(count)


def refined(bench: Bench, plan: Plan, kind: str) -> Plan:
    blocks = bench.weights.config.blocks
    said = ask_original(bench.weights, bench.tokens, bench.compute) if plan.by_divergence else None
    return exchange(
        bench.weights, bench.tokens, plan, bench.compute, allowed=removable(blocks, 1, 1), kind=kind,
        progress=lambda *_: None, original=said,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 6, 9])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    options = parser.parse_args()
    bench = Bench(options.model, options.text)
    config, costs = bench.weights.config, generation_costs(bench.weights, CONTEXT)
    print(f"{'':<36}{'unhealed: text, docs':<22}{'healed: text, docs':<22}cache for 1,000 tokens")
    print(f"{'original':<36}{bench.perplexities(bench.weights)}")
    for way in options.ways:
        kind = way.split()[0]
        found = search_by(bench, way, max(options.blocks), costs)
        for blocks in options.blocks:
            plan = beginning(found, blocks * costs.block, costs)
            plan = refined(bench, plan, kind) if "refined" in way else plan
            attentions = sum(pair.attention is not None for pair in plan.kept)
            cache = attentions * 2 * config.kv_heads * config.head_dim * CACHE_BYTES * 1000 / 2**20
            unhealed = bench.perplexities(Shortened(bench.weights, plan.kept))
            name = f"{way}, {blocks} ({len(plan.cuts)} cuts)"
            print(f"{name:<36}{unhealed:<22}{bench.healed(plan):<22}{cache:.1f} MiB", flush=True)
            print(f"    {', '.join(map(str, plan.removed))}", flush=True)


if __name__ == "__main__":
    main()
