"""`tinysleb compare`: what models lost against the first of them, how they write, and what that brings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Checkpoint, Weights
from tinysleb.commands.compare_options import CompareOptions
from tinysleb.commands.compare_tables import print_compared
from tinysleb.commands.compared import Compared, Texts
from tinysleb.commands.compared_models import Model, open_models, quantized_models
from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console
from tinysleb.commands.opening import opened
from tinysleb.compute.compute import Compute
from tinysleb.errors import TinyslebError
from tinysleb.formats.logits_file import LogitsFile, LogProbabilities, read_logits_file, written_logits_file
from tinysleb.measure.choices import Choices, drawn, encode_question, score_choices
from tinysleb.measure.drawn import draw, reverse_divergence
from tinysleb.measure.speed import Speed, ideal_speed, measure_speeds
from tinysleb.measure.tasks import read_task
from tinysleb.measure.writing import Answer, Questions, answer, judge, model_to_write, questions
from tinysleb.search.comparison import Comparison
from tinysleb.search.comparison import compare as compare_models
from tinysleb.search.cuts import CONTEXT
from tinysleb.text.long_text import tokens_around
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import WindowSource, read_windows


@dataclass(frozen=True)
class _Job:
    """The models, the first of which is the original, and with what to measure them."""

    models: Sequence[Model]
    original: Checkpoint
    options: CompareOptions
    compute: Compute
    console: Console

    def progress(self, what: str) -> Callable[[float], None]:
        """The progress of a stage."""
        return partial(self.console.progress, what)


def compare(options: CompareOptions) -> None:
    """Print what was measured of each model."""
    with ExitStack() as stack:
        job = _open(options, stack)
        tasks = _read_tasks(job)
        tokens, comparisons = _measure_text(job)
        texts = _write(job)
        accuracies = [
            {kind: score_choices(each.weights, asked, job.compute, job.progress(f"{each.name}: {kind}"))
             for kind, asked in tasks.items()}
            for each in job.models
        ]  # fmt: skip
        speeds = _time(job)
        compared = [
            Compared(
                each.name, each.weights, comparison, ideal_speed(job.original, each.weights, CONTEXT),
                accuracy, speeds.get(each.name),
            )
            for each, comparison, accuracy in zip(job.models, comparisons, accuracies, strict=True)
        ]  # fmt: skip
    job.console.clear()
    print_compared(compared, texts, tuple(tokens.shape), options)


def _open(options: CompareOptions, stack: ExitStack) -> _Job:
    console, names = Console(), options.in_order
    original = opened(Path(names[0]), console, options.pre)
    models = list(open_models(names, original, console))
    compute = choose_compute(options)
    if types := options.types:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models += quantized_models(types, models[0], folder, console)
    return _Job(models, original, options, compute, console)


def _read_tasks(job: _Job) -> Mapping[str, Sequence[Choices]]:
    found = {kind: read_task(kind, path) for kind, path in job.options.tasks.items()}
    if not found:
        return {}
    encode, context = open_tokenizer(job.original).encode, job.original.config.context_length
    return {
        kind: [encode_question(each, encode, context) for each in drawn(asked, job.options.questions)]
        for kind, asked in found.items()
    }


def _measure_text(job: _Job) -> tuple[Tensor, list[Comparison]]:
    """The windows, and what each model makes of them; with a file of the original's log-probabilities, this
    is read, or written."""
    options = job.options
    others = [each.weights for each in job.models[1:]]
    path, progress = options.kl_divergence_base, job.progress("comparing")
    if path is None:
        tokens = _windows(job)
        return tokens, compare_models(job.original, others, tokens, job.compute, progress)
    known = _read_fitting(path, job.original) if path.exists() else None
    tokens = _windows(job) if known is None else torch.from_numpy(known.tokens.astype("int64"))
    with _written(path, tokens, job.original.config.vocab_size, known) as keep:
        found = compare_models(
            job.original, others, _begun(tokens, job.original), job.compute, progress,
            second_half=True, known=known, keep=keep,
        )  # fmt: skip
    return tokens, found


def _windows(job: _Job) -> Tensor:
    options = job.options
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    return read_windows(job.original, source, seed=None).tokens


def _read_fitting(path: Path, original: Weights) -> LogitsFile:
    file = read_logits_file(path)
    if file.vocabulary != original.config.vocab_size:
        raise TinyslebError(
            f"{path} is of a model with a vocabulary of {file.vocabulary} tokens, and {original.path} has "
            f"{original.config.vocab_size}",
            "without the file, it is written anew",
        )
    return file


@contextmanager
def _written(
    path: Path, tokens: Tensor, vocabulary: int, known: LogitsFile | None
) -> Iterator[Callable[[LogProbabilities], None] | None]:
    if known is not None:
        yield None
        return
    with written_logits_file(path, tokens.numpy().astype("int32"), vocabulary) as keep:
        yield keep


def _begun(tokens: Tensor, original: Checkpoint) -> Tensor:
    """Windows that begin with the token that a text begins with, in place of their first, as llama-perplexity
    has it."""
    before, _ = tokens_around(open_tokenizer(original))
    if not before:
        return tokens
    return torch.cat((torch.full_like(tokens[:, :1], before[0]), tokens[:, 1:]), dim=1)


def _write(job: _Job) -> Texts | None:
    """What each model writes, and how that is; None if they cannot be asked, of which the user is told."""
    compute = job.compute.between_stages()
    try:
        asked = questions(job.original)
        found = [_ask(job, each, asked, compute) for each in job.models]
    except TinyslebError as error:
        job.console.say(f"the models are not asked to write: {error.one_line}")
        return None
    answers = [each for each, _, _ in found]
    judged = [
        replace(judge(asked, each, answers[0]), reverse_kld=mean, reverse_kld_error=doubt)
        for each, _, (mean, doubt) in found
    ]
    return Texts(asked.prompts, answers, [drawn for _, drawn, _ in found], judged)


def _ask(
    job: _Job, model: Model, asked: Questions, compute: Compute
) -> tuple[list[Answer], Sequence[Answer], tuple[float, float]]:
    """A model's answers, the likeliest and drawn ones, and how far these are from the original, with the
    error of that."""
    resident = model_to_write(model.weights, asked, compute)
    answers = answer(resident, asked, job.progress(f"{model.name} writes"))
    progress = job.progress(f"{model.name} draws")
    if model is job.models[0]:
        return answers, answer(resident, asked, progress, temperature=1), (0.0, 0.0)
    texts = draw(resident, asked, progress)
    del resident  # or it would be in memory while both are walked
    strays = reverse_divergence(model.weights, job.original, texts, compute.between_stages())
    return answers, texts.answers, strays


def _time(job: _Job) -> Mapping[str, Speed]:
    """What llama.cpp makes of those models that are GGUFs, by name."""
    paths = {each.name: each.gguf for each in job.models if each.gguf is not None}
    if not job.options.speed or not paths:
        return {}
    progress = job.progress("timing in llama.cpp")
    found = measure_speeds(list(paths.values()), torch.get_num_threads(), progress)
    return dict(zip(paths, found, strict=True))
