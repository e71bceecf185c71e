"""Time rounds, and compare with the machine's peak and with other libraries."""
