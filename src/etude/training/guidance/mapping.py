"""Which layer of a guide guides which layer of a target of another depth.

Guide layer i of n goes with target layer

    min(round(i (m - 1) / (n - 1)), m - 1)    of m;    the only layer of a guide with the first                (1)

where halves round to even, as in Python.
"""

__all__ = ["layer_map"]


def layer_map(n_guide: int, n_target: int) -> list[int]:
    """The target layer of each guide layer, Eq. (1).

        layer_map(5, 10)          # [0, 2, 4, 7, 9]

    Args:
        n_guide: number of layers of the guide, at least 1. More than `n_target` fall on shared target layers.
        n_target: number of layers of the target, at least 1.

    Raises:
        ValueError: if a number is not positive.
    """
    if n_guide < 1 or n_target < 1:
        raise ValueError(f"both must have a layer to compare, got {n_guide} of the guide and {n_target} of the target")
    if n_guide == 1:
        return [0]
    step = (n_target - 1) / (n_guide - 1)
    return [min(round(index * step), n_target - 1) for index in range(n_guide)]
