"""A choice of settings sees what was known at its cut-off, and nothing else; every candidate is counted."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_models import task

from mltrader import boosting, forest, tuning
from mltrader.config import ForestSettings, Settings
from mltrader.core import PROBABILITIES, DataError
from mltrader.splits import log_loss_rows
from mltrader.tuning import REFIT, choose

NAMES = ["default", "one", "two"]


def history(seed: int, n_years: int = 6, horizon: int = 14, wait: bool = True):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2010-01-01", f"{2009 + n_years}-12-31").as_unit("us")
    samples = pd.DataFrame({"session": days[: -horizon - 1], "label_known_at": days[horizon + 1:] if wait else days[: -horizon - 1]})
    losses = pd.DataFrame({"row": samples.index, "fold": samples["session"].dt.year})
    drift = rng.normal(0, 0.1, (n_years, 3))[losses["fold"].to_numpy() - 2010]
    losses[NAMES] = 0.8 + drift + rng.normal(0, 0.1, (len(losses), 3))
    years = np.arange(2010, 2010 + n_years)
    folds = pd.DataFrame({"fold": years, "cutoff": [days[days.year < year].max() if year > 2010 else days[0] for year in years]})
    return losses, samples, folds, days[-1]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_choice_is_the_least_mean_of_what_was_known(seed, min_folds):
    losses, samples, folds, as_of = history(seed)
    chosen = choose(losses, NAMES, samples, folds, as_of, min_folds)
    known_at, year = samples["label_known_at"].tolist(), losses["fold"].tolist()
    values = {name: losses[name].tolist() for name in NAMES}
    for fold, cutoff in [*folds.itertuples(index=False, name=None), (REFIT, as_of)]:
        known = [i for i in range(len(losses)) if known_at[i] <= cutoff]                             # row by row, as a reader would
        years = {year[i] for i in known}
        means = [sum(values[name][i] for i in known) / len(known) if known else 0.0 for name in NAMES]
        expected = NAMES[0] if len(years) < min_folds else NAMES[int(np.argmin(np.round(means, 12)))]
        assert chosen[fold] == expected
    assert set(chosen) == {*folds["fold"], REFIT}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.floats(-5, 5))
def test_nothing_known_later_can_change_a_choice(seed, at, shock):
    """Red team: every loss whose label was not yet known at a cut-off is replaced; choices up to that cut-off stay."""
    losses, samples, folds, as_of = history(seed)
    cutoff = folds["cutoff"].iloc[at]
    late = (samples["label_known_at"] > cutoff).to_numpy()
    shocked = losses.assign(one=np.where(late, losses["one"] + shock, losses["one"]), two=np.where(late, np.random.default_rng(seed).permutation(losses["two"]), losses["two"]))
    before, after = (choose(frame, NAMES, samples, folds, as_of, 1) for frame in (losses, shocked))
    past = folds.loc[folds["cutoff"] <= cutoff, "fold"]
    assert [before[fold] for fold in past] == [after[fold] for fold in past]


def test_the_best_in_hindsight_is_not_chosen_before_it_is_best():
    losses, samples, folds, as_of = history(0)
    losses["one"], losses["two"] = losses["default"] + 0.05, losses["default"] + 0.01 - 2.0 * (losses["fold"] == 2015)
    assert losses[NAMES].mean().idxmin() == "two"                          # in hindsight, by far
    chosen = choose(losses, NAMES, samples, folds, as_of, 1)
    assert [chosen[year] for year in range(2010, 2016)] == ["default"] * 6 and chosen[REFIT] == "two"


def test_a_choice_that_does_not_wait_for_labels_is_told_apart():
    """Were the last weeks' labels taken as known at the year's end, the choice would be another: the test would see such a leak."""
    losses, samples, folds, as_of = history(1)
    last = (samples["session"].dt.year == 2012) & (samples["label_known_at"] > folds["cutoff"][3])
    losses["one"] = losses["default"] + 0.01 - 3.0 * last.to_numpy()
    honest = choose(losses, NAMES[:2], samples, folds, as_of, 1)
    hasty = choose(losses, NAMES[:2], samples.assign(label_known_at=samples["session"]), folds, as_of, 1)
    assert honest[2013] == "default" and hasty[2013] == "one"


GRID = Settings(forest={"n_estimators": 8}, boosting={"rounds": 8, "learning_rate": 0.3, "min_child_weight": 1.0, "max_samples": 1.0},
                tuning={"forest": [{"min_samples_leaf": 60}, {"max_features": 1.0}], "boosting": [{"max_depth": 1}, {"learning_rate": 1e-3}], "min_folds": 1})


@pytest.mark.parametrize("module", [forest, boosting], ids=["forest", "boosting"])
def test_a_component_with_candidates(module):
    inputs, as_of = task()
    name = module.__name__.split(".")[-1]
    output = module.run(inputs, GRID, as_of)
    alone = {label: module.run(inputs, Settings(**{name: section.model_dump()}), as_of)
             for label, section in tuning.variants(getattr(GRID, name), getattr(GRID.tuning, name)).items()}
    chosen, samples = output.documents["tuning"]["chosen"], inputs["memory"]["samples"]
    for fold in (2016, 2017):
        mine, theirs = (out.frames["out_of_fold"].set_index("fold").loc[fold] for out in (output, alone[chosen[str(fold)]]))
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert output.models["model"].content_digest() == alone[chosen["-1"]].models["model"].content_digest()
    assert output.models["last_fold"].content_digest() == alone[chosen["2017"]].models["last_fold"].content_digest()
    losses = {label: log_loss_rows(samples["label"].to_numpy()[out.frames["out_of_fold"]["row"]], out.frames["out_of_fold"][list(PROBABILITIES)]) for label, out in alone.items()}
    assert min(losses, key=lambda label: losses[label].mean()) == chosen["-1"]      # all labels but the last are known at `as_of`
    by_session, trials = output.frames["candidate_losses"], output.rows["trials"]
    assert list(by_session.columns) == ["session", "n_rows", *alone] and by_session["session"].is_monotonic_increasing
    assert len(trials) == 3 and len({row["recipe_digest"] for row in trials}) == 3 and {row["window_end"] for row in trials} == {as_of.date()}
    for row, label in zip(trials, alone, strict=True):
        assert np.isclose(row["score"], losses[label].mean())
        assert np.isclose(np.average(by_session[label], weights=by_session["n_rows"]), losses[label].mean())
    assert (output.frames["candidates"].groupby("fold")["chosen"].sum() == 1).all()
    again = module.run(inputs, GRID.model_copy(update={"run": GRID.run.model_copy(update={"seed": 9})}), as_of)
    assert [row["recipe_digest"] for row in again.rows["trials"]] == [row["recipe_digest"] for row in trials]   # another seed is no other trial


def test_the_first_fold_has_nothing_to_choose_from():
    inputs, as_of = task()
    output = forest.run(inputs, GRID, as_of)
    assert output.documents["tuning"]["chosen"]["2016"] == "default"


def test_candidates_with_error_replay():
    inputs, as_of = task()
    inputs["features"] = {"feature_set": {"version": "v"}}
    inputs["memory"]["samples"] = inputs["memory"]["samples"].assign(regime="normal")[[*inputs["memory"]["samples"].columns[:2], "regime", *inputs["memory"]["samples"].columns[2:]]]
    output = forest.run(inputs, GRID.model_copy(update={"replay": GRID.replay.model_copy(update={"mode": "errors"})}), as_of)
    assert len(output.rows["trials"]) == 3 and "replayed" in output.frames


def test_what_is_no_candidate_is_refused():
    with pytest.raises(ValidationError, match="n_trees"):
        Settings(tuning={"forest": [{"n_trees": 5}]})
    with pytest.raises(ValidationError, match="min_samples_leaf"):
        Settings(tuning={"forest": [{"min_samples_leaf": 0}]})
    assert list(tuning.variants(ForestSettings(), [])) == ["default"]
    losses, samples, folds, as_of = history(0)
    with pytest.raises(DataError, match="no cut-off"):
        choose(losses, NAMES, samples, folds.iloc[1:], as_of, 1)
