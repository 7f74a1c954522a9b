"""Independent programs to compare with: transformers and llama.cpp, and tiny models made by the former."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import sentencepiece
import tokenizers
import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.threads import available_threads
from tinysleb.export.gguf_writer import write_container
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.model.sampling import load_resident, sample
from tinysleb.sublayers import Cut, block_cut

TEXT = (
    "def f(x):\n\treturn x ** 2  # größer, ß\n\n\n   spaces    and 7 42 123 4567 89012 numbers; "
    "日本語と中文，🚀😶‍🌫️ I'm, he's, WE'RE\r\n\r\ntabs\t\tend.   \n"
)
"""Code, umlauts, CJK, emoji, contractions, runs of spaces, newlines and digits."""
CORPUS = [TEXT, "The quick brown fox jumps over the lazy dog. ", "import sys\nprint(sys.path)\n" * 3]
GREEDY_PROMPT = "The quick brown"


def make_llama(folder: Path, *, tokenizer: str = "byte-level", seed: int = 0, **changes: Any) -> Path:
    """A random tiny Llama; see `make_model`."""
    return make_model("LlamaForCausalLM", folder, tokenizer=tokenizer, seed=seed, **changes)


def make_model(
    family: str, folder: Path, *, tokenizer: str = "byte-level", seed: int = 0, **changes: Any
) -> Path:
    """A random tiny model saved by transformers, with a tokenizer trained here beside it."""
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model_class = getattr(transformers, family)
    model = model_class(model_class.config_class(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    {"byte-level": train_byte_level, "sentencepiece": train_sentencepiece}[tokenizer](folder)
    return folder


def make_variant(name: str, folder: Path) -> Path:
    """One of `FAMILIES`."""
    family, changes = FAMILIES[name]
    return make_model(family, folder, **changes)


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256,
    "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip
_GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
    "residual_multiplier": 0.7, "logits_scaling": 2.0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama multi-head, tied": (
        "LlamaForCausalLM",
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "llama one key head": ("LlamaForCausalLM", {"num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "llama head_dim": ("LlamaForCausalLM", {"head_dim": 32}),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama linear": ("LlamaForCausalLM", {"rope_parameters": _LINEAR}),
    "llama llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "llama dynamic": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama yarn": ("LlamaForCausalLM", {"rope_parameters": _YARN}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mistral nemo": ("MistralForCausalLM", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2 yarn": ("Qwen2ForCausalLM", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "phi3": ("Phi3ForCausalLM", {"original_max_position_embeddings": 512}),
    "phi3 longrope": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 256},
    ),
    "phi4 mini": (
        "Phi3ForCausalLM",
        {
            "partial_rotary_factor": 0.75, "head_dim": 16, "original_max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        },
    ),
    "granite": ("GraniteForCausalLM", _GRANITE),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 4}),
}  # fmt: skip
"""Families and their variants: transformers class, changes to the tiny shape."""


def train_byte_level(folder: Path) -> None:
    """`tokenizer.json` of SmolLM's kind: single digits, then GPT-2's splitting."""
    steps = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = steps.Sequence([steps.Digits(True), steps.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=steps.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2TokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))


def train_sentencepiece(folder: Path, model_type: str = "bpe", **options: Any) -> None:
    """`tokenizer.model` of Llama 2's kind: BPE with byte fallback and a space in front."""
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(CORPUS * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        hard_vocab_limit=False,
        vocab_size=380,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **options,
    )
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))


def transformers_model(folder: Path) -> Any:
    """The checkpoint as transformers sees it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def transformers_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits `[n, T, vocabulary]`."""
    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits
    return logits


def transformers_loss(model: Any, tokens: Tensor) -> float:
    """Mean negative log-likelihood of tokens 1 … T-1 of all windows."""
    logits = transformers_logits(model, tokens)[:, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return losses.item()


def own_text(weights: Weights, count: int, length: int, seed: int) -> Tensor:
    """Windows `[count, length]` that the model writes, and so predicts well. What losses are compared on need
    not come from an independent program, which would take longer than the comparison."""
    generator = torch.Generator().manual_seed(seed)
    begin = torch.randint(3, 512, (count, 1), generator=generator).tolist()
    return sample(load_resident(weights, torch.float32, torch.device("cpu")), begin, length, seed=seed)


def without_blocks(model: Any, removed: Sequence[int]) -> Any:
    """The same transformers model with blocks deleted."""
    import copy

    shorter = copy.deepcopy(model)
    layers = shorter.model.layers
    shorter.model.layers = torch.nn.ModuleList(m for i, m in enumerate(layers) if i not in removed)
    for index, layer in enumerate(shorter.model.layers):
        layer.self_attn.layer_idx = index
    shorter.config.num_hidden_layers = len(shorter.model.layers)
    if kinds := getattr(model.config, "layer_types", None):
        shorter.config.layer_types = [kind for i, kind in enumerate(kinds) if i not in removed]
    return shorter


class _Nothing(torch.nn.Module):
    """Stands for a sublayer that is left out: attention returns a pair."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, **_rest: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.attention else nothing


def without_sublayers(model: Any, cuts: Iterable[Cut]) -> Any:
    """The same transformers model whose sublayers in `cuts` add nothing."""
    import copy

    shorter = copy.deepcopy(model)
    for sublayer in (sublayer for cut in cuts for sublayer in cut):
        layer = shorter.model.layers[sublayer // 2]
        if sublayer % 2:
            layer.mlp = _Nothing(attention=False)
        else:
            layer.self_attn = _Nothing(attention=True)
    return shorter


def block_cuts(blocks: Iterable[int]) -> list[Cut]:
    """The cuts that leave out whole blocks."""
    return [block_cut(index) for index in blocks]


@cache
def _cyllama() -> Any:
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()

    class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
        """`get_logits_ith` asks the model for a size that only its vocabulary has."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    return llama_cpp, Model


def llama_cpp_tokens(path: Path, text: str) -> list[int]:
    """Tokens by llama.cpp, with the BOS token where the file asks for it."""
    llama_cpp, model_class = _cyllama()
    model = model_class(str(path), llama_cpp.LlamaModelParams())
    return list(model.get_vocab().tokenize(text, True, True))


def llama_cpp_logits(path: Path, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits `[T, vocabulary]` by llama.cpp, with a float32 cache and no flash attention."""
    llama_cpp, model_class = _cyllama()
    model = model_class(str(path), llama_cpp.LlamaModelParams())
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(tokens))
    params.type_k = params.type_v = 0
    params.flash_attn_type = 0
    params.n_threads = params.n_threads_batch = 2
    context = llama_cpp.LlamaContext(model, params)
    batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
    batch.set_batch(list(tokens), 0, True)
    context.decode(batch)
    return np.array([context.get_logits_ith(i) for i in range(len(tokens))], dtype=np.float32)


def llama_cpp_greedy(path: Path, prompt: str, count: int) -> str:
    """Greedy text by llama.cpp's server."""
    result = _server(path).handle_completions({"prompt": prompt, "n_predict": count, "temperature": 0})
    return str(result["choices"][0]["text"])


def llama_cpp_chat(path: Path, question: str) -> str:
    """A greedy answer by llama.cpp's server, through the model's chat template."""
    messages = [{"role": "user", "content": question}]
    request = {"messages": messages, "max_tokens": 32, "temperature": 0}
    return str(_server(path).handle_chat_completions(request)["choices"][0]["message"]["content"])


def llama_cpp_speculative(
    target: Path, draft: Path, prompt: str = GREEDY_PROMPT, count: int = 16, drafted: int = 3
) -> tuple[str, dict[str, Any]]:
    """Greedy text by llama.cpp's server, with one model drafting for another, and the server's timings, which
    have `draft_n` and `draft_n_accepted`."""
    return llama_cpp_texts(target, [prompt], count, draft, drafted)[0]


def llama_cpp_texts(
    path: Path,
    prompts: Sequence[str | Sequence[int]],
    count: int,
    draft: Path | None = None,
    drafted: int = 3,
) -> list[tuple[str, dict[str, Any]]]:
    """Greedy texts of `count` tokens behind prompts, as texts or as tokens, by one server, with its timings;
    `draft` may draft for it, so many tokens at a time."""
    server = _server(path, draft, drafted)
    requests = ({"prompt": prompt, "n_predict": count, "temperature": 0} for prompt in prompts)
    results = [server.handle_completions(request) for request in requests]
    return [(str(result["choices"][0]["text"]), dict(result["timings"])) for result in results]


def _server(path: Path, draft: Path | None = None, drafted: int = 3) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    if draft is not None:
        params.speculative.draft.mparams.path = str(draft)
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        params.speculative.draft.n_max = drafted
    params.n_ctx = 256
    params.warmup = False
    params.cpuparams.n_threads = min(2, available_threads())
    return xllamacpp.Server(params)


def with_metadata(source: Path, path: Path, changes: Mapping[str, GgufValue | None]) -> Path:
    """A copy of a GGUF with some metadata replaced, added or, where there is None, left out."""
    file = read_gguf(source)
    types = {name: (tensor.shape, tensor.type) for name, tensor in file.tensors.items()}

    def write(name: str, out: FileIO) -> None:
        out.write(file.read_bytes(name).data)

    changed = {**file.metadata, **changes}
    metadata = {key: item for key, item in changed.items() if item is not None}
    write_container(path, metadata, types, file.alignment, write)
    return path
