"""RainbowMNIST of the public image sets that go by its name: made-up ones, in each of their forms."""

import pickle
from pprint import pprint

import numpy as np
import pytest
import torch
from PIL import Image

from ftml_bench.benchmarks import RainbowMNIST
from ftml_bench.benchmarks.data.rainbow_images import read_groups
from ftml_bench.errors import UsageError

GROUPS, EACH = 11, 3  # "10" comes behind "9"


def content():
    """Every image different, group for group and digit for digit."""
    pixels = np.random.default_rng(0).integers(0, 256, (GROUPS, 10, EACH, 28, 28, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(10), EACH)
    return {g: {"images": pixels[g].reshape(-1, 28, 28, 3), "labels": labels} for g in range(GROUPS)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same images as a pickle, and as folders of two depths."""
    root = tmp_path_factory.mktemp("sets")
    (root / "all.pkl").write_bytes(pickle.dumps(content()))
    for number, group in content().items():
        for i, (image, label) in enumerate(zip(group["images"], group["labels"], strict=True)):
            for file in (f"flat/{number}/{label}/{i:03}.png", f"deep/{number}/{i % EACH}/{label}/{i:03}.png"):
                path = root / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return root


def as_sets(group):
    """An image's bytes with its label, of a group."""
    return {(x.numpy().tobytes(), int(y)) for x, y in zip(group.x, group.y, strict=True)}


@pytest.mark.parametrize("form", ["all.pkl", "flat", "deep"])
def test_each_form_gives_the_groups_in_their_order(sets, form):
    _, groups = read_groups(sets / form)
    assert [group.name for group in groups] == [str(number) for number in range(GROUPS)]
    for number, group in content().items():
        expected = {
            (image.transpose(2, 0, 1).tobytes(), int(label))
            for image, label in zip(group["images"], group["labels"], strict=True)
        }
        assert as_sets(groups[number]) == expected


def test_floats_become_bytes(sets, tmp_path):
    for name, scale in (("unit.pkl", 255), ("bytes.pkl", 1)):
        floats = {g: {**v, "images": v["images"].astype(np.float32) / scale} for g, v in content().items()}
        (tmp_path / name).write_bytes(pickle.dumps(floats))
        for found, expected in zip(read_groups(tmp_path / name)[1], read_groups(sets / "all.pkl")[1], strict=True):
            assert torch.equal(found.x, expected.x)


def test_a_round_is_a_group_and_no_image_is_in_both_of_its_parts(sets):
    stream = RainbowMNIST(images=sets / "all.pkl", rounds=5, images_per_round=20, held_out_per_round=8)
    _, groups = read_groups(sets / "all.pkl")
    by_name = {group.name: as_sets(group) for group in groups}
    names = [experience.group for experience in stream.train_stream]
    assert len(set(names)) == 5
    for train, test in zip(stream.train_stream, stream.test_stream, strict=True):
        parts = []
        for experience, size in ((train, 20), (test, 8)):
            x, y = experience.stacked.take(torch.arange(size))
            assert len(experience.stacked) == size
            parts.append({(one.numpy().tobytes(), int(label)) for one, label in zip(x, y, strict=True)})
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] <= by_name[train.group]
    assert stream.train_stream[0].stacked.take(torch.tensor([0]))[0].dtype == torch.uint8


def test_seed_and_order_decide_apart_and_the_set_has_a_name(sets):
    made = {"images": sets / "all.pkl", "rounds": 4, "images_per_round": 10, "held_out_per_round": 5}
    first, other = RainbowMNIST(**made), RainbowMNIST(**made, order=3)
    assert [e.group for e in first.train_stream] != [e.group for e in other.train_stream]
    assert [e.group for e in other.train_stream] == [e.group for e in RainbowMNIST(**made, seed=3).train_stream]
    assert first.image_set == other.image_set
    assert first.image_set.startswith("all.pkl ")
    assert not hasattr(RainbowMNIST, "image_set")
    half = RainbowMNIST(**made, image_size=14).train_stream[0].stacked.take(torch.arange(10))[0]
    whole = first.train_stream[0].stacked.take(torch.arange(10))[0]
    assert torch.equal(half, whole.unfold(2, 2, 2).unfold(3, 2, 2).float().mean((4, 5)).round().to(torch.uint8))


class Evil:
    def __reduce__(self):
        return pprint, ("obeyed",)  # `print` is another function in a process where Ray has been used


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "pprint.pprint is no array"),
        (lambda path: path.write_bytes(b"no pickle"), "no pickle of arrays"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "is damaged: expected"),
        (lambda path: path.write_bytes(pickle.dumps({0: [1]})), "group 0: expected"),
        (lambda path: path.write_bytes(pickle.dumps({0: {"images": np.zeros((2, 8, 8, 3)), "labels": np.zeros(2)}})),
         "expected (n, 28, 28, 3)"),
        (lambda path: path.write_bytes(pickle.dumps({0: {"images": np.full((1, 28, 28, 3), 300.0), "labels": [1]}})),
         "pixels from 300 to 300"),
        (lambda path: path.write_bytes(pickle.dumps({0: {"images": np.zeros((1, 28, 28, 3)), "labels": [12]}})),
         "labels from 0 to 9"),
        (lambda path: path.mkdir(), "no folders"),
        (lambda path: (path / "0" / "7").mkdir(parents=True), "no PNG files in folders 0 to 9"),
        (lambda path: None, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_neither_is_refused_in_one_line_and_nothing_in_it_is_obeyed(write, message, tmp_path, capsys):
    write(tmp_path / "set")
    with pytest.raises(UsageError) as refused:
        RainbowMNIST(images=tmp_path / "set")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_more_than_a_group_holds_is_refused(sets):
    with pytest.raises(UsageError, match=r"images_per_round 25 \+ held_out_per_round 8 = 33, but group .* has 30"):
        RainbowMNIST(images=sets / "all.pkl", rounds=2, images_per_round=25, held_out_per_round=8)
    with pytest.raises(UsageError, match=r"rounds 12: .* has 11 groups"):
        RainbowMNIST(images=sets / "all.pkl", rounds=12, images_per_round=5, held_out_per_round=5)
