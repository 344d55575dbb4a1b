"""Full-weight deltas: every tensor that differs from the base, kept as the difference.

    portllm_delta.json   {"format": 1, "base_model_name_or_path": ..., "revision": ...}
    delta.safetensors    or shards, named by delta.safetensors.index.json

The tensors have the names of the base's own. Their values are W_tuned - W_base, as F32 where
`porting.subtract` wrote them; a tensor that is left out did not change.
"""

from porting.base.layout import FLOATS, read_layout
from porting.errors import Refused
from porting.patch.adapter import DELTA_CONFIG, Adapter
from porting.patch.updates import Addend
from porting.source import Source, read_json

WEIGHTS = "delta.safetensors"
FORMAT = 1
FIELDS = ("base_model_name_or_path", "revision")


def read_full(source: Source) -> Adapter:
    """Read `portllm_delta.json` and the header of `delta.safetensors` or of its shards.

    Returns:
        An adapter of kind `full`, class A, with one `Addend` for every tensor.

    Raises:
        Refused: another format, a field that is not known, or tensors that can't be added.
    """
    config = read_json(source, DELTA_CONFIG)
    where = f"{DELTA_CONFIG} in {source.name}"
    if config.get("format") != FORMAT or type(config["format"]) is not int:
        raise Refused(
            f"{where}: format is {config.get('format')!r}, not {FORMAT}; extract the delta again"
        )
    for field in sorted(config.keys() - {"format"}):
        if field not in FIELDS or not isinstance(config[field], str | None):
            raise Refused(
                f"{where}: {field} must not be {config[field]!r}; extract the delta again"
            )
    layout = read_layout(source, WEIGHTS)
    for tensor in layout.tensors.values():
        if tensor.dtype not in FLOATS or 0 in tensor.shape:
            raise Refused(
                f"{tensor.file} in {source.name}: {tensor.name!r} is {tensor.dtype} of shape "
                f"{tensor.shape}, which can't be added to a weight; extract the delta again"
            )
    if not layout.tensors:
        raise Refused(f"{WEIGHTS} in {source.name} holds no tensor; extract the delta again")
    return Adapter(
        config=config,
        kind="full",
        portability="A",
        reason="it is added to the base",
        base_repo=config.get("base_model_name_or_path"),
        base_revision=config.get("revision"),
        layout=layout,
        updates=tuple(Addend(name, tensor) for name, tensor in layout.tensors.items()),
        config_file=DELTA_CONFIG,
    )
