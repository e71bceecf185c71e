"""Outputs of transformers on the same weights: writes ``reference.npz`` next to this file.

    pip install -e ".[lm,lm-reference]" && make models
    python tests/models/pretrained/make_reference.py  # in the root of a clone

The slow test computes them again and compares.
"""

import os
import pathlib
import tempfile

import numpy as np
import small_models

from pflalign_jax.models.pretrained import find_packaged

FILE = pathlib.Path(__file__).with_name("reference.npz")
TEXTS = ["Transfer 25 dollars to my savings", "what's the weather?", ""]
PROMPTS = ["The capital of France is", "<|im_start|>user\nCount: 1, 2, 3<|im_end|>\n"]
SMALL_TOKENS = np.array([[2, 4, 5, 6, 3, 0, 0], [2, 8, 11, 10, 7, 4, 3]])
SMALL_PROMPTS = np.array([[5, 100, 7, 42, 9], [260, 33, 8, 0, 0]])
"""Real tokens, then the padding of 0."""
EVERY = 211
"""Of the large vocabulary, logits of every so-manieth token are kept."""


def small_encoder():
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model = transformers.BertModel.from_pretrained(
            small_models.write_encoder(pathlib.Path(folder)), attn_implementation="eager"
        ).eval()
    tokens = torch.tensor(SMALL_TOKENS)
    with torch.no_grad():
        out = model(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    return {"small_encoder_hidden": out.numpy()}


def small_decoder():
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model = transformers.LlamaForCausalLM.from_pretrained(
            small_models.write_decoder(pathlib.Path(folder))
        ).eval()
    rows = [torch.tensor(row[row != 0])[None] for row in SMALL_PROMPTS]
    with torch.no_grad():
        logits = [model(row).logits[0].numpy() for row in rows]
        answers = [
            model.generate(
                row, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
            )[0, row.shape[1] :].numpy()
            for row in rows
        ]
    return {"small_decoder_logits": np.concatenate(logits), "small_decoder_answers": answers}


def small_adapters():
    import peft
    import torch
    import transformers

    found = {}
    with tempfile.TemporaryDirectory() as name:
        base = small_models.write_encoder(pathlib.Path(name) / "encoder")
        model = transformers.BertModel.from_pretrained(base, attn_implementation="eager")
        adapter = small_models.write_adapter(
            pathlib.Path(name) / "adapter", base, small_models.ENCODER_LAYERS, 16
        )
        model, tokens = peft.PeftModel.from_pretrained(model, adapter), torch.tensor(SMALL_TOKENS)
        mask = (tokens != 0).long()
        with torch.no_grad():
            hidden = model.eval()(tokens, attention_mask=mask).last_hidden_state
        found["adapted_encoder_pooled"] = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        base = small_models.write_decoder(pathlib.Path(name) / "decoder")
        model = transformers.LlamaForCausalLM.from_pretrained(base)
        adapter = small_models.write_adapter(
            pathlib.Path(name) / "adapter", base, small_models.DECODER_LAYERS, 32, 16
        )
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
        row = SMALL_PROMPTS[1][SMALL_PROMPTS[1] != 0]
        with torch.no_grad():
            found["adapted_decoder_logits"] = model(torch.tensor(row)[None]).logits[0]
    return {name: tensor.numpy() for name, tensor in found.items()}


def minilm():
    import torch
    import transformers

    folder = find_packaged("all-MiniLM-L6-v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.numpy()
    mask = batch["attention_mask"].numpy()[:, :, None]
    return {
        "minilm_tokens": batch["input_ids"].numpy().astype(np.int32),
        "minilm_hidden": hidden[:, ::5],
        "minilm_pooled": ((hidden * mask).sum(1) / mask.sum(1)).astype(np.float32),
    }


def smollm2():
    import torch
    import transformers

    path = find_packaged("SmolLM2-135M-Instruct")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    found = {}
    for i, prompt in enumerate(PROMPTS):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(tokens).logits[0].numpy()
            answer = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False
            )
        found[f"smollm2_tokens_{i}"] = tokens[0].numpy().astype(np.int32)
        found[f"smollm2_logits_{i}"] = logits[:, ::EVERY]
        found[f"smollm2_answer_{i}"] = answer[0, tokens.shape[1] :].numpy().astype(np.int32)
    return found


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    makers = (small_encoder, small_decoder, small_adapters, minilm, smollm2)
    found = {name: values for make in makers for name, values in make().items()}
    np.savez_compressed(FILE, **found)
