"""What commands share: flags, devices, the console, loggers, plots."""
