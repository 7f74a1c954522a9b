"""What a cut brings, from the headers alone: how large the model is afterwards, and how fast it could be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from tinysleb.checkpoint.config import ATTENTION, FEED_FORWARD, ModelConfig, half_of, shapes_of_block
from tinysleb.checkpoint.weights import Weights, total_bytes
from tinysleb.plan import Plan
from tinysleb.search.cost import Costs, generation_costs
from tinysleb.search.cuts import CONTEXT
from tinysleb.sublayers import Cut


@dataclass(frozen=True)
class Gain:
    """The size of what is left, in bytes, and how many times as fast as the whole model it can be at best: at
    reading a prompt, which is computed, and at writing, which waits for the bytes it reads."""

    bytes: int
    prompt_speed: float
    generation_speed: float


@dataclass(frozen=True)
class Footprint:
    """What each sublayer takes: bytes `stored`, bytes `read` for a token that is written, and weights
    `computed` with for one that is read."""

    stored: Costs
    read: Costs
    computed: Costs

    def gain(self, cuts: Iterable[Cut], part: float = 1.0) -> Gain:
        """What it brings to leave out `part` of these cuts, on average."""
        gone = list(cuts)
        return Gain(
            bytes=round(self.stored.total - part * self.stored.saved(gone)),
            prompt_speed=_speed(self.computed, part * self.computed.saved(gone)),
            generation_speed=_speed(self.read, part * self.read.saved(gone)),
        )


def _speed(costs: Costs, saved: float) -> float:
    return costs.total / (costs.total - saved) if saved < costs.total else 1.0


def with_sizes(plan: Plan, weights: Weights) -> Plan:
    """The plan with what each of its cuts brings, of a model in the types that `weights` reports."""
    whole, cuts = footprint(weights), plan.cuts
    sizes = (asdict(whole.gain(cuts[:count])) for count in range(len(cuts) + 1))
    return replace(plan, sizes=tuple(sizes))


def footprint(weights: Weights, context: int = CONTEXT) -> Footprint:
    """Of a model in the types that `weights` reports, with `context` tokens in the cache."""
    stored = generation_costs(weights, 0).sublayers
    rest = total_bytes(weights) - sum(stored)
    return Footprint(Costs(stored, rest, 0), generation_costs(weights, context), prompt_costs(weights.config))


def prompt_costs(config: ModelConfig) -> Costs:
    """The weights that multiply each token of a prompt, in each sublayer: what short prompts wait for. The
    head's are not counted: llama.cpp applies it to the last token only."""
    sublayers: list[int] = []
    for index in range(config.blocks):
        halves = {ATTENTION: 0, FEED_FORWARD: 0}
        for name, shape in shapes_of_block(config, index).items():
            if len(shape) == 2:
                halves[half_of(name, config.architecture)] += shape[0] * shape[1]
        sublayers += halves.values()
    return Costs(sublayers, 0, 0)
