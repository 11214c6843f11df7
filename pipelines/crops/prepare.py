"""``efafnet prepare``: images and annotations to a crop store, through Ray Data.

Sources are read and checked here; which images make which shard is fixed here; Ray Data carries one row per image to
tasks that decode it once for all its persons and write one shard each; the store appears whole, by a rename, at the
end. Finished shards of a run that was killed are kept beside the output and used by the next run of the same command.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.annotation_sources import Source, SourceConfig, load_source, named_skeleton
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.finish import finish_store
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.crops.images import tell_orientation
from efafnet.pipelines.crops.manifest import FORMAT_VERSION, Encoding
from efafnet.pipelines.crops.plan import ShardPlan, plan_shards
from efafnet.pipelines.crops.protocols import PROTOCOLS, ProtocolName, envelope_settings
from efafnet.pipelines.crops.shard_writing import WorkDirectory, run_plans
from efafnet.pipelines.crops.shards import CropSettings, ShardResult
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.formats.rejects import Reject, explained
from efafnet.platform import console, storage
from efafnet.platform.cluster import ClusterConfig


class PrepareConfig(SourceConfig):
    """What to prepare, how, and where to."""

    out: Path
    """Directory of the crop store; must not exist yet, unless it holds the same store already."""
    extra_sources: tuple[SourceConfig, ...] = ()
    """Further sources merged into the store; their ids are shifted by 10^12 each. Those with other joints need a
    joint_map."""
    store_joints: str = "auto"
    """Joints of the store: auto for those of the first source; coco17, mpii16, crowdpose14, a YAML file, a store."""
    overwrite: bool = False
    """Replace an existing store."""
    protocol: ProtocolName | None = None
    """Published recipe (paper, sbn, hrnet, mmpose) whose box rule and envelope are taken where nothing is given; none
    for SBN's box rule and an envelope that serves every bundled preset."""
    envelope: Envelope = Envelope()
    """Widest augmentation and largest input that the crops must serve exactly."""
    encoding: Encoding = Encoding()
    """How crops are stored."""
    max_oversampling: float = Field(default=2.0, ge=1.0)
    """Pixels per input pixel, at the closest zoom of the largest input, that a denser crop is reduced to."""
    max_reject_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of wanted persons that may be rejected before the job stops. Persons without joints do not count."""
    rows_per_group: int = Field(default=64, ge=1)
    """Persons in a Parquet row group: what a reader reads at once."""
    rows_per_shard: int = Field(default=512, ge=1)
    """Persons in a file (exceeded only by one image with more): what a task writes at once."""
    workers: int | None = Field(default=None, ge=0)
    """Ray's tasks that work at a time: null for one per core of the cluster, or for this very process with at most 512
    images and no cluster that runs or is named; 0 for this process always."""
    cluster: ClusterConfig = ClusterConfig()
    """Which Ray."""

    @classmethod
    def filled(cls, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tree with its protocol's envelope wherever it says nothing itself."""
        name, given = tree.get("protocol"), tree.get("envelope", {})
        if not isinstance(name, str) or name not in PROTOCOLS or not isinstance(given, Mapping):
            return tree
        return {**tree, "envelope": {**envelope_settings(name), **given}}

    @model_validator(mode="before")
    @classmethod
    def _follow_protocol(cls, tree: Any) -> Any:
        return cls.filled(tree) if isinstance(tree, Mapping) else tree

    @property
    def annotated_rule(self) -> BoxRule:
        """How annotated boxes are clipped where a source does not say."""
        return "sbn" if self.protocol is None else PROTOCOLS[self.protocol].box_rule

    def sources(self) -> tuple[SourceConfig, ...]:
        """All sources, in order."""
        own = {name: getattr(self, name) for name in SourceConfig.model_fields}
        return SourceConfig.model_validate(own), *self.extra_sources


def run_prepare(config: PrepareConfig) -> CropStore:
    """Prepare the store, or recognise that it is there already.

    Raises ValueError or OSError with one message for bad input, an output that exists or cannot be written, and too
    many rejects. Nothing is left behind then.
    """
    sources = _load(config)
    settings = _crop_settings(config, sources)
    digest = _input_digest(config, settings, sources)
    existing = _existing(config, digest)
    if existing is not None:
        persons = console.counted(existing.num_persons, "person")
        console.say(f"{config.out} holds this store already ({persons}): nothing to do")
        return existing
    storage.check_output(config.out, overwrite=config.overwrite)
    plans = plan_shards(sources, config.rows_per_shard)
    _check_wanted(config, sources, plans)
    with WorkDirectory(config.out, digest) as work:
        results = _work(config, settings, sources, plans, work)
        finish_store(config.out, config.overwrite, work, settings, sources, results, digest)
    _tell_noticed(sources, results)
    store = CropStore.open(config.out)
    _tell(config, store)
    return store


def _load(config: PrepareConfig) -> list[Source]:
    """Sources in order; the first one says what joints the store has, unless the settings do."""
    joints, sources = named_skeleton(config.store_joints), []
    for number, source in enumerate(config.sources()):
        sources.append(load_source(source, number, config.annotated_rule, joints))
        joints = joints or sources[0].content.skeleton
    _tell_repeated(sources)
    return sources


def _tell_repeated(sources: Sequence[Source]) -> None:
    """Warn where sources share images: their persons are in the store once for each."""
    files = Counter(
        (source.folder.location, image.file_name)
        for source in sources
        for image in source.content.images
        if image.image_id in source.wanted
    )
    shared = [name for (_, name), times in files.items() if times > 1]
    if shared and len(sources) > 1:
        console.warn(
            f"{len(shared)} images ({shared[0]}, …) are in several sources: their persons are in the store once for "
            "each"
        )


def _crop_settings(config: PrepareConfig, sources: Sequence[Source]) -> CropSettings:
    first = named_skeleton(config.store_joints) or sources[0].content.skeleton
    for source in sources:
        for remark in source.remarks:
            console.warn(remark)
        _check_joints(first, source)
    return CropSettings(
        skeleton=first,
        envelope=config.envelope,
        encoding=config.encoding,
        max_oversampling=config.max_oversampling,
        rows_per_group=config.rows_per_group,
    )


def _check_joints(first: Skeleton, source: Source) -> None:
    other = source.content.skeleton
    if other.joints != first.joints:
        raise ValueError(
            f"sources cannot be merged: {source.record.annotations} has skeleton {other.name!r} ({other.num_joints} "
            f"joints), the store {first.name!r} ({first.num_joints} joints); prepare one store each, or give this "
            "source a joint_map={STORE_JOINT: SOURCE_JOINT, …} (joint_map=by_name where names agree)"
        )


def _input_digest(config: PrepareConfig, settings: CropSettings, sources: Sequence[Source]) -> str:
    # Where the images lie does not matter, only what they are.
    records = [source.record.model_dump(exclude={"images"}) for source in sources]
    content = [FORMAT_VERSION, settings.model_dump(mode="json"), config.rows_per_shard, records]
    return storage.sha256_json(content)


def _existing(config: PrepareConfig, digest: str) -> CropStore | None:
    """The store at ``out`` if it is the wanted one; ValueError if it is another and may not be replaced."""
    if config.overwrite or not (config.out / "manifest.json").is_file():
        return None
    try:
        store = CropStore.open(config.out)
    except ValueError as error:
        raise ValueError(f"{error}, with overwrite=true") from error
    if store.manifest.input_digest != digest:
        raise ValueError(
            f"{config.out} holds a crop store of other input or settings; name another output, or replace it with "
            "overwrite=true"
        )
    return store


def _check_wanted(config: PrepareConfig, sources: Sequence[Source], plans: Sequence[ShardPlan]) -> None:
    if not plans:
        rejects = _named([reject for source in sources for reject in source.rejects], sources)
        why = explained(rejects) or "; ".join(_nothing(source) for source in sources)
        where = f"{config.annotations} with detections={config.detections}" if config.detections else config.annotations
        raise ValueError(f"{where} holds no person to crop: {why}; nothing was written")
    _check_share(config, [reject for source in sources for reject in source.rejects], sources)


def _nothing(source: Source) -> str:
    """Why a source without rejects has no persons."""
    if source.crowds:
        return f"its {source.crowds} annotations are crowds"
    if source.record.detections is not None and not source.candidates:
        return f"{source.record.detections} holds no detection"
    return source.content.nothing()


def _check_share(config: PrepareConfig, rejects: Sequence[Reject], sources: Sequence[Source]) -> None:
    """Stop where more than the allowed share of the wanted persons is lost."""
    lost = sum(reject.persons for reject in rejects)
    parsed = sum(reject.persons for source in sources for reject in source.rejects)
    total = sum(source.num_wanted for source in sources) + parsed
    if lost <= config.max_reject_share * total:
        return
    reasons: Counter[str] = Counter()
    for reject in rejects:
        reasons[reject.reason] += reject.persons
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common() if count)
    raise ValueError(
        f"{lost} of {total} persons are rejected, more than max_reject_share={config.max_reject_share:g} allows: "
        f"{counts}; mend the source or raise max_reject_share. {explained(_named(rejects, sources))}"
    )


def _named(rejects: Sequence[Reject], sources: Sequence[Source]) -> list[Reject]:
    """Rejects with the names of their images."""
    names = {image.image_id: image.file_name for source in sources for image in source.content.images}
    return [r if r.file_name or r.image_id not in names else replace(r, file_name=names[r.image_id]) for r in rejects]


def _work(
    config: PrepareConfig,
    settings: CropSettings,
    sources: Sequence[Source],
    plans: Sequence[ShardPlan],
    work: WorkDirectory,
) -> list[ShardResult]:
    """Write all shards that an earlier run has not finished; results in shard order."""
    results = work.finished(plans)
    if results:
        console.note(f"continuing: {len(results)} of {len(plans)} shards are there from an earlier run")
    total, done = sum(plan.num_images for plan in plans), sum(result.images for result in results)
    todo = [plan for plan in plans if plan.index not in {result.index for result in results}]
    arriving = run_plans(todo, settings, work.path, config.workers, config.cluster)
    began = time.perf_counter()
    rejects = [reject for source in sources for reject in source.rejects]
    with console.progress("preparing crops", total, unit="images", done=done) as advance:
        for result in arriving:
            results.append(result)
            rejects.extend(Reject(**{k: v for k, v in row.items() if k != "data_set"}) for row in result.rejects)
            _check_share(config, rejects, sources)
            advance(result.images)
    elapsed_s = time.perf_counter() - began
    if todo:
        console.note(f"{total - done} images in {elapsed_s:.1f} s ({(total - done) / elapsed_s:.0f} images/s)")
    return sorted(results, key=lambda result: result.index)


def _tell_noticed(sources: Sequence[Source], results: Sequence[ShardResult]) -> None:
    """What the images' files say beside their pixels, which annotations may have been made with in mind."""
    noticed: Counter[str] = Counter()
    for result in results:
        noticed.update(result.noticed)
    total = sum(result.images for result in results)
    tell_orientation(noticed["rotated"], total, upright=all(source.upright for source in sources))
    if animated := noticed["animated"]:
        console.warn(f"{animated} of {total} images hold several pictures (animations, pages): the first is used")


def _tell(config: PrepareConfig, store: CropStore) -> None:
    manifest = store.manifest
    size = manifest.shards.total_bytes + sum(record.bytes for record in manifest.tables)
    console.say(
        f"{config.out}: {console.counted(manifest.counts.persons, 'person')} of "
        f"{console.counted(manifest.counts.images_read, 'image')}, {manifest.skeleton.name}, {size / 1e6:.1f} MB, "
        f"digest {manifest.digest[:12]}"
    )
    if manifest.counts.crowds and not config.detections:
        console.say(f"  left out: crowds {manifest.counts.crowds}")
    for reason, count in manifest.rejects.items():
        console.say(f"  left out: {reason} {count}")
