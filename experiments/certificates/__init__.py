"""How small are the certificates of several methods? Tables over settings and seeds."""
