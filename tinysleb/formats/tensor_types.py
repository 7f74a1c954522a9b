"""One record for each type that a tensor can be stored in: what the whole program knows of it.

It is here, and not with the checkpoints, because the containers' readers need it as well. safetensors and
ggml spell the types alike that both have, so one name stands for both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A storage type, by its name in safetensors and ggml."""

    name: str
    item_bytes: int = 0
    """What a value takes in a safetensors file; 0 for types that it does not have."""
    torch: str = ""
    """The torch dtype that holds its values as they are stored; '' if they must be dequantised."""
    file_type: str = ""
    """The gguf package's `LlamaFileType` of a GGUF whose matrices we write in this type; '' if we cannot."""
    step: float = 0.0
    """How far a value may be from what was to be stored, as a fraction of it or, if quantised, of the largest
    in its block."""
    few_bits: bool = False
    """Too few bits for the head, and worth rounding with care."""
    logits_tolerance: float = 0.2
    """How far llama.cpp's logits may be from ours, as a fraction of their spread: it rounds activations to 8
    bits where weights are quantised."""
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
    def option(self) -> str:
        """What users call a type that we write."""
        return self.name.lower()


RECORDS = (
    TensorType("F32", 4, "float32", "ALL_F32", logits_tolerance=0.002, exponent=0x7F800000),
    TensorType("F16", 2, "float16", "MOSTLY_F16", step=2**-11, logits_tolerance=0.01, exponent=0x7C00),
    TensorType("BF16", 2, "bfloat16", "MOSTLY_BF16", step=2**-8, logits_tolerance=0.02, exponent=0x7F80),
    TensorType("Q8_0", file_type="MOSTLY_Q8_0", step=1 / 127, scales=(0,)),
    TensorType("Q5_1", file_type="MOSTLY_Q5_1", step=1 / 15, few_bits=True, scales=(0, 2)),
    TensorType("Q5_0", file_type="MOSTLY_Q5_0", step=1 / 16, few_bits=True, scales=(0,)),
    TensorType("Q4_1", file_type="MOSTLY_Q4_1", step=1 / 7, few_bits=True, scales=(0, 2)),
    TensorType("Q4_0", file_type="MOSTLY_Q4_0", step=1 / 8, few_bits=True, scales=(0,)),
    TensorType("F64", 8, "float64", exponent=0x7FF0000000000000),
    TensorType("F8_E4M3", 1, "float8_e4m3fn"),
    TensorType("F8_E5M2", 1),
    *(
        TensorType(name, int(name[1:]) // 8)
        for name in ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
    ),
    TensorType("BOOL", 1),
    TensorType("Q2_K", scales=(80, 82)),
    TensorType("Q3_K", scales=(108,)),
    TensorType("Q4_K", scales=(0, 2)),
    TensorType("Q5_K", scales=(0, 2)),
    TensorType("Q6_K", scales=(208,)),
    TensorType("TQ1_0", scales=(52,)),
    TensorType("TQ2_0", scales=(64,)),
    *(
        TensorType(name, scales=(0,))
        for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")
    ),
)
TENSOR_TYPES = {record.name: record for record in RECORDS}
WRITABLE = {record.option: record for record in RECORDS if record.file_type}
"""The types that we can encode, by what users call them."""


def tensor_type(name: str) -> TensorType:
    """The record of a type; of one that nothing is known about, a record that says so."""
    return TENSOR_TYPES.get(name) or TensorType(name)
