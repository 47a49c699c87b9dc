"""(being written)"""


def spread_context(model, group):
    raise NotImplementedError
