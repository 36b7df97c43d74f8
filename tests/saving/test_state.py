"""What is in a saved state, what comes back from it, and files that are cut off or damaged."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.training import plugins

from ftml_bench.errors import UsageError
from ftml_bench.saving import load, load_state_dict, save, state_dict, strategies
from ftml_bench.saving.plain_state import load_module_state, module_state
from tests.saving.strategies import build, dropout_net, go, plateau, scheduler


def test_modes_and_frozen_parameters_come_back(digits, stream, tmp_path):
    def frozen():
        model = dropout_net()
        model[1].weight.requires_grad_(False)
        return build("TrainOnEverything", model=model)

    saved = go(frozen(), digits, stream[:2])
    saved.model.train()
    saved.model[4].eval()  # a user who wants no dropout from here on
    saved.model[1].bias.requires_grad_(False)
    save(saved, tmp_path / "state.pt")
    loaded = frozen()
    loaded.model.eval()
    load(loaded, tmp_path / "state.pt", stream)
    assert [m.training for m in loaded.model.modules()] == [m.training for m in saved.model.modules()]
    frozen_names = [name for name, p in loaded.model.named_parameters() if not p.requires_grad]
    assert frozen_names == ["1.weight", "1.bias"]


def test_heads_come_back_in_the_order_in_which_their_tasks_came():
    grown, other = MultiHeadClassifier(4, 2), MultiHeadClassifier(4, 2)
    for model, labels in ((grown, ("2", "0", "1")), (other, ("0", "1", "2"))):
        model.classifiers.clear()
        for label in labels:
            model.classifiers[label] = IncrementalClassifier(4, 2)
    load_module_state(other, module_state(grown))
    # an optimiser numbers parameters by their order
    names, expected = ([name for name, _ in model.named_parameters()] for model in (other, grown))
    assert names == expected
    for p, q in zip(other.parameters(), grown.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_file_holds_tensors_and_plain_values_only(digits, stream, tmp_path):
    strategy = build(make_plugins=lambda o: [plugins.EWCPlugin(1.0), plugins.LwFPlugin(), scheduler(o), plateau(o)])
    go(strategy, digits, stream[:2])
    save(strategy, tmp_path / "state.pt", note="mine", numbers=[1, 2.5])
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    found = set()

    def kinds(value):
        found.add(type(value))
        for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            kinds(v)

    kinds(content)
    assert found == {dict, list, torch.Tensor, str, int, float, bool, type(None)}
    assert content["more"] == {"note": "mine", "numbers": [1, 2.5]}
    # No data: what it holds does not grow with what has arrived, but by the curves of the metrics.
    assert (tmp_path / "state.pt").stat().st_size < 400_000


def test_a_write_that_is_cut_off_leaves_the_old_file(digits, stream, tmp_path, monkeypatch):
    strategy = go(build(), digits, stream[:1])
    save(strategy, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    whole = strategies.replacing

    @contextmanager
    def half(path):
        with whole(path) as file:
            yield SimpleNamespace(write=lambda content: file.write(content[:4]))
            raise KeyboardInterrupt

    monkeypatch.setattr(strategies, "replacing", half)
    with pytest.raises(KeyboardInterrupt):
        save(strategy, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "text", "other"])
def test_a_damaged_file_is_said_in_one_line(damage, digits, stream, tmp_path):
    file = tmp_path / "state.pt"
    save(go(build(), digits, stream[:1]), file)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "cut off":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    elif damage == "text":
        content = b"my thesis"
    file.write_bytes(content)
    if damage == "other":
        torch.save({"weights": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=r"state\.pt: (damaged|no saved state)") as error:
        load(build(), file, stream)
    assert "\n" not in str(error.value)


def test_a_state_that_lacks_something_is_damaged(digits, stream):
    state = state_dict(go(build(), digits, stream[:1]))
    for key in ("strategy", "experiences", "optimizer", "random"):
        with pytest.raises(UsageError, match=f"damaged saved state .KeyError: '{key}'"):
            load_state_dict(build(), {k: v for k, v in state.items() if k != key}, stream)
