"""modelworks: raw data in, working model out."""
