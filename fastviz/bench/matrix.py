"""What the GPU benchmark measures, the most telling first, and the goals: ratios of its cells."""

from dataclasses import dataclass

from . import networks


@dataclass(frozen=True)
class Cell:
    """One measurement. lane: a stack as the command line takes it, a peer of lanes.PEERS, or one of lanes.SCHEDULERS; batch:
    pictures, 0 for the most that fit by the peak of the same cell with one."""
    network: str
    size: int
    lane: str = "full"
    steps: int = 50
    attention: str = "fused"
    how: str = "eager"
    batch: int = 1

    @property
    def key(self):
        return ", ".join((self.network, f"{self.size} px", self.lane, f"{self.steps} steps", self.attention, self.how,
                          f"batch {self.batch or 'most'}"))


TOME, STACKED = "tome(ratio=0.6)", "tome(share=true)+attention_reuse(keep=output)"
OUTPUT = "attention_reuse(keep=output)"


def cells():
    """All cells, the most telling first."""
    one, xl, sd = networks.ONE_STEP, ("SDXL", 1024), "SD 1.5"
    sizes = dict(zip(one, (512, 1024)))
    found = [Cell(name, sizes[name], steps=1, how=how) for how in ("expert", "eager") for name in one]
    found += [Cell(*xl, lane, attention=attention) for attention in ("materialised", "fused")
              for lane in ("full", "atedm", "atedm(finest=false)")]
    found += [Cell(sd, 512, lane, attention="materialised") for lane in ("full", TOME, "tomesd 0.6")]
    found += [Cell(sd, 2048, lane) for lane in ("full", TOME, "tomesd 0.6")]
    found += [Cell(sd, 512), Cell(sd, 512, "olss", 10)]
    found += [Cell(*xl, lane, 10) for lane in (OUTPUT, STACKED, "olss", STACKED + "+atedm")]
    found += [Cell(sd, size, lane) for size in (512, 768, 1024)
              for lane in ("full", "tome", "tome(share=true)", "tomesd 0.5")]
    found += [Cell(*xl, lane, how="expert") for lane in ("full", STACKED, "tome(share=true)", "atedm")]
    found += [Cell(sd, 1024, lane, how="expert") for lane in ("full", STACKED, "tome(share=true)")]
    found += [Cell(*xl, STACKED, 10, how="expert"), Cell(sd, 512, how="expert"), Cell(sd, 512, "olss", 10, how="expert")]
    found += [Cell(sd, 1024, lane, how="expert") for lane in ("attention_reuse", OUTPUT)]
    found += [Cell(sd, size, lane) for size in (512, 768, 1024) for lane in (
        "attention_reuse", OUTPUT, "pyramid broadcast 2", "DeepCache 3")]
    found += [Cell(*xl, lane) for lane in ("tome", "attention_reuse", OUTPUT, "pyramid broadcast 2", "DeepCache 3")]
    found += [Cell(sd, size, lane, attention="materialised") for size in (768, 1024)
              for lane in ("full", TOME, "tomesd 0.6", "attention_reuse")]
    found += [Cell("SDXL", 2048, lane) for lane in ("full", "tome", "atedm", OUTPUT)]
    found += [Cell(name, sizes[name], steps=1, how="expert", batch=0) for name in one]
    found += [Cell(*place, lane, batch=0) for place in ((sd, 512), xl)
              for lane in ("full", "tome", "attention_reuse", OUTPUT)]
    found += [Cell(sd, 512, lane, attention="materialised", batch=0) for lane in ("full", TOME, "tomesd 0.6")]
    found += [Cell(*xl, lane) for lane in ("tome(share=true)", "tomesd 0.5")] + [Cell("SDXL", 2048, "tomesd 0.5")]
    found += [Cell(*xl, lane, attention="materialised") for lane in ("tome", "tomesd 0.5", "attention_reuse")]
    found += [Cell(sd, 512, "attention_reuse", attention="materialised")]
    found += [Cell(*place, "few_step", 15, how=how) for how in ("eager", "expert") for place in ((sd, 512), xl)]
    found += [Cell(*place, lane, how="expert") for place in ((sd, 512), (sd, 768))
              for lane in ("full", "tome(share=true)", "attention_reuse", OUTPUT)]
    found += [Cell(*xl, lane, how="expert") for lane in ("attention_reuse", OUTPUT)]
    found += [Cell("SDXL", 2048, lane, how="expert") for lane in ("full", "tome(share=true)", "atedm", OUTPUT)]
    found += [Cell("SDXL", 2048, lane) for lane in ("pyramid broadcast 2", "DeepCache 3")] + [Cell(*xl, "atedm", batch=0)]
    found += [Cell(*place, lane, batch=0) for place in ((sd, 512), xl) for lane in ("tomesd 0.5", "pyramid broadcast 2", "DeepCache 3")]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Goal:
    """A ratio of two cells of one run, or, with no cell below, pictures a second. figure: "seconds" or "peak"."""
    what: str
    least: float
    above: Cell
    below: Cell = None
    figure: str = "seconds"

    @property
    def ours(self):
        """The cell that is to be fast or small."""
        return self.below or self.above

    def calls(self, known):
        """The numbers of the calls that measured its cells; a ratio is of one run only where that is one."""
        rows = (known.get(cell.key, {}) for cell in (self.above, self.below) if cell)
        return sorted({row["call"] for row in rows if "call" in row})

    def missed(self, known):
        """Whether it was measured and not reached."""
        value = self.value(known)
        return value is not None and value < self.least

    def value(self, known):
        """None where it was not measured."""
        top, bottom = (known.get(cell.key, {}) if cell else None for cell in (self.above, self.below))
        if bottom is None:
            return top.get("images_per_second")
        return top[self.figure] / bottom[self.figure] if top.get(self.figure) and bottom.get(self.figure) else None


def goals():
    xl, sd = ("SDXL", 1024), "SD 1.5"
    found = [Goal(f"{name} images/s", least, Cell(name, size, steps=1, how="expert"))
             for name, size, least in zip(networks.ONE_STEP, (512, 1024), (100, 30))]
    for attention, least in (("materialised", 1.53), ("fused", 1.18)):
        found += [Goal(f"SDXL 1024 px {attention}: full / {lane}", least, Cell(*xl, attention=attention),
                       Cell(*xl, lane, attention=attention)) for lane in ("atedm", "atedm(finest=false)")]
    small = Cell(sd, 512, attention="materialised"), Cell(sd, 512, TOME, attention="materialised")
    found += [Goal("SD 1.5 512 px materialised: full / tome 60 %", 2.03, *small),
              Goal("SD 1.5 512 px materialised: full / tome 60 %, peak memory", 5, *small, "peak"),
              Goal("SD 1.5 2048 px: full / tome 60 %", 5.4, Cell(sd, 2048), Cell(sd, 2048, TOME)),
              Goal("SD 1.5 2048 px: tomesd / tome 60 %", 1, Cell(sd, 2048, "tomesd 0.6"), Cell(sd, 2048, TOME))]
    found += [Goal(f"SD 1.5 {size} px: tomesd / {lane}", 1, Cell(sd, size, "tomesd 0.5"), Cell(sd, size, lane))
              for size in (512, 768, 1024) for lane in ("tome", "tome(share=true)")]
    found += [Goal(f"SD 1.5 {size} px materialised: tomesd / tome 60 %", 1, Cell(sd, size, "tomesd 0.6", attention="materialised"),
                   Cell(sd, size, TOME, attention="materialised")) for size in (512, 768, 1024)]
    found += [Goal(f"SDXL {size} px {attention}: tomesd / {lane}", 1, Cell("SDXL", size, "tomesd 0.5", attention=attention),
                   Cell("SDXL", size, lane, attention=attention)) for size, attention, lane in (
                       (1024, "fused", "tome"), (1024, "fused", "tome(share=true)"), (1024, "materialised", "tome"),
                       (2048, "fused", "tome"))]
    found += [Goal("SD 1.5 512 px: 50 steps / OLSS 10 steps", 4.8, Cell(sd, 512), Cell(sd, 512, "olss", 10))]
    found += [Goal(f"SDXL 1024 px: 50 steps / {lane}, 10 steps, {how}", 5,
                   Cell(*xl, how=how), Cell(*xl, lane, 10, how=how)) for lane, how in (
                       (OUTPUT, "eager"), (STACKED, "eager"), (STACKED + "+atedm", "eager"), (STACKED, "expert"))]
    return found
