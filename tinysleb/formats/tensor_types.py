"""One record for each type that a tensor can be stored in: what the whole program knows of it.

It is here, and not with the checkpoints, because the containers' readers need it as well. safetensors and
ggml spell the types alike that both have, so one name stands for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinysleb.errors import TinyslebError


@dataclass(frozen=True)
class TensorType:
    """A storage type, by its name in safetensors and ggml."""

    name: str
    item_bytes: int = 0
    """What a value takes in a safetensors file; 0 for types that it does not have."""
    torch: str = ""
    """The torch dtype that holds its values as they are stored; '' if they must be dequantised."""
    file_types: tuple[str, ...] = ()
    """The gguf package's `LlamaFileType` of each GGUF that is mostly in this type; () if we cannot encode."""
    fallback: str = ""
    """What llama.cpp stores rows in whose length is not a multiple of this type's block
    (`tensor_type_fallback` in `src/llama-quant.cpp`); '' for F16."""
    step: float = 0.0
    """How far a value may be from what was to be stored, as a fraction of it or, if quantised, of the largest
    in its block."""
    few_bits: bool = False
    """So few bits that it pays to search for scales, and to round with care."""
    logits_tolerance: float = 0.2
    """How far llama.cpp's logits may be from ours, as a fraction of their spread: it rounds activations to 8
    bits where weights are quantised."""
    packed: tuple[str, ...] = ()
    """The processors for which llama.cpp reorders rows of this type, to multiply several at once
    (`ggml_repack_get_optimal_repack_type` in `ggml/src/ggml-cpu/repack.cpp`): x86 with AVX2, ARM with dot
    products."""
    scales: tuple[int, ...] = ()
    """Where a block's float16 scales lie, in bytes from its beginning (`quants.py` of the gguf package)."""

    exponent: int = 0
    """The bits of a number that are all set if it is not finite; 0 if that is not known."""

    @property
    def is_half(self) -> bool:
        """Whether values are kept in 16 bits when they are read."""
        return self.torch in ("float16", "bfloat16")

    @property
    def is_float(self) -> bool:
        """Whether values are stored one by one, as floating-point numbers."""
        return bool(self.torch)

    @property
    def encoded(self) -> bool:
        """Whether we can encode values in this type."""
        return bool(self.file_types)


@dataclass(frozen=True)
class FileType:
    """A type of GGUF that we write: `name`, the gguf package's, and the type that most matrices are in."""

    name: str
    matrices: TensorType

    @property
    def option(self) -> str:
        """What users call it."""
        return self.name.partition("_")[2].lower()


BOTH = ("x86", "ARM")
RECORDS = (
    TensorType("F32", 4, "float32", ("ALL_F32",), logits_tolerance=0.002, exponent=0x7F800000),
    TensorType("F16", 2, "float16", ("MOSTLY_F16",), step=2**-11, logits_tolerance=0.01, exponent=0x7C00),
    TensorType("BF16", 2, "bfloat16", ("MOSTLY_BF16",), step=2**-8, logits_tolerance=0.02, exponent=0x7F80),
    TensorType("Q8_0", file_types=("MOSTLY_Q8_0",), step=1 / 127, scales=(0,), packed=("ARM",)),
    TensorType("Q5_1", file_types=("MOSTLY_Q5_1",), step=1 / 15, few_bits=True, scales=(0, 2)),
    TensorType("Q5_0", file_types=("MOSTLY_Q5_0",), step=1 / 16, few_bits=True, scales=(0,)),
    TensorType("Q4_1", file_types=("MOSTLY_Q4_1",), step=1 / 7, few_bits=True, scales=(0, 2)),
    TensorType("Q4_0", file_types=("MOSTLY_Q4_0",), step=1 / 8, few_bits=True, scales=(0,), packed=BOTH),
    TensorType("F64", 8, "float64", exponent=0x7FF0000000000000),
    TensorType("F8_E4M3", 1, "float8_e4m3fn"),
    TensorType("F8_E5M2", 1),
    *(
        TensorType(name, int(name[1:]) // 8)
        for name in ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
    ),
    TensorType("BOOL", 1),
    TensorType("Q2_K", file_types=("MOSTLY_Q2_K",), step=1, few_bits=True, scales=(80, 82), fallback="Q4_0"),
    TensorType(
        "Q3_K", file_types=("MOSTLY_Q3_K_S", "MOSTLY_Q3_K_M", "MOSTLY_Q3_K_L"),
        step=0.5, few_bits=True, scales=(108,), fallback="Q4_0",
    ),
    TensorType(
        "Q4_K", file_types=("MOSTLY_Q4_K_S", "MOSTLY_Q4_K_M"),
        step=0.25, few_bits=True, scales=(0, 2), packed=BOTH, fallback="Q5_0",
    ),
    TensorType(
        "Q5_K", file_types=("MOSTLY_Q5_K_S", "MOSTLY_Q5_K_M"),
        step=0.12, few_bits=True, scales=(0, 2), packed=("ARM",), fallback="Q5_1",
    ),
    TensorType(
        "Q6_K", file_types=("MOSTLY_Q6_K",),
        step=0.06, few_bits=True, scales=(208,), packed=("ARM",), fallback="Q8_0",
    ),
    TensorType("IQ4_NL", file_types=("MOSTLY_IQ4_NL",), step=0.2, few_bits=True, scales=(0,), packed=BOTH),
    TensorType("TQ1_0", scales=(52,), fallback="Q4_0"),
    TensorType("TQ2_0", scales=(64,), fallback="Q4_0"),
    *(
        TensorType(name, scales=(0,), fallback="IQ4_NL")
        for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS")
    ),
)  # fmt: skip
TENSOR_TYPES = {record.name: record for record in RECORDS}
FILE_TYPES = [FileType(name, record) for record in RECORDS for name in record.file_types]
REMOVED_TYPES = {
    4: ("Q4_2", "Q4_0"), 5: ("Q4_3", "Q4_1"),
    31: ("Q4_0_4_4", "Q4_0"), 32: ("Q4_0_4_8", "Q4_0"), 33: ("Q4_0_8_8", "Q4_0"),
    36: ("IQ4_NL_4_4", "IQ4_NL"), 37: ("IQ4_NL_4_8", "IQ4_NL"), 38: ("IQ4_NL_8_8", "IQ4_NL"),
}  # fmt: skip
"""Types of a GGUF that llama.cpp removed, by number, each with the plain type that took its place
(`enum ggml_type` in `ggml/include/ggml.h`): it now reorders the rows of these when it loads them."""
WRITABLE = {each.option: each for each in FILE_TYPES}
"""The types of GGUF that we write, by what users call them."""


def tensor_type(name: str) -> TensorType:
    """The record of a type; of one that nothing is known about, a record that says so."""
    return TENSOR_TYPES.get(name) or TensorType(name)


def unknown_type(tensor: str, number: int) -> TinyslebError:
    """The error for a tensor of a GGUF, named with its file, that has a type which is not known."""
    if number in REMOVED_TYPES:
        removed, plain = REMOVED_TYPES[number]
        return TinyslebError(
            f"{tensor} has the type {removed}, which llama.cpp removed",
            f"take a GGUF of the model in {plain}, or make one with llama-quantize",
        )
    return TinyslebError(
        f"{tensor} has the unknown type {number}",
        "if it comes from a fork of llama.cpp, or a newer one, take a GGUF of the model in another type",
    )
