"""Generation: engine, sampling, streaming, answers checked against their passages."""
