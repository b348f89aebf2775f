import numpy as np
import pytest
import torch

from mbrl.studies.fidelity.probes import (
    LEARNING_RATE,
    Course,
    Split,
    Targets,
    accuracy,
    classification_report,
    classify,
    macro_f1,
    network_classify,
    r2,
    ridge,
    small_network,
    weighted_f1,
)
from mbrl.studies.fidelity.readout import balanced_accuracy, luck, nuisance_report


def rng(seed=0):
    return np.random.default_rng(seed)


def split_of(features, train, validation):
    return Split(*np.split(np.asarray(features, np.float32), [train, train + validation]))


def targets_of(columns, train, validation, names=None):
    values = np.stack(columns, 1)
    names = names or tuple(f"v{i}" for i in range(values.shape[1]))
    return Targets(names, *np.split(values, [train, train + validation]))


def one_hot(values, classes):
    return np.eye(classes, dtype=np.float32)[values]


# -- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "guesses", "weighted", "macro"),
    [
        # class 0: 2 hits, 1 false alarm, 1 miss; class 1: one of each; class 2: never hit
        ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1], (3 * 4 / 6 + 2 * 2 / 5) / 6, (4 / 6 + 2 / 5) / 3),
        # class 9: one hit, three false alarms, weighted by the one label of four
        ([7, 7, 7, 9], [9, 9, 9, 9], 0.25 * 2 / 5, 0.5 * 2 / 5),
        # a class only guessed counts in the macro mean only
        ([1, 1], [1, 3], 2 / 3, 1 / 3),
    ],
)
def test_f1_by_hand(labels, guesses, weighted, macro):
    labels, guesses = np.array(labels), np.array(guesses)
    assert weighted_f1(labels, guesses) == pytest.approx(weighted)
    assert macro_f1(labels, guesses) == pytest.approx(macro)


def test_a_report_has_every_variable_and_means():
    columns = [np.array([1, 2, 1, 2]), np.array([3, 4, 4, 3]), np.array([7, 7, 8, 8])]
    targets = targets_of(columns, 0, 0, ("a", "b", "c"))
    guesses = np.array([[1, 3, 7], [2, 3, 7], [1, 3, 8], [2, 3, 8]])
    report = classification_report(targets, guesses, {"a": "small", "b": "agent", "c": "small"})
    means = {"small": 1.0, "agent": 0.5, "mean": 2.5 / 3, "across_categories": 0.75}
    assert report["accuracy"] == pytest.approx({"a": 1.0, "b": 0.5, "c": 1.0, **means})
    assert report["f1"]["b"] == pytest.approx(0.5 * 2 / 3)


# -- classifiers ----------------------------------------------------------------------------------


def test_a_step_is_that_of_a_linear_layer_under_adam():
    """The written-out gradient and optimiser against torch's, per variable; one batch an epoch."""
    features = rng().normal(size=(64, 5)).astype(np.float32)
    labels = np.stack([rng(1).integers(0, 3, 64), rng(2).integers(0, 4, 64)], 1)
    split = Split(features, features, features)
    ours = classify(split, Targets(("a", "b"), labels, labels, labels), rng(3), epochs=60)
    for variable, classes in ((0, 3), (1, 4)):
        layer = torch.nn.Linear(5, classes)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, eps=1e-5)
        x, y = torch.as_tensor(features), torch.as_tensor(labels[:, variable])
        course = Course(np.arange(classes))
        best, best_weights = -1.0, None
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                guess = layer(x).argmax(1)
            score = accuracy(y.numpy(), guess.numpy())
            if score > best:
                best, best_weights = score, guess.numpy()
            going = course.judge(score, layer.weight.detach())
            optimizer.param_groups[0]["lr"] = course.rate
            if not going:
                break
        assert (ours[:, variable] == best_weights).mean() > 0.98


def test_a_course_lowers_its_rate_on_a_plateau_and_stops_after_fifteen_epochs():
    course, weight = Course(np.arange(2)), torch.zeros(1)
    assert course.judge(0.5, weight + 1)
    for epoch in range(1, 15):
        assert course.judge(0.4, weight + 2)
        assert course.rate == pytest.approx(LEARNING_RATE * 0.2 ** (epoch // 6))
    assert not course.judge(0.5, weight + 3)  # as good is not better
    assert course.weight.tolist() == [1.0]


@pytest.mark.parametrize("reader", [classify, network_classify])
def test_a_label_that_training_never_had_is_missed_and_not_fatal(reader):
    split = Split(*(np.ones((n, 2), np.float32) for n in (8, 4, 3)))
    train, rest = np.array([[1, 2] * 4]).reshape(8, 1), np.array([[9], [1], [0], [2]])
    guesses = reader(split, Targets(("a",), train, rest, rest[:3]), rng(), epochs=2)
    assert set(guesses[:, 0].tolist()) <= {1, 2}


# -- regressions ----------------------------------------------------------------------------------


def test_r2_is_one_when_right_zero_for_the_mean_and_unknown_for_a_constant():
    target = np.array([[1.0, 4.0, 2.0], [3.0, 6.0, 2.0]])
    guess = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, 2.0]])
    scores = r2(target, guess)
    assert scores[:2].tolist() == [1.0, 0.0] and np.isnan(scores[2])
    constant = np.full((7, 1), 0.1)  # whose mean, summed up, is not quite 0.1
    assert np.isnan(r2(constant, constant + 1)).all()


def test_a_network_reads_what_is_not_linear():
    features = rng().normal(size=(3000, 2)).astype(np.float32)
    linear, product = features @ [0.0, 10.0] + 100, features[:, 0] * features[:, 1]
    split = split_of(features, 2400, 300)
    targets = targets_of([linear, product], 2400, 300)
    scores = r2(targets.test, ridge(split, targets))
    assert scores[0] > 0.9999 and scores[1] < 0.1
    assert r2(targets.test, small_network(split, targets, rng()))[1] > 0.9


def test_a_network_finds_a_label_that_no_linear_classifier_can():
    signs = rng().integers(0, 2, (4000, 2))
    unlike = 20 + 10 * (signs[:, 0] ^ signs[:, 1])  # 20 or 30
    split = split_of(2 * signs - 1, 3000, 500)
    targets = targets_of([unlike, signs[:, 0]], 3000, 500)
    linear = classify(split, targets, rng(), epochs=20)
    guesses = network_classify(split, targets, rng(), epochs=20)
    assert guesses.dtype == np.int64 and accuracy(targets.test[:, 0], guesses[:, 0]) == 1.0
    assert accuracy(targets.test[:, 1], guesses[:, 1]) == 1.0
    assert accuracy(targets.test[:, 1], linear[:, 1]) == 1.0
    assert accuracy(targets.test[:, 0], linear[:, 0]) < 0.8


@pytest.mark.parametrize("reader", [ridge, lambda *data: small_network(*data, rng())])
def test_a_feature_never_seen_in_training_does_not_explode(reader):
    features = rng().normal(size=(900, 4)).astype(np.float32)
    features[:, 3] = np.arange(900) >= 700
    split, targets = split_of(features, 600, 100), targets_of([features[:, 0] * 5], 600, 100)
    assert r2(targets.test, reader(split, targets))[0] > 0.5


# -- nuisances ------------------------------------------------------------------------------------


def test_a_texture_that_the_code_holds_is_found_and_one_that_it_does_not_is_luck():
    episodes = np.arange(4000) // 20
    texture, noise = rng().integers(0, 8, 200)[episodes], rng(1).integers(0, 4, 4000)
    targets = targets_of([texture, noise], 3000, 400, ("texture_id", "noise_id"))
    features = {
        "z": split_of(one_hot(texture, 8), 3000, 400),
        "h": split_of(rng(2).normal(size=(4000, 8)), 3000, 400),
    }
    report = nuisance_report(features, targets, episodes[3400:], rng())
    found = report["texture_id"]
    assert found["z"] == found["z_network"] == 1.0
    assert found["chance"] == 1 / 8 and found["values"] == 8 and found["episodes"] == 30
    assert found["h"] < found["luck"] < 0.5 and found["h_network"] < found["luck"]
    # noise is new in every row, so 600 rows leave luck less room than 30 episodes do
    assert report["noise_id"]["chance"] == 1 / 4
    assert 0.25 < report["noise_id"]["luck"] < 0.32
    assert max(report["noise_id"][one] for one in ("z", "h", "z_network", "h_network")) < 0.33


def test_balanced_accuracy_counts_every_class_alike():
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert balanced_accuracy(labels, np.zeros(6, int)) == 0.5  # however common 0 is
    assert balanced_accuracy(labels, np.array([0, 0, 0, 7, 1, 0])) == (3 / 4 + 1 / 2) / 2


def test_luck_deals_labels_to_episodes_where_they_last_and_to_rows_where_they_do_not():
    episodes, labels = np.repeat([3, 8], 50), np.repeat([0, 1], 50)
    # two episodes: half of all deals give each its own label back
    assert luck(labels, [labels], episodes, rng()) == 1.0
    assert luck(labels, [np.zeros(100, int)], episodes, rng()) == 0.5
    assert luck(labels, [labels], np.repeat([3, 8, 8, 9], 25), rng()) < 0.65
