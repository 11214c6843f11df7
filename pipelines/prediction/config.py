"""The settings of prediction and export, apart from the code that needs torch and OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings
from efafnet.pipelines.evaluation.config import ActorsConfig, TestOverrides, Weights
from efafnet.pipelines.formats.categories import CategoryNames
from efafnet.platform.mirror import Location


class DetectorConfig(Settings):
    """One of torchvision's Faster R-CNNs, trained on COCO."""

    name: Literal[
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ] = "fasterrcnn_resnet50_fpn_v2"
    """Which, from the most precise (and slowest) to the fastest."""
    weights: Literal["download"] | Path | None = None
    """File of its weights (.pth or .safetensors), or download to fetch torchvision's over the network, or from the
    cache of an earlier download. Without boxes from a file this is needed."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """Confidence below which a detection is no person. For measuring AP take 0.05."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Most pictures that go through the detector together; only such of one size, one after the other, as a video's
    frames are. auto: 8 on a GPU, 1 on a CPU, where more only take memory."""


class TrackingConfig(Settings):
    """Who is who from frame to frame of a video."""

    enabled: bool = True
    """Whether the persons of videos get a track_id, and the output a table of them."""
    least_similarity: float = Field(default=0.25, gt=0, le=1)
    """Mean of OKS and IoU with its last place from which on a person is taken for the same one."""
    longest_gap_s: float = Field(default=1.0, gt=0)
    """Seconds a person may be out of sight and keep its id."""
    smooth: bool = False
    """Whether joints are smoothed along tracks by a One-Euro filter, which looks at no later frame: less trembling, a
    little lag. Do not measure AP with it."""
    least_cutoff_hz: float = Field(default=1.5, gt=0)
    """Cut-off frequency at rest, in Hz: the lower, the less joints tremble."""
    cutoff_per_speed: float = Field(default=10.0, ge=0)
    """How much the cut-off rises with speed, in Hz per person's size a second: the higher, the less joints lag."""


class PredictConfig(Settings):
    """Predict the joints of the persons in images and videos."""

    checkpoint: Path
    """Checkpoint directory, or a run's directory (then its best checkpoint)."""
    inputs: tuple[Path, ...] = Field(min_length=1)
    """Images, folders of images (those in them, not in folders inside), videos."""
    output: Path = Path("prediction")
    """Directory for predictions.json (COCO results), images.json (their ids and file names) and pictures/."""
    overwrite: bool = False
    """Whether an output that exists is replaced."""
    boxes: Literal["whole_image"] | Path | None = None
    """Where the persons are: a JSON file of detections or annotations in COCO's layout, or whole_image for one person
    that fills each picture; null for the detector."""
    image_list: Path | None = None
    """COCO file whose `images` say which id each file name has, where `boxes` holds detections; not needed for images
    called by their ids, as COCO's are, or for a single video, whose ids are its frames' numbers from 0."""
    min_box_score: float = Field(default=0.0, ge=0, le=1)
    """Score below which a box of a detections file is left out."""
    categories: CategoryNames = ()
    """Names or numbers of the categories of `boxes` that are persons; by default the one called person, or the only one
    with joints, or 1 for detections."""
    box_rule: Literal["auto", "sbn", "mmpose", "unclipped"] = "auto"
    """How boxes of a file are clipped (see prepare): auto is sbn for annotations, unclipped for detections."""
    detector: DetectorConfig = DetectorConfig()
    """Who looks for persons where no boxes are given."""
    weights: Weights = "best"
    """Which weights of the checkpoint: best takes the moving average where one was kept."""
    skeleton: str = "auto"
    """Joints of the network: auto by the checkpoint, else a known name, a YAML file or a crop store that has them."""
    test: TestOverrides = TestOverrides()
    orientation: Literal["auto", "stored", "upright"] = "auto"
    """Whether images are turned as their orientation tag says; auto turns them where no file gives boxes, since those
    refer to the stored pixels. Joints are in pixels of the image as it was looked at."""
    frame_step: int = Field(default=1, ge=1)
    """Of a video every so many frames one is predicted and shown."""
    tracking: TrackingConfig = TrackingConfig()
    pictures: bool = True
    """Whether the persons are drawn into copies of the images and videos."""
    labels: tuple[Literal["id", "score", "joints"], ...] = ("id", "score")
    """What is written at the persons drawn: id (of a track, else the place among the image's results), score, joints
    (their names, at persons of at least 180 pixels). `[]` for nothing."""
    picture_scale: Annotated[int, Field(ge=1, le=8)] | Literal["auto"] = "auto"
    """How many times drawn images are enlarged: auto up to 4 times, where a quarter of the persons is smaller than 96
    pixels. Videos keep their size with auto."""
    skip_unreadable: bool = False
    """Leave out files that cannot be read, with a warning, instead of stopping at the first. A video that ends early is
    predicted as far as it goes, with a warning, either way; without this the command then fails once all is written."""
    workers: ActorsConfig = ActorsConfig(count=0)
    """Who predicts: this process, or workers=N of Ray that share the files, a video as a whole."""

    @model_validator(mode="after")
    def _boxes_from_one_place(self) -> PredictConfig:
        if self.boxes is None and self.detector.weights is None:
            raise ValueError(
                "where the persons are must be known: give boxes=FILE.json (COCO detections or annotations), "
                "detector.weights=FILE.pth for torchvision's detector, detector.weights=download to fetch its weights, "
                "or boxes=whole_image"
            )
        if self.boxes is not None and self.detector.weights is not None:
            raise ValueError(f"boxes={self.boxes} and detector.weights name two sources of boxes: give one of them")
        if self.image_list is not None and not isinstance(self.boxes, Path):
            raise ValueError(
                f"image_list={self.image_list} tells the ids of a boxes file, and none is given: leave it out"
            )
        return self


class RankingDetectorConfig(DetectorConfig):
    """As for prediction, but with the unsure boxes that average precision ranks."""

    min_score: float = Field(default=0.05, ge=0, le=1)
    """Confidence below which a detection is left out."""


class DetectConfig(Settings):
    """Find the persons in a set's images with a detector, and measure it."""

    source: Path
    """Annotations in COCO's layout, or a crop store of one source: which images, and who is in them."""
    out: Path
    """File of the detections, in COCO's results format; OUT.info.json beside it says what they are."""
    images: Location | None = None
    """Folder that the annotations' file names are relative to: local, or s3://…, gs://…; that of the store by
    default."""
    categories: CategoryNames = ()
    """Names or numbers of the annotations' categories that are persons; by default the only one that lists joints."""
    orientation: Literal["stored", "upright"] = "stored"
    """Whether the annotations refer to the pixels as stored or to the image as viewers show it; a store knows."""
    overwrite: bool = False
    """Whether a file that exists is replaced."""
    detector: RankingDetectorConfig = RankingDetectorConfig()
    skip_unreadable: bool = False
    """Leave out images that cannot be read, with a warning, instead of stopping at the first."""

    @model_validator(mode="after")
    def _has_weights(self) -> DetectConfig:
        if self.detector.weights is None:
            raise ValueError(
                "detector.weights is not given: detector.weights=FILE.pth of torchvision's detector, or "
                "detector.weights=download to fetch them"
            )
        return self


class ExportConfig(Settings):
    """Write a trained network as a file for other programs."""

    checkpoint: Path
    """Checkpoint directory, or a run's directory (then its best checkpoint)."""
    out: Path
    """File to write; its ending says the kind: .onnx for ONNX, .pt2 for torch.export."""
    overwrite: bool = False
    """Whether a file that exists is replaced."""
    weights: Weights = "best"
    """Which weights of the checkpoint: best takes the moving average where one was kept."""
    skeleton: str = "auto"
    """Joints of the network: auto by the checkpoint, else a known name, a YAML file or a crop store that has them."""
    output: Literal["heatmaps", "joints"] = "heatmaps"
    """What the file gives: heatmaps, or decoded joints in pixels of the crop and their scores."""
    decoding: Literal["argmax", "quarter", "dark", "udp"] | None = None
    """From heatmap to joint, inside the file or as its metadata say; none as trained."""
    flip_test: bool = False
    """Average with the mirrored crop inside the file (twice the computation)."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Arithmetic of the network; crops come in as uint8 and results as float32 either way."""
    opset: int | None = Field(default=None, ge=18)
    """Version of ONNX's operators, for a runtime that is older; none for the exporter's own."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest difference from PyTorch in fp32, relative to the largest heatmap value, that the file may show; none for
    1e-4, with precision=fp16 for 2e-2."""
