"""Config, errors, devices, distributed facts, files, logging, seeds, protocols: what every floor stands on."""
