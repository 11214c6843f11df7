"""`efafnet models`: the named networks, what they cost, and what the paper prints beside them."""

from __future__ import annotations

from efafnet.models.known_costs import Cost, known_cost
from efafnet.models.settings import Settings
from efafnet.models.skeleton import SKELETONS
from efafnet.models.variants import VARIANTS, Variant, variant
from efafnet.platform import console

_COLUMNS = (
    "network", "input", "params M", "GMAC", "paper-G", "saved MB", "paper: params M", "paper-G", "AP", "tables",
)  # fmt: skip


class ModelsConfig(Settings):
    """Which networks to list."""

    names: tuple[str, ...] = ()
    """Names of networks to list; empty for all."""
    skeleton: str = "coco17"
    """Skeleton whose joints the networks predict: coco17, mpii16 or crowdpose14."""


def run_models(config: ModelsConfig) -> None:
    """Print the table of the networks, and under it where they differ from the paper. ValueError for unknown names."""
    if config.skeleton not in SKELETONS:
        raise ValueError(f"skeleton={config.skeleton}: unknown; known: {', '.join(SKELETONS)}")
    joints = SKELETONS[config.skeleton].num_joints
    chosen = [variant(name) for name in config.names] or list(VARIANTS.values())
    costs = [known_cost(v.name, joints) for v in chosen]
    console.table(_COLUMNS, [_row(v, c) for v, c in zip(chosen, costs, strict=True)])
    console.say(
        "GMAC: multiply-adds / 1e9. paper-G: weights x OUTPUT positions / 2^30, deconvolutions included, the count "
        "behind the paper's GFLOPs.\nsaved: float32 activations kept for the backward pass, per crop. Auxiliary heads "
        "are not counted anywhere.\npaper: of HRNet and the hourglass, parameters and paper-G are those that HRNet's "
        "paper prints.\nAP: as the paper prints it, on COCO val unless said otherwise; not measured here."
    )
    for v, cost in zip(chosen, costs, strict=True):
        for line in _remarks(v, cost):
            console.say(f"{v.name}: {line}")


def _row(v: Variant, cost: Cost) -> list[object]:
    paper = v.paper
    return [
        v.name,
        str(v.input),
        f"{cost.params_m:.2f}",
        f"{cost.gmac:.2f}",
        f"{cost.paper_g:.2f}",
        f"{cost.saved_mb:.0f}",
        "" if paper.params_m is None else f"{paper.params_m:g}",
        "" if paper.paper_g is None else f"{paper.paper_g:.2f}",
        "" if paper.ap is None else f"{paper.ap:.1f}",
        ", ".join(paper.tables),
    ]


def _remarks(v: Variant, cost: Cost) -> list[str]:
    """Differences from the printed figures in numbers, and the reason where one is known."""
    differences = []
    if v.paper.params_m is not None and abs(cost.params_m - v.paper.params_m) >= 0.05:
        differences.append(f"{cost.params_m - v.paper.params_m:+.2f} M")
    if v.paper.paper_g is not None and abs(cost.paper_g - v.paper.paper_g) >= 0.05:
        differences.append(f"{cost.paper_g - v.paper.paper_g:+.2f} paper-G")
    text = "; ".join(part for part in (", ".join(differences), v.note) if part)
    return [text] if text else []
