"""tinysleb's search against the naive loop over transformers, and against this machine's limits.

    python benchmarks/search.py MODEL.gguf [search] [growth] [floor]

search  6 rounds in float32 and bfloat16: the naive loop, exact sweeps, racing
growth  one exact round of random models of 8, 16, 32 and 64 blocks: the exponent of its work, its memory
floor   the share of a block's time that its matrix products alone take

Ratios compare runs in one process with the same windows and dtype. The naive loop runs the whole model once
per candidate, window by window, as the authors' code does; it is timed on some candidates of each round and
scaled to all: each costs the same. Needs the test extra.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tinysleb.checkpoint.config import block_shapes, config_from_huggingface, tensor_shapes
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget, resident_bytes
from tinysleb.formats.safetensors_file import write_safetensors
from tinysleb.model.blocks import Block, load_block
from tinysleb.model.forward import attention, block_forward
from tinysleb.model.positions import block_positions
from tinysleb.plan import Plan
from tinysleb.search.cuts import BLOCK, HALF, removable
from tinysleb.search.rounds import search
from tinysleb.sublayers import Cut, Pair, pairs_of
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import DEFAULT_WINDOWS, WINDOW_LENGTH, from_text

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
REMOVED = 6
GROWTH_BLOCKS, GROWTH_WINDOWS, GROWTH_LENGTH = (8, 16, 32, 64), 4, 256
FLOOR_LENGTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("parts", nargs="*", default=["search", "growth", "floor"])
    parser.add_argument("--naive-candidates", type=int, default=3, help="how many to time in a round")
    options = parser.parse_args()
    if "one-growth-run" in options.parts:
        print(json.dumps(growth_run(options.model)))
        return
    weights = open_model(options.model)
    vocabulary = weights.config.vocab_size
    tokens = from_text(open_tokenizer(weights), [], WINDOW_LENGTH, DEFAULT_WINDOWS, 0, vocabulary).tokens
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    if "search" in options.parts:
        for kind in (BLOCK, HALF):
            compare(options.model, weights, tokens, options.naive_candidates, kind)
    if "growth" in options.parts:
        growth()
    if "floor" in options.parts:
        floor(weights)


def compare(path: Path, weights: Weights, tokens: Tensor, naive_candidates: int, kind: str) -> None:
    """Seconds of the first round and of all, in each dtype, of the naive loop, exact and raced."""
    count, length = tokens.shape
    print(f"\n{REMOVED} of {weights.config.blocks} blocks removed, --cut {kind}, {count} x {length} tokens")
    print(
        f"{'dtype':<10}{'rounds':<8}{'naive, s':>10}{'exact, s':>10}{'ratio':>7}{'racing, s':>11}{'ratio':>7}"
    )
    for dtype in DTYPES:
        (exact, exact_times), (raced, raced_times) = (
            searched(weights, tokens, dtype, REMOVED, exact, kind) for exact in (True, False)
        )
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        naive, difference = naive_search(model, exact, tokens, naive_candidates)
        for rounds in (1, REMOVED):
            slow = sum(naive[:rounds])
            fast, fastest = sum(exact_times[:rounds]), sum(raced_times[:rounds])
            print(
                f"{str(dtype)[6:]:<10}{rounds:<8}{slow:>10.1f}"
                f"{fast:>10.1f}{slow / fast:>6.1f}x{fastest:>11.1f}{slow / fastest:>6.1f}x"
            )
        print(f"  removed: exact {list(exact.removed)}, racing {list(raced.removed)}")
        print(f"  largest difference of a loss to transformers' {difference:.1e}", flush=True)


def searched(
    weights: Weights, tokens: Tensor, dtype: torch.dtype, rounds: int, exact: bool, kind: str
) -> tuple[Plan, list[float]]:
    """The plan, and the seconds that each round took."""
    blocks, seconds = weights.config.blocks, []
    compute = Compute(CPU, dtype, Budget(4 * 2**30, resident_bytes()))
    plan = Plan(blocks, rounds, {})
    following = search(
        weights, tokens, plan, compute,
        allowed=removable(blocks, 1, 1), kind=kind, exact=exact, progress=lambda *_: None,
    )  # fmt: skip
    while not plan.finished:
        begin = time.perf_counter()
        plan = next(following)
        seconds.append(time.perf_counter() - begin)
    return plan, seconds


def naive_search(model: Any, plan: Plan, tokens: Tensor, count: int) -> tuple[list[float], float]:
    """Seconds that the naive loop takes for each round of `plan`, and how far its losses are from them."""
    layers, stack = model.model.layers, Plan(plan.blocks, 0, {}).stack
    seconds, difference = [], 0.0
    for round_ in plan.rounds:
        candidates = sorted(round_.candidates)
        some = candidates[:: max(1, len(candidates) // count)][:count]
        naive_loss(model, layers, stack, tokens[:1])
        begin = time.perf_counter()
        losses = {cut: naive_loss(model, layers, without(stack, cut), tokens) for cut in some}
        seconds.append((time.perf_counter() - begin) * len(candidates) / len(some))
        worst = max(abs(round_.candidates[cut].loss - loss) for cut, loss in losses.items())
        difference = max(difference, worst)
        stack = without(stack, round_.cut)
    return seconds, difference


def without(stack: Cut, cut: Cut) -> Cut:
    return tuple(sublayer for sublayer in stack if sublayer not in cut)


def naive_loss(model: Any, layers: Sequence[Any], stack: Cut, tokens: Tensor) -> float:
    model.model.layers = torch.nn.ModuleList(layer_of(pair, layers) for pair in pairs_of(stack))
    total = 0.0
    with torch.no_grad():
        for window in tokens[:, None]:
            logits = model(window, use_cache=False).logits[:, :-1]
            total += F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten()).item()
    return total / len(tokens)


def layer_of(pair: Pair, layers: Sequence[Any]) -> Any:
    """A layer of the transformers model, or one with the feed-forward, and its norm, of another."""
    attention, feed_forward = pair
    assert attention is not None
    assert feed_forward is not None
    if attention == feed_forward:
        return layers[attention]
    layer, other = copy.copy(layers[attention]), layers[feed_forward]
    own = {"mlp": other.mlp, "post_attention_layernorm": other.post_attention_layernorm}
    layer._modules = layer._modules | own
    return layer


def growth() -> None:
    """Each model in a process of its own, so that its peak memory is its own."""
    print(f"\none exact round, random models of width 256, {GROWTH_WINDOWS} x {GROWTH_LENGTH} tokens")
    print(f"{'blocks':<8}{'seconds':>9}{'exponent':>10}{'peak, MiB':>11}{'streams, MiB':>14}")
    runs: list[dict[str, float]] = []
    for blocks in GROWTH_BLOCKS:
        with tempfile.TemporaryDirectory() as name:
            write_random(Path(name), blocks)
            command = [sys.executable, __file__, name, "one-growth-run"]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        last, before = runs[-1], runs[-2] if len(runs) > 1 else None
        exponent = f"{math.log2(last['seconds'] / before['seconds']):.2f}" if before else ""
        print(
            f"{blocks:<8}{last['seconds']:>9.2f}{exponent:>10}"
            f"{last['peak'] / 2**20:>11.1f}{last['streams'] / 2**20:>14.1f}"
        )


def growth_run(folder: Path) -> dict[str, float]:
    import resource

    weights = open_model(folder)
    tokens = torch.randint(
        0, 1000, (GROWTH_WINDOWS, GROWTH_LENGTH), generator=torch.Generator().manual_seed(0)
    )
    searched(weights, tokens[:1], torch.float32, 1, exact=True, kind=BLOCK)
    before = resident_bytes()
    _, seconds = searched(weights, tokens, torch.float32, 1, exact=True, kind=BLOCK)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    streams = (weights.config.blocks - 2) * tokens.numel() * weights.config.width * 4
    return {"seconds": seconds[0], "peak": peak, "streams": streams}


def write_random(folder: Path, blocks: int) -> None:
    values = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": blocks, "num_attention_heads": 4, "vocab_size": 1000, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    shapes = tensor_shapes(config_from_huggingface(values, "shape"))
    generator = torch.Generator().manual_seed(0)
    write_safetensors(
        folder / "model.safetensors",
        {name: ("F32", shape) for name, shape in shapes.items()},
        lambda name: [torch.randn(shapes[name], generator=generator) * 0.05],
    )


def floor(weights: Weights) -> None:
    """Milliseconds for 2 windows: a block, its matrix products alone, its attention, and the rest."""
    config = weights.config
    position = block_positions(config, FLOOR_LENGTH, CPU)[0]
    states = torch.randn(2, FLOOR_LENGTH, config.width)
    shapes = {name: shape for name, shape in block_shapes(config).items() if len(shape) == 2}
    print(f"\na block on 2 x {FLOOR_LENGTH} tokens, ms")
    print(f"{'dtype':<10}{'block':>8}{'products':>10}{'share':>7}{'attention':>11}{'rest':>7}{'GFLOP/s':>9}")
    for dtype in DTYPES:
        block = load_block(weights, 0, dtype, CPU)
        inputs = {shape[1]: torch.randn(2, FLOOR_LENGTH, shape[1]).to(dtype) for shape in shapes.values()}
        projections = [name for name in shapes if name.startswith("self_attn")]

        def multiply(names: Iterable[str], block: Block = block, inputs: dict[int, Tensor] = inputs) -> None:
            for name in names:
                F.linear(inputs[shapes[name][1]], block[name])

        full, products, attending, projecting = fastest(
            partial(block_forward, states, block, config, position),
            partial(multiply, shapes),
            partial(attention, inputs[config.width], block, config, position),
            partial(multiply, projections),
        )
        rate = (
            sum(2 * rows * columns for rows, columns in shapes.values()) * 2 * FLOOR_LENGTH / products / 1e6
        )
        mixing = attending - projecting
        print(
            f"{str(dtype)[6:]:<10}{full:>8.1f}{products:>10.1f}{products / full:>7.0%}"
            f"{mixing:>11.1f}{full - products - mixing:>7.1f}{rate:>9.0f}"
        )


@torch.inference_mode()
def fastest(*runs: Callable[[], Any]) -> list[float]:
    """The least milliseconds of each of `runs`, taken in turn."""
    times = [math.inf] * len(runs)
    for _ in range(20):
        for index, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            times[index] = min(times[index], (time.perf_counter() - begin) * 1e3)
    return times


if __name__ == "__main__":
    main()
