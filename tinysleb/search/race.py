"""One round of a search: candidates are scored on window after window, and leave when they have lost.

Windows come in heats. With racing, a candidate leaves after a heat in which its loss is worse than the
leader's beyond doubt; without it, every candidate sees every window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, scaled
from tinysleb.compute.memory import block_bytes, obey
from tinysleb.model.blocks import Block
from tinysleb.model.chunks import chunks
from tinysleb.plan import Score
from tinysleb.search.kept_states import BASE, KeptStates
from tinysleb.search.lazy import Expected
from tinysleb.search.original import Original
from tinysleb.search.sweep import sweep
from tinysleb.sublayers import Cut, cut_title

ERROR_LEVEL = 0.01
"""The chance, per round, that racing drops a candidate as good as the leader."""
SEGMENT = 32
"""Tokens whose losses are summed into one observation of the test: neighbours are not independent."""
FEWEST_SEGMENTS = 6
FIRST_HEAT = 2
"""Windows of the first heat: one of each kind, where text and what the model wrote take turns."""
TIE = 1e-6
"""Nats by which a mean loss must be lower to count as lower: float32 token losses of 8 to 16 nats are
2⁻²⁰ ≈ 1e-6 apart. Candidates that are the same model, such as those without one of two equal blocks, are
nearer than that, however windows were grouped and whatever was kept between rounds."""


Cost = Callable[[Cut], float]
"""What a cut saves, relative to a block."""


def same_cost(_cut: Cut) -> float:
    """Where all cuts save the same."""
    return 1.0


def cheapest(scores: Mapping[Cut, float]) -> Cut:
    """The cut with the lowest score; of those within `TIE` of it, the lowest in the stack."""
    least = min(scores.values())
    return min(cut for cut, score in scores.items() if score <= least + TIE)


@dataclass(frozen=True)
class Track:
    """What all races of a search share: the model, calibration windows `[n, T]`, where to compute; states and
    blocks that are kept between sweeps, the latter if there is memory; what a cut saves; and the original, if
    candidates are scored by their divergence from it."""

    weights: Weights
    tokens: Tensor
    compute: Compute
    states: KeptStates
    blocks: dict[int, Block] | None = None
    cost: Cost = same_cost
    original: Original | None = None

    @property
    def held(self) -> int:
        """The bytes that are kept, or will be."""
        config, item = self.weights.config, self.compute.dtype.itemsize
        blocks = 0 if self.blocks is None else config.blocks * block_bytes(config, item)
        return self.states.held + blocks + (self.original.nbytes if self.original else 0)


def track_for(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    candidates: int,
    cost: Cost = same_cost,
    original: Original | None = None,
) -> Track:
    """A track for so many candidates at most, which keeps what there is memory for.

    Raises TinyslebError if there is too little memory.
    """
    (count, length), held = tokens.shape, original.nbytes if original else 0
    memory = compute.memory_plan(weights, candidates, count, length, held)
    blocks = dict[int, Block]() if memory.resident else None
    return Track(weights, tokens, compute, KeptStates(memory.states), blocks, cost, original)


class Race:
    """One round: what is known of each variant by its key, and the candidates in a heat.

    `losses`: token losses on the windows seen, float32 `[windows, T-1]`; `means`: their mean, in float64;
    `behind`: by how much a candidate was and surely is behind the leader. `loss_before` and `before`: the
    loss, and the token losses, of the model that candidates are cut from; where they are needed and not
    known, it is scored along.
    """

    def __init__(
        self,
        track: Track,
        stack: Sequence[int],
        cuts: Sequence[Cut],
        loss_before: float | None,
        before: Tensor | None = None,
    ) -> None:
        self.track, self.stack, self.tokens, self.cost = track, stack, track.tokens, track.cost
        comparisons = (len(cuts) + 1) * len(self.tokens)
        self.deviates = NormalDist().inv_cdf(1 - ERROR_LEVEL / comparisons)
        self.loss_before, self.before = loss_before, before
        self.with_base = before is None and (loss_before is None or self.cost is not same_cost)
        self.losses: dict[Cut, Tensor] = {}
        self.means: dict[Cut, float] = {}
        self.behind: dict[Cut, tuple[float, float]] = {}

    def run(self, expected: Mapping[Cut, Expected], exact: bool, progress: Callable[[float], None]) -> None:
        """Score candidates on window after window until all are seen.

        Unless `exact`, they leave when they have lost, and only those are scored that may win: first those
        that may be as good as the best was, then those that may be as good as the best is.
        """
        waiting, best = set(expected), min(each.last for each in expected.values())
        while called := sorted(cut for cut in waiting if exact or expected[cut].least <= best):
            self._race(called, exact, progress)
            waiting -= set(called)
            best = self._increase(self.winner)

    def enter(self, cut: Cut, losses: Tensor) -> None:
        """Let a candidate race along whose token losses on all windows are known."""
        self.losses[cut], self.means[cut] = losses, losses.double().mean().item()

    def _increase(self, cut: Cut) -> float:
        """What a cut adds to the loss on all windows, for what it saves."""
        before = self.means[BASE] if self.loss_before is None else self.loss_before
        return (self.means[cut] - before) / self.cost(cut)

    @property
    def winner(self) -> Cut:
        """The `cheapest` of the candidates that have seen all windows."""
        return cheapest({cut: self._increase(cut) for cut in self._finished()})

    def scores(self) -> dict[Cut, Score]:
        """Every candidate's score, those that left early included."""
        best = self._increase(self.winner)
        behind = self.behind | {cut: (self._increase(cut) - best,) * 2 for cut in self._finished()}
        return {
            cut: Score(
                self.means[cut], len(self.losses[cut]), most_likely, least if least > -math.inf else None
            )
            for cut, (most_likely, least) in behind.items()
        }

    def _finished(self) -> list[Cut]:
        """The candidates that have seen all windows."""
        return [cut for cut, seen in self.losses.items() if cut != BASE and len(seen) == len(self.tokens)]

    def _race(self, cuts: Sequence[Cut], exact: bool, progress: Callable[[float], None]) -> None:
        """Send candidates through all heats; those that have seen all windows race along."""
        finished = self._finished()
        seen, count = 0, len(self.tokens)
        for size in heats(count, growing=not exact):
            self._heat(range(seen, seen + size), cuts, scaled(progress, seen / count, (seen + size) / count))
            seen += size
            if not exact and seen < count:
                cuts = self._still_racing(cuts, finished, seen)

    def _still_racing(self, cuts: Sequence[Cut], finished: Sequence[Cut], seen: int) -> list[Cut]:
        """The candidates that may be the best on all windows, after `seen` of them."""
        losses = {cut: self._for_its_cost(cut, seen) for cut in (*cuts, *finished)}
        leader = cheapest({cut: each.double().mean().item() for cut, each in losses.items()})
        fraction = seen / len(self.tokens)
        for cut in cuts:
            self.behind[cut] = excess(losses[cut], losses[leader], fraction, self.deviates)
        return [cut for cut in cuts if self.behind[cut][1] <= 0]

    def _for_its_cost(self, cut: Cut, seen: int) -> Tensor:
        """Token losses on the first windows or, where costs differ, what a cut adds to them for its cost."""
        if self.cost is same_cost:
            return self.losses[cut][:seen]
        before = self.losses[BASE] if self.before is None else self.before
        return (self.losses[cut][:seen] - before[:seen]) / self.cost(cut)

    def _heat(self, windows: range, cuts: Sequence[Cut], progress: Callable[[float], None]) -> None:
        """Score candidates on `windows`, each process its share."""
        with_base = self.with_base and len(self.losses.get(BASE, ())) < windows.stop
        keys = [*cuts, *([BASE] if with_base else [])]
        length = self.tokens.shape[1]
        losses = torch.zeros(len(keys), len(windows), length - 1)
        track = self.track
        share, mine = track.compute.group.share(windows, keys)
        count = sum(key != BASE for key in mine)
        memory = track.compute.memory_plan(track.weights, count, len(share), length, track.held)
        obey(memory)
        for first, last in chunks(len(share) if mine else 0, memory.windows):
            report = scaled(progress, first / len(share), last / len(share))
            for key, values in self._sweep(share[first:last], mine, memory.ahead, report).items():
                at = share.start - windows.start
                losses[keys.index(key), at + first : at + last] = values
        track.compute.group.add_up(losses)
        for key, values in zip(keys, losses, strict=True):
            self._record(key, values)

    def _sweep(
        self, windows: range, keys: Sequence[Cut], ahead: bool, progress: Callable[[float], None]
    ) -> dict[Cut, Tensor]:
        track = self.track
        return sweep(
            track.weights,
            self.stack,
            [key for key in keys if key != BASE],
            self.tokens[windows.start : windows.stop].to(track.compute.device),
            track.compute.dtype,
            with_base=BASE in keys,
            ahead=ahead,
            states=track.states,
            kept_blocks=track.blocks,
            original=track.original,
            first_window=windows.start,
            progress=progress,
        )

    def _record(self, key: Cut, values: Tensor) -> None:
        if not values.isfinite().all():
            what = "the model itself" if key == BASE else f"the model without {cut_title(key)}"
            raise not_finite(self.track.weights, f"the loss of {what}")
        earlier = self.losses.get(key)
        losses = values if earlier is None else torch.cat([earlier, values])
        self.losses[key], self.means[key] = losses, losses.double().mean().item()


def heats(windows: int, growing: bool) -> Iterator[int]:
    """Sizes of consecutive heats: all windows at once, or 2, 1, 1, 2, 3, 4, 6, …, half of those seen."""
    seen = 0
    while seen < windows:
        size = min(max(1, seen // 2) if seen else FIRST_HEAT, windows - seen) if growing else windows
        yield size
        seen += size


def sweeps_in_a_round(windows: int, fitting: int, exact: bool) -> int:
    """How often a round walks the stack if `fitting` windows go into a sweep and nobody wins early."""
    return sum(-(-size // fitting) for size in heats(windows, growing=not exact))


def excess(losses: Tensor, best: Tensor, seen: float, deviates: float) -> tuple[float, float]:
    """By how much `losses` exceed `best` on average, and the least by which they do on all windows, in nats,
    with the certainty of so many standard normal `deviates`.

    Both are `[n, T-1]` on the same tokens, a random fraction `seen` of all. A paired t-test: observations
    are the differences summed over segments of `SEGMENT` tokens; the standard error is that of a mean over a
    finite population, smaller by sqrt(1 - seen), since the question is only which is better on these
    windows (Cochran, Sampling Techniques, 2.6). z becomes t by Wallace's approximation (Annals of
    Mathematical Statistics 30, 1959). Of too few segments, the least is not known, and is -inf.
    """
    difference = (losses - best).double()
    mean = difference.mean().item()
    segments = difference[:, : difference.shape[1] // SEGMENT * SEGMENT].reshape(-1, SEGMENT).mean(1)
    if len(segments) < FEWEST_SEGMENTS:
        return mean, -math.inf
    freedom = len(segments) - 1
    z = deviates * (8 * freedom + 3) / (8 * freedom + 1)
    t = math.sqrt(freedom * math.expm1(z * z / freedom))
    error = (segments.std() * ((1 - seen) / len(segments)) ** 0.5).item()
    return mean, segments.mean().item() - t * error
