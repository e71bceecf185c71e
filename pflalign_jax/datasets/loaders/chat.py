"""Chat templates: how a model that answers in turns was trained to read a conversation."""

import json
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pflalign_jax.datasets.base import DatasetError

Turns = Callable[[str, str], tuple[str, str]]
"""From what is asked and what is answered to a prompt and its completion."""


class Chat(NamedTuple):
    """The chat template of a tokeniser.

    Attributes:
      file: that has it, for messages.
      template: a text of Jinja; None: there is none.
      special: texts of the tokens that it may name, ``"bos_token"`` and ``"eos_token"``.
    """

    file: pathlib.Path
    template: str | None = None
    special: Mapping[str, str] = MappingProxyType({})

    def turns(self) -> Turns:
        """Return what makes a prompt and a completion of one turn of each side.

        The prompt is the conversation up to where the answer begins, with whatever the template
        adds, such as a system turn. The completion is the answer as the template writes it; what
        follows it, the token that ends the turn, is not in it. As in transformers, but that a
        template sees no date: prompts must not change from day to day.

        Raises:
          DatasetError: without a template or the package jinja2, or for a damaged template; what
            is returned raises it for a conversation that the template refuses.
        """
        if self.template is None:
            raise DatasetError(
                f"template='chat': {self.file} has no chat template (chat_template.jinja, or "
                "chat_template in tokenizer_config.json or in the metadata of a GGUF file); "
                "choose another template, or give a text with {instruction} and {input}"
            )
        render = self._compiled(self.template)

        def turns(asked: str, answer: str) -> tuple[str, str]:
            conversation = [{"role": "user", "content": asked}]
            prompt = render(conversation, True)
            whole = render([*conversation, {"role": "assistant", "content": answer}], False)
            answered = whole.removeprefix(prompt)
            # Some templates take the spaces around an answer away.
            said = next((text for text in (answer, answer.strip()) if text in answered), None)
            if said is None or not whole.startswith(prompt):
                raise DatasetError(
                    f"template='chat': the chat template of {self.file} does not write the answer "
                    f"{answer[:40]!r} behind its prompt, which ends with {prompt[-40:]!r}; choose "
                    "another template"
                )
            return prompt, answered[: answered.index(said) + len(said)]

        return turns

    def _compiled(self, text: str) -> Callable[[list[dict[str, str]], bool], str]:
        """Return ``(messages, add_generation_prompt) -> text``."""
        try:
            import jinja2  # here, because nothing else needs it
            import jinja2.sandbox
        except ImportError as error:
            raise DatasetError(
                "template='chat' needs the package jinja2; pip install 'pflalign-jax[lm]'"
            ) from error

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        # A template is code of whoever made the model: it may not reach anything outside of it.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise DatasetError(
                f"template='chat': the chat template of {self.file} is damaged ({error}); choose "
                "another template"
            ) from error

        def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
            try:
                return template.render(
                    messages=messages, add_generation_prompt=add_generation_prompt, **self.special
                )
            except Exception as error:  # whatever the template does
                raise DatasetError(
                    f"template='chat': the chat template of {self.file} fails "
                    f"({type(error).__name__}: {error}); choose another template"
                ) from error

        return render


def chat_of_folder(folder: pathlib.Path) -> Chat:
    """Return the chat template in a folder of a model: of its own file, or of the tokeniser's.

    Raises:
      DatasetError: for a file that cannot be read.
    """
    config, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    values = json.loads(_read(config) or "{}")
    template = values.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {each.get("name"): each for each in template if isinstance(each, dict)}
        template = named.get("default", {}).get("template")
    special = {key: _text(values.get(key)) for key in ("bos_token", "eos_token")}
    given = {key: text for key, text in special.items() if text is not None}
    if own := _read(file):
        return Chat(file, own, given)
    known = template if isinstance(template, str) else None
    return Chat(config if config.is_file() else folder, known, given)


def chat_of_gguf(file: pathlib.Path, values: Mapping[str, Any]) -> Chat:
    """Return the chat template in the metadata of a GGUF file."""
    tokens = values.get("tokenizer.ggml.tokens", ())
    special = {}
    for key in ("bos", "eos"):
        number = values.get(f"tokenizer.ggml.{key}_token_id", -1)
        if 0 <= number < len(tokens):
            special[f"{key}_token"] = tokens[number]
    return Chat(file, values.get("tokenizer.chat_template"), special)


def _read(file: pathlib.Path) -> str | None:
    if not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); correct or remove it") from error


def _text(token: Any) -> str | None:
    """Return the text of a token, which may be an object that describes it."""
    return token.get("content") if isinstance(token, dict) else token
