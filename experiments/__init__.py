"""Commands and configs of experiments."""
