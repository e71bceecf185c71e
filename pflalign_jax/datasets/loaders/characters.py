"""What classes of handwritten characters are called."""

import string

DIGITS = tuple(string.digits)
"""Digits, in the order of their labels."""

CHARACTERS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
"""Digits and letters, in the order of the labels of FEMNIST and of EMNIST by class."""

CHARACTERS_MERGED = (*CHARACTERS[:36], *"abdefghnqrt")
"""The same, without small letters that look like capital ones: the labels of EMNIST by merge."""
