"""A small generated database: shops, products, customers, purchases and reviews, two years long.

A customer buys at a rate of their own, which falls after products of low quality and recovers after good ones. The
entity's own columns say nothing of either: the rate stands in the history of purchases (one link away), the quality in
the products that were bought (two links away).
"""

from functools import lru_cache

import numpy as np

from etude.data.kinds_relational import RelationalDatabase

__all__ = ["SHOP_TASKS", "SHOP_TIMES", "shop_database"]

_START = np.datetime64("2022-01-01")
SHOP_TIMES = {"val_timestamp": "2023-05-01", "test_timestamp": "2023-08-01"}

SHOP_TASKS = {
    "churn": {
        "kind": "binary",
        "timedelta": "30d",
        "sql": """
            SELECT customer_id, CAST(count(*) FILTER (placed_at > :cutoff) = 0 AS INTEGER) AS target
            FROM purchase
            WHERE placed_at > CAST(:cutoff AS TIMESTAMP) - INTERVAL 60 DAY AND placed_at <= :horizon
            GROUP BY customer_id HAVING count(*) FILTER (placed_at <= :cutoff) > 0""",
    },
    "spending": {
        "kind": "regression",
        "timedelta": "30d",
        "sql": """
            SELECT customer_id, coalesce(sum(amount) FILTER (placed_at > :cutoff), 0) AS target
            FROM purchase
            WHERE placed_at > CAST(:cutoff AS TIMESTAMP) - INTERVAL 60 DAY AND placed_at <= :horizon
            GROUP BY customer_id HAVING count(*) FILTER (placed_at <= :cutoff) > 0""",
    },
    "baskets": {
        "kind": "recommendation",
        "timedelta": "30d",
        "sql": """
            SELECT DISTINCT customer_id, product_id FROM purchase
            WHERE placed_at > :cutoff AND placed_at <= :horizon""",
    },
}
"""Questions about the customers, as arguments of `EntityTask`."""

_CATEGORIES = ("bread", "cheese", "fruit", "tea", "wine")
_CITIES = ("Bergen", "Ghent", "Porto", "Turin", "Uppsala", "Zurich")


@lru_cache(maxsize=4)
def shop_database(customers: int = 400, days: int = 720, seed: int = 0) -> RelationalDatabase:
    """Draws the database; the same arguments give the same one.

    Args:
        customers: how many.
        days: how long, from 2022-01-01.
        seed: of all draws.
    """
    import pandas as pd

    if customers < 1 or days < 1:
        raise ValueError(f"customers and days must be positive, got {customers} and {days}")
    rng = np.random.default_rng(seed)
    shops, products = 12, 60
    quality = rng.normal(size=products)
    shop = pd.DataFrame({"id": [f"shop-{i}" for i in range(shops)], "city": rng.choice(_CITIES, shops)})
    product = pd.DataFrame({
        "id": np.arange(100, 100 + products),
        "shop_id": [f"shop-{i}" for i in rng.integers(0, shops, products)],
        "category": rng.choice(_CATEGORIES, products),
        "price": np.round(np.exp(rng.normal(2.0, 0.5, products)), 2),
        "rating": np.round(3 + quality + rng.normal(0, 0.3, products), 1),
    })  # fmt: skip
    customer = pd.DataFrame({
        "id": np.arange(customers),
        "region": rng.choice(["north", "south", "east", "west"], customers),
        "born": pd.to_datetime("1950-01-01") + pd.to_timedelta(rng.integers(0, 18_000, customers), unit="D"),
        "referred_by": pd.array([None if r < 0 else r for r in _referrers(rng, customers)], dtype="Int64"),
    })  # fmt: skip
    taste = rng.dirichlet(np.full(len(_CATEGORIES), 0.5), customers)
    by_category = product["category"].map(_CATEGORIES.index).to_numpy()
    weight = taste[:, by_category]
    weight = np.cumsum(weight / weight.sum(1, keepdims=True), axis=1)

    rate = np.exp(rng.normal(-2.9, 0.3, customers))
    mood = np.zeros(customers)
    bought: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for day in range(days):
        buyers = np.flatnonzero(rng.random(customers) < np.clip(rate * np.exp(mood), 0, 0.8))
        chosen = (rng.random(len(buyers))[:, None] > weight[buyers]).sum(1).clip(max=products - 1)
        mood *= 0.99
        mood[buyers] = 0.8 * mood[buyers] + 0.8 * quality[chosen]
        bought.append((np.full(len(buyers), day), buyers, chosen))
    when, buyer, chosen = (np.concatenate(part) for part in zip(*bought))
    second = rng.integers(8 * 3600, 20 * 3600, len(when))
    placed = _START.astype("datetime64[s]") + (when * 86_400 + second).astype("timedelta64[s]")
    quantity = rng.integers(1, 4, len(when))
    purchase = pd.DataFrame({
        "id": np.arange(len(when)),
        "customer_id": buyer,
        "product_id": product["id"].to_numpy()[chosen],
        "placed_at": placed,
        "quantity": quantity,
        "amount": np.round(quantity * product["price"].to_numpy()[chosen], 2),
    })  # fmt: skip
    reviewed = np.flatnonzero(rng.random(len(when)) < 0.2)
    stars = np.clip(np.round(3 + quality[chosen[reviewed]] + rng.normal(0, 0.7, len(reviewed))), 1, 5)
    review = pd.DataFrame({
        "id": np.arange(len(reviewed)),
        "purchase_id": reviewed,
        "written_at": placed[reviewed] + rng.integers(3600, 10 * 86_400, len(reviewed)).astype("timedelta64[s]"),
        "stars": stars.astype(int),
        "text": [f"{_words(s)} {_CATEGORIES[c]}" for s, c in zip(stars, by_category[chosen[reviewed]])],
    })  # fmt: skip
    return RelationalDatabase.from_frames(
        {"shop": shop, "product": product, "customer": customer, "purchase": purchase, "review": review},
        primary_keys={"shop": "id", "product": "id", "customer": "id", "purchase": "id", "review": "id"},
        foreign_keys={
            "product": {"shop_id": "shop"},
            "customer": {"referred_by": "customer"},
            "purchase": {"customer_id": "customer", "product_id": "product"},
            "review": {"purchase_id": "purchase"},
        },
        time_columns={"purchase": "placed_at", "review": "written_at"},
        name="shops",
    )


def _referrers(rng: np.random.Generator, customers: int) -> np.ndarray:
    """An earlier customer for one in three; -1 otherwise."""
    earlier = (rng.random(customers) * np.arange(customers)).astype(int)
    return np.where((rng.random(customers) < 1 / 3) & (np.arange(customers) > 0), earlier, -1)


def _words(stars: float) -> str:
    return ("awful", "poor", "decent", "good", "splendid")[int(stars) - 1]
