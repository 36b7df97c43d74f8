"""`ftml-bench check`: a line a contract, exit codes."""

import pytest

from ftml_bench.cli import main
from tests.check.test_benchmarks import Seedless


def test_the_command_prints_a_line_a_contract(capsys):
    assert main(["check", "SinusoidMLP", "--benchmark", "Sinusoids", "--set", "hidden=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11].strip() for line in lines] == ["holds"] * 5 + ["not tested", "holds", "holds"]
    assert lines[5] == "not tested  batch norm can be converted: it has no batch norm"


def test_a_broken_contract_is_named_and_the_exit_code_is_1(capsys):
    assert main(["check", f"{Seedless.__module__}:Seedless"]) == 1
    out = capsys.readouterr().out
    assert "broken      another seed, another stream: seed=1 makes the same stream as seed=0" in out
    assert out.count("broken") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FTLM"], "unknown strategy, benchmark or model 'FTLM': did you mean 'FTML'"),
        (["fractions:Fraction"], "fractions:Fraction is no strategy (SupervisedTemplate), benchmark (CLScenario) or"),
        (["no_such:Thing"], "cannot import no_such"),
        (
            ["FTML", "--set", "meta_batch=3"],
            "unknown setting of RainbowDigits: FTML 'meta_batch': did you mean 'meta_batch_size'",
        ),
        (["Sinusoids", "--set", "round=3"], "unknown setting of Sinusoids 'round': did you mean 'rounds'"),
        (["FTML", "--set", "inner_lrr=3"], "'inner_lrr': did you mean 'inner_lr'"),
        (
            ["FTML", "--benchmark", "os:getcwd"],
            "os:getcwd: it takes no 'seed', which it is always given",
        ),
        (["FTML", "--benchmark", "builtins:dict"], "builtins:dict: expected a class with a signature, got"),
        (["RainbowNet", "--benchmark", "os:getcwd"], "os:getcwd: it takes no 'seed', which it is always given"),
        (["RainbowNet", "--benchmark", "builtins:dict"], "builtins:dict: expected a class with a signature, got"),
        (["FTML", "--benchmark", "Sinusoid"], "unknown benchmark 'Sinusoid': did you mean 'Sinusoids'"),
    ],
)
def test_errors_of_use_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
