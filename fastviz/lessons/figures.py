"""Figures of a lesson by name, such as `few.seconds`, read from rows as plain values, shipped ones and live ones alike."""

from statistics import median

# What texts may say of a row: name -> (kind, for how it reads; the value of a row beside the full model's)
MEASURES = {
    "seconds": ("seconds", lambda row, full: row["seconds"]),
    "fastest": ("seconds", lambda row, full: row["spread"][0]),
    "slowest": ("seconds", lambda row, full: row["spread"][1]),
    "step": ("seconds", lambda row, full: median(row["per_step"])),
    "text": ("seconds", lambda row, full: row["parts"]["text"]),
    "steps_seconds": ("seconds", lambda row, full: row["parts"]["denoising"]),
    "decoder": ("seconds", lambda row, full: row["parts"]["decoder"]),
    "denoising": ("share", lambda row, full: row["parts"]["denoising"] / row["seconds"]),
    "speedup": ("times", lambda row, full: row["speedup"]),
    "time": ("share", lambda row, full: row["seconds"] / full["seconds"]),
    "steps": ("count", lambda row, full: row["steps"]),
    "flops": ("flops", lambda row, full: row["flops"]),
    "flops_step": ("flops", lambda row, full: median(row["flops_per_step"])),
    "work": ("share", lambda row, full: row["flops_share"]),
    "saved": ("share", lambda row, full: 1 - row["flops_share"]),
    "lpips": ("lpips", lambda row, full: row["metrics"]["lpips"]),
    "psnr": ("decibel", lambda row, full: row["metrics"]["psnr"]),
    "match": ("share", lambda row, full: row["metrics"]["match"]),
}


def figure(rows, name):
    """(kind, value) of `row.measure`. rows: name -> row as plain values, as store.told_row makes them. None where it was
    not measured, such as of a row that failed or has not run yet."""
    row, _, measure = name.partition(".")
    kind, read = MEASURES[measure]
    if not rows.get(row) or rows[row]["seconds"] is None:
        return None
    value = read(rows[row], rows["full"])
    return (kind, value) if isinstance(value, (int, float)) else None


def figures(rows):
    """{"row.measure": [kind, value]} of everything that was measured."""
    found = {f"{name}.{measure}": figure(rows, f"{name}.{measure}") for name in rows for measure in MEASURES}
    return {name: list(told) for name, told in found.items() if told}


def answer(lesson, rows):
    """The right option by what was measured, or None while that does not tell."""
    def of(name):
        if (told := figure(rows, name)) is None:
            raise LookupError(name)
        return told[1]

    try:
        return lesson.answer(of)
    except LookupError:
        return None
