"""Figures: kept, put side by side, held against the bars, drawn."""

import statistics

from .workloads import BARS

ORDER = ("plain", "kernel", "fuse", "envfs")


class Results:
    """For each workload the figures of each competitor, round by round."""

    def __init__(self):
        self.rows = {}

    def add(self, key, title, unit, competitor, value, cpu=None):
        row = self.rows.setdefault(key, {"title": title, "unit": unit, "figures": {}, "daemon_cpu_seconds": {}})
        row["figures"].setdefault(competitor, []).append(value)
        if cpu is not None:
            row["daemon_cpu_seconds"].setdefault(competitor, []).append(cpu)

    def median(self, key, competitor):
        figures = self.rows.get(key, {}).get("figures", {}).get(competitor)
        return statistics.median(figures) if figures else None

    def ratio(self, key, other, ours="envfs"):
        """Median, least and greatest of the ratios within a round; None where one side is missing."""
        figures = self.rows.get(key, {}).get("figures", {})
        pairs = zip(figures.get(ours, ()), figures.get(other, ()))
        ratios = [a / b for a, b in pairs if b > 0]
        return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def derive(self):
        """Adds what being cold costs by itself: the difference, round by round."""
        cold, warm = self.rows.get("import-cold"), self.rows.get("import-warm")
        if not (cold and warm):
            return
        self.rows.pop("import-difference", None)
        for name, figures in cold["figures"].items():
            for a, b in zip(figures, warm["figures"].get(name, ())):
                self.add("import-difference", "import, cold minus warm", "s", name, a - b)

    def bars(self):
        """(title, what was measured, limit, met?) of each bar; what was not measured has None."""
        for bar in BARS:
            row = self.rows.get(bar.key)
            title = row["title"] if row else bar.key
            if bar.than:
                ratio = self.ratio(bar.key, bar.than)
                value = ratio[0] if ratio else None
                limit = f"{bar.limit:g} x {bar.than}"
            else:
                value = self.median(bar.key, "envfs")
                limit = f"{bar.limit:g} {row['unit']}" if row else f"{bar.limit:g}"
            yield bar, title, value, limit, None if value is None else value <= bar.limit


def number(value, unit):
    if value is None:
        return "-"
    return f"{value:.3f}" if unit == "s" else f"{value:.1f}"


def heading(names):
    return f"{'':48}" + "".join(f"{name:>10}" for name in names) + "   envfs/kernel (spread)  envfs/fuse  envfs/plain   cpu s: envfs   fuse"


def line(results, key, names):
    row = results.rows[key]
    title = row["title"] + ("" if row["unit"] == "s" else f" ({row['unit']})")
    text = f"{title:48.48}" + "".join(f"{number(results.median(key, name), row['unit']):>10}" for name in names)
    ratio = results.ratio(key, "kernel")
    text += f"{ratio[0]:9.3f} ({ratio[1]:.2f}-{ratio[2]:.2f})".ljust(25) if ratio else f"{'-':>9}".ljust(25)
    for other, width in (("fuse", 11), ("plain", 13)):
        ratio = results.ratio(key, other)
        text += f"{ratio[0]:{width}.3f}" if ratio else f"{'-':>{width}}"
    for name, width in (("envfs", 15), ("fuse", 7)):
        used = row["daemon_cpu_seconds"].get(name)
        text += f"{statistics.median(used):{width}.2f}" if used else f"{'-':>{width}}"
    return text


def text(results, names):
    lines = [heading(names), *(line(results, key, names) for key in results.rows), "", "bars"]
    for _, title, value, limit, met in results.bars():
        if met is not None:
            lines.append(f"  {'met' if met else 'MISSED':8}{title:56.56}{value:10.3f}   at most {limit}")
    missing = sorted({title for _, title, _, _, met in results.bars() if met is None})
    if missing:
        lines.append(f"  not measured: {', '.join(missing)}")
    return "\n".join(lines)


def as_json(results, host, how):
    return {
        "host": host,
        "how": how,
        "workloads": results.rows,
        "bars": [
            {"workload": bar.key, "limit": bar.limit, "than": bar.than, "value": value, "met": met}
            for bar, _, value, _, met in results.bars()
        ],
    }
