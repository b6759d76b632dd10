"""Measures the lessons on this machine and writes assets/lessons: python -m fastviz.lessons [LESSON ...]"""

import argparse
import sys

from . import BY_KEY, shipped


def main(argv=None):
    """Returns the exit code. All lessons, or those that are named."""
    parser = argparse.ArgumentParser(prog=shipped.COMMAND, description="Measure the lessons on this machine.")
    parser.add_argument("lesson", nargs="*", help=f"{', '.join(BY_KEY)}; all by default")
    parser.add_argument("--repeats", type=int, default=None, help="timed runs per row")
    args = parser.parse_args(argv)
    if unknown := set(args.lesson) - set(BY_KEY):
        parser.error(f"there is no lesson {', '.join(sorted(unknown))}: choose from {', '.join(BY_KEY)}")
    from .make import REPEATS, measure

    for key in args.lesson or BY_KEY:
        measure(BY_KEY[key], args.repeats or REPEATS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
