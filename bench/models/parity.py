"""Every family against its Hugging Face twin: the largest difference of every check of the contract suites.

    python bench/models/parity.py [--publish]

Runs tests/contracts over the tiny models with the function that measures a difference listening: a cell is the
largest over a family's variants, 0 where bits are compared, and a dash where the family owes no such check. The
bfloat16 column is our largest distance from float32 divided by theirs.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
import record  # noqa: E402

CHECKS = {
    "results": ("hugging_face_model_opens_here",),
    "saved, opened there": ("our_model_opens_there",),
    "gradients": ("gradients_are_theirs",),
    "bfloat16, ratio": ("bfloat16_within_its_rounding",),
    "cached": ("cached_is_uncached", "cached_rows"),
    "padding": ("padding_leaks_nothing",),
    "packed": ("packed_documents", "packed_pairs", "packed_batch"),
    "batch of one": ("batch_of_one",),
    "out and back": ("export_then_import", "shards_and_narrow"),
}
"""Column -> beginnings of the tests' names."""
PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())


class Listener:
    """A pytest plugin that notes what `gap` returned in each test, and which tests failed."""

    def __init__(self) -> None:
        self.gaps: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
        self.failed: list[str] = []
        self.here: list[float] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        from tests.contracts import kinds

        measure = kinds.gap

        def listening(left: Any, right: Any) -> float:
            self.here.append(measure(left, right))
            return self.here[-1]

        for module in {item.module for item in items if hasattr(item.module, "gap")}:
            module.gap = listening

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        self.here = []
        yield
        case = next((value for value in item.callspec.params.values() if hasattr(value, "variant")), None)
        if case is not None:
            name = item.originalname.removeprefix("test_")
            for column, starts in CHECKS.items():
                if name.startswith(starts):
                    self.gaps[case.name, column].append(self.here)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def cell(column: str, gaps: list[list[float]] | None) -> str:
    if gaps is None:
        return "-"
    if column == "bfloat16, ratio":  # each test asked for ours and for theirs in turn
        return f"{max(max(one[0::2]) / max(*one[1::2], 1e-9) for one in gaps):.2f}"
    largest = max((gap for one in gaps for gap in one), default=0.0)
    return "0" if largest == 0 else f"{largest:.0e}".replace("e-0", "e-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    listener = Listener()
    suites = [str(path) for path in sorted((ROOT / "tests" / "contracts").glob("test_*coder*.py"))]
    suites.append(str(ROOT / "tests" / "contracts" / "test_families.py"))
    pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", *suites], plugins=[listener])
    if listener.failed:
        raise SystemExit("These failed, and no table is made of a part: " + ", ".join(listener.failed))
    families = sorted({family for family, _ in listener.gaps})
    rows = [[f, *(cell(column, listener.gaps.get((f, column))) for column in CHECKS)] for f in families]
    lines = record.table(["family", *CHECKS], rows)
    print("\n".join(lines))
    if options.publish:
        found = [{"family": f, "check": c, "gaps": gaps} for (f, c), gaps in sorted(listener.gaps.items())]
        print(record.write("parity", PROTOCOL, found, {"families": len(families)}))
        record.publish_table("parity", lines)


if __name__ == "__main__":
    main()
