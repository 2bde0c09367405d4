from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trace_gym.chat import ChatRenderer
from trace_gym.errors import ConfigError, RunError
from trace_gym.tiny import MAX_POSITIONS, load_policy_folder, make_model, make_tokenizer, save

CALL = '<tool_call>{"name":"calculator","arguments":{"expression":"12*(3+4)"}}</tool_call>'
TEXTS = [
    "Ann has 12 red marbles. Ben has 3 more marbles than Ann.",
    "Then Ann gives 4 marbles to Ben. How many marbles does Ben have?",
    CALL,
    "<answer>84</answer>",
] * 2
TOKENIZER = make_tokenizer(TEXTS)
CONTROLS = set(TOKENIZER.added_tokens_decoder)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def pieces(text: str) -> list[str]:
    return [str(TOKENIZER.decode([i])) for i in encode(text)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "policy"
    save(folder, make_model(TOKENIZER, d=32, layers=2, seed=0), TOKENIZER)
    return folder


@given(st.text() | st.text(st.sampled_from('<>"{}() 07é\n')) | st.sampled_from([*TEXTS, "<|end|>", "٣½\x00"]))
def test_any_text_survives(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special_tokens=False) == text


@given(st.text("0123456789+-*/(). ", min_size=1))
def test_numbers_are_read_digit_by_digit(text: str) -> None:
    assert pieces(text) == list(text)


def test_words_and_fixed_strings_are_one_token() -> None:
    call = '<tool_call>{"name":"calculator","arguments":{"expression":"'
    assert pieces(CALL) == [call, *"12*(3+4)", '"}}</tool_call>']
    assert pieces("<answer>-8</answer>") == ["<answer>", "-", "8", "</answer>"]
    assert pieces("Ann has 3 marbles.") == ["Ann", " has", " ", "3", " marbles", "."]
    assert len(pieces("Benjamin")) < len("Benjamin")  # unseen, so spelled by merges


def test_equal_texts_give_an_equal_tokenizer_of_the_size_asked_for() -> None:
    assert make_tokenizer(iter(TEXTS)).get_vocab() == TOKENIZER.get_vocab()
    for size in (261, 270, 300):
        small = make_tokenizer(TEXTS, size)
        assert len(small) == size
        assert small.decode(small.encode("Ann é", add_special_tokens=False)) == "Ann é"
    assert len(make_tokenizer([])) == 261
    with pytest.raises(ConfigError, match="take 261"):
        make_tokenizer(TEXTS, 260)


def test_a_turn_costs_one_marker_and_instructions_cost_nothing() -> None:
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    renderer = ChatRenderer(TOKENIZER)
    tool = {"type": "function", "function": {"name": "calculator", "description": "", "parameters": {}}}
    prompt = renderer.prompt("Ann has 3.", system="Be kind.", tools=[tool])
    path = [*prompt, *encode(CALL), *renderer.stop, *renderer.delta("84", role="tool", closed=True)]
    text = f"<|user|>Ann has 3.<|agent|>{CALL}<|end|><|tool|>84<|agent|>"
    assert path == encode(text)
    assert TOKENIZER.convert_ids_to_tokens(list(renderer.stop)) == ["<|end|>"]
    assert list(renderer.delta("84", role="user", closed=False)) == encode("<|end|><|user|>84<|agent|>")
    assert renderer.action(np.array([*encode(CALL), *renderer.stop], dtype=np.int32)) == CALL


@given(st.lists(st.sampled_from(["<|end|>", "<|tool|>", "<|", "end|>", "x"])).map("".join))
def test_observations_cannot_forge_turns(text: str) -> None:
    delta = ChatRenderer(TOKENIZER).delta(text, role="tool", closed=True)
    assert sum(int(i) in CONTROLS for i in delta) == 2
    assert TOKENIZER.decode(list(delta)) == f"<|tool|>{text}<|agent|>"


@pytest.mark.parametrize(
    ("d", "layers", "least", "most"), [(96, 3, 0.3e6, 0.5e6), (128, 4, 0.8e6, 1e6), (256, 4, 3e6, 4e6)]
)
def test_parameter_count(d: int, layers: int, least: float, most: float) -> None:
    model = make_model(TOKENIZER, d=d, layers=layers, seed=0)
    assert least <= sum(p.numel() for p in model.parameters()) <= most
    assert model.config.max_position_embeddings == MAX_POSITIONS
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_seed_alone_decides_the_weights() -> None:
    before = torch.get_rng_state()
    first = weights(make_model(TOKENIZER, d=32, layers=1, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(weights(make_model(TOKENIZER, d=32, layers=1, seed=3)), first)
    assert not torch.equal(weights(make_model(TOKENIZER, d=32, layers=1, seed=4)), first)


@pytest.mark.parametrize("shape", [{"d": 30}, {"layers": 0}, {"heads": 0}, {"d": 32, "heads": 32}])
def test_impossible_models_are_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="multiple of"):
        make_model(TOKENIZER, seed=0, **shape)


def logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    with torch.no_grad():
        ids = tokenizer.encode(CALL, add_special_tokens=False)
        return torch.as_tensor(model(torch.tensor([ids])).logits)


def test_a_saved_folder_loads_as_it_was(policy: Path) -> None:
    loaded, tokenizer = load_policy_folder(policy)
    assert torch.equal(
        logits(loaded, tokenizer), logits(make_model(TOKENIZER, d=32, layers=2, seed=0), TOKENIZER)
    )
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert ChatRenderer(tokenizer).prompt("Ann has 3.", system="s").tolist() == encode(
        "<|user|>Ann has 3.<|agent|>"
    )
    half, _ = load_policy_folder(str(policy), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_saving_replaces_a_policy_and_nothing_else(policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "policy"
    model, tokenizer = load_policy_folder(policy)
    save(folder, model, tokenizer)
    (folder / "note.json").write_text("{}")
    changed = make_model(TOKENIZER, d=32, layers=2, seed=1)
    save(str(folder), changed, tokenizer)
    assert torch.equal(weights(load_policy_folder(folder)[0]), weights(changed))
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]
    assert folder.stat().st_mode == folder.parent.stat().st_mode
    (tmp_path / "mine").mkdir()
    save(tmp_path / "mine", changed, tokenizer)  # empty: ours to fill
    (tmp_path / "home" / "sub").mkdir(parents=True)
    (tmp_path / "home" / "config.json").touch()
    for taken in (tmp_path / "home", policy / "config.json"):
        with pytest.raises(ConfigError, match="no policy folder"):
            save(taken, changed, tokenizer)
    assert (tmp_path / "home" / "sub").is_dir()


def test_a_failed_save_leaves_the_old_policy(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "policy"
    model, tokenizer = load_policy_folder(policy)
    save(folder, model, tokenizer)
    before = sorted(path.name for path in folder.iterdir())
    rename, calls = Path.rename, []

    def fail_at_the_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_second)
    with pytest.raises(RunError, match="disk gone; what was written before is intact"):
        save(folder, model, tokenizer)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def broken(policy: Path, into: Path, *, without: str = "", changed: dict[str, str] | None = None) -> Path:
    """A copy of `policy` without the files that match, and with others overwritten."""
    into.mkdir()
    for path in policy.iterdir():
        if not (without and path.match(without)):
            (into / path.name).write_bytes(path.read_bytes())
    for name, text in (changed or {}).items():
        (into / name).write_text(text)
    return into


def test_folders_that_cannot_be_loaded_say_why(
    policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((policy / "config.json").read_text())
    deeper, smaller, larger = (
        json.dumps(config | change)
        for change in ({"num_hidden_layers": 3}, {"vocab_size": 9}, {"vocab_size": 4096})
    )
    cases = {
        str(tmp_path / "missing"): "there is no policy folder",
        "./missing": "there is no policy folder",
        "some/where/deep": "there is no policy folder",
        "no-such-model": "no policy folder no-such-model; make one with `trace-gym warmup --out no-such-model`",
        "runs/none": "there is no policy folder runs/none; make one",
        str(policy / "config.json"): "is a file",
        str(broken(policy, tmp_path / "a", without="tokenizer*")): "has no tokenizer",
        str(broken(policy, tmp_path / "b", without="*.safetensors")): "has no weights",
        str(broken(policy, tmp_path / "c", without="config.json")): "has no config.json; is it",
        str(
            broken(policy, tmp_path / "d", changed={"model.safetensors": "?"})
        ): "the model could not be loaded",
        str(
            broken(policy, tmp_path / "e", changed={"tokenizer.json": "{"})
        ): "the tokenizer could not be loaded",
        str(broken(policy, tmp_path / "f", changed={"config.json": deeper})): "9 tensors are missing",
        str(
            broken(policy, tmp_path / "g", changed={"config.json": smaller})
        ): "1 tensors are missing or not of the shape",
        str(
            broken(policy, tmp_path / "h", changed={"config.json": larger})
        ): "1 tensors are missing or not of the shape",
    }
    for path, message in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load_policy_folder(path)
        assert "\n" not in str(caught.value)
    larger_tokenizer = broken(policy, tmp_path / "i")
    make_tokenizer([" ".join(map(chr, range(0x4E00, 0x4F00)))] * 2).save_pretrained(str(larger_tokenizer))
    with pytest.raises(ConfigError, match="do not belong together"):
        load_policy_folder(larger_tokenizer)
    assert capfd.readouterr().err == ""  # the error is all that is said


def test_a_hub_out_of_reach_is_asked_once_and_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def unreachable(self: object, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("trace_gym.tiny.HfApi.model_info", unreachable)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"no network.*no copy .* cached.*`trace-gym warmup --out some/m`"):
        load_policy_folder("some/m")
    assert asked == ["some/m"] and time.monotonic() - start < 5
    assert capfd.readouterr().err == ""


def test_a_hub_out_of_reach_is_done_without_where_it_gave_the_model_before(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--some--m" / "snapshots" / ("0" * 40)
    shutil.copytree(policy, cached)
    (cached.parent.parent / "refs").mkdir()
    (cached.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("trace_gym.tiny.HfApi.model_info", lambda *args, **options: 1 / 0)
    model, tokenizer = load_policy_folder("some/m")
    assert len(tokenizer) <= model.config.vocab_size
