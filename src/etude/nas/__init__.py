"""Neural architecture search: spaces, searchers, predictors and transformations of networks."""
