"""`ftml-bench data`: what there is, and sheets of tasks."""

import pytest

from ftml_bench import cli


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_data_says_where_it_looks_and_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FTML_BENCH_DATA", str(tmp_path))
    assert cli.main(["data"]) == 0
    out = capsys.readouterr().out
    assert f"data are looked for in {tmp_path}" in out
    assert "MNIST is not in" in out


def test_data_that_were_asked_for_and_are_missing_are_an_error(capsys, tmp_path):
    assert cli.main(["data", "mnist", "--data", str(tmp_path)]) == 2
    assert "ftml-bench: error: MNIST is not in" in capsys.readouterr().err


def test_a_sheet_is_drawn(tmp_path):
    assert cli.main(["data", "Sinusoids", "--sheet", "s.png"]) == 0
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["thesis.png", "thesis.xyz", "thesis.tex", "thesis", "thesis.pdf"])
def test_no_sheet_takes_the_place_of_a_file_or_the_name_of_another_kind(name, refused, tmp_path):
    (tmp_path / "thesis.png").write_text("mine")
    said = "thesis.png exists: move it away" if name == "thesis.png" else f"a name that ends in .png, got {name}"
    assert said in refused("data", "Sinusoids", "--sheet", name)
