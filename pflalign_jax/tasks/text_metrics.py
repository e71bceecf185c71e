"""Metrics of generated texts, as plain functions of one text and one reference."""

import re

WORD = re.compile(r"[a-z0-9]+")
"""A word of `rouge_l`: letters a-z and digits, in lower case. Other letters separate words."""


def exact_match(text: str, reference: str) -> bool:
    r"""Tell whether a text is the reference, but for spaces and line ends around and between words.

    >>> exact_match(" the  answer\n", "the answer"), exact_match("The answer", "the answer")
    (True, False)
    """
    return text.split() == reference.split()


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L, the F1 of the longest common subsequence of words, in [0, 1].

    With n words of the text, m of the reference and L in their longest common subsequence,
    ``2 L / (n + m)``: the harmonic mean of precision L / n and recall L / m. 0 if there is no
    common word, also if both are empty. Words are those of the package ``rouge-score`` without
    stemming (`WORD`), so that values are comparable to its ``rougeL``.

    References:
      Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop, 2004, section 3.

    >>> rouge_l("The cat sat.", "the black cat")  # "the cat": 2 * 2 / (3 + 3)
    0.6666666666666666
    """
    words, others = WORD.findall(text.lower()), WORD.findall(reference.lower())
    common = _longest_common(words, others)
    return 2 * common / (len(words) + len(others)) if common else 0.0


def _longest_common(a: list[str], b: list[str]) -> int:
    """Return the length of the longest common subsequence of two lists."""
    # best[j]: of the words of a so far and the first j of b.
    best = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, best[j] = (
                best[j],
                diagonal + 1 if word == other else max(best[j], best[j - 1]),
            )
    return best[-1]
