"""The leaderboards that come with the package: budgets that are equal, rows that a comparison needs."""

from ftml_bench.runs import definition as definitions


def test_packaged_leaderboards_are_sound():
    for name, description in definitions.available().items():
        leaderboard = definitions.load(name)
        folder, _, last = name.rpartition("/")
        assert leaderboard.name == last
        assert description
        for spec in leaderboard.benchmarks if folder != "ablations" else ():  # which ask what other budgets do
            # Avalanche's own draw what they can: recorded, not equalised.
            ours = [row for row in spec.rows if ":" not in row.strategy]
            if spec.name.endswith(" evaluations"):
                evaluations = [evaluations_of_a_step(row) for row in ours]
                assert max(evaluations) < 1.02 * min(evaluations), spec.name
            elif name == "rainbow_mnist_authors":  # whose joint learners see the query's half alone
                assert [images_of_a_step(row) for row in ours] == [100, 50, 50, 50]
            else:
                assert len({images_of_a_step(row) for row in ours}) == 1, spec.name


def sizes_of(row):
    """Tasks, support and query points of a meta-batch; of FTML-VS on average."""
    settings = {"meta_batch_size": 25, "support_size": 10, "query_size": 10, **row.settings}
    tasks, support, query = (settings[name] for name in ("meta_batch_size", "support_size", "query_size"))
    least = 2 if row.strategy == "FTMLVS" and support == 18 else 0  # on pictures, for the norm layers
    return tasks, (support + least) / 2 if row.strategy == "FTMLVS" else support, query


def images_of_a_step(row):
    """The same for every strategy; "all" of them where gradients are exact."""
    settings = row.settings
    if row.strategy in ("TrainOnEverything", "FromScratch", "FollowTheLeader"):
        # The rounds of linear regression have 20 points: from scratch, 20 are all of them.
        return "all" if settings.get("draw") == "all" or settings["train_mb_size"] == 20 else settings["train_mb_size"]
    tasks, support, query = sizes_of(row)
    if row.strategy == "TaskAverages" or tasks is None:
        return "all"
    return tasks * (support if row.strategy == "Reptile" else support + query)


def evaluations_of_a_step(row, inner_steps=5):
    """Gradient evaluations, by the table of docs/strategies.md."""
    if row.strategy in ("TrainOnEverything", "FromScratch", "FollowTheLeader"):
        return row.settings["train_mb_size"]
    tasks, support, query = sizes_of(row)
    inner = 2 * support * inner_steps
    if row.strategy == "Reptile" or row.settings.get("second_order") is False:
        inner = support * inner_steps
    if row.strategy == "IMAML":
        inner = support * (inner_steps + row.settings["cg_steps"] + 1)
    passes = {"Reptile": 0, "MAMLPlusPlus": inner_steps if "multi_loss_steps" in row.settings else 1}
    return tasks * (inner + query * passes.get(row.strategy, 1))


def test_the_cifar_leaderboards_hold_what_the_paper_compares():
    for name, heads in (("cifar100", 96), ("cifar100_cpu", 96), ("cifar100_small", 30)):
        (spec,) = definitions.load(name).benchmarks
        assert spec.row("FTML last layer").settings["adapted"] == "last_layer"
        assert spec.row("TrainOnEverything heads").model["heads"] == heads == spec.settings["rounds"]
        assert {row.strategy for row in spec.rows} == {"FTML", "TrainOnEverything", "FromScratch"}
        assert spec.threshold is None
    paper = definitions.load("cifar100").benchmark("cifar100")
    then = {"after_steps": 5000, "lr": 0.001}
    assert paper.row("FTML").optimizer == {"name": "SGD", "lr": 0.01, "momentum": 0.9, "then": then}
    assert paper.checkpoints == (50, 250, 2000)


def test_quick_shows_the_rows_that_decide_how_it_is_read():
    digits = definitions.load("quick").benchmark("digits")
    rules = [row.settings.get("batch_norm") for row in digits.rows if row.strategy == "TrainOnEverything"]
    assert rules == ["running", "support"]
    assert digits.row("FollowTheLeader").settings["batch_norm"] == "support"
    assert {row.strategy for row in digits.rows} >= {"FTML", "FromScratch"}
