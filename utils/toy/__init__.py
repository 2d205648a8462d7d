"""The toy world: cartoon scenes in the official layouts, and the recipe of the toy base weights."""
