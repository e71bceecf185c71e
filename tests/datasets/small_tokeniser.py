"""A small tokeniser in the real format, whose file asks for padding and cutting, as many do."""

import json

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "pay", "bill", "my", "card", "lost", "is", "please",
         "sum", "of", "1", "2", "3", "answer", ":", "<end>")  # fmt: skip


def write(folder, pad=True, special=True, words=WORDS, end=None):
    """Write ``tokenizer.json`` into the folder, and return the folder as text."""
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    if pad:
        tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    if end is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    return str(folder)


def write_gguf(path, chat=None):
    """Write a GGUF file with a tokeniser of bytes and no weights, and return its path as text."""
    tokens = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    if chat is not None:
        writer.add_chat_template(chat)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


def text_of(tokens):
    """Return the words of tokens."""
    return " ".join(WORDS[t] for t in tokens)
