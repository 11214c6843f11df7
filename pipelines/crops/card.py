"""README.md of a crop store: what its columns mean, for people, and which files are one table, for `datasets`.

The name and the front matter are those of Hugging Face's dataset cards: ``datasets.load_dataset(DIR)`` finds the
persons by them, where it would else try to read all tables as one.
"""

from __future__ import annotations

import json

import pyarrow as pa

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.manifest import FORMAT_VERSION, GROUND_TRUTH, IMAGES, REJECTS, Encoding
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, REJECTS_SCHEMA, person_schema

CARD = "README.md"
_CONFIGS = (("persons", "persons-*.parquet"), ("ground_truth", GROUND_TRUTH), ("images", IMAGES), ("rejects", REJECTS))


def card(skeleton: Skeleton, encoding: Encoding, persons: int) -> str:
    """The text for a store of ``persons`` rows; equal stores have equal ones."""
    configs = [
        f"- config_name: {name}\n  data_files: {files}" + ("\n  default: true" if name == "persons" else "")
        for name, files in _CONFIGS
    ]
    parts = [
        "---\nconfigs:\n" + "\n".join(configs) + "\n---",
        f"# {persons} persons, skeleton {skeleton.name}",
        f"One row of `persons-*.parquet` is one person; `image` is {_IMAGE[encoding.format]}. Joints, in the order of "
        f"`joints_px` and `visibility`: {', '.join(skeleton.joints)}. The centre of a picture's first pixel is (0, 0). "
        "`manifest.json` has digests, sources and settings.",
        column_table(person_schema(skeleton.num_joints)),
    ]
    for title, schema in (
        (GROUND_TRUTH, GROUND_TRUTH_SCHEMA), (IMAGES, IMAGES_SCHEMA), (REJECTS, REJECTS_SCHEMA),
    ):  # fmt: skip
        parts += [f"## {title}", column_table(schema)]
    return "\n\n".join(parts) + "\n"


_IMAGE = {"jpeg": "a JPEG file", "png": "a PNG file", "raw": "crop_height x crop_width x 3 bytes of RGB"}


def column_table(schema: pa.Schema) -> str:
    """The columns of a schema as a Markdown table: name, type, meaning."""
    rows = [f"| `{field.name}` | {_kind(field)} | {meaning(field)} |" for field in schema]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def meaning(field: pa.Field) -> str:
    """What a column's own metadata say it means; empty in stores from before they did."""
    text: bytes = (field.metadata or {}).get(b"description", b"")
    return text.decode()


def _kind(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type} x {kind.list_size}"
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def described(schema: pa.Schema, skeleton: Skeleton, encoding: Encoding) -> pa.Schema:
    """The person columns with what every shard says about all of them: joints, limbs, encoding, frame."""
    facts = {
        "format": f"efafnet crop store {FORMAT_VERSION}",
        "skeleton": skeleton.model_dump(mode="json"),
        "image": encoding.format,
        "frame": "pixels of the original image, x to the right, y down, the centre of the first pixel at (0, 0)",
    }
    return schema.with_metadata({"efafnet": json.dumps(facts, ensure_ascii=False)})
