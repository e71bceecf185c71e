"""Adapters as folders of PEFT: names and numbers, what is read back, what is refused."""

import json
import pathlib

import jax
import jax.numpy as jnp
import make_reference
import numpy as np
import pytest
import small_models
from safetensors.numpy import load_file, save_file

from pflalign_jax import models
from pflalign_jax.models.lora import with_merged
from pflalign_jax.models.pretrained import (
    PretrainedError,
    find_packaged,
    load_adapter,
    save_adapter,
)

REFERENCE = dict(np.load(pathlib.Path(__file__).with_name("reference.npz")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small_models.write_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return small_models.write_decoder(tmp_path_factory.mktemp("models") / "decoder")


def of_encoder(encoder, **options):
    made = {"rank": 2, "alpha": 4.0, "adapt_layers": 1, "keep_hidden": False, **options}
    model = models.pretrained_encoder(3, str(encoder), **made)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 7)))


def of_decoder(decoder):
    model = models.pretrained_decoder(300, str(decoder), rank=2, alpha=4.0, adapt_layers=2)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 7)))


def encoder_adapter(folder, encoder, **fields):
    return small_models.write_adapter(folder, encoder, small_models.ENCODER_LAYERS, 16, **fields)


def changed(folder, change):
    """Change the tensors of a folder."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_an_encoder_with_an_adapter_of_peft(encoder, tmp_path):
    model, params = of_encoder(encoder)
    loaded = load_adapter(encoder_adapter(tmp_path / "a", encoder), model, params)
    features = model.features(loaded, make_reference.SMALL_TOKENS)
    np.testing.assert_allclose(features, REFERENCE["adapted_encoder_pooled"], atol=1e-5)
    assert np.abs(features - model.features(params, make_reference.SMALL_TOKENS)).max() > 0.1
    assert loaded["head"] is params["head"]  # PEFT has none


def test_a_decoder_with_an_adapter_of_peft(decoder, tmp_path):
    model, params = of_decoder(decoder)
    folder = small_models.write_adapter(
        tmp_path / "a", decoder, small_models.DECODER_LAYERS, 32, 16
    )
    loaded = load_adapter(folder, model, params)
    tokens = make_reference.SMALL_PROMPTS[1:, :3]
    logits = model.apply(loaded, tokens)[0]
    np.testing.assert_allclose(logits, REFERENCE["adapted_decoder_logits"], atol=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_what_is_saved_is_what_peft_wrote_and_comes_back(kind, encoder, decoder, tmp_path):
    if kind == "encoder":
        (model, params), first = of_encoder(encoder), encoder_adapter(tmp_path / "a", encoder)
    else:
        (model, params), layers = of_decoder(decoder), small_models.DECODER_LAYERS
        first = small_models.write_adapter(tmp_path / "a", decoder, layers, 32, 16)
    loaded = load_adapter(first, model, params)
    second = save_adapter(tmp_path / "second", model, loaded)
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *tensors)
    fields = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (first, second)
    ]
    same = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "bias")
    assert [fields[1][name] for name in same] == [fields[0][name] for name in same]
    assert fields[1]["task_type"] == {"encoder": "FEATURE_EXTRACTION", "decoder": "CAUSAL_LM"}[kind]
    again = load_adapter(second, model, params)
    jax.tree.map(np.testing.assert_array_equal, again, loaded)
    assert (second / "head.safetensors").exists() == (kind == "encoder")
    if kind == "encoder":
        head = load_file(second / "head.safetensors")
        np.testing.assert_array_equal(head["weight"], params["head"]["kernel"].T)
        np.testing.assert_array_equal(head["bias"], params["head"]["bias"])


def test_the_name_of_a_model_with_a_task_and_another_place_of_the_base(encoder, tmp_path):
    model, params = of_encoder(encoder)
    folder = encoder_adapter(tmp_path / "a", "somewhere/encoder")

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("model.encoder", "model.bert.encoder")] = tensors.pop(name)

    expected = load_adapter(folder, model, params)
    changed(folder, rename)
    jax.tree.map(np.testing.assert_array_equal, load_adapter(folder, model, params), expected)
    folder = encoder_adapter(tmp_path / "a", "somewhere/other")
    with pytest.raises(PretrainedError, match=r"is 'somewhere/other', and the model is .*any_base"):
        load_adapter(folder, model, params)
    jax.tree.map(
        np.testing.assert_array_equal, load_adapter(folder, model, params, any_base=True), expected
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 4}, "r is 4, not 2; build the model with rank"),
        ({"lora_alpha": 16}, r"lora_alpha is 16, not 4\.0"),
        ({"use_dora": True}, "use_dora is True, not False; such adapters compute something else"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"rank_pattern": {"query": 4}}, "rank_pattern is"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save is"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(encoder, tmp_path, fields, message):
    with pytest.raises(PretrainedError, match=message):
        load_adapter(encoder_adapter(tmp_path / "a", encoder, **fields), *of_encoder(encoder))


def one_layer_less(tensors):
    for name in [name for name in tensors if "query" in name]:
        del tensors[name]


def wider(tensors):
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = np.zeros((32, 2), np.float32)


def of_rank_three(tensors):
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = np.zeros((3, 16), np.float32)


def as_integers(tensors):
    for name in tensors:
        tensors[name] = tensors[name].astype(np.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_layer_less, r"other layers than the model: nothing.*lacks .*self\.query\.lora_A"),
        (wider, r"lora_B\.weight' has shape \[32, 2\], and the model needs \[16, 2\]"),
        (
            of_rank_three,
            r"lora_A\.weight' has shape \[3, 16\], and the model needs \[2, 16\]; .*rank",
        ),
        (as_integers, "has dtype I8, which is no float"),
    ],
)
def test_tensors_that_do_not_fit_are_named(encoder, tmp_path, change, message):
    folder = encoder_adapter(tmp_path / "a", encoder)
    changed(folder, change)
    with pytest.raises(PretrainedError, match=message):
        load_adapter(folder, *of_encoder(encoder))


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_file_is_refused(encoder, tmp_path, kept):
    folder = encoder_adapter(tmp_path / "a", encoder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(PretrainedError, match=r"adapter_model\.safetensors is truncated"):
        load_adapter(folder, *of_encoder(encoder))
    file.unlink()
    with pytest.raises(PretrainedError, match=r"has no adapter_model\.safetensors; a folder of"):
        load_adapter(folder, *of_encoder(encoder))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bias": np.zeros(3, np.float32)}, r"has no tensor 'weight', but bias"),
        ({"weight": np.zeros((3, 16), np.float32)}, r"has no tensor 'bias', but weight"),
        ({"weight": np.zeros((5, 16), np.float32), "bias": np.zeros(5, np.float32)},
         r"'weight' has shape \[5, 16\], and the model needs \[3, 16\]"),
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_named(encoder, tmp_path, tensors, message):
    folder = encoder_adapter(tmp_path / "a", encoder)
    save_file(tensors, folder / "head.safetensors")
    with pytest.raises(PretrainedError, match=rf"head\.safetensors.* {message}"):
        load_adapter(folder, *of_encoder(encoder))


def test_a_config_that_is_missing_or_damaged_is_named(encoder, tmp_path):
    folder = encoder_adapter(tmp_path / "a", encoder)
    (folder / "adapter_config.json").write_text('{"r": ')
    with pytest.raises(PretrainedError, match=r"adapter_config\.json is no JSON"):
        load_adapter(folder, *of_encoder(encoder))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(PretrainedError, match=r"has no adapter_config\.json; a folder of PEFT has"):
        load_adapter(folder, *of_encoder(encoder))


def test_what_peft_cannot_hold_is_refused(encoder, tmp_path):
    model, params = of_encoder(encoder)
    with pytest.raises(PretrainedError, match=r"params are \['head'\].*\['head', 'lora'\]"):
        save_adapter(tmp_path / "a", model, {"head": params["head"]})
    with pytest.raises(PretrainedError, match=r"has \['a', 'b', 'merged'\], and PEFT holds a and"):
        save_adapter(tmp_path / "a", model, with_merged(params))  # as of FLoRA
    head_only, its = of_encoder(encoder, rank=0)
    with pytest.raises(PretrainedError, match="save_adapter: the model has no adapters that PEFT"):
        save_adapter(tmp_path / "a", head_only, its)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of peft
def test_minilm_with_adapters_is_that_of_peft(tmp_path, monkeypatch):
    """Ours loaded by PEFT, and what PEFT then saves loaded here, give the same features."""
    peft = pytest.importorskip("peft", reason="pip install 'pflalign-jax[lm-reference]'")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "all-MiniLM-L6-v2"
    try:
        base = find_packaged(name)
    except PretrainedError as error:
        pytest.skip(str(error))
    model = models.pretrained_encoder(5, name, rank=4, alpha=8.0, keep_hidden=False)
    first = model.init(jax.random.key(0), jnp.zeros((1, 16)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), first)
    folder = save_adapter(tmp_path / "ours", model, params)
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(base, attn_implementation="eager"), folder
    ).eval()
    tokens = REFERENCE["minilm_tokens"]
    mask = torch.tensor(tokens != 0)
    with torch.no_grad():
        hidden = theirs(torch.tensor(tokens).long(), attention_mask=mask.long()).last_hidden_state
    expected = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    np.testing.assert_allclose(model.features(params, tokens), expected.numpy(), atol=2e-4)
    plain = model.features(first, tokens)
    assert np.abs(np.asarray(plain) - expected.numpy()).max() > 0.05
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_adapter(tmp_path / "theirs", model, first, any_base=True)
    jax.tree.map(np.testing.assert_array_equal, again["lora"], params["lora"])
    head = load_file(folder / "head.safetensors")
    logits = expected.numpy() @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(model.apply(params, tokens), logits, atol=2e-3)
