"""What can be wrong with a comparison."""

from pflalign_jax.errors import UserError


class AgreementError(UserError):
    """A comparison that cannot be made; the message says why and what to do."""
