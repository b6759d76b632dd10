"""The table of a comparison as plain text, for a terminal of 120 columns or more."""

HEAD = ("row", "steps", "seconds", "fastest-slowest", "speed-up", "GFLOP", "share", "peak MiB", "LPIPS", "PSNR", "SSIM",
        "match", "blocks x steps")


def table(rows):
    """Rows -> text, one aligned line per row; below it, why a figure is missing."""
    cells = [HEAD, *map(line, rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    widths[0] *= -1  # a negative width aligns left
    lines = ["  ".join("%*s" % pair for pair in zip(widths, each)) for each in cells]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(part.rstrip() for part in lines + list(dict.fromkeys(notes(rows))))


def line(row):
    """The cells of one row; "-" where there is nothing."""
    if row.seconds is None:
        return (row.stack, str(row.steps), *["-"] * (len(HEAD) - 2))
    speedup = f"{row.speedup:.2f}x" if row.speedup else "not applied"
    acted = ", ".join(f"{blocks} x {steps}" for blocks, steps in row.acted.values())
    told = [value(row.metrics[name], digits) for name, digits in (("lpips", 4), ("psnr", 2), ("ssim", 4), ("match", 2))]
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
    return (row.stack, str(row.steps), f"{row.seconds:.3f}", f"{row.spread[0]:.3f}-{row.spread[1]:.3f}", speedup,
            f"{row.flops / 1e9:.1f}", f"{100 * row.flops_share:.1f} %", peak, *told, acted or "-")


def value(figure, digits):
    return f"{figure:.{digits}f}" if isinstance(figure, float) else "-"


def notes(rows):
    """Which LPIPS it is, then errors and reasons."""
    for row in rows:
        if row.error:
            yield f"{row.stack}: {row.error}"
        elif isinstance(row.metrics.get("lpips"), float):
            yield f"{row.lpips_name}: closeness to the full model's picture, not quality."
    for row in rows:
        for name, reason in row.metrics.items():
            if isinstance(reason, str):
                yield f"No {name}: {reason}"
