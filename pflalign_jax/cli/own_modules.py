"""The flag of commands that load somebody's run."""

from absl import flags

MODULES = flags.DEFINE_list(
    "modules", [], "Modules of your own whose functions the run names and may call."
)
