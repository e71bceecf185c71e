"""One page that shows what happened in runs or in a comparison."""
