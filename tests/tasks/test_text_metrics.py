"""ROUGE-L and exact match against values of the package rouge-score 0.1.2 and by hand."""

import pytest

from pflalign_jax.tasks.text_metrics import exact_match, rouge_l

# RougeScorer(["rougeL"], use_stemmer=False).score(reference, text)["rougeL"].fmeasure
ROUGE = [
    (
        "The quick brown fox jumps over the lazy dog.",
        "A quick brown dog jumped over the lazy fox!",
        0.5555555555555556,
    ),
    ("the cat the cat sat", "the cat sat the mat", 0.6),
    ("Paris", "The capital of France is Paris.", 0.2857142857142857),
    ("3.14 is pi; e is 2.718", "pi is 3.14, and e is 2.718", 0.7058823529411765),
    ("naïve café", "naive cafe", 0.0),
    ("don't stop_now", "do not stop now", 0.5),
    ("", "something", 0.0),
]


@pytest.mark.parametrize(("text", "reference", "value"), ROUGE)
def test_rouge_l_is_that_of_rouge_score(text, reference, value):
    assert rouge_l(text, reference) == pytest.approx(value, rel=1e-12)


def test_rouge_l_by_hand():
    # "a c d" is common: precision 3/4, recall 3/5.
    assert rouge_l("a x c d", "a b c d e") == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert rouge_l("b a", "a b") == 0.5  # order counts
    assert rouge_l("A, B!", "a b") == 1 and rouge_l("a", "b") == rouge_l("", "") == 0


def test_exact_match():
    assert exact_match(" Paris\n", "Paris") and exact_match("New  York", "New York")
    assert not exact_match("paris", "Paris") and not exact_match("Paris.", "Paris")
    assert not exact_match("New York", "NewYork")
