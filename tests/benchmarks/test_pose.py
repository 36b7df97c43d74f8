"""ObjectPose: tasks, labels against pixels, seeds, the cache, and everything that can be missing."""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from ftml_bench.benchmarks import ObjectPose, object_pose
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.benchmarks.object_pose import _tasks, _view
from ftml_bench.benchmarks.sheets import contact_sheet
from ftml_bench.errors import UsageError
from ftml_bench.rendering import scene, workers, zbuffer
from ftml_bench.rendering.meshes import PASCAL3D_OBJECTS, clean
from ftml_bench.rendering.solids import SOLIDS, solid
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, from_dict

SMALL = {"rounds": 6, "images_per_round": 12, "held_out_per_round": 4, "image_size": 48}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(folder, monkeypatch):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(folder))


@pytest.fixture(scope="session")
def benchmark(folder):
    return ObjectPose(cache=folder, **SMALL)


def data(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


def experiences(benchmark):
    return [*benchmark.train_stream, *benchmark.test_stream]


def fingerprint(benchmark):
    digest = hashlib.sha256()
    for experience in experiences(benchmark):
        for part in data(experience):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


# -- tasks


def test_shape_and_defaults(benchmark):
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 6
    for stream, size in ((benchmark.train_stream, 12), (benchmark.test_stream, 4)):
        for experience in stream:
            x, y = data(experience)
            assert (x.shape, x.dtype) == ((size, 3, 48, 48), torch.uint8)
            assert (y.shape, y.dtype) == ((size, 4), torch.float32)
            image, label, task = experience.dataset[3]
            assert torch.equal(image, x[3].float() / 255)
            assert torch.equal(label, y[3])
            assert task == experience.current_experience
            assert not hasattr(experience.dataset, "targets")
    assert benchmark.threshold == ("loss", 0.05)
    assert isinstance(benchmark.criterion, nn.MSELoss)
    assert (benchmark.inner_lr, benchmark.update_steps) == (0.1, 5)
    assert {60, 400} <= set(cumulative_sizes(1000, benchmark.arrivals))
    assert benchmark.checkpoints == [12]  # 60 and 400 lie outside such a round
    assert benchmark.model()(torch.rand(2, 3, 48, 48)).shape == (2, 4)


@pytest.mark.parametrize("objects", [SOLIDS, PASCAL3D_OBJECTS])
def test_ninety_tasks_are_fifty_objects_from_about_two_viewpoints_each(objects):
    tasks = _tasks(0, objects)
    assert len(set(tasks)) == 90
    times = Counter(name for name, _ in tasks)
    assert set(times) == set(objects)
    assert Counter(times.values()) == {2: 40, 1: 10}
    assert [name for name, _ in tasks] != sorted(name for name, _ in tasks)
    views = [_view(0, *task) for task in tasks]
    assert len({(v.camera.azimuth, v.camera.elevation) for v in views}) == 90
    azimuths, elevations, extents = (
        np.array(values)
        for values in zip(*((v.camera.azimuth, v.camera.elevation, v.extent) for v in views), strict=True)
    )
    for values, least, most in (
        (azimuths, -math.pi, math.pi),
        (elevations, math.radians(30), math.radians(70)),
        (extents, 0.8, 1.2),
    ):
        assert least <= values.min() < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < values.max() <= most
        assert len(set(values)) == 90


def test_positions_and_azimuths_fill_their_ranges():
    poses = object_pose._poses(0, "car/01", 0, "train", 2000)
    assert np.allclose(np.abs(poses).max(axis=0), [0.6, 0.6, math.pi], rtol=0.01)
    assert np.allclose(poses.std(axis=0), np.array([0.6, 0.6, math.pi]) / 3**0.5, rtol=0.05)
    assert np.abs(np.corrcoef(poses.T) - np.eye(3)).max() < 0.08


def test_both_streams_hold_the_same_task_and_other_poses(benchmark):
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        assert train.view == test.view
        assert not torch.isin(train.poses, test.poses).any()
    assert len({e.view for e in benchmark.train_stream}) == 6
    assert len({tuple(e.poses.flatten().tolist()) for e in benchmark.train_stream}) == 6


# -- labels against pixels


def poses_of_labels(y):
    return torch.stack([y[:, 0], y[:, 1], torch.atan2(y[:, 2], y[:, 3])], dim=1).double().numpy()


def test_the_labels_are_what_the_pixels_show(benchmark):
    """The bounding box of the object's projected vertices, in the pose that the label says, against its pixels."""
    errors = []
    for experience in experiences(benchmark):
        mesh = scene.fitted(clean(solid(experience.view.object), ""), experience.view.extent)
        x, y = data(experience)
        red, green, blue = x.permute(1, 0, 2, 3).int()
        # The object alone is a warm grey: the table is bluish, and in the dot's red green and blue are alike.
        masks = ((green > blue) & (green > 0.8 * red)).numpy()
        for mask, pose in zip(masks, poses_of_labels(y), strict=True):
            points, _ = experience.view.camera.project(scene.placed(mesh.vertices, pose), 48)
            rows, columns = np.nonzero(mask)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            errors.append(np.abs(seen - np.concatenate([points.min(axis=0), points.max(axis=0)])).max())
    assert np.median(errors) < 1
    assert np.quantile(errors, 0.9) < 2


def test_every_image_is_the_rendering_of_its_label(benchmark):
    for experience in experiences(benchmark):
        mesh = scene.fitted(clean(solid(experience.view.object), ""), experience.view.extent)
        x, y = data(experience)
        again = zbuffer.render(mesh, experience.view.camera, poses_of_labels(y), 48)
        # labels are rounded to 32 bits, which moves few samples
        assert np.abs(again.astype(int) - x.numpy()).mean() < 0.05
        assert torch.allclose(y[:, 2] ** 2 + y[:, 3] ** 2, torch.ones(len(y)), atol=1e-6)


def test_the_red_dot_is_in_the_tables_corner(benchmark):
    errors = []
    for experience in benchmark.train_stream:
        x, _ = data(experience)
        red, green, blue = x.median(dim=0).values.double()  # of the round's pictures: the object is gone
        redness = (red - green - blue).clamp(min=0)
        middle = torch.arange(48) + 0.5
        seen = [float((redness.sum(axis) * middle).sum() / redness.sum()) for axis in (0, 1)]
        expected, _ = experience.view.camera.project(np.array([0.9, 0.9, 0.0]), 48)
        errors.append(np.hypot(*(np.array(seen) - expected)))
    assert np.median(errors) < 0.4
    assert max(errors) < 1


# -- seeds


def test_one_seed_one_stream(benchmark, tmp_path):
    before = torch.get_rng_state()
    again = ObjectPose(cache=tmp_path, **SMALL)  # rendered anew
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(again) == fingerprint(benchmark)
    assert _view(0, "car/01", 0) != _view(1, "car/01", 0)
    assert not np.isin(*(object_pose._poses(seed, "car/01", 0, "train", 9) for seed in (0, 1))).any()
    assert _tasks(0, SOLIDS) != _tasks(1, SOLIDS)
    other = ObjectPose(seed=1, **SMALL)
    for a, b in zip(benchmark.train_stream, other.train_stream, strict=True):
        assert a.view.camera != b.view.camera
        assert not torch.isin(a.poses, b.poses).any()
        assert not torch.equal(data(a)[0], data(b)[0])
    assert [e.view.object for e in benchmark.train_stream] != [e.view.object for e in other.train_stream]


def test_other_sizes_change_nothing_else(benchmark):
    short = ObjectPose(rounds=2, images_per_round=5, held_out_per_round=2, image_size=48)
    for a, b in zip(experiences(short), [*benchmark.train_stream][:2] + [*benchmark.test_stream][:2], strict=True):
        assert a.view == b.view
        n = len(a.stacked)
        assert all(torch.equal(p, q[:n]) for p, q in zip(data(a), data(b), strict=True))


def test_images_are_stored_once_as_bytes(benchmark):
    bases = {id(e.stacked.x) for e in experiences(benchmark)}
    assert len(bases) == 1
    assert benchmark.train_stream[0].stacked.x.untyped_storage().nbytes() == 6 * 16 * 3 * 48**2
    rows = torch.cat([e.stacked.rows for e in experiences(benchmark)])
    assert len(rows.unique()) == len(rows) == 6 * 16


# -- the cache


def counting(monkeypatch):
    """The number of tasks of every call that renders."""
    calls = []
    monkeypatch.setattr(
        object_pose, "render_tasks", lambda tasks: (calls.append(len(tasks)), workers.render_tasks(tasks))
    )
    return calls


def test_a_second_start_reads_the_cache_and_a_damaged_file_is_made_again(benchmark, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    first = fingerprint(ObjectPose(cache=tmp_path, **SMALL))
    assert fingerprint(ObjectPose(cache=tmp_path, **SMALL)) == first
    assert calls == [6, 0]
    files = sorted((tmp_path / "pose").iterdir())
    assert len(files) == 6
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[:2000] + b"damage" + whole[2006:])
    files[4].unlink()
    assert fingerprint(ObjectPose(cache=tmp_path, **SMALL)) == first
    assert calls == [6, 0, 2]
    assert sorted((tmp_path / "pose").iterdir()) == files


def test_prepare_renders_what_is_lacking_and_reads_nothing(tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    ObjectPose.prepare(cache=tmp_path, **SMALL)
    monkeypatch.setattr(object_pose, "load", None)
    ObjectPose.prepare(cache=tmp_path, **SMALL)
    assert calls == [6, 0]
    prepared, built = (inspect.signature(of).parameters for of in (ObjectPose.prepare, ObjectPose))
    assert prepared == built  # else it would render what no benchmark reads


# -- CAD models


@pytest.fixture(scope="session")
def cad(tmp_path_factory):
    """A data folder with an archive of fifty models, which are our solids under the names of the CAD models."""
    root = tmp_path_factory.mktemp("data")
    (root / "pascal3d").mkdir()
    with tarfile.open(root / "pascal3d" / "CAD.tar.xz", "w:xz", preset=0) as tar:
        for name, source in zip(PASCAL3D_OBJECTS, SOLIDS, strict=True):
            content = off(solid(source))
            member = tarfile.TarInfo(f"CAD/{name}.off")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return root


def off(mesh):
    lines = [f"OFF\n{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += [" ".join(map(str, vertex)) for vertex in mesh.vertices.tolist()]
    lines += ["3 " + " ".join(map(str, face)) for face in mesh.faces.tolist()]
    return "\n".join(lines).encode()


def test_cad_models_are_read_in_place(cad):
    benchmark = ObjectPose(objects="pascal3d", root=cad, **SMALL)
    source = dict(zip(PASCAL3D_OBJECTS, SOLIDS, strict=True))
    experience = benchmark.train_stream[3]
    mesh = scene.fitted(clean(solid(source[experience.view.object]), ""), experience.view.extent)
    expected = zbuffer.render(mesh, experience.view.camera, experience.poses.numpy(), 48)
    assert np.array_equal(data(experience)[0].numpy(), expected)
    assert [path.name for path in (cad / "pascal3d").iterdir()] == ["CAD.tar.xz"]


def test_missing_and_bad_models_are_one_line(cad, tmp_path):
    with pytest.raises(UsageError, match=r"the CAD models of PASCAL3D\+ are not in .* need no files"):
        ObjectPose(objects="pascal3d", root=tmp_path, **SMALL)
    with tarfile.open(cad / "pascal3d" / "CAD.tar.xz") as tar:
        tar.extractall(tmp_path / "pascal3d", filter="data")
    name = ObjectPose(objects="pascal3d", root=cad, **SMALL).train_stream[0].view.object
    file = tmp_path / "pascal3d" / "CAD" / f"{name}.off"
    for content, message in (
        (file.read_bytes()[:-9], f"mesh {name} is damaged"),
        (b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", f"mesh {name} has no faces"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=message) as error:
            ObjectPose(objects="pascal3d", root=tmp_path, **SMALL)
        assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(UsageError, match=rf"lacks 1 of 6 models \({name}\)"):
        ObjectPose(objects="pascal3d", root=tmp_path, **SMALL)


# -- renderers


def test_the_renderer_is_named_and_never_chosen_by_what_is_there(benchmark):
    assert benchmark.renderer.startswith("zbuffer, numpy ")
    with pytest.raises(UsageError, match="unknown renderer 'mujocco': did you mean 'mujoco'"):
        ObjectPose(renderer="mujocco")


def test_a_renderer_that_cannot_draw_is_refused(monkeypatch):
    def cannot(name):
        raise UsageError("MuJoCo cannot open a context to draw in")

    monkeypatch.setattr(object_pose, "version_of", cannot)
    with pytest.raises(UsageError, match="MuJoCo cannot open a context"):
        ObjectPose(renderer="mujoco", **SMALL)


def test_another_renderer_has_pictures_of_its_own(benchmark):
    try:
        other = ObjectPose(renderer="mujoco", **SMALL)
    except UsageError as error:
        pytest.skip(f"{error} (the tests need libosmesa6 and the extra 'mujoco')")
    assert other.renderer.startswith("mujoco ")
    for a, b in zip(experiences(benchmark), experiences(other), strict=True):
        assert a.view == b.view
        assert torch.equal(data(a)[1], data(b)[1])
        difference = (data(a)[0].int() - data(b)[0].int()).abs().double()
        assert 0 < difference.mean() < 2
    assert fingerprint(ObjectPose(renderer="mujoco", **SMALL)) == fingerprint(other)


def test_a_cell_prepares_all_seeds_and_records_the_renderer(tmp_path, monkeypatch):
    entry = {
        "benchmark": "ObjectPose",
        "settings": {"rounds": 1, "images_per_round": 12, "held_out_per_round": 3, "image_size": 32},
        "model": {"name": "PoseNet", "filters": 2, "hidden": 4, "image_size": 32},
        "arrivals": 12,
        "checkpoints": [12],
        "threshold": ["loss", 0.05],
        "steps": 1,
        "optimizer": {"name": "Adam", "lr": 0.001},
        "strategies": {"FTML": {"meta_batch_size": 2}},
    }
    definition = from_dict({"name": "tiny", "seeds": [3, 4], "benchmarks": {"pose": entry}}, "tiny")
    calls = counting(monkeypatch)
    cells.check(definition, None)
    assert calls == [1, 1, 0]  # both seeds, then the first is read
    assert cells.run_cell(definition, Cell("pose", "FTML", 4), tmp_path, None, lambda *_: None) == "finished"
    written = record.read(tmp_path).record
    assert written["engine"] in ("native", "batched")
    assert written["protocol"]["renderer"].startswith("zbuffer, numpy")
    assert written["protocol"]["benchmark_settings"] == {
        "rounds": 1,
        "images_per_round": 12,
        "held_out_per_round": 3,
        "image_size": 32,
        "objects": "solids",
        "renderer": "zbuffer",
    }


# -- the rest


def test_labels_and_sheet_for_people(benchmark, tmp_path):
    assert benchmark.label_text(torch.tensor([0.25, -0.5, 1.0, 0.0])) == "0.2 -0.5 90°"
    contact_sheet(benchmark, tmp_path / "sheet.png", rounds=2, images=3)
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert str(benchmark.train_stream[0].view).startswith(benchmark.train_stream[0].view.object)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 91}, "rounds 91: expected 1 or more, 90 at most"),
        ({"images_per_round": 0}, "images_per_round 0: expected 1 or more"),
        ({"held_out_per_round": -1}, "held_out_per_round -1: expected 1 or more"),
        ({"image_size": 16}, "image_size 16: expected 32 or more, 256 at most"),
        ({"seed": 0.5}, "seed 0.5: expected a whole number"),
        ({"objects": "solid"}, "unknown set of objects 'solid': did you mean 'solids'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_rendered(arguments, message, monkeypatch):
    monkeypatch.setattr(object_pose, "version_of", None)
    with pytest.raises(UsageError, match=f"^{message}"):
        ObjectPose(**arguments)
