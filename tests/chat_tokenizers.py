"""Small tokenizers and chat templates in the shapes that are common, for the tests of rendering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = """{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif -%}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Tools in the system turn, results in user turns, thinking stripped from turns before the last question.
QWEN3 = """{%- set last = namespace(question=0) -%}
{%- for m in messages if m.role == 'user' %}{% set last.question = messages.index(m) %}{% endfor -%}
{%- if tools or messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') -}}
{%- if tools %}{{ '\n<tools>' }}{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor -%}
{{- '\n</tools>\n<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>' }}{% endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 < last.question %}{{ m.content.split('</think>')[-1].lstrip('\n') }}
{%- else %}{{ m.content }}{% endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

# Trims, begins with bos, and gives tool results the role ipython, as JSON.
LLAMA3 = """{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'tool' or m.role == 'ipython' -%}
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# No system role, strict alternation.
GEMMA = """{{- bos_token -}}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"""

_TEXTS = ["user system assistant tool the quick brown fox", "0123456789 12 34", '<tool_call>{"name":"x"}', "\n\n"]


@cache
def tokenizer(
    template: str,
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    *,
    added: Sequence[str] = (),
    eos: str = "<|im_end|>",
    bos: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these special tokens and these added, non-special ones."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        _TEXTS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=special[0], bos_token=bos)
    made.chat_template = template
    return made


def chatml() -> PreTrainedTokenizerFast:
    return tokenizer(CHATML)


def qwen3() -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tags = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    return tokenizer(QWEN3, special, added=tags)


def llama3() -> PreTrainedTokenizerFast:
    headers = ("<|start_header_id|>", "<|end_header_id|>")
    special = ("<|begin_of_text|>", "<|end_of_text|>", *headers, "<|eot_id|>")
    return tokenizer(LLAMA3, special, eos="<|end_of_text|>", bos="<|begin_of_text|>")


def gemma() -> PreTrainedTokenizerFast:
    return tokenizer(GEMMA, ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>"), eos="<eos>", bos="<bos>")
