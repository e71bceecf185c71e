"""Runs whose models write: what is generated, its scores, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

import pflalign_jax as pfl
from pflalign_jax.models import pretrained
from pflalign_jax.models.lora import merge
from pflalign_jax.runs import loop
from pflalign_jax.runs.build import build
from pflalign_jax.runs.generation import generation_of

ROWS = [
    {"task": task, "instruction": f"the cat {i}", "input": "", "output": f"cat {i % 3}"}
    for task in ("cats", "dogs", "mats")
    for i in range(8)
]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return str(small_models.write_decoder(tmp_path_factory.mktemp("models") / "decoder"))


@pytest.fixture
def config(decoder, tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    config = pfl.runs.default_config(algorithm="fedavg", model="pretrained_decoder")
    config.dataset.name, config.dataset.path = "instructions", str(file)
    config.dataset.tokenizer, config.dataset.length = decoder, 20
    config.dataset.template, config.dataset.normalise = "{instruction}:", "fixed"
    config.model.path, config.model.rank, config.model.adapt_layers = decoder, 2, 1
    config.rounds, config.eval_every, config.generate_every = 2, 1, 2
    config.generate_clients, config.generate_examples = 2, 3
    config.algorithm.learning_rate = 0.1
    return config


def test_texts_are_generated_every_so_many_rounds(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "matmul_peak", lambda: 1e11)
    config.checkpoint_every = 0
    outcome = pfl.runs.run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["generated/clients"] for row in rows] == [None, 2]
    owned = outcome.experiment.dataset.splits["test"].sizes
    assert rows[-1]["generated/examples"] == sum(min(3, size) for size in owned[:2])
    for metric in ("exact_match", "rouge_l"):
        assert 0 <= rows[-1][f"{metric}/test/personal/generated/mean"] <= 1


def test_prompts_and_references_are_those_of_the_file(config):
    experiment = build(config)
    generation = generation_of(experiment.config, experiment.dataset, experiment.federation)
    decode = generation.tokeniser.tokenizer.decode
    completions = {f"{row['instruction']}:": row["output"] for row in ROWS}
    for prompts in generation.prompts.values():
        assert len(prompts.tokens) == 3 >= len(prompts.references) > 0
        rows = zip(prompts.tokens, prompts.mask, prompts.references, strict=False)
        for tokens, mask, reference in rows:
            assert completions[decode(tokens[mask].tolist())] == reference
    longest = max(len(ids) for ids in generation.tokeniser.lists(completions.values()))
    assert (generation.new_tokens, generation.end_id) == (longest + 1, 1)


@pytest.mark.slow
def test_an_answer_is_that_of_the_merged_model(config, decoder):
    experiment = build(config)
    federation, model = experiment.federation, experiment.model
    prompts = generation_of(experiment.config, experiment.dataset, federation).prompts[1]
    state = federation.init(jax.random.key(0))
    moved = jax.tree.map(lambda a: a + jnp.sin(jnp.arange(a.size).reshape(a.shape)), state.server)
    state = state._replace(server=moved)
    found = federation.generate(state, 1, prompts.tokens, prompts.mask, 5, -1)
    loaded = pretrained.load(decoder)
    parts = pretrained.decoder_parts(loaded.config, loaded.weights, 1)
    merged = merge(model, federation.personal_params(state, 1))
    top = {name: merged[name] for name in parts.top_weights}
    padded = np.where(prompts.mask, prompts.tokens, loaded.config.pad_id)
    expected = parts.generate(parts.lower_weights, top, padded, 5, -1)
    np.testing.assert_array_equal(found, expected)


class _Echo:
    """A federation whose models answer with the references."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, state, k, prompts, mask, new_tokens, end_id):
        return self.answers[k]


def test_right_answers_score_one(config):
    experiment = build(config)
    generation = generation_of(experiment.config, experiment.dataset, experiment.federation)

    def answers(texts):
        rows = np.full((3, generation.new_tokens), 7)
        for row, tokens in zip(rows, generation.tokeniser.lists(texts), strict=False):
            row[: len(tokens) + 1] = [*tokens, generation.end_id]
        return rows

    right = {k: answers(prompts.references) for k, prompts in generation.prompts.items()}
    scores = generation.scores(_Echo(right), None)
    assert scores["exact_match/test/personal/generated/mean"] == 1
    assert scores["rouge_l/test/personal/generated/mean"] == 1
    # "the <number>" shares one of two words with "cat <number>".
    half = {
        k: answers([text.replace("cat", "the") for text in prompts.references])
        for k, prompts in generation.prompts.items()
    }
    scores = generation.scores(_Echo(half), None)
    assert scores["exact_match/test/personal/generated/mean"] == 0
    assert scores["rouge_l/test/personal/generated/mean"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate_every": 0}, "generate_every=0 is not allowed; it must be >= 1"),
        ({"generate_clients": 0}, "generate_clients=0 is not allowed; it must be >= 1"),
        ({"eval_every": 3}, "generate_every=2 is not a multiple of config.eval_every=3"),
        ({"model.keep_hidden": True}, "cannot generate text; use model.name=pretrained_decoder"),
    ],
)
def test_what_cannot_be_generated_is_refused(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(pfl.runs.ConfigError, match=message):
        build(config)


def test_prompts_and_answers_longer_than_the_context_are_refused(config, tmp_path):
    # Each fits by itself; the longest prompt and the longest answer together do not.
    rows = [
        row | ({"instruction": "12345678901234"} if i % 2 else {"output": "12345678901"})
        for i, row in enumerate(ROWS)
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config.dataset.length = 23
    with pytest.raises(pretrained.PretrainedError, match=r"texts of \d+ tokens.*context, 24"):
        build(config)


def test_data_without_prompts_are_refused():
    config = pfl.runs.default_config()
    config.generate_every = 2
    with pytest.raises(pfl.runs.ConfigError, match="needs texts of a tokeniser and the task next"):
        build(config)
