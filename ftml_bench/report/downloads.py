"""The data of a report as a link that holds them."""

from __future__ import annotations

import base64
import csv
import io
import zipfile
from dataclasses import astuple

import yaml

from ftml_bench.report.contents import Contents

COLUMNS = ("benchmark", "row", "seed", "round", "evaluated_round", "datapoints", "loss", "accuracy", "steps",
           "gradient_evaluations")  # fmt: skip


PREFIX = "data:application/zip;base64,"


def address(contents: Contents) -> str:
    """An address that holds `texts` as an archive."""
    return PREFIX + base64.b64encode(zipped(texts(contents))).decode()


def texts(contents: Contents) -> dict[str, str]:
    """All data of a report, by name of a file: definition, tables, every evaluation."""
    definition = yaml.safe_dump(contents.definition.to_dict(), sort_keys=False, allow_unicode=True)
    return {
        "leaderboard.yaml": definition,
        "leaderboard.csv": contents.csv(),
        "seeds.csv": contents.seeds_csv(),
        "curves.csv": curves(contents),
    }


def curves(contents: Contents) -> str:
    """Every evaluation of every run that has ended, numbers as recorded; rounds count from 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell, run in contents.runs:
        for line in run.curve if run.ended else ():
            round, evaluated, *values = astuple(line)
            known = ["" if value is None else repr(value) for value in values]
            writer.writerow([cell.benchmark, cell.row, cell.seed, round + 1, evaluated + 1, *known])
    return text.getvalue()


def zipped(files: dict[str, str]) -> bytes:
    """An archive of files by name. The same files give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            # of the year 1980, so that the clock changes no byte
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED, compresslevel=9)
    return file.getvalue()
