"""Prompts by a tokeniser's own chat template."""

import json
import sys

import pytest
import small_tokeniser as small

from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.chat import chat_of_gguf
from pflalign_jax.datasets.loaders.instructions import load_instructions
from pflalign_jax.datasets.loaders.tokens import read_tokeniser
from pflalign_jax.models.base import IGNORED
from pflalign_jax.models.pretrained import PretrainedError, find_packaged

ROW = {"instruction": "sum of", "input": "1 2", "output": " 3 ", "task": "sums"}
TEMPLATE = """{{ bos_token }}
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
please is {{ eos_token }}
    {% endif %}
    {% if message.role not in ('user', 'assistant') %}
{{ raise_exception('which role?') }}
    {% endif %}
    {% if message.role == 'user' %}
card {{ message.content }}
    {% else %}
answer : {{ message.content | trim }}{{ eos_token }} my
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
answer :
{%- endif %}
"""


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a tokeniser with this template, and the path of a file of one row."""
    small.write(tmp_path, end="<end>")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(ROW))
    return with_template(tmp_path, TEMPLATE)


def with_template(folder, template):
    config = {"eos_token": {"content": "<end>"}, "bos_token": "<end>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def load(folder, length=20):
    return load_instructions(str(folder / "tasks.jsonl"), str(folder), length, "chat")


def test_the_prompt_is_the_template_and_the_completion_what_it_writes(folder):
    examples = load(folder)
    # With the system turn of the template and its first token, without those of the tokeniser.
    prompt = "<end> please is <end> card sum of 1 2 answer :"
    assert small.text_of(examples.x[0]).startswith(f"{prompt} 3 [PAD] [PAD]")
    counted = [(t, small.WORDS[label]) for t, label in enumerate(examples.y[0]) if label != IGNORED]
    assert counted == [(10, "3"), (11, "<end>")]
    turns = read_tokeniser(folder).chat.turns()
    assert turns("sum", " 3 ") == ("<end>\nplease is <end>\ncard sum\nanswer :", " 3")


def test_the_template_may_have_a_file_of_its_own_or_a_name(folder):
    expected = load(folder)
    with_template(
        folder, [{"name": "tools", "template": ""}, {"name": "default", "template": TEMPLATE}]
    )
    assert (load(folder).x == expected.x).all()
    with_template(folder, "of another time")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert (load(folder).x == expected.x).all()
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DatasetError, match=r"chat_template\.jinja cannot be read \("):
        read_tokeniser(folder)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"tokenizer_config\.json has no chat template .*; choose another template, or give"),
        ("{% if %}", r"tokenizer_config\.json is damaged \(.*\); choose another"),
        ("{{ raise_exception('no') }}", r"line 1: .* fails \(TemplateError: no\); choose"),
        ("{{ messages[5].content }}", r"fails \(UndefinedError"),
        ("{{ messages.append(1) }}", r"fails \(SecurityError"),
        ("{{ messages[0].content }}", r"does not write the answer ' 3 ' behind its prompt, wh"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used_are_named(folder, template, message):
    with pytest.raises(DatasetError, match=message):
        load(with_template(folder, template))


def test_jinja2_is_needed_for_the_template_only(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    read_tokeniser(folder)
    with pytest.raises(DatasetError, match=r"needs the package jinja2; pip install 'pflalign-jax"):
        load(folder)


def test_the_template_of_a_gguf_file(tmp_path):
    chat = read_tokeniser(small.write_gguf(tmp_path / "model.gguf", chat="{{ eos_token }}")).chat
    assert (chat.template, chat.special) == ("{{ eos_token }}", {"eos_token": "<end>"})
    assert chat_of_gguf(tmp_path, {}).template is None


@pytest.mark.slow  # seconds to read; its template is known
def test_smollm2_has_a_system_turn():
    try:
        turns = read_tokeniser(find_packaged("SmolLM2-135M-Instruct")).chat.turns()
    except PretrainedError as error:
        pytest.skip(str(error))
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert turns("Hi", "Hello!") == (f"<|im_start|>system\n{system}<|im_end|>\n{user}", "Hello!")
