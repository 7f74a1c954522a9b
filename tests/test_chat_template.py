"""Chats against transformers' rendering of the same templates, and templates that mean no good."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError
from tinysleb.heal.prompts import SHORT, chat_forms, questions, self_prompts
from tinysleb.text import chat_template
from tinysleb.text.chat_template import render_chats
from tinysleb.text.tokenizer import open_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
<|im_start|>system
You are a model.<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
INSTRUCT = """{{ bos_token }}
{%- for m in messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}
    {%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}
{%- endfor %}"""
HEADERS = """{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.system = message.content %}{% break %}
{%- endfor %}
{{- bos_token + '<|header|>system<|end|>' + (ns.system | upper | tojson) + tools | string }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|header|>' + message.role + '<|end|>' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not undefined_switch %}{{ '<|header|>assistant<|end|>' }}{% endif %}"""
CHATS: Sequence[list[dict[str, str]]] = (
    [{"role": "user", "content": 'Why <b>is</b> the sky "blue"? Größe 河'}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!\nWhat?"},
        {"role": "user", "content": "Nothing."},
    ],
)


def transformers_text(template: str, chat: list[dict[str, str]]) -> str:
    values: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, **TOKENS}
    return str(render_jinja_template([chat], **values)[0][0])


@pytest.mark.parametrize("template", [CHATML, INSTRUCT, HEADERS], ids=["chatml", "instruct", "headers"])
def test_chats_are_those_of_transformers(template: str) -> None:
    found = render_chats(template, CHATS, TOKENS)
    for chat, text in zip(CHATS, found, strict=True):
        if template == INSTRUCT and chat[0]["role"] == "system":
            assert text is None
            continue
        assert text == transformers_text(template, chat)


@pytest.mark.parametrize(
    ("template", "opening"),
    [(CHATML, "<|im_end|>\n<|im_start|>user\n"), (HEADERS, "<|header|>user<|end|>"), (INSTRUCT, "[INST] ")],
    ids=["chatml", "headers", "instruct"],
)
def test_filled_forms_are_rendered_chats(template: str, opening: str) -> None:
    """But for those that begin in the midst of a chat."""
    *short, last = (form for form in chat_forms(template, TOKENS)[: SHORT + 1])
    assert short == [replace(last, pieces=(opening, last.pieces[1]))] * SHORT
    forms = chat_forms(template, TOKENS)[SHORT:]
    assert len(forms) == {CHATML: 4, HEADERS: 2, INSTRUCT: 2}[template]
    for form in forms:
        messages = [f"{role} says {number}." for number, role in enumerate(form.roles)]
        chat = [{"role": role, "content": text} for role, text in zip(form.roles, messages, strict=True)]
        assert form.filled(messages) == transformers_text(template, chat)


def test_the_day_is_always_the_same() -> None:
    assert render_chats("{{ strftime_now('%d %b %Y') }}", CHATS[:1], {}) == ["01 Jan 2025"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if", "TemplateSyntaxError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 'a' * 10**12 }}", "MemoryError"),
        ("{{ 'a' * 100000 }}", "text of 100000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_templates_that_fail_are_an_error(template: str, said: str) -> None:
    with pytest.raises(TinyslebError, match=f"chat template cannot be rendered: .*{said}"):
        render_chats(template, CHATS, TOKENS)


def test_templates_without_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "PATIENCE", 3)
    loop = "{% for j in range(99999) %}"
    with pytest.raises(TinyslebError, match="chat template"):
        render_chats(f"{loop}{loop}x{{% endfor %}}{{% endfor %}}", CHATS, TOKENS)


@pytest.mark.parametrize(
    "template", ["no messages", "{{ messages[0].content * 2 }}", "{{ messages[0].content[1:] }}"]
)
def test_templates_that_change_a_question_are_refused(template: str) -> None:
    with pytest.raises(TinyslebError, match="does not give a question as it is"):
        chat_forms(template, {})


def test_questions_come_once_and_are_the_seeds() -> None:
    found = list(islice(questions(random.Random(0)), 3000))
    english = [text for text in found if text.endswith(("a river.", "chess."))]
    assert len(set(english)) == len(english) > 10
    assert found == list(islice(questions(random.Random(0)), 3000))
    assert found != list(islice(questions(random.Random(1)), 3000))
    assert not any("{}" in text for text in found)


def prompts_with_template(
    source: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], list[str]]:
    """Prompts of a model with that chat template, and what was said."""
    weights, said = open_model(source), list[str]()
    monkeypatch.setattr(type(weights), "chat_template", lambda _self: template)
    return list(islice(self_prompts(weights, 0, said.append), 40)), said


def test_half_of_the_prompts_are_empty(sentencepiece_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a BOS token that the template writes comes once."""
    prompts, said = prompts_with_template(sentencepiece_folder, INSTRUCT, monkeypatch)
    tokenizer = open_tokenizer(open_model(sentencepiece_folder))
    (bos,) = tokenizer.encode("")
    assert not said
    assert prompts[::2] == [[bos]] * 20
    assert prompts[1::4] == [tokenizer.encode("[INST] ")] * 10
    assert all(prompt.count(bos) == 1 for prompt in prompts)
    assert len(set(map(tuple, prompts[3::4]))) == 10


def test_a_template_that_fails_leaves_chats_out(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, said = prompts_with_template(tiny_folder, "{% if", monkeypatch)
    assert len(set(map(tuple, prompts))) == 1
    (line,) = said
    assert line.startswith(
        "no chats are sampled from the model: the model's chat template cannot be rendered"
    )
