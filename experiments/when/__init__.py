"""When does gradient alignment pay? A map over data and ways to train."""
