"""Small random models in the real file formats, with names and shapes written out by hand."""

import json

import gguf
import numpy as np
import tokenizers
from safetensors.numpy import save_file

ENCODER = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 14,
}
DECODER = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": None,
    "vocab_size": 300,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "##s", "dog"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t")]
SPECIAL = ["<|pad|>", "<|end|>"]


def encoder_tensors():
    """Return random tensors of `ENCODER`, as transformers names them."""
    rng = np.random.default_rng(0)
    width, inner = 16, 24
    shapes = {
        "embeddings.word_embeddings.weight": (14, width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(3):
        layer = f"encoder.layer.{i}"
        for name, rows, columns in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}.{name}.weight"] = shapes[f"{layer}.{name}.bias"] = (width,)
    return {name: random_tensor(rng, name, shape) for name, shape in shapes.items()}


def decoder_tensors(tied=True):
    """Return random tensors of `DECODER`, as transformers names them."""
    rng = np.random.default_rng(1)
    width, narrow, inner, vocabulary = 32, 16, 64, DECODER["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for i in range(3):
        for name, shape in (
            ("input_layernorm", (width,)),
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (narrow, width)),
            ("self_attn.v_proj", (narrow, width)),
            ("self_attn.o_proj", (width, width)),
            ("post_attention_layernorm", (width,)),
            ("mlp.gate_proj", (inner, width)),
            ("mlp.up_proj", (inner, width)),
            ("mlp.down_proj", (width, inner)),
        ):
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, width)
    return {name: random_tensor(rng, name, shape) for name, shape in shapes.items()}


def random_tensor(rng, name, shape):
    """Return weights that make all parts of a model matter."""
    values = rng.normal(0, 0.3 if len(shape) == 2 else 0.1, shape).astype(np.float32)
    return 1 + values if "norm" in name.lower() and name.endswith("weight") else values


def encoder_tokenizer():
    """Return a WordPiece tokeniser that pads and cuts to 7 by itself, as MiniLM's does to 128."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.add_special_tokens(WORDS[:4])
    inner.enable_padding(length=7, pad_id=0, pad_token="[PAD]")
    inner.enable_truncation(7)
    return inner


def decoder_vocabulary():
    """Return the tokens of a byte-level BPE: specials, 256 bytes, merges; 263 of them."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *letters, *(a + b for a, b in MERGES)]


def decoder_tokenizer():
    """Return a byte-level BPE tokeniser as SmolLM2's."""
    vocabulary = {token: i for i, token in enumerate(decoder_vocabulary())}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, MERGES))
    split = tokenizers.pre_tokenizers
    inner.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    return inner


def write_folder(folder, values, tensors, tokenizer, **tokenizer_config):
    """Write a folder as transformers does, and return it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def write_encoder(folder):
    return write_folder(folder, ENCODER, encoder_tensors(), encoder_tokenizer(), pad_token="[PAD]")


def write_decoder(folder):
    return write_folder(
        folder,
        DECODER,
        decoder_tensors(),
        decoder_tokenizer(),
        pad_token={"content": "<|pad|>"},
        eos_token="<|end|>",
    )


ENCODER_LAYERS = [f"encoder.layer.2.attention.self.{name}" for name in ("query", "value")]
DECODER_LAYERS = [f"model.layers.{i}.self_attn.{n}_proj" for i in (1, 2) for n in "qv"]
"""The layers with adapters, one and two from the top, as transformers names them."""


def adapter_tensors(layers, width, narrow):
    """Return random adapters of rank 2, as PEFT names them; ``v_proj`` has ``narrow`` outputs."""
    rng = np.random.default_rng(2)
    tensors = {}
    for layer in layers:
        rows = narrow if layer.endswith("v_proj") else width
        for name, shape in (("lora_A", (2, width)), ("lora_B", (rows, 2))):
            values = rng.normal(0, 0.5, shape).astype(np.float32)
            tensors[f"base_model.model.{layer}.{name}.weight"] = values
    return tensors


def write_adapter(folder, base, layers, width, narrow=None, **fields):
    """Write a folder of PEFT of rank 2 and alpha 4, and return it."""
    folder.mkdir(exist_ok=True)
    save_file(adapter_tensors(layers, width, narrow or width), folder / "adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
        "rank_pattern": {},
        "modules_to_save": None,
        "use_dora": False,
        **fields,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def write_gguf(path, quantisation="F32", architecture="llama", leave_out=(), **values):
    """Write `decoder_tensors` as a GGUF file, and return its path.

    Args:
      path: of the file.
      quantisation: of matrices.
      architecture: name in the metadata.
      leave_out: keys of metadata and names of tensors that are not written.
      values: further metadata, with __ for a point.
    """
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {
        "llama.block_count": 3,
        "llama.context_length": 24,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 100.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": DECODER["vocab_size"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": decoder_vocabulary(),
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(decoder_vocabulary()) - 2),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in MERGES],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    metadata |= {name.replace("__", "."): value for name, value in values.items()}
    for name, value in metadata.items():
        if name in leave_out:
            continue
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, tensor in gguf_tensors().items():
        if name in leave_out:
            continue
        kind = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else quantisation]
        if quantisation == "Q8_1" and tensor.ndim == 2:  # which the package neither makes nor reads
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
            writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=kind)
            continue
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors():
    """Return `decoder_tensors` under the names of GGUF, q and k with pairs next to each other."""
    words = {
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    renamed = {}
    for name, tensor in decoder_tensors().items():
        for theirs, gguf_name in words.items():
            name = name.replace(theirs, gguf_name)
        if "attn_q" in name or "attn_k" in name:
            # Of each head of width 8: features 0, 4, 1, 5, 2, 6, 3, 7.
            order = [8 * (row // 8) + row % 2 * 4 + row % 8 // 2 for row in range(len(tensor))]
            tensor = tensor[order]
        renamed[name] = tensor
    return renamed
