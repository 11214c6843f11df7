"""EFAFNet: residual encoder with FASM, feature fusion, dense upsampling; SBN is the same class, less.

Shapes: N crops, K joints, H W the input's side lengths in pixels, h = H/4, w = W/4 (H, W for the head
`deconvolution_duc`).
"""

from __future__ import annotations

from torch import Tensor, nn

from efafnet.models.encoder import Features, ResidualEncoder
from efafnet.models.fusion import FeatureFusion, FusionBeforeDecoder
from efafnet.models.layers import prediction_conv
from efafnet.models.network_config import NetworkConfig
from efafnet.models.pose_network import PoseNetwork, PoseOutput
from efafnet.models.upsampling import Deconvolutions, DenseUpsampling, ProgressiveUpsampling


class EFAFNet(PoseNetwork):
    """Heatmaps of K joints from crops of one person each.

    The road of Fig. 2: encoder (C2 ... C5, each bottleneck a FASM), FFM's spatial detail into C5, upsampling to 1/4,
    FFM's fused features joined there, and a 1x1 to the heatmaps. Where FFM stands wholly before the decoder
    (``ffm_order=before_decoder``) or is left out (Table VI's DUC row), DUC emits the heatmaps itself.
    """

    config: NetworkConfig

    def __init__(self, config: NetworkConfig, num_joints: int) -> None:
        super().__init__(num_joints)
        self.config = config
        low, *_, high = config.stage_channels
        self.encoder = ResidualEncoder(config)
        self.upsample = _upsampling(config, high, num_joints)
        at_quarter: int = self.upsample.out_channels
        self.fuse: FeatureFusion | FusionBeforeDecoder | None = None
        if config.joined_at_quarter:
            self.fuse = FeatureFusion(low, high, at_quarter, config.scaled_gently(64))
            at_quarter = self.fuse.out_channels
        elif config.ffm:
            self.fuse = FusionBeforeDecoder(low, high, config.scaled_gently(64), config.scaled(256))
        self.predict = _prediction(config, at_quarter, num_joints)
        channels = dict(zip(("c2", "c3", "c4", "c5"), config.stage_channels, strict=True))
        self.auxiliary = nn.ModuleDict(
            {stage: prediction_conv(channels[stage], num_joints) for stage in config.auxiliary_stages}
        )

    def forward(self, images: Tensor) -> PoseOutput:
        """Normalised images (N, 3, H, W), H and W multiples of 32 -> heatmaps, and in training the auxiliary ones."""
        features: Features = self.encoder(images)
        heatmaps = self.predict(self._decode(features.c2, features.c5))
        auxiliary = {}
        if self.training:
            auxiliary = {stage: head(getattr(features, stage)) for stage, head in self.auxiliary.items()}
        return PoseOutput(heatmaps, auxiliary)

    def _decode(self, c2: Tensor, c5: Tensor) -> Tensor:
        """C2, C5 -> the features (or heatmaps) at 1/4, FFM where the configuration has it."""
        if isinstance(self.fuse, FusionBeforeDecoder):
            c5 = self.fuse(c2, c5)
        elif self.fuse is not None:
            c5 = self.fuse.low_to_high(c2, c5)
        upsampled: Tensor = self.upsample(c5)
        if isinstance(self.fuse, FeatureFusion):
            upsampled = self.fuse(c2, c5, upsampled)
        return upsampled


def _upsampling(
    config: NetworkConfig, channels: int, num_joints: int
) -> Deconvolutions | DenseUpsampling | ProgressiveUpsampling:
    """The module from 1/32 to 1/4 of the input."""
    if config.head in ("deconvolution", "deconvolution_duc"):
        return Deconvolutions(channels, config.scaled(256))
    predicts = not config.joined_at_quarter
    out_channels = num_joints if predicts else config.scaled_gently(32)
    hidden = config.scaled(512)
    if config.head == "duc_progressive":
        return ProgressiveUpsampling(channels, hidden, out_channels, predicts=predicts)
    return DenseUpsampling(channels, hidden, out_channels, factor=8, predicts=predicts)


def _prediction(config: NetworkConfig, channels: int, num_joints: int) -> nn.Module:
    """The module from the features at 1/4 to the heatmaps."""
    if config.head == "deconvolution_duc":
        return DenseUpsampling(channels, 0, num_joints, factor=4, predicts=True)
    if not config.joined_at_quarter and config.head in ("duc", "duc_progressive"):
        return nn.Identity()
    return prediction_conv(channels, num_joints)
