"""What `tinysleb compare` measured of models, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinysleb.checkpoint.weights import Weights, total_bytes
from tinysleb.measure.choices import Accuracy
from tinysleb.measure.prompts import Prompt
from tinysleb.measure.speed import Ideal, Speed
from tinysleb.measure.writing import Answer, Writing
from tinysleb.search.comparison import Comparison


@dataclass(frozen=True)
class Compared:
    """A model, and what was measured of it."""

    name: str
    weights: Weights
    comparison: Comparison
    ideal: Ideal
    accuracies: Mapping[str, Accuracy]
    speed: Speed | None

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return total_bytes(self.weights)


@dataclass(frozen=True)
class Texts:
    """What was asked, and of each model the likeliest answers, one drawn to each, and how they are."""

    prompts: Sequence[Prompt]
    answers: Sequence[Sequence[Answer]]
    drawn: Sequence[Sequence[Answer]]
    writing: Sequence[Writing]


def compared_json(
    models: Sequence[Compared], texts: Texts | None, shape: tuple[int, ...], second_half: bool
) -> dict[str, Any]:
    """What `--json` prints, and a report reads."""
    count, length = shape
    rows = [
        {
            "model": each.name,
            "bytes": each.bytes,
            **asdict(each.comparison),
            "writing": None if texts is None else asdict(texts.writing[number]),
            "tasks": {kind: asdict(found) for kind, found in each.accuracies.items()},
            "ideal": asdict(each.ideal),
            "speed": None if each.speed is None else asdict(each.speed),
        }
        for number, each in enumerate(models)
    ]
    said = [] if texts is None else [
        {
            "prompt": prompt.text,
            **{
                kind: {each.name: answers[number].text for each, answers in zip(models, found, strict=True)}
                for kind, found in (("texts", texts.answers), ("drawn", texts.drawn))
            },
        }
        for number, prompt in enumerate(texts.prompts)
    ]  # fmt: skip
    return {
        "windows": count,
        "window_length": length,
        "second_half": second_half,
        "models": rows,
        "texts": said,
    }
