"""Text to tokens and back."""

import json

import numpy as np
import pytest
import small_models

from pflalign_jax.models.pretrained import PretrainedError, load

TEXTS = ["the cats sat on 12", "a dog", ""]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load(small_models.write_encoder(tmp_path_factory.mktemp("encoder"))).tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load(small_models.write_decoder(tmp_path_factory.mktemp("decoder"))).tokenizer


def test_rows_have_the_length_that_is_asked_for(encoder):
    """Not that to which the file pads and cuts by itself, 7."""
    rows = encoder.encode(TEXTS, 9)
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [2, 4, 5, 10, 6, 7, 1, 3, 0],
        [2, 8, 11, 3, 0, 0, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert encoder.encode(TEXTS[:2], 4).tolist() == [[2, 4, 5, 3], [2, 8, 11, 3]]
    assert encoder.encode([], 4).shape == (0, 4)


def test_text_comes_back(decoder):
    rows = decoder.encode(TEXTS, 20)
    assert decoder.decode(rows) == TEXTS
    assert decoder.decode(decoder.encode(["the cat<|end|> é"], 20)) == ["the cat é"]


def test_special_tokens_in_a_text_are_special(decoder):
    tokens = decoder.encode(["a<|end|>"], 4)[0].tolist()
    assert tokens[1:] == [decoder.end_id, decoder.pad_id, decoder.pad_id]


def test_the_tokeniser_of_a_gguf_file_is_that_of_the_folder(decoder, tmp_path):
    found = load(small_models.write_gguf(tmp_path / "small.gguf")).tokenizer
    texts = [*TEXTS, "Zürich 2024's <|end|>the\n\n  cat"]
    np.testing.assert_array_equal(found.encode(texts, 24), decoder.encode(texts, 24))
    assert (found.pad_id, found.end_id) == (decoder.pad_id, decoder.end_id) == (0, 1)
    assert found.decode(found.encode(TEXTS, 24)) == TEXTS


def test_a_gguf_file_may_ask_for_a_token_at_the_start(tmp_path):
    file = small_models.write_gguf(
        tmp_path / "small.gguf",
        tokenizer__ggml__add_bos_token=True,
        tokenizer__ggml__bos_token_id=1,
    )
    assert load(file).tokenizer.encode(["the"], 3).tolist() == [[1, 259, 0]]


def test_a_tokeniser_without_padding_token_says_what_gives_one(tmp_path):
    folder = small_models.write_decoder(tmp_path / "decoder")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(PretrainedError, match=r"no padding token.*load\(path, pad_token='...'\)"):
        load(folder)
    with pytest.raises(PretrainedError, match="pad_token is '<nothing>', which is not in"):
        load(folder, pad_token="<nothing>")
    model = load(folder, pad_token="<|end|>")
    assert model.config.pad_id == model.tokenizer.pad_id == 1
    assert model.tokenizer.end_id == 1  # of config.json
    assert model.tokenizer.encode(["the"], 3).tolist() == [[259, 1, 1]]


def test_an_argument_goes_before_the_padding_token_of_the_file(tmp_path):
    folder = small_models.write_decoder(tmp_path / "decoder")
    assert load(folder, pad_token="<|end|>").tokenizer.pad_id == 1


@pytest.mark.parametrize("length", [0, 2, 13])
def test_lengths_that_the_model_cannot_take_are_refused(encoder, length):
    message = rf"length={length} is not allowed.*takes 12 tokens, and 2 are added.*between 3 and 12"
    with pytest.raises(PretrainedError, match=message):
        encoder.encode(TEXTS, length)


def test_longer_texts_are_refused_when_they_must_not_be_cut(encoder):
    with pytest.raises(PretrainedError, match="text 0, 'the cats sat on 12', has 8 tokens, more"):
        encoder.encode(TEXTS, 7, truncate=False)
    assert encoder.encode(TEXTS, 8, truncate=False).shape == (3, 8)


def test_one_text_is_not_taken_for_many(encoder):
    with pytest.raises(PretrainedError, match=r"one string, 'the cat'; give a list"):
        encoder.encode("the cat", 5)


def test_a_damaged_tokeniser_is_refused(tmp_path):
    folder = small_models.write_encoder(tmp_path / "encoder")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "X"}}))
    with pytest.raises(PretrainedError, match=r"tokenizer\.json is no tokeniser"):
        load(folder)
