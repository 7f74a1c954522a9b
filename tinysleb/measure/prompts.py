"""What models are asked, to see whether they still write: questions, code, lists, translations, stories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.text.chat_template import own_bos, render_chats
from tinysleb.text.tokenizer import Tokenizer

ENGLISH, GERMAN, FRENCH, SPANISH = "en", "de", "fr", "es"


@dataclass(frozen=True)
class Prompt:
    """A request, and the language of the answer; None where that is code, or a list of words."""

    text: str
    language: str | None


PROMPTS = (
    Prompt("What is the capital of France, and what is it known for?", ENGLISH),
    Prompt("Why is the sky blue?", ENGLISH),
    Prompt("How many days has a leap year, and why?", ENGLISH),
    Prompt("What is the difference between a virus and a bacterium?", ENGLISH),
    Prompt("Who wrote Romeo and Juliet, and what happens in it?", ENGLISH),
    Prompt("How do I boil an egg?", ENGLISH),
    Prompt("Write a Python function that returns the largest number of a list.", None),
    Prompt("Write a Python class for a bank account, with methods to deposit and to withdraw.", None),
    Prompt("Write a shell command that counts the lines of all text files in a folder.", None),
    Prompt("Explain what this does: SELECT name FROM users WHERE age > 30 ORDER BY name;", ENGLISH),
    Prompt("Name five fruits, and for each a dish that it is used in.", None),
    Prompt("What should I pack for a week in the mountains? Give me a list.", None),
    Prompt("Translate into French: The train to the sea leaves at eight o'clock.", FRENCH),
    Prompt("Translate into English: Das Wetter ist heute schön, und wir gehen an den See.", ENGLISH),
    Prompt("Tell a short story about a lighthouse keeper and a storm.", ENGLISH),
    Prompt("Write a fairy tale about a fox who wanted to fly.", ENGLISH),
    Prompt("Write a polite email to a landlord about a heater that does not work.", ENGLISH),
    Prompt("Tell me in two sentences why people sleep.", ENGLISH),
    Prompt("Erkläre in zwei Sätzen, was ein Computer ist.", GERMAN),
    Prompt("¿Qué es la fotosíntesis?", SPANISH),
)


def encode_prompts(weights: Checkpoint, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The tokens that a model is to continue: a chat in its own template or, where that makes nothing of it,
    the text and a new paragraph.

    `tokenizer` puts nothing behind a text. Raises TinyslebError if the template cannot be used.
    """
    texts: list[str | None]
    if template := weights.chat_template():
        special_tokens = weights.tokenizer_files().special_tokens
        chats = [[{"role": "user", "content": prompt.text}] for prompt in prompts]
        rendered = render_chats(template, chats, special_tokens)
        bos = own_bos(special_tokens, tokenizer.encode)
        texts = [text.removeprefix(bos) if text and text.strip() else None for text in rendered]
    else:
        texts = [None] * len(prompts)
    pairs = zip(texts, prompts, strict=True)
    return [tokenizer.encode(f"{prompt.text}\n\n" if text is None else text) for text, prompt in pairs]
