"""Parameters of every published preset, by our arithmetic, beside the published number.

    python bench/models/counts.py [--publish]

The published numbers stand, with their origin, in tests/recipes/planning/test_published.py, where CI holds us to
them. No model is built: tests/contracts shows that the arithmetic is the built model's count.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
import record  # noqa: E402

from modelworks.hub import presets  # noqa: E402
from modelworks.nn.arithmetic import active_parameters, parameters  # noqa: E402
from tests.recipes.planning.test_published import EXACT, ROUNDED, shape_of  # noqa: E402


def published(name: str) -> str:
    if name in EXACT:
        return f"{EXACT[name]:,}"
    return f"about {ROUNDED[name][0]:,.0f} million" if name in ROUNDED else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    rows = []
    for name, family in presets.presets().items():
        if name not in EXACT and name not in ROUNDED:
            continue
        shape = shape_of(name)
        active = f"{active_parameters(shape):,}" if shape.n_experts else ""
        difference = f"{parameters(shape) - EXACT[name]:,}" if name in EXACT else ""
        rows.append([f"`{name}`", family, f"{parameters(shape):,}", active, published(name), difference])
    lines = record.table(["preset", "family", "ours", "for a token", "published", "difference"], rows)
    print("\n".join(lines))
    print(f"{len(rows)} presets of {len(presets.presets())}; the others are our own small ones or never counted.")
    if options.publish:
        record.publish_table("counts", lines)


if __name__ == "__main__":
    main()
