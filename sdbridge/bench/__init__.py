"""``sdbridge bench``: what each case measures, a file per area. docs/performance.md is made from it."""
