"""Data of language models: small files in the real formats, and the real ones where they are."""

import csv
import json
import os
import pathlib

import numpy as np
import pytest
import small_tokeniser as small

from pflalign_jax import datasets, tasks
from pflalign_jax.datasets import DatasetError
from pflalign_jax.datasets.loaders.instructions import TEMPLATES, load_instructions, prompt_of
from pflalign_jax.datasets.loaders.intents import load_banking77, load_clinc150
from pflalign_jax.datasets.loaders.sotu_presidents import load_sotu_presidents
from pflalign_jax.datasets.loaders.tokens import read_tokeniser
from pflalign_jax.models.base import IGNORED
from pflalign_jax.models.pretrained import PretrainedError, find_packaged

CLINC = {
    "train": [["pay my bill please", "pay_bill"], ["card lost", "lost_card"]],
    "val": [["my card is lost", "lost_card"]],
    "test": [["bill", "pay_bill"]],
    "oos_train": [["sum of 1 2", "oos"]],
    "oos_val": [["answer", "oos"]],
    "oos_test": [["3", "oos"]],
}


@pytest.fixture
def tokeniser(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("model"), end="<end>")


def clinc(folder, **lists):
    (folder / "data_full.json").write_text(json.dumps(CLINC | lists))
    return str(folder)


def test_clinc150(tmp_path, tokeniser):
    path = clinc(tmp_path)
    examples = load_clinc150(path, tokeniser, length=5)
    assert examples.x.dtype == np.uint16 and examples.x.shape == (4, 5)
    # The special tokens of the model stay where a text is cut, and the file's own padding to 128
    # and cutting to 3 tokens are off.
    assert small.text_of(examples.x[0]) == "[CLS] pay my bill [SEP]"
    assert small.text_of(examples.x[1]) == "[CLS] card lost [SEP] [PAD]"
    assert examples.y.tolist() == [1, 0, 0, 1] and examples.num_classes == 2
    assert examples.split.tolist() == ["train", "train", "validation", "test"]
    assert examples.notes[0] == "2 of 4 texts are cut to 5 tokens."
    assert "the complete clinc150 has 15,000 train" in examples.notes[1]
    assert load_clinc150(f"{path}/data_full.json", f"{tokeniser}/tokenizer.json").x.shape[1] == 32


def test_out_of_scope_is_a_class_where_it_is_asked_for(tmp_path, tokeniser):
    examples = load_clinc150(clinc(tmp_path), tokeniser, out_of_scope=True)
    assert examples.num_classes == 3 and (examples.y == 1).sum() == 3  # lost_card, oos, pay_bill
    assert examples.split.tolist().count("test") == 2


def test_a_public_split_is_pooled_or_kept_with_dealt_owners(tmp_path, tokeniser):
    requests = [[text, intent] for text, intent in CLINC["train"] for _ in range(40)]
    path = clinc(tmp_path, train=requests, val=requests[::4], test=requests[::4])
    options = {"partition": "dirichlet", "alpha": 0.1, "num_clients": 3}
    pooled = datasets.clinc150(path, tokeniser, **options)
    assert [len(owned.indices) for owned in pooled.splits.values()] == [77, 13, 30]
    examples = load_clinc150(path, tokeniser)
    assert set(examples.split[pooled.splits["test"].indices]) == {"train", "validation", "test"}
    # The way to keep the public split: deal the examples first, as owners.
    owner = np.zeros(len(examples.y), int)
    for k, dealt in enumerate(datasets.partition.dirichlet(examples.y, 3, 0.1, 8, seed=0)):
        owner[dealt] = k
    kept = datasets.partition_examples(examples._replace(owner=owner))
    for split, owned in kept.splits.items():
        np.testing.assert_array_equal(
            np.sort(owned.indices), np.flatnonzero(examples.split == split)
        )
        assert (np.repeat(range(3), owned.sizes) == owner[owned.indices]).all()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": []}, r"data_full\.json has no list 'val' of \[text, intent\]"),
        ({"test": [["bill"]]}, r"test\[0\] is \['bill'\]; it must be \[text, intent\]"),
        ({"train": [["", "a"]]}, r"train\[0\] is \['', 'a'\]"),
        ({"test": [["bill", "fly"]]}, "test has the intent 'fly', which no training example has"),
    ],
)
def test_bad_clinc150_is_named(tmp_path, tokeniser, lists, message):
    with pytest.raises(DatasetError, match=message):
        load_clinc150(clinc(tmp_path, **lists), tokeniser)


def test_missing_and_damaged_clinc150(tmp_path, tokeniser):
    with pytest.raises(DatasetError, match=r"has none of data_full\.json; get it from https"):
        load_clinc150(str(tmp_path), tokeniser)
    (tmp_path / "data_full.json").write_text('{"train": [')
    with pytest.raises(DatasetError, match=r"data_full\.json cannot be read as json"):
        load_clinc150(str(tmp_path), tokeniser)


def banking(folder, train, test=(("bill", "pay"),), header=("text", "category")):
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return str(folder)


def test_banking77(tmp_path, tokeniser):
    path = banking(tmp_path, [("my card,\nis lost", "lost"), ("pay my bill", "pay")])
    examples = load_banking77(path, tokeniser, length=8)
    assert small.text_of(examples.x[0]) == "[CLS] my card [UNK] is lost [SEP] [PAD]"
    assert examples.y.tolist() == [0, 1, 1] and examples.num_classes == 2
    assert examples.split.tolist() == ["train", "train", "test"]


def test_bad_banking77_is_named(tmp_path, tokeniser):
    banking(tmp_path, [("pay", "pay"), ("pay", "")])
    with pytest.raises(DatasetError, match=r"train\.csv: line 3 is \['pay', ''\]"):
        load_banking77(str(tmp_path), tokeniser)
    banking(tmp_path, [("pay", "pay")], header=("text", "label"))
    with pytest.raises(DatasetError, match="its first line must be text,category"):
        load_banking77(str(tmp_path), tokeniser)
    banking(tmp_path, [])
    with pytest.raises(DatasetError, match=r"train\.csv has no rows"):
        load_banking77(str(tmp_path), tokeniser)


def test_tokenisers_that_do_not_fit_are_named(tmp_path):
    path = clinc(tmp_path)
    with pytest.raises(DatasetError, match=r"tokenizer='.*none': there is no file .*none"):
        load_clinc150(path, f"{path}/none")
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(DatasetError, match=r"tokenizer\.json is no tokeniser"):
        load_clinc150(path, path)
    plain = ("the", "[UNK]")
    small.write(tmp_path, pad=False, special=False, words=plain)
    with pytest.raises(DatasetError, match=r"has no token for padding; .*pad_token='the'"):
        load_clinc150(path, path)
    examples = load_clinc150(path, path, pad_token="the")
    assert examples.x[1].tolist() == [1, 1] + [0] * 30
    with pytest.raises(DatasetError, match=r"pad_token='\[MASK\]' is no token of"):
        load_clinc150(path, path, pad_token="[MASK]")
    small.write(tmp_path)
    with pytest.raises(DatasetError, match=r"length=2 is not allowed; .* adds 2 special tokens"):
        load_clinc150(path, path, length=2)


def test_large_vocabularies_are_int32(tmp_path):
    words = (*small.WORDS, *(f"w{i}" for i in range(2**16)))
    path = small.write(tmp_path, words=words)
    (tmp_path / "speeches.jsonl").write_text(
        '{"name": "A", "year": 1790, "text": "pay w65535 pay"}'
    )
    examples = load_sotu_presidents(str(tmp_path), path, length=2)
    assert examples.x.dtype == np.int32 and examples.x[0, 1] == 2**16 + 18


def speeches(folder, *rows):
    (folder / "speeches.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder)


def address(name, year, text):
    return {"name": name, "year": year, "party": "none", "text": text}


def test_presidents_are_clients_and_their_windows_follow_in_time(tmp_path, tokeniser):
    later, first = "card lost is my bill 1 2", "pay my bill please my card is lost"
    path = speeches(
        tmp_path,
        address("Adams", "1801", later),
        address("Adams", 1799, first),
        address("Bush", 1989, "answer : 1 2 3"),
        address("Short", 1841, "1"),
    )
    examples = load_sotu_presidents(path, tokeniser, length=2)
    windows = [
        (small.text_of(x), small.text_of(y)) for x, y in zip(examples.x, examples.y, strict=True)
    ]
    assert windows[0] == ("pay my", "my bill") and windows[1] == ("bill please", "please my")
    adams = [x for (x, _), owner in zip(windows, examples.owner, strict=True) if owner == "Adams"]
    assert adams == ["pay my", "bill please", "my card", "card lost", "is my", "bill 1"]
    assert examples.notes == ("1 presidents without a whole window are left out.",)
    assert examples.num_classes == len(small.WORDS) and examples.task == "next_token"
    assert load_sotu_presidents(path, tokeniser, length=2, vocabulary=64).num_classes == 64
    data = datasets.sotu_presidents(path, tokeniser, length=2)
    held_out = data.splits["test"].of_client(0)
    assert data.client_names.tolist() == ["Adams", "Bush"]
    assert small.text_of(data.x[held_out[-1]]) == "bill 1"  # the last ones in time
    assert tasks.infer_task(data).name == "next_token"


def test_bad_presidents_are_named(tmp_path, tokeniser):
    (tmp_path / "speeches.jsonl").write_text('{"name": "A"\n')
    with pytest.raises(DatasetError, match=r"speeches\.jsonl: line 1 is no json"):
        load_sotu_presidents(str(tmp_path), tokeniser)
    for row, message in (
        ({"name": "A", "year": 1790}, "line 1 has no 'text', only"),
        (address("A", "x", "pay"), "line 1 has year='x'; it must be a number"),
        (address(" ", 1790, "pay"), "line 1 has an empty name or text"),
        (address("A", 1790, 3), "line 1 has text=3; it must be a text"),
        (address("A", 1790, "pay my bill"), "no address of more than length=64 tokens"),
    ):
        with pytest.raises(DatasetError, match=message):
            load_sotu_presidents(speeches(tmp_path, row), tokeniser)
    with pytest.raises(DatasetError, match=r"vocabulary=5 is not allowed; .* has 19 tokens"):
        load_sotu_presidents(speeches(tmp_path, address("A", 1, "pay")), tokeniser, vocabulary=5)
    (tmp_path / "speeches.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="is empty"):
        load_sotu_presidents(str(tmp_path), tokeniser)


SUM = {"instruction": "sum of", "input": "1 2", "output": "3", "task": "sums"}
LOST = {"instruction": "my card", "input": "", "output": "is lost", "task": "cards"}
TEMPLATE = "{instruction}\n{input} answer: "


def lines(folder, *rows):
    file = folder / "tasks.jsonl"
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("\n".join(texts))
    return str(file)


def test_only_completions_and_their_end_are_to_be_predicted(tmp_path, tokeniser):
    path = lines(tmp_path, SUM, "", LOST)
    examples = load_instructions(path, tokeniser, length=10, template=TEMPLATE)
    assert [small.text_of(x) for x in examples.x] == [
        "[CLS] sum of 1 2 answer : 3 [PAD] [PAD]",
        "[CLS] my card answer : is lost [PAD] [PAD] [PAD]",
    ]
    counted = [[(t, small.WORDS[i]) for t, i in enumerate(y) if i != IGNORED] for y in examples.y]
    assert counted == [[(6, "3"), (7, "<end>")], [(4, "is"), (5, "lost"), (6, "<end>")]]
    assert examples.owner.tolist() == ["sums", "cards"] and examples.task == "next_token"
    other = load_instructions(path, tokeniser, 10, TEMPLATE, "output", end_token="[SEP]")
    assert other.owner.tolist() == ["3", "is lost"] and 2 in other.y
    data = datasets.instructions(path, tokeniser, length=10, template=TEMPLATE)
    assert data.num_clients == 2 and (data.y == examples.y).all()


def test_prompts():
    alpaca = prompt_of("alpaca", "Add {input}.", "1 2")
    assert alpaca.endswith("### Instruction:\nAdd {input}.\n\n### Input:\n1 2\n\n### Response:\n")
    assert "paired with an input" in alpaca and "{" not in alpaca.replace("{input}", "")
    without = prompt_of("alpaca", "Add.", " ")
    assert "Input" not in without and "paired" not in without and without.endswith("Response:\n")
    assert set(TEMPLATES) == {"alpaca", "chatml"}
    assert prompt_of("chatml", "Hi", "").startswith("<|im_start|>user\nHi<|im_end|>\n")
    with pytest.raises(DatasetError, match="template='alpacca' is unknown"):
        prompt_of("alpacca", "a", "")
    with pytest.raises(DatasetError, match=r"has no \{input\}, and there is one: '1'"):
        prompt_of("{instruction}", "a", "1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"tasks\.jsonl: line 2 is no json"),
        ("[1]", r"line 2 is no json object but '\[1\]'"),
        ({k: v for k, v in SUM.items() if k != "output"}, "line 2 has no 'output', only"),
        (SUM | {"output": " "}, "line 2 has an empty completion, output"),
        (SUM | {"instruction": ""}, "line 2 has an empty instruction"),
        (SUM | {"input": None}, "line 2 has input=None; it must be a text"),
        (SUM | {"task": ""}, "line 2 has task=''; it must be the name of a client"),
        (SUM | {"output": "1 2 3 " * 5}, r"line 2 has 22 tokens \(7 of the prompt\), more than"),
    ],
)
def test_bad_instructions_are_named(tmp_path, tokeniser, row, message):
    with pytest.raises(DatasetError, match=message):
        load_instructions(lines(tmp_path, LOST, row), tokeniser, length=10, template=TEMPLATE)


def test_an_input_without_a_place_in_the_template_is_named(tmp_path, tokeniser):
    with pytest.raises(
        DatasetError, match=r"line 2: template='\{instruction\}' has no \{input\}, and"
    ):
        load_instructions(lines(tmp_path, LOST, SUM), tokeniser, template="{instruction}")


def test_examples_that_are_too_long(tmp_path, tokeniser):
    path = lines(tmp_path, LOST, SUM | {"output": "1 2 3 2 1"}, SUM | {"input": "1 " * 9})
    options = {"length": 8, "template": TEMPLATE}
    cut = load_instructions(path, tokeniser, too_long="cut", **options)
    assert [y[y != IGNORED].tolist() for y in cut.y[1:]] == [[13, 14]]
    assert cut.notes == (
        "1 of 3 examples are cut to 8 tokens.",
        "1 of 3 examples longer than 8 tokens are left out.",
    )
    left = load_instructions(path, tokeniser, too_long="leave_out", **options)
    assert len(left.x) == 1 and left.notes[0].startswith("2 of 3 examples longer")
    with pytest.raises(DatasetError, match="length=1 leaves no example"):
        load_instructions(path, tokeniser, 1, TEMPLATE, too_long="leave_out")
    with pytest.raises(DatasetError, match="too_long='drop' is unknown; choose from"):
        load_instructions(path, tokeniser, too_long="drop")


def test_the_end_token_is_known_or_asked_for(tmp_path):
    path, folder = lines(tmp_path, LOST), small.write(tmp_path, pad=False)
    with pytest.raises(DatasetError, match=r"no .*tokenizer_config\.json names an eos_token; give"):
        load_instructions(path, folder)
    assert 18 in load_instructions(path, folder, end_token="<end>").y
    config = tmp_path / "tokenizer_config.json"
    for content, message in (
        ('{"eos_token": null}', "names an eos_token; give"),
        ('{"eos_token": {"content": "</s>"}}', "has eos_token='</s>', which is no token of"),
        ('{"eos_token": {}}', r"tokenizer_config\.json cannot be read, or names no eos_token"),
        ("[", r"tokenizer_config\.json cannot be read"),
    ):
        config.write_text(content)
        with pytest.raises(DatasetError, match=message):
            load_instructions(path, folder)
    config.write_text('{"eos_token": {"content": "<end>"}, "pad_token": "answer"}')
    examples = load_instructions(path, folder)
    assert 18 in examples.y and examples.x[0, -1] == small.WORDS.index("answer")


def test_the_tokeniser_of_a_gguf_file(tmp_path):
    path = small.write_gguf(tmp_path / "model.gguf")
    tokeniser = read_tokeniser(path)
    assert (tokeniser.vocabulary, tokeniser.pad, tokeniser.end) == (259, 0, 1)
    row = LOST | {"instruction": "b", "output": "ab"}
    examples = load_instructions(lines(tmp_path, row), path, length=4, template="{instruction}")
    assert examples.y[0].tolist() == [258, 1, IGNORED, IGNORED] and examples.x[0, 2] == 0
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(PretrainedError, match=r"model\.gguf is no GGUF file, or is truncated"):
        read_tokeniser(path)


def real(name):
    """Return the folder of a real dataset, or skip the test."""
    root = os.environ.get("PFLALIGN_DATA")
    if not root or not (pathlib.Path(root) / name).is_dir():
        pytest.skip(f"PFLALIGN_DATA names no directory with {name}")
    return str(pathlib.Path(root) / name)


@pytest.fixture(scope="module")
def minilm():
    """Return the folder of MiniLM, or skip the test."""
    try:
        return str(find_packaged("all-MiniLM-L6-v2"))
    except PretrainedError as error:
        pytest.skip(str(error))


def test_real_clinc150_over_skewed_clients(minilm):
    path = real("clinc150")
    data = datasets.clinc150(path, minilm, partition="dirichlet", alpha=0.1, num_clients=20)
    assert (data.num_clients, data.num_classes, data.x.shape) == (20, 150, (22_500, 32))
    assert not [note for note in data.notes if "complete" in note]
    labels = [len(np.unique(data.y[data.splits["train"].of_client(k)])) for k in range(20)]
    assert np.median(labels) < 60  # of 150: skewed
    assert read_tokeniser(minilm).vocabulary == 30_522
    # What the model is given begins with [CLS], ends with [SEP] and is padded with 0.
    assert (data.x[:, 0] == 101).all() and ((data.x == 102).sum(1) == 1).all()


def test_real_banking77(minilm):
    examples = load_banking77(real("banking77"), minilm)
    assert examples.num_classes == 77 and len(examples.y) == 13_083
    assert not [note for note in examples.notes if "complete" in note]


def test_real_presidents_with_the_tokeniser_of_a_gguf_file():
    try:
        model = find_packaged("SmolLM2-135M-Instruct")
    except PretrainedError as error:
        pytest.skip(str(error))
    path = real("sotu_presidents")
    tokeniser = read_tokeniser(model)
    assert (tokeniser.vocabulary, tokeniser.tokenizer.id_to_token(tokeniser.end)) == (
        49_152,
        "<|im_end|>",
    )
    data = datasets.sotu_presidents(path, str(model), fraction=0.05)
    assert data.x.dtype == np.uint16 and data.num_classes == 49_152


def test_real_presidents(minilm):
    data = datasets.sotu_presidents(real("sotu_presidents"), minilm, fraction=0.1)
    assert data.num_clients == 43 and data.num_classes == 30_522
