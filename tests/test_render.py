"""Rendering with small tokenizers and own chat templates in the shapes that are common."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trace_gym.chat import BARE, ToolRole
from trace_gym.encoder import TextEncoder
from trace_gym.engine import IntArray
from trace_gym.errors import RenderError
from trace_gym.render import ChatRenderer, PlainRenderer, Renderer

# A system turn of its own where none is given; shows any role by its name.
CHATML = """{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif -%}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Tools in the system turn, results in user turns, thinking stripped from turns before the last question.
QWEN3 = """{%- set last = namespace(question=0) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor -%}
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
{{- m.content.split('</think>')[-1].lstrip('\n') if loop.index0 < last.question else m.content -}}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

# Begins with bos, trims, describes tools in a form of its own, and gives results the role ipython, as JSON.
LLAMA3 = """{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'tool' or m.role == 'ipython' -%}
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (m.content | tojson) + '<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' -}}
{%- if tools and m.role == 'system' %}{{ 'Answer as {"name": N, "parameters": P}' + (tools | tojson) }}{% endif -%}
{{- (m.content | trim) + '<|eot_id|>' }}
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

TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
CALCULATOR = {"name": "calculator", "description": "Works sums out.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": CALCULATOR}]


def byte_level(special: Sequence[str], added: Sequence[str] = ()) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [
        "user system assistant tool the quick brown fox",
        "0123456789 12 34",
        '<tool_call>{"name":"x"}',
    ] * 3
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return backend


def wrap(backend: Tokenizer, template: str | None, **names: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


@cache
def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    return wrap(byte_level(("<|im_start|>", "<|im_end|>")), template, eos_token="<|im_end|>")


@cache
def qwen3() -> PreTrainedTokenizerFast:
    backend = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), TAGS)
    return wrap(backend, QWEN3, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@cache
def llama3() -> PreTrainedTokenizerFast:
    headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    backend = byte_level(("<|begin_of_text|>", "<|end_of_text|>", *headers))
    return wrap(backend, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


@cache
def gemma() -> PreTrainedTokenizerFast:
    backend = byte_level(("<bos>", "<eos>", "<|im_start|>", "<|im_end|>"))
    return wrap(backend, GEMMA, bos_token="<bos>", eos_token="<eos>")


Maker = Callable[[], PreTrainedTokenizerFast]
MAKERS: list[Maker] = [chatml, qwen3, llama3, gemma]
every_tokenizer = pytest.mark.parametrize("make", MAKERS, ids=["chatml", "qwen3", "llama3", "gemma"])


@cache
def renderer(make: Maker) -> ChatRenderer:
    return ChatRenderer(make())


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def decode(tokenizer: PreTrainedTokenizerFast, tokens: IntArray | list[int]) -> str:
    return str(tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False))


def grow(
    make: Maker, question: str, turns: list[tuple[str, str]], *, system: str = "", role: str = "user"
) -> list[int]:
    """The tokens of a whole path: prompt, then action, stop token and delta for each of `turns`."""
    render, tokens = renderer(make), list[int]()
    tokens += [int(t) for t in render.prompt(question, system=system)]
    for action, observation in turns:
        tokens += [*encode(make(), action), render.stop[0]]
        tokens += [int(t) for t in render.delta(observation, role=role, closed=True)]
    return tokens


def template_text(make: Maker, messages: list[tuple[str, str]], **options: Any) -> str:
    conversation = [{"role": role, "content": content} for role, content in messages]
    return str(
        make().apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **options)
    )


words = st.text("abcdefghijk 0123456789", min_size=1).map(str.strip).filter(bool)
dialogue = st.lists(st.tuples(words, words), max_size=3)


@every_tokenizer
@given(question=words, turns=dialogue, instructions=words)
def test_a_path_is_the_whole_conversation_tokenised(
    make: Maker, question: str, turns: list[tuple[str, str]], instructions: str
) -> None:
    system = "" if make is gemma else instructions
    messages = [("system", system)] if system else []
    messages.append(("user", question))
    for action, observation in turns:
        messages += [("assistant", action), ("user", observation)]
    assert grow(make, question, turns, system=system) == encode(make(), template_text(make, messages))


hostile = st.lists(
    st.sampled_from(
        [
            "<|im_end|>",
            "<|im_start|>",
            "<|eot_id|>",
            "</tool_response>",
            "<tool_call>",
            "<",
            "|>",
            "\n",
            "é",
            "x ",
        ]
    )
).map("".join)


@every_tokenizer
@given(question=hostile, turns=st.lists(st.tuples(words, hostile), max_size=3))
def test_a_path_decodes_to_the_conversation_whatever_observations_say(
    make: Maker, question: str, turns: list[tuple[str, str]]
) -> None:
    messages = [("user", question)]
    for action, observation in turns:
        messages += [("assistant", action), ("user", observation)]
    assert decode(make(), grow(make, question, turns)) == template_text(make, messages)


@every_tokenizer
@given(text=hostile | st.text())
def test_text_from_outside_never_becomes_a_control_token(make: Maker, text: str) -> None:
    tokenizer, render = make(), renderer(make)
    controls = set(tokenizer.added_tokens_decoder)

    def count(tokens: IntArray) -> int:
        return sum(int(t) in controls for t in tokens)

    for role in ("user", "tool"):
        assert count(render.delta(text, role=role, closed=True)) == count(
            render.delta("x", role=role, closed=True)
        )
    assert count(render.prompt(text)) == count(render.prompt("x"))


@every_tokenizer
def test_special_tokens_in_instructions_and_tools_stay_text(make: Maker) -> None:
    tokenizer, render = make(), renderer(make)
    attack = "".join(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    function = {**CALCULATOR, "description": attack, "parameters": {"type": "object", attack: [attack]}}
    hostile_tools = [{"type": "function", "function": function}]

    def controls(**options: Any) -> list[int]:
        return [int(t) for t in render.prompt("q", **options) if int(t) in tokenizer.added_tokens_decoder]

    assert controls(system=f"S {attack}", tools=hostile_tools) == controls(system="S", tools=TOOLS)


def test_a_look_alike_that_normalises_to_a_control_token_stays_out() -> None:
    backend = byte_level(("<|im_start|>", "<|im_end|>"))
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<|sep|>", special=True, normalized=True)])
    tokenizer = wrap(backend, CHATML, eos_token="<|im_end|>")
    separator = tokenizer.convert_tokens_to_ids("<|sep|>")
    assert separator in encode(tokenizer, "ok ＜|sep|＞")  # the trap is real
    delta = ChatRenderer(tokenizer).delta("ok ＜|sep|＞", role="user", closed=True)
    assert separator not in delta
    assert "ok <|sep|>" in decode(tokenizer, delta)


@pytest.mark.parametrize("special", [False, True])
def test_instructions_may_show_tool_tags_but_end_no_turn(special: bool) -> None:
    marks = ("<|im_start|>", "<|im_end|>")
    backend = byte_level((*marks, *TAGS)) if special else byte_level(marks, TAGS)
    tokenizer = wrap(backend, QWEN3, eos_token="<|im_end|>")
    prompt = ChatRenderer(tokenizer).prompt("q", system="Call <tool_call>{}</tool_call><|im_end|>")
    call, end = encode(tokenizer, "<tool_call><|im_end|>")
    assert list(prompt).count(call) == 1
    assert list(prompt).count(end) == 2  # of the system and the user turn


@every_tokenizer
def test_an_unclosed_turn_is_closed_first(make: Maker) -> None:
    render = renderer(make)
    for role in ("user", "tool"):
        closed, opened = (list(render.delta("x", role=role, closed=c)) for c in (True, False))
        assert opened == [render.stop[0], *closed]


def test_deltas_in_full() -> None:
    def delta(make: Maker, text: str, role: str, **options: Any) -> str:
        render = ChatRenderer(make(), **options)
        return decode(make(), render.delta(text, role=role, closed=True))

    end = "<|im_end|>\n<|im_start|>assistant\n"
    wrapped = "<|im_start|>user\n<tool_response>\n 4 \n</tool_response>"
    assert delta(chatml, " 4 ", "user") == f"\n<|im_start|>user\n 4 {end}"
    assert delta(chatml, " 4 ", "tool") == f"\n{wrapped}{end}"
    assert delta(chatml, " 4 ", "tool", tool_role="tool") == f"\n<|im_start|>tool\n 4 {end}"
    assert delta(qwen3, " 4 ", "tool") == f"\n{wrapped}{end}"
    thoughtless = {"template_args": {"enable_thinking": False}}
    assert delta(qwen3, " 4 ", "tool", **thoughtless) == f"\n{wrapped}{end}<think>\n\n</think>\n\n"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    after = f"<|eot_id|>{header.format('assistant')}"
    assert delta(llama3, " 4 ", "user") == f"{header.format('user')}4{after}"
    assert delta(llama3, ' "4"\n', "tool") == header.format("ipython") + r'" \"4\"\n"' + after
    assert delta(gemma, " 4 ", "tool") == f"\n{wrapped}<|im_end|>\n<|im_start|>model\n"


def test_thinking_stays_where_the_model_wrote_it() -> None:
    thought = "<think>\nsix\n</think>\n\n6"
    text = decode(qwen3(), grow(qwen3, "2*3?", [(thought, "and 3*3?")]))
    assert thought in text
    assert thought not in template_text(
        qwen3, [("user", "2*3?"), ("assistant", thought), ("user", "and 3*3?")]
    )


def test_stop_tokens_are_the_templates_and_the_tokenizers() -> None:
    def names(make: Maker) -> list[str]:
        return [decode(make(), [i]) for i in renderer(make).stop]

    assert names(chatml) == names(qwen3) == ["<|im_end|>"]
    assert names(llama3) == ["<|eot_id|>", "<|end_of_text|>"]
    assert names(gemma) == ["<|im_end|>", "<eos>"]


def test_a_path_has_one_bos() -> None:
    prompt = renderer(llama3).prompt("q", system="s")
    assert prompt.dtype == np.int32
    assert list(prompt).count(llama3().bos_token_id) == 1 and prompt[0] == llama3().bos_token_id


def test_actions_keep_special_tokens_and_spaces_but_not_the_stop() -> None:
    backend = byte_level(("<|im_start|>", "<|im_end|>", "<tool_call>"))
    tokenizer = wrap(backend, CHATML, eos_token="<|im_end|>")
    render = ChatRenderer(tokenizer)
    text = "<tool_call> is n't , so<|im_start|>"
    tokens = encode(tokenizer, text)
    assert render.action(np.array([*tokens, *render.stop], dtype=np.int32)) == text
    assert render.action(np.array(tokens, dtype=np.int32)) == text
    assert render.action(np.array([], dtype=np.int32)) == ""


def test_instructions_go_where_the_template_allows() -> None:
    def prompt(make: Maker, **options: Any) -> str:
        return decode(make(), renderer(make).prompt("q", **options))

    assert prompt(chatml).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert prompt(chatml, system="S").startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq")
    assert prompt(gemma, system="S") == "<bos><|im_start|>user\nS\n\nq<|im_end|>\n<|im_start|>model\n"
    deaf = chatml(
        CHATML.replace("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}")
    )
    assert "<|im_start|>user\nS\n\nq<|im_end|>" in decode(deaf, ChatRenderer(deaf).prompt("q", system="S"))
    bare = chatml(
        BARE + CHATML.replace("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}")
    )
    silent = ChatRenderer(bare)
    assert list(silent.prompt("q", system="S", tools=TOOLS)) == list(silent.prompt("q"))


def test_tools_are_described_by_the_template_or_by_us() -> None:
    def prompt(make: Maker, system: str) -> str:
        return decode(make(), renderer(make).prompt("q", system=system, tools=TOOLS))

    messages = [("system", "S"), ("user", "q")]
    assert prompt(qwen3, "S") == template_text(qwen3, messages, tools=TOOLS)
    for make in (
        chatml,
        llama3,
    ):  # the one ignores tools, the other asks for calls that environments do not read
        text = prompt(make, "S")
        assert '"name": "calculator"' in text and '<tool_call>{"name":"TOOL"' in text and "<answer>" in text
        assert text.index("S") < text.index("calculator") < text.index("q<|")
        assert 'parameters": P' not in text
    assert "calculator" in prompt(chatml, "") and "Be brief" not in prompt(chatml, "")


@pytest.mark.parametrize("form", ["<tool_call><function=NAME>", 'Write {"name": NAME, "arguments": OBJECT}'])
def test_a_template_that_asks_for_other_calls_is_not_asked_for_tools(form: str) -> None:
    shown = "{{ m.content + ((tools | tojson) + '" + form + "' if tools and loop.first else '') }}"
    tokenizer = chatml("{%- for m in messages %}" + shown + "{{ '<|im_end|>' }}{% endfor %}")
    text = decode(tokenizer, ChatRenderer(tokenizer).prompt("q", system="S", tools=TOOLS))
    assert form not in text and '<tool_call>{"name":"TOOL"' in text


def test_a_space_that_a_tokenizer_puts_before_a_text_is_left_out() -> None:
    words = ["▁", *"abcdefghijklmnopqrstuvwxyzB. \n", *"0123456789", "▁4"]
    model = models.Unigram(
        [("<unk>", -9.0), *((word, -1.0) for word in words)], unk_id=0, byte_fallback=False
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    ends = ("<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ends])
    tokenizer = wrap(backend, CHATML, unk_token="<unk>", eos_token="<|im_end|>")
    assert decode(tokenizer, encode(tokenizer, "4")) == " 4"  # the trap is real
    render = ChatRenderer(tokenizer)
    text = decode(tokenizer, [*render.prompt("4"), *render.delta("4 x", role="user", closed=True)])
    assert tokenizer.unk_token_id in render.delta("é", role="user", closed=True)  # unknown, but not left out
    end = "<|im_end|>\n<|im_start|>"
    assert text == (
        f"<|im_start|>system\nBe brief.{end}user\n4{end}assistant\n\n<|im_start|>user\n4 x{end}assistant\n"
    )


def test_odd_templates() -> None:
    # Instructions after the question, a space before the token that ends a turn, tool results not shown.
    template = (
        "{%- for m in messages -%}"
        "{%- if m.role == 'user' %}{{ '[Q] ' + m.content + ' [A]' }}"
        "{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif -%}"
        "{%- elif m.role == 'assistant' %}{{ ' ' + m.content + ' <|im_end|>' }}"
        "{%- elif m.role not in ('system', 'tool') %}{{ raise_exception('role') }}"
        "{%- endif -%}{%- endfor -%}"
    )
    odd = wrap(byte_level(("<eos>", "<|im_end|>")), template, eos_token="<eos>")
    render = ChatRenderer(odd)
    assert list(render.stop) == encode(odd, "<|im_end|><eos>")
    assert decode(odd, render.prompt("q", system="S")) == "[Q] S\n\nq [A]"
    assert decode(odd, render.delta("x", role="user", closed=True)) == "[Q] x [A]"
    assert decode(odd, render.delta("x", role="user", closed=False)) == " <|im_end|>[Q] x [A]"
    assert "<tool_response>\nx\n</tool_response>" in decode(odd, render.delta("x", role="tool", closed=True))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ messages[0].nothing.at_all }}", "the chat template failed"),
        ("{{ raise_exception('not\n today') }}", "failed: not today"),
        ("{{ unclosed", "the chat template failed"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not show the assistant's text"),
        (
            "{% for m in messages %}{{ m.content if m.role == 'assistant' }}{% endfor %}",
            "a message of role 'user'",
        ),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
            "does not show the assistant's text once",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_line(template: str | None, message: str) -> None:
    tokenizer = wrap(byte_level(("<|im_start|>", "<|im_end|>")), template, eos_token="<|im_end|>")
    with pytest.raises(RenderError, match=message) as caught:
        ChatRenderer(tokenizer)
    assert "\n" not in str(caught.value)


def test_other_errors_are_clear() -> None:
    endless = wrap(byte_level(()), "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(RenderError, match="no eos"):
        ChatRenderer(endless)
    with pytest.raises(RenderError, match="not 'system'"):
        renderer(chatml).delta("x", role="system", closed=True)
    roles: list[ToolRole] = ["tool", "ipython"]
    for role in roles:
        with pytest.raises(RenderError, match="alternate"):
            ChatRenderer(gemma(), tool_role=role)


def test_a_folder_gives_the_same_renderer_and_a_bad_one_an_error(tmp_path: Path) -> None:
    qwen3().save_pretrained(str(tmp_path / "model"))
    loaded = ChatRenderer.from_folder(str(tmp_path / "model"))
    assert list(loaded.prompt("q<|im_end|>", tools=TOOLS)) == list(
        renderer(qwen3).prompt("q<|im_end|>", tools=TOOLS)
    )
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        where = f"{name}:" if name == "empty" else rf"{name} \(no folder here"
        with pytest.raises(RenderError, match=f"no tokenizer could be read from .*{where}") as caught:
            ChatRenderer.from_folder(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_renderers_fit_the_protocol_and_load_nothing_heavy() -> None:
    fits: list[Renderer] = [PlainRenderer(), renderer(chatml)]
    assert all(one.stop for one in fits)
    code = "import sys, trace_gym.render; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plain_renderer_reads_what_it_writes() -> None:
    plain = PlainRenderer()
    assert plain.action(np.array(plain.encode("é <b>"), dtype=np.int32)) == "é <b>"
    assert list(plain.delta("x", role="tool", closed=False)) == [
        256,
        *plain.delta("x", role="tool", closed=True),
    ]


def test_lone_surrogates_are_replaced() -> None:
    assert "a?b" in decode(chatml(), renderer(chatml).delta("a\ud800b", role="user", closed=True))


def test_encoder_degrees_of_trust() -> None:
    encoder, tokenizer = TextEncoder(qwen3()), qwen3()
    text = "<|im_end|><tool_call>"
    assert encoder.trusted(text) == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<tool_call>"])
    assert encoder.instructions(text)[-1] == encoder.trusted("<tool_call>")[0]
    assert not set(encoder.untrusted(text)) & set(tokenizer.added_tokens_decoder)
    assert all(decode(tokenizer, ids(text)) == text for ids in (encoder.instructions, encoder.untrusted))
    assert encoder.defuse({"a<|im_end|>": ["<|im_end|>", 3, None]}) == {
        "a< |im_end|>": ["< |im_end|>", 3, None]
    }
