"""Which sizes of images a network takes. Nothing here imports torch before a network of timm is asked about."""

from functools import cache

PAPER_NETWORKS = ("alexnet", "vgg16")
USUAL_STEP = 32  # px, of networks that have no patches but cannot take every size


@cache
def only_size(name: str, wanted: int) -> int | None:
    """The size of the images, px, where the network ``name`` is built for one size and sees nothing else; else None.

    Such networks are transformers and their like. It is the nearest to ``wanted`` that whole patches cover; or where
    such a network cannot be made, the one that timm publishes. For the paper's networks it is what was ``wanted``.
    """
    if name in PAPER_NETWORKS:
        return wanted
    if not name.startswith("timm:"):
        return None
    # Here and not above: the import takes a second or more.
    import timm

    short = name.removeprefix("timm:")
    try:
        config = timm.get_pretrained_cfg(short) if timm.is_model(short) else None
    except RuntimeError:  # a tag that this model does not have: for ``build`` to say
        config = None
    if config is None or not config.fixed_input_size:
        return None
    patch = _patch_size(short)
    step = patch or USUAL_STEP
    nearest = step * max(1, int(wanted / step + 0.5))
    published = int(config.input_size[-1])
    return nearest if patch or nearest == published or _takes(short, nearest) else published


def _patch_size(name: str) -> int | None:
    import timm

    from deepcluster.nets.shapes import shapes_only

    with shapes_only():
        model = timm.create_model(name, num_classes=0)
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return int(max(size) if isinstance(size, tuple | list) else size) if size else None


def _takes(name: str, size: int) -> bool:
    import timm
    import torch

    from deepcluster.nets.shapes import shapes_only

    try:
        with shapes_only(), torch.no_grad():
            timm.create_model(name, num_classes=0, img_size=size).eval()(torch.zeros(1, 3, size, size))
    except Exception:  # whatever a network does not like
        return False
    return True
