"""Coupled groups of the models, declared by hand: what tracing has to find."""

from mvp_jax.core.units import Group, Slot
from mvp_jax.models.api import Model
from mvp_jax.models.resnet import ResNetConfig
from mvp_jax.models.vit import ViTConfig


def _made(conv: str, norm: str) -> tuple[Slot, ...]:
    """The producing side of a filter: its kernel's last axis and everything of its norm."""
    return (
        Slot(path=f"{conv}/kernel", axis=3, scored=True),
        Slot(path=f"{norm}/scale", axis=0, scored=True),
        Slot(path=f"{norm}/bias", axis=0, scored=True),
        Slot(path=f"{norm}/mean", axis=0, collection="rest"),
        Slot(path=f"{norm}/var", axis=0, collection="rest"),
    )


def resnet(config: ResNetConfig) -> tuple[Group, ...]:
    streams = config.streams()
    widths = dict(zip(streams, (config.stem_width, *config.stage_widths), strict=True))
    slots: dict[str, list[Slot]] = {name: [] for name in streams if name is not None}
    inner: dict[str, list[Group]] = {f"stages/{s}": [] for s in range(len(config.stage_widths))}
    if streams[0] is not None:
        slots[streams[0]] += _made("stem/conv", "stem/norm")
    for s, stage in enumerate(config.inner_widths):
        for b, block in enumerate(stage):
            path = f"stages/{s}/blocks/{b}"
            source, target = streams[s] if b == 0 else streams[s + 1], streams[s + 1]
            if source is not None:
                slots[source].append(Slot(path=f"{path}/conv1/kernel", axis=2))
            if b == 0 and config.projections[s]:
                assert source is not None
                assert target is not None
                slots[source].append(Slot(path=f"{path}/shortcut/conv/kernel", axis=2))
                slots[target] += _made(f"{path}/shortcut/conv", f"{path}/shortcut/norm")
            for j, width in enumerate(block, start=1):
                made = _made(f"{path}/conv{j}", f"{path}/norm{j}")
                used = Slot(path=f"{path}/conv{j + 1}/kernel", axis=2)
                inner[f"stages/{s}"].append(Group(name=f"{path}/conv{j}", size=width, slots=(*made, used)))
            if target is not None:
                last = len(block) + 1
                slots[target] += _made(f"{path}/conv{last}", f"{path}/norm{last}")
    if streams[-1] is not None:
        slots[streams[-1]].append(Slot(path="head/kernel", axis=0 if config.pool == 1 else 2))
    groups: list[Group] = []
    if "stem/conv" in slots:
        groups.append(Group(name="stem/conv", size=config.stem_width, slots=tuple(slots["stem/conv"])))
    for name, filters in inner.items():
        if name in slots:
            groups.append(Group(name=name, size=widths[name], slots=tuple(slots[name]), kind="stage"))
        groups += filters
    return tuple(groups)


def vit(config: ViTConfig) -> tuple[Group, ...]:
    groups = []
    for i in range(len(config.heads)):
        a = f"layers/{i}/attention"

        def made(names: tuple[str, ...], axis: int, a: str = a) -> tuple[Slot, ...]:
            """Kernel `[D, H, d]` and bias `[H, d]` of the projections that make the units."""
            return tuple(
                slot
                for name in names
                for slot in (
                    Slot(path=f"{a}/{name}/kernel", axis=axis, scored=True),
                    Slot(path=f"{a}/{name}/bias", axis=axis - 1, scored=True),
                )
            )

        out = f"{a}/out/kernel"
        groups += [
            Group(
                name=a,
                size=config.heads[i],
                slots=(*made(("query", "key", "value"), 1), Slot(path=out, axis=0)),
                kind="head",
            ),
            Group(name=f"{a}/query", size=config.qk_dim[i], slots=made(("query", "key"), 2), kind="qk"),
            Group(
                name=f"{a}/value",
                size=config.v_dim[i],
                slots=(*made(("value",), 2), Slot(path=out, axis=1)),
                kind="value",
            ),
            Group(
                name=f"layers/{i}/fc1",
                size=config.mlp[i],
                slots=(
                    Slot(path=f"layers/{i}/fc1/kernel", axis=1, scored=True),
                    Slot(path=f"layers/{i}/fc1/bias", axis=0, scored=True),
                    Slot(path=f"layers/{i}/fc2/kernel", axis=0),
                ),
                kind="neuron",
            ),
        ]
    return tuple(groups)


def groups(model: Model) -> tuple[Group, ...]:
    """Of a model of either family."""
    return resnet(model.config) if isinstance(model.config, ResNetConfig) else vit(model.config)
