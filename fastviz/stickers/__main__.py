"""Command line of the embedded model's making: one command per stage, each resumable."""

import argparse


def main():
    parser = argparse.ArgumentParser(prog="python -m fastviz.stickers", description=__doc__)
    commands = parser.add_subparsers(dest="stage", required=True)
    stage = commands.add_parser("autoencoder", help="train the autoencoder")
    stage.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    if args.stage == "autoencoder":
        from . import autoencoder
        autoencoder.fit(args.minutes)


if __name__ == "__main__":
    main()
