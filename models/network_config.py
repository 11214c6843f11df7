"""Every switch of the networks: the readings of the paper and what they exclude, and the sizes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from efafnet.models.settings import Settings

Encoder = Literal["resnet50", "resnet101", "resnet152", "nano"]
Arrangement = Literal["none", "cs", "lss", "cs_lss", "lss_cs", "parallel"]
Merge = Literal["scaled", "sum", "literal"]
Stage = Literal["c2", "c3", "c4", "c5"]

BLOCKS: dict[Encoder, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "nano": (1, 1, 1, 1),
}
"""Bottlenecks in the stages Conv-2 to Conv-5 of each encoder."""


class NetworkConfig(Settings):
    """One network between the simple baseline (SBN) and EFAFNet. The defaults are EFAFNet's default reading.

    SBN is the same class with everything of the paper switched off: ``fam=none fsm=none ffm=false
    head=deconvolution auxiliary_stages=[]``; `efafnet.models.variants` names it and every row of the paper's tables.
    """

    kind: Literal["efafnet"] = "efafnet"
    """EFAFNet and the simple baseline."""
    encoder: Encoder = "resnet50"
    """Depth of the residual encoder; `nano` has one bottleneck per stage and a quarter of the width, for CPUs."""
    base_width: int | None = Field(default=None, ge=8, le=256, multiple_of=4)
    """Channels of the first convolution; all other widths follow. Unset: 64, or 16 for `nano`."""
    fam: Literal["none", "width4", "26w4s"] = "26w4s"
    """Feature aggregation in place of the 3x3 convolution: none, 4 splits of a quarter of its width (the literal
    text), or 4 splits of 26/64 of its width (Res2Net's 26w x 4s, the only reading near the paper's 37.0 M)."""
    fam_recurrence: Literal["literal", "res2net"] = "literal"
    """`literal` is eq. 1 (first split untouched, y2 = G2(x2 + y1)); `res2net` adds nothing at i = 2, leaves the last
    split untouched, and is what published Res2Net weights were trained with."""
    fsm: Arrangement = "parallel"
    """Feature selection: channel-wise (cs), location-sensitive (lss), one after the other, or both in parallel."""
    fasm_placement: Literal["every_block", "last_block", "after_stage"] = "every_block"
    """Where FSM stands: in every bottleneck, in the last of each stage, or as one separate FASM unit after each stage
    of an otherwise plain encoder (the paper's FASM-C)."""
    cs_reduction: int | None = Field(default=None, ge=1, le=64)
    """Channels divided by the hidden width of CS's two layers. Unset: 16 with FSM in every block, else 4."""
    lss_relu: bool = False
    """Eq. 2 to the letter: a ReLU right under LSS's sigmoid, which leaves many gates constant."""
    fsm_merge: Merge = "scaled"
    """How the gates act on the branch F: `scaled` keeps it about F at the start, (2+a+b)/3; `sum` is (2+a+b);
    `literal` is eq. 8 with the identity added twice (deep encoders overflow half precision)."""
    ffm: bool = True
    """Feature fusion of Conv-2 and Conv-5, both ways."""
    ffm_order: Literal["around_decoder", "before_decoder"] = "around_decoder"
    """Where the fused features meet the decoder: `around_decoder` joins the half at 1/4 with the upsampled features, so
    the detail at 1/4 reaches the heatmaps; `before_decoder` is the text's order: both halves are in C5 before it is
    upsampled, and DUC emits the joints."""
    head: Literal["deconvolution", "duc", "duc_progressive", "deconvolution_duc"] = "duc"
    """From 1/32 to the heatmaps: three deconvolutions (SBN), DUC in one step of 8, DUC in three steps of 2, or the
    deconvolutions followed by DUC x4 to heatmaps of the input's full size."""
    auxiliary_stages: tuple[Stage, ...] = ("c3", "c4", "c5")
    """Encoder stages with an intermediate supervision head (training only); [] for none."""

    @model_validator(mode="after")
    def _possible(self) -> NetworkConfig:
        if self.fasm_placement == "after_stage" and "none" in (self.fam, self.fsm):
            raise ValueError(
                f"fasm_placement=after_stage inserts whole FASM units and needs both parts; got fam={self.fam}, "
                f"fsm={self.fsm}: set both, or fasm_placement=every_block"
            )
        if self.fasm_placement == "last_block" and self.fsm == "none":
            raise ValueError(
                "fasm_placement=last_block places FSM, but fsm=none: set fsm, or fasm_placement=every_block"
            )
        if self.cs_reduction is not None and self.fsm in ("none", "lss"):
            raise ValueError(f"cs_reduction={self.cs_reduction} sizes CS, which fsm={self.fsm} leaves out: unset one")
        if self.lss_relu and self.fsm in ("none", "cs"):
            raise ValueError(f"lss_relu=true belongs to LSS, which fsm={self.fsm} leaves out: unset one")
        if self.fam_recurrence != "literal" and self.fam == "none":
            raise ValueError(f"fam_recurrence={self.fam_recurrence} needs FAM, but fam=none: set fam=26w4s or unset it")
        if self.ffm_order != "around_decoder" and not self.ffm:
            raise ValueError(f"ffm_order={self.ffm_order} orders FFM, but ffm=false: set ffm=true or unset it")
        if len(set(self.auxiliary_stages)) != len(self.auxiliary_stages):
            raise ValueError(f"auxiliary_stages names a stage twice: {list(self.auxiliary_stages)}; name each once")
        return self

    @property
    def width(self) -> int:
        """Channels of the stem: `base_width`, or the encoder's own."""
        return self.base_width or (16 if self.encoder == "nano" else 64)

    @property
    def reduction(self) -> int:
        """CS reduction in force: `cs_reduction`, or the one that comes nearest to the paper's 37.0 M."""
        return self.cs_reduction or (16 if self.fasm_placement == "every_block" else 4)

    @property
    def joined_at_quarter(self) -> bool:
        """True where FFM's fused features at 1/4 join the upsampled ones, so that a 1x1 emits the heatmaps."""
        return self.ffm and self.ffm_order == "around_decoder"

    @property
    def short_name(self) -> str:
        """A name for titles and registered models, like efafnet-r50; sbn-r50 for the simple baseline."""
        return f"{'sbn' if self.is_baseline else 'efafnet'}-{self.encoder.replace('resnet', 'r')}"

    @property
    def in_words(self) -> str:
        """The network in a few words."""
        return f"{'simple baseline' if self.is_baseline else 'efafnet'} on {self.encoder}"

    @property
    def is_baseline(self) -> bool:
        """Whether nothing of EFAFNet is left in it: a simple baseline."""
        return self.fam == self.fsm == "none" and not self.ffm

    @property
    def heatmap_stride(self) -> int:
        """Input pixels per heatmap pixel: 4, or 1 where DUC goes on to the full size."""
        return 1 if self.head == "deconvolution_duc" else 4

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """Channels of C2, C3, C4, C5: four times the bottleneck's, which doubles from stage to stage."""
        w = self.width
        return (4 * w, 8 * w, 16 * w, 32 * w)

    def scaled(self, channels: int) -> int:
        """`channels` of a 64-wide network in this one: proportional (deconvolutions, DUC at 1/32)."""
        return max(8, channels * self.width // 64)

    def scaled_gently(self, channels: int) -> int:
        """As `scaled`, but never under half: the few channels at 1/4 resolution carry all K joints."""
        return max(channels // 2, channels * self.width // 64)


class HRNetConfig(Settings):
    """HRNet (Sun et al., 2019). The defaults are HRNet-W32."""

    kind: Literal["hrnet"]
    """HRNet."""
    width: int = Field(default=32, ge=4)
    """Channels of the finest branch, 32 or 48 as published; each coarser branch has twice as many."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """Exchanges between the branches in the stages of two, three and four branches."""
    blocks: int = Field(default=4, ge=1)
    """Blocks on each branch before an exchange, and bottlenecks of the first stage."""

    @model_validator(mode="after")
    def _possible(self) -> HRNetConfig:
        if min(self.modules) < 1:
            raise ValueError(f"modules: every stage needs at least one exchange; got {list(self.modules)}")
        return self

    @property
    def short_name(self) -> str:
        """A name for titles and registered models, like hrnet-w32."""
        return f"hrnet-w{self.width}"

    @property
    def in_words(self) -> str:
        """The network in a few words."""
        return f"hrnet of width {self.width}"

    @property
    def heatmap_stride(self) -> int:
        """Input pixels per heatmap pixel."""
        return 4


class HourglassConfig(Settings):
    """The stacked hourglass (Newell et al., 2016). The defaults are the 8-stage one."""

    kind: Literal["hourglass"]
    """The stacked hourglass."""
    stacks: int = Field(default=8, ge=1)
    """Hourglasses in a row; each has heatmaps of its own, those of the earlier ones are the auxiliary heads."""
    width: int = Field(default=256, ge=8, multiple_of=4)
    """Channels throughout."""

    @property
    def short_name(self) -> str:
        """A name for titles and registered models, like hourglass8."""
        return f"hourglass{self.stacks}"

    @property
    def in_words(self) -> str:
        """The network in a few words."""
        return f"hourglass of {self.stacks} stacks"

    @property
    def heatmap_stride(self) -> int:
        """Input pixels per heatmap pixel."""
        return 4


def _efafnet_unless_said(value: Any) -> Any:
    """A tree without `kind` is EFAFNet's: presets need not say it, and older checkpoints do not."""
    return {"kind": "efafnet", **value} if isinstance(value, Mapping) else value


AnyNetworkConfig = Annotated[
    NetworkConfig | HRNetConfig | HourglassConfig, Field(discriminator="kind"), BeforeValidator(_efafnet_unless_said)
]
_ADAPTER: TypeAdapter[AnyNetworkConfig] = TypeAdapter(AnyNetworkConfig)


def network_config(tree: Mapping[str, Any]) -> AnyNetworkConfig:
    """The configuration that a tree of switches stands for; pydantic's ValidationError where it stands for none."""
    return _ADAPTER.validate_python(tree)


def differing_switches(one: AnyNetworkConfig, other: AnyNetworkConfig) -> dict[str, tuple[object, object]]:
    """The switches in which two networks differ, with both values; for messages about unfitting checkpoints.

    Networks of different kinds have few switches in common: only the kind is named then.
    """
    if one.kind != other.kind:
        return {"kind": (one.kind, other.kind)}
    mine, theirs = one.model_dump(), other.model_dump()
    return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
