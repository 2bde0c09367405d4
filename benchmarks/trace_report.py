"""Tables, pictures and data of the two comparisons, from the cells they left.

    python -m trace_gym.benchmarks.trace_report --math runs/trace-math --relay runs/trace-relay --out benchmarks/results/trace

Reads finished cells only and says how many seeds stand behind each row; an arm that failed is listed with its reason.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trace_gym.benchmarks.cells import FINISHED, Floats, Interval, Result, area, curve, paired, read_results

__all__ = ["Row", "calibration_rows", "contrasts", "main", "rows", "table", "together", "write_tables"]

BASELINE = "grpo"
PER = 1000  # policy tokens
LEAST_SEEDS = 5  # of a line in a picture
MEASURES = ("brier", "ece", "rank_correlation")
WHERE = ("root", "prefix", "expanded")
TABLES = "\n## Tables\n\n"  # what follows it on the page is replaced
Row = dict[str, float | int | str]


def rows(results: Iterable[Result], budget: float) -> list[Row]:
    """One row a cell: mix, arm, seed, success at the start, at the end and over the budget, and what was bought."""
    out: list[Row] = []
    results = list(results)
    starts = starts_of(results)
    told = {mix for mix, _ in starts}
    for r in results:
        mix, arm, *_ = r.arm.split("/")
        row: Row = {"mix": mix, "arm": arm, "setting": "/".join(r.arm.split("/")[2:]), "seed": r.seed}
        if r.error:
            out.append(row | {"error": r.error})
            continue
        success, nan = curve(r)[1], float("nan")
        start = starts.get((mix, r.seed), nan if mix in told else None)
        total = r.metrics[-1]["policy_tokens"]
        paid = np.array([m["prompts"] for m in r.metrics])
        mixed = np.array([m["effective_ratio"] for m in r.metrics]) * paid
        out.append(
            row
            | {
                "start": nan if start is None else start,
                "final": float(success[-1]),
                "area": area(r, budget, start=start),
                "greedy": r.greedy,
                "effective_ratio": float(mixed.sum() / paid.sum()),
                "mixed_anchors_per_1k": PER * sum(m["mixed_anchors"] for m in r.metrics) / total,
                "prompts_per_1k": PER * float(paid.sum()) / total,
                "steps": len(r.metrics),
                "policy_tokens": total,
                "rollout_units": r.metrics[-1]["rollout_units"],
                "units_per_step": r.metrics[-1]["rollout_units"] / len(r.metrics),
                "env_steps": r.metrics[-1]["env_steps"],
                "seconds": r.seconds,
                "commit": r.commit,
            }
        )
    return out


def starts_of(results: Sequence[Result]) -> dict[tuple[str, int], float]:
    """Success before training by mix and seed, which one arm measures for all arms of a seed."""
    return {
        (r.arm.split("/")[0], r.seed): float(curve(r)[1][0])
        for r in results
        if r.evals and curve(r)[0][0] == 0
    }


def whole_curve(result: Result, starts: Mapping[tuple[str, int], float]) -> tuple[Floats, Floats]:
    """The curve of a cell, from the start of its seed where that is known."""
    tokens, success = curve(result)
    start = starts.get((result.arm.split("/")[0], result.seed))
    if start is None or tokens[0] == 0:
        return tokens, success
    return np.insert(tokens, 0, 0.0), np.insert(success, 0, start)


def by_seed(found: Sequence[Row], mix: str, arm: str, column: str) -> dict[int, float]:
    """The column of an arm by seed, without the seeds where it is not known."""
    return {
        int(row["seed"]): float(row[column])
        for row in found
        if row["mix"] == mix and row["arm"] == arm and "error" not in row and not np.isnan(float(row[column]))
    }


def table(found: Sequence[Row], mix: str, arms: Sequence[str], policies: int = 0) -> str:
    """Means over seeds, and differences to the baseline within seeds with their 95 % intervals, as Markdown.

    Where seeds share `policies` starting policies, seed s the policy s modulo that, they are not independent: a column tells
    the interval of the final difference over policies, each the mean of its seeds.
    """
    greedy = any(by_seed(found, mix, arm, "greedy") for arm in arms)
    compared = ["final", "area", *(["greedy"] if greedy else [])]
    counted = {
        "effective ratio": "effective_ratio",
        f"mixed anchors per {PER:,} tokens": "mixed_anchors_per_1k",
        f"prompts per {PER:,} tokens": "prompts_per_1k",
        "steps": "steps",
        "units a step": "units_per_step",
    }
    head = ["arm", "seeds", *(x for name in compared for x in (name, f"{name} less grpo's")), *counted]
    head += ["final less grpo's, by policy"] if policies else []
    lines = [f"| {' | '.join([*head, 'settings'])} |", "|---" * (len(head) + 1) + "|"]
    for arm in arms:
        final = by_seed(found, mix, arm, "final")
        if not final:
            errors = {
                str(row["error"])
                for row in found
                if row["mix"] == mix and row["arm"] == arm and "error" in row
            }
            lines.append(f"| {arm} | 0 | {'; '.join(sorted(errors)) or 'not run'} |" + " |" * (len(head) - 2))
            continue
        cells = [arm, str(len(final))]
        for column in compared:
            own = by_seed(found, mix, arm, column)
            cells.append(f"{_mean(own):.3f}")
            cells.append("" if arm == BASELINE else str(paired(own, by_seed(found, mix, BASELINE, column))))
        cells += [_short(_mean(by_seed(found, mix, arm, column))) for column in counted.values()]
        if policies:
            base = by_policy(by_seed(found, mix, BASELINE, "final"), policies)
            cells.append("" if arm == BASELINE else str(paired(by_policy(final, policies), base)))
        settings = sorted({str(row["setting"]) for row in found if row["mix"] == mix and row["arm"] == arm})
        lines.append(f"| {' | '.join([*cells, ', '.join(settings)])} |")
    return "\n".join(lines) + "\n"


def contrasts(found: Sequence[Row], mixes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """Differences within seeds of two rules, where both ran, as Markdown."""
    lines = ["| mix | difference | seeds | final | area |", "|---|---|---|---|---|"]
    for mix in mixes:
        for one, other in pairs:
            told = [
                paired(by_seed(found, mix, one, column), by_seed(found, mix, other, column))
                for column in ("final", "area")
            ]
            if told[0].n:
                lines.append(f"| {mix} | {one} less {other} | {told[0].n} | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def together(
    before: Sequence[Row], now: Sequence[Row], mixes: Sequence[str], arms: Sequence[str], policies: int
) -> str:
    """Final differences to the baseline of two comparisons with different starting policies, each and both, as Markdown.

    An observation is a starting policy: the mean over its seeds.
    """
    lines = ["| mix | arm | before | now | together | policies |", "|---|---|---|---|---|---|"]
    for mix in mixes:
        for arm in arms:
            found = []
            for rows_ in (before, now):
                own, base = (by_seed(rows_, mix, name, "final") for name in (arm, BASELINE))
                gains = {seed: own[seed] - base[seed] for seed in own.keys() & base.keys()}
                found.append(list(by_policy(gains, policies).values()))
            if arm != BASELINE and all(found):
                told = [Interval.of(x) for x in (*found, [*found[0], *found[1]])]
                lines.append(f"| {mix} | {arm} | {' | '.join(map(str, told))} | {told[2].n} |")
    return "\n".join(lines) + "\n"


def by_policy(values: Mapping[int, float], policies: int) -> dict[int, float]:
    """The mean over the seeds of each starting policy."""
    shared: dict[int, list[float]] = {}
    for seed, value in values.items():
        shared.setdefault(seed % policies, []).append(value)
    return {policy: float(np.mean(seeds)) for policy, seeds in shared.items()}


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 20 else f"{value:.0f}"


def calibration_rows(results: Iterable[Result]) -> list[Row]:
    """One row a step of every cell with a predictor: how good its predictions were before it learned from the step."""
    out: list[Row] = []
    for r in results:
        mix, arm, *_ = r.arm.split("/")
        for m in r.metrics:
            names = [f"{w}_{x}" for w in WHERE for x in MEASURES if f"{w}_{x}" in m]
            row: Row = {"mix": mix, "arm": arm, "seed": r.seed, "policy_tokens": m["policy_tokens"]}
            if names:
                out.append(row | {name: m[name] for name in names})
    return out


def closed_share(
    found: Sequence[Row], mix: str, arm: str, oracle: str, without: str, column: str = "area"
) -> Interval:
    """The part of what the exact predictor gains, over the rule `without` prediction, that `arm`'s own predictor has: mean
    difference over mean difference within seeds, with a bootstrap interval over seeds (10,000 draws, fixed seed), for a ratio's
    error is not Student's."""
    base, own, best = (by_seed(found, mix, name, column) for name in (without, arm, oracle))
    seeds = sorted(base.keys() & own.keys() & best.keys())
    gains = np.array([[own[s] - base[s], best[s] - base[s]] for s in seeds])
    if len(seeds) < 2 or not Interval.of(gains[:, 1]).low > 0:  # no gain of the oracle's to have a share of
        return Interval(float("nan"), float("nan"), float("nan"), len(seeds))
    draws = np.random.default_rng(0).integers(len(seeds), size=(10_000, len(seeds)))
    top, bottom = gains[draws].mean(axis=1).T
    low, high = np.percentile(top / bottom, [2.5, 97.5])
    return Interval(float(gains[:, 0].mean() / gains[:, 1].mean()), float(low), float(high), len(seeds))


# ---- files ----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, found: Sequence[Mapping[str, object]]) -> None:
    """Rows with whatever columns they have; floats with six significant digits."""
    columns = list(dict.fromkeys(name for row in found for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in found:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def curves(path: Path, results: Sequence[Result], mixes: Sequence[str], arms: Sequence[str]) -> None:
    """Success against sampled tokens: means over seeds, bands of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(mixes), figsize=(5.5 * len(mixes), 4), squeeze=False, layout="constrained"
    )
    lines, starts = ("-", "--", "-.", ":"), starts_of(results)
    for axis, mix in zip(axes[0], mixes, strict=True):
        for place, arm in enumerate(arms):
            found = [r for r in results if r.arm.split("/")[:2] == [mix, arm] and not r.error]
            if len(found) < LEAST_SEEDS:
                continue  # another set of seeds would be another line
            end = max(curve(r)[0].max() for r in found)
            grid = np.linspace(0, end, 25)
            values = np.array([np.interp(grid, *whole_curve(r, starts)) for r in found])
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
            axis.plot(grid / PER, mean, lines[place % 4], color=f"C{place % 10}", label=arm, linewidth=1.6)
            axis.fill_between(
                grid / PER, mean - error, mean + error, color=f"C{place % 10}", alpha=0.12, linewidth=0
            )
        axis.set(title=mix, xlabel="sampled tokens, thousands", ylabel="success")
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def calibration_picture(path: Path, found: Sequence[Row], mix: str, arm: str) -> None:
    """Brier score, expected calibration error and rank correlation over training, for prompts, prefixes, expanded ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mine = [row for row in found if row["mix"] == mix and row["arm"] == arm]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for line, where in zip(("-", "--", ":"), WHERE, strict=True):
            points = np.array(
                [
                    (float(row["policy_tokens"]), float(row[f"{where}_{measure}"]))
                    for row in mine
                    if f"{where}_{measure}" in row
                ]
            ).reshape(-1, 2)
            points = points[~np.isnan(points[:, 1])]
            if len(points) == 0:
                continue
            edges = np.linspace(0, points[:, 0].max() + 1, 9)
            place = np.digitize(points[:, 0], edges)
            bins = [points[place == i] for i in range(1, 9) if (place == i).any()]
            middle = [b[:, 0].mean() / PER for b in bins]
            axis.plot(middle, [b[:, 1].mean() for b in bins], line, marker="o", markersize=3, label=where)
        axis.set(xlabel="sampled tokens, thousands", title=measure.replace("_", " "))
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def calibration_table(found: Sequence[Row], mixes: Sequence[str], arms: Sequence[str]) -> str:
    """First and last third of training, means over steps and seeds."""
    names = [f"{where} {measure.replace('_', ' ')}" for where in WHERE for measure in MEASURES]
    lines = ["| mix | arm | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for mix in mixes:
        for arm in arms:
            mine = [row for row in found if row["mix"] == mix and row["arm"] == arm]
            if not mine:
                continue
            end = max(float(row["policy_tokens"]) for row in mine)
            cells = []
            for where in WHERE:
                for measure in MEASURES:
                    points = [
                        (float(r["policy_tokens"]), float(r.get(f"{where}_{measure}", np.nan))) for r in mine
                    ]
                    thirds = [
                        [v for t, v in points if low <= t <= high and not np.isnan(v)]
                        for low, high in ((0, end / 3), (2 * end / 3, end))
                    ]
                    cells.append(" → ".join(f"{np.mean(v):.2f}" if v else "–" for v in thirds))
            lines.append(f"| {mix} | {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_folder(folder: Path) -> list[Result]:
    """Every finished cell below `folder`."""
    return read_results(sorted(folder.rglob(FINISHED))) if folder.is_dir() else []


def main() -> None:
    """Write data and pictures, and the tables into the page."""
    from trace_gym.benchmarks import trace_math, trace_relay

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--math", type=Path, default=Path("runs/trace-math"))
    parser.add_argument("--relay", type=Path, default=Path("runs/trace-relay"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/trace"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    pieces = []
    for name, folder, suite in (("math", asked.math, trace_math), ("relay", asked.relay, trace_relay)):
        stored = read_folder(folder)
        results = [r for r in stored if r.seed in suite.SEEDS]
        if not results:
            continue
        found, calibrated = rows(results, suite.BUDGET), calibration_rows(results)
        again = rows([r for r in stored if r.seed in getattr(suite, "FRESH_SEEDS", ())], suite.BUDGET)
        write_csv(asked.out / f"{name}.csv", [*found, *again])
        write_csv(asked.out / f"{name}_calibration.csv", calibrated)
        starts = starts_of(results)
        points = [
            {
                "mix": r.arm.split("/")[0],
                "arm": r.arm.split("/")[1],
                "seed": r.seed,
                "policy_tokens": t,
                "success": s,
            }
            for r in results
            if not r.error
            for t, s in zip(*(x.tolist() for x in whole_curve(r, starts)), strict=True)
        ]
        write_csv(asked.out / f"{name}_curves.csv", points)
        mixes = [
            m
            for m in (*suite.MIXES, *getattr(suite, "CONTROLS", ()))
            if any(row["mix"] == m for row in found)
        ]
        arms = [arm for arm in suite.ARMS if any(row["arm"] == arm for row in found)]
        policies = getattr(suite, "POLICIES", 0)
        for mix in mixes:
            ran = [a for a in arms if any((row["mix"], row["arm"]) == (mix, a) for row in found)]
            pieces.append(f"### {name}: {mix}\n\n{table(found, mix, ran, policies)}")
        if again:
            ran = [a for a in arms if any(row["arm"] == a for row in again)]
            pieces.append(f"### {name}: broad, ten other worlds\n\n{table(again, 'broad', ran)}")
            pieces.append(contrasts(again, ["broad"], suite.CONTRASTS))
        earlier = asked.out / f"{name}_before.csv"
        if earlier.exists():
            with open(earlier, newline="", encoding="utf-8") as file:
                told = together(list(csv.DictReader(file)), found, mixes, arms, policies)
            head = f"### {name}: with the comparison before, final less grpo's by starting policy"
            pieces.append(f"{head}\n\n{told}")
        pieces.append(f"### {name}: rules against each other\n\n{contrasts(found, mixes, suite.CONTRASTS)}")
        pieces.append(
            f"### {name}: calibration, first third → last third\n\n{calibration_table(calibrated, mixes, arms)}"
        )
        main_arms = [a for a in suite.PICTURED if a in arms]
        curves(asked.out / f"{name}.png", results, [m for m in suite.MIXES if m in mixes], main_arms)
        calibration_picture(asked.out / f"{name}_calibration.png", calibrated, mixes[0], "trace")
        if name == "relay":
            shares = [
                f"- `{arm}` over `{without}` on {mix}: {_told(closed_share(found, mix, arm, oracle, without))}"
                for mix in suite.MIXES
                for arm, oracle, without in trace_relay.ORACLES
                if all(by_seed(found, mix, name, "area") for name in (arm, oracle, without))
            ]
            pieces.append(
                "### relay: share of what the exact predictor gains that the learned one has (area)\n\n"
                + "\n".join(shares)
                + "\n"
            )
    write_tables(asked.out / "README.md", "\n".join(pieces))


def write_tables(page: Path, tables: str) -> None:
    """Replace what stands under the page's heading `Tables`; what stands above it is written by hand and stays."""
    above = page.read_text(encoding="utf-8").split(TABLES)[0] if page.exists() else ""
    page.write_text((above + TABLES).lstrip() + tables, encoding="utf-8")


def _told(share: Interval) -> str:
    return "not defined: the oracle itself is not ahead there" if np.isnan(share.mean) else str(share)


if __name__ == "__main__":
    main()
